// HeldRows: a base's rows in the numbers that a BaseStorage gives them: its file's own, or those of a
// matrix that is quantised as it is loaded, dequantised again.
#pragma once

#include <memory>
#include <vector>

#include "modelfile/base_precision.h"
#include "modelfile/host_planes.h"

namespace lk {

class ModelFile;

class HeldRows {
 public:
  // `file` must outlive this. Throws UsageError as held_formats() does.
  HeldRows(const ModelFile& file, const BaseStorage& storage);
  // Whether any matrix has other numbers than its file.
  bool changes() const;
  // As ModelFile::read_rows(). A quantised matrix is held, as codes, until another one is asked for.
  void read(const WeightSlot& slot, std::int64_t begin, std::int64_t end, float* dst);

 private:
  const ModelFile& file_;
  std::vector<HeldFormat> formats_;  // of file_.slots(); only those of our own quantising
  std::unique_ptr<HostPlanes> planes_;
  std::string name_;  // of the matrix in planes_
};

}  // namespace lk
