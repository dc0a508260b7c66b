// LiveReport: report.html of a run, written anew as the run goes on.
#pragma once

#include <chrono>
#include <string>

#include "run/report.h"

namespace lk {

class LiveReport {
 public:
  explicit LiveReport(std::string folder) : folder_(std::move(folder)) {}
  // Whether it is time for a new page: some seconds after the last, and longer if a page takes long
  // to make, as that of a run of very many steps does.
  bool is_due() const;
  // Writes the page, with the curves of the folder's metrics.jsonl and the present time. Throws
  // InputError, IoError.
  void write(ReportInput input);

 private:
  using Clock = std::chrono::steady_clock;
  std::string folder_;
  Clock::time_point written_ = {};
  Clock::duration took_ = {};  // to make the last page
};

}  // namespace lk
