#include "modelfile/file_layout.h"

namespace lk {
namespace {

// The inverse of pairs_to_halves().
void halves_to_pairs(std::span<const float> from, std::int64_t head_dim, std::int64_t cols,
                     float* to) {
  const std::int64_t n = static_cast<std::int64_t>(from.size()) / cols, half = head_dim / 2;
  for (std::int64_t row = 0; row < n; ++row) {
    const std::int64_t head = row / head_dim, p = row % head_dim / half, i = row % half;
    std::copy(from.data() + row * cols, from.data() + (row + 1) * cols,
              to + (head * head_dim + 2 * i + p) * cols);
  }
}

}  // namespace

FileLayout gguf_layout(const ModelConfig& config) {
  return {&family_of(config), &files_of(config), config.head_dim, true};
}

FileLayout folder_layout(const ModelConfig& config) {
  return {&family_of(config), &files_of(config), config.head_dim, false};
}

FileLayout folder_layout(const ModelConfig& config, const TensorReader& reader) {
  FileLayout layout = folder_layout(config);
  if (reader.has("wte.weight") || reader.has("wpe.weight")) layout.skipped_prefix = "transformer.";
  WeightSlot table{};
  table.name = module_path(*layout.family, Role::Embedding) + ".weight";
  table.role = Role::Embedding;
  layout.head_is_table =
      config.tie_embeddings && reader.has(kFolderHead) && !reader.has(layout.find(table).name);
  return layout;
}

StoredTensor FileLayout::find(const WeightSlot& slot) const {
  StoredTensor stored;
  stored.shape = slot.shape;
  if (gguf) {
    stored.name = gguf_name(slot.name, *family);
    const bool rotated = slot.role == Role::Q || slot.role == Role::K;
    if (files->paired_rows && rotated) stored.pair_rows = head_dim;
    return stored;
  }
  stored.name = slot.name;
  if (stored.name.starts_with(skipped_prefix)) stored.name.erase(0, skipped_prefix.size());
  if (head_is_table && slot.role == Role::Embedding) stored.name = kFolderHead;
  stored.transposed = files->conv1d && slot.linear && slot.role != Role::Head;
  if (stored.transposed) stored.shape = Shape{slot.shape[1], slot.shape[0]};
  stored.minus_one = files->gain_minus_one && slot.shape.rank() == 1 && !slot.linear &&
                     slot.name.ends_with(".weight");
  return stored;
}

void StoredTensor::to_ours(std::vector<float>& values, std::int64_t cols) const {
  if (!transposed && pair_rows == 0) return;
  std::vector<float> ours(values.size());
  if (transposed)
    transpose(values, cols, std::ssize(values) / cols, ours.data());
  else
    pairs_to_halves<float>(values, pair_rows, cols, ours.data());
  values.swap(ours);
}

void StoredTensor::to_stored(std::vector<float>& values, std::int64_t cols) const {
  if (!transposed && pair_rows == 0) return;
  std::vector<float> theirs(values.size());
  if (transposed)
    transpose(values, std::ssize(values) / cols, cols, theirs.data());
  else
    halves_to_pairs(values, pair_rows, cols, theirs.data());
  values.swap(theirs);
}

float gain_shift(const StoredTensor& from, const StoredTensor& to) {
  return static_cast<float>(from.minus_one) - static_cast<float>(to.minus_one);
}

void transpose(std::span<const float> from, std::int64_t rows, std::int64_t cols, float* to) {
  constexpr std::int64_t kTile = 32;  // both sides of a tile stay in the first cache
#pragma omp parallel for if (rows * cols > std::int64_t{1} << 16)
  for (std::int64_t c0 = 0; c0 < cols; c0 += kTile)
    for (std::int64_t r0 = 0; r0 < rows; r0 += kTile)
      for (std::int64_t c = c0; c < std::min(c0 + kTile, cols); ++c)
        for (std::int64_t r = r0; r < std::min(r0 + kTile, rows); ++r)
          to[c * rows + r] = from[static_cast<std::size_t>(r * cols + c)];
}

}  // namespace lk
