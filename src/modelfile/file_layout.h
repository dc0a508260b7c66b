// FileLayout: how a model file has the model's tensors, and the way from its order to ours and
// back. Ours is Hugging Face's naming with matrices as (out, in) and rotary pairs half a head
// apart.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/tensor_reader.h"
#include "nn/model_weights.h"

namespace lk {

// A tensor as the file has it.
struct StoredTensor {
  std::string name;
  Shape shape;
  std::int64_t pair_rows = 0;  // head size D if the rows are stored in pairs, else 0
  bool transposed = false;     // (in, out)
  bool minus_one = false;      // a gain less 1

  // Rows of `cols` values (a vector: one row for each value) from the file's order to ours and
  // back: whole heads if the rows are paired, the whole matrix if it is transposed. Gains are left
  // as they are: see gain_shift().
  void to_ours(std::vector<float>& values, std::int64_t cols) const;
  void to_stored(std::vector<float>& values, std::int64_t cols) const;
};

struct FileLayout {
  const Family* family;
  std::int64_t head_dim;
  bool gguf;                        // else a Hugging Face folder
  std::string skipped_prefix = {};  // of Hugging Face's names, which the file does without

  StoredTensor find(const WeightSlot& slot) const;
};
FileLayout gguf_layout(const ModelConfig& config);
// As we write a folder; and as the files of one have it: GPT-2's first ones name a part of the
// model, "h.0.ln_1.weight".
FileLayout folder_layout(const ModelConfig& config);
FileLayout folder_layout(const ModelConfig& config, const TensorReader& reader);

// What to add to a gain as `from` stores it to have it as `to` does: -1, 0 or 1.
float gain_shift(const StoredTensor& from, const StoredTensor& to);

// to (cols, rows) = from (rows, cols), turned; they must not overlap.
void transpose(const std::vector<float>& from, std::int64_t rows, std::int64_t cols,
               std::vector<float>& to);

}  // namespace lk
