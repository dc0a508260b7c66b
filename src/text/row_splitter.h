// RowSplitter: cuts the text of a file into its rows, one class for each container.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "text/data_file.h"

namespace lk {

class RowSplitter {
 public:
  virtual ~RowSplitter() = default;
  // Takes the next piece of the text. Returns whether more is wanted.
  virtual bool add(std::string_view piece) = 0;
  // The text ends here. InputError if the container is not complete.
  virtual void end() = 0;
};

// Rows are visited as soon as they are complete. `name` and `visit` must outlive the splitter.
std::unique_ptr<RowSplitter> split_lines(const std::string& name, const RawRowVisitor& visit);
std::unique_ptr<RowSplitter> split_array(const std::string& name, const RawRowVisitor& visit);
std::unique_ptr<RowSplitter> split_csv(const std::string& name, char separator,
                                       const RawRowVisitor& visit);

}  // namespace lk
