// From tensors in a file to Weights on a device: what load.cpp is made of.
#pragma once

#include <memory>
#include <string>

#include "io/tensor_reader.h"
#include "modelfile/file_layout.h"
#include "modelfile/load.h"
#include "modelfile/weight_hash.h"

namespace lk {

// A model file behind one interface, whatever its format.
struct WeightSource {
  std::unique_ptr<TensorReader> reader;
  FileLayout layout;
  std::string config_name;  // for messages

  // Tensors that may be there and are not weights: rotary frequencies, read with the config or
  // recomputed, and the causal masks in GPT-2's files.
  bool ignorable(const std::string& name) const;
};

// Streams tensors from a file to the device, all threads reading. Values must be finite: InputError
// names the file and the tensor.
class WeightLoader {
 public:
  WeightLoader(Backend& backend, const WeightSource& source, DType dtype, WeightStorage storage)
      : backend_(backend), source_(source), dtype_(dtype), storage_(storage) {}

  // Bytes in memory.
  std::int64_t bytes(const WeightSlot& slot) const;
  // `hashes`: takes the rows of a dense weight as they pass by, if not null.
  Weight load(const WeightSlot& slot, RowHashes* hashes = nullptr);

 private:
  // The type of the blocks in which the tensor stays, null if it becomes dense.
  const GgmlType* kept_type(const WeightSlot& slot) const;
  Tensor load_blocks(const WeightSlot& slot, const GgmlType& type) const;
  Tensor load_dense(const WeightSlot& slot, RowHashes* hashes);
  void load_transposed(const std::string& name, const Tensor& tensor);
  void check_finite(const std::string& name, bool finite) const;

  Backend& backend_;
  const WeightSource& source_;
  DType dtype_;
  WeightStorage storage_;
  std::vector<float> values_, transposed_;
};

}  // namespace lk
