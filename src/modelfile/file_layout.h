// FileLayout: how a model file holds the model's tensors, and the way from its order to ours and
// back. Ours is Hugging Face's naming with matrices as (out, in) and rotary pairs half a head
// apart.
//
// GGUF's llama stores the rows of q and k so that a rotary pair is adjacent: within a head of size
// D, stored row 2i + p is our (and Hugging Face's) row p * D/2 + i. GPT-2's folders store
// projections as (in, out), Gemma's a norm's gain less 1.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/tensor_reader.h"
#include "modelfile/family_files.h"
#include "nn/model_weights.h"

namespace lk {

inline constexpr const char* kFolderHead = "lm_head.weight";  // of every family

// A tensor as the file holds it.
struct StoredTensor {
  std::string name;
  Shape shape;
  std::int64_t pair_rows = 0;  // head size D if the rows are stored in pairs, else 0
  bool transposed = false;     // (in, out)
  bool minus_one = false;      // a gain less 1

  // Rows of `cols` values (of a vector: one value each) from the file's order to ours and back:
  // whole heads if the rows are paired, the whole matrix if it is transposed. Gains are left as
  // they are: see gain_shift().
  void to_ours(std::vector<float>& values, std::int64_t cols) const;
  void to_stored(std::vector<float>& values, std::int64_t cols) const;
};

struct FileLayout {
  const Family* family;
  const FamilyFiles* files;
  std::int64_t head_dim;
  bool gguf;                        // else a Hugging Face folder
  std::string skipped_prefix = {};  // a prefix of Hugging Face's names that the file leaves out
  bool head_is_table = false;       // a tied model's embedding has the head's name

  StoredTensor find(const WeightSlot& slot) const;
};
FileLayout gguf_layout(const ModelConfig& config);
// The layout in which we write a folder.
FileLayout folder_layout(const ModelConfig& config);
// The layout of a folder's tensors: the first files of GPT-2 name them without "transformer.", and
// safetensors' save_model() keeps of two names of one tensor the first in the alphabet, lm_head.weight.
FileLayout folder_layout(const ModelConfig& config, const TensorReader& reader);

// The number to add to a gain that `from` stores to get the gain that `to` stores: -1, 0 or 1.
float gain_shift(const StoredTensor& from, const StoredTensor& to);

// to (cols, rows) = the transpose of from (rows, cols); they must not overlap.
void transpose(std::span<const float> from, std::int64_t rows, std::int64_t cols, float* to);

// to = the rows of `from` with rotary pairs half a head apart instead of adjacent. `from`: whole
// heads of `head_dim` rows, each row `cols` items (1 for a bias): values, or bytes of blocks. They
// must not overlap.
template <class T>
void pairs_to_halves(std::span<const T> from, std::int64_t head_dim, std::int64_t cols, T* to) {
  const std::int64_t n = static_cast<std::int64_t>(from.size()) / cols, half = head_dim / 2;
  for (std::int64_t row = 0; row < n; ++row) {
    const std::int64_t head = row / head_dim, p = row % head_dim / half, i = row % half;
    const T* stored = from.data() + (head * head_dim + 2 * i + p) * cols;
    std::copy(stored, stored + cols, to + row * cols);
  }
}

}  // namespace lk
