#include "modelfile/weight_loader.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>
#include <vector>

#include "modelfile/rotary_rows.h"
#include "tensor/parts.h"

namespace lk {
namespace {

// Finite is whose exponent is not all ones. Written to be vectorised: eight times as fast as a loop
// that gathers a bool.
template <class Bits, Bits kExponent>
bool all_finite_bits(const std::byte* data, std::size_t bytes) {
  Bits found = 0;
  for (std::size_t i = 0; i < bytes / sizeof(Bits); ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * sizeof bits, sizeof bits);
    found |= static_cast<Bits>((bits & kExponent) == kExponent);
  }
  return found == 0;
}
bool all_finite_stored(DType t, const std::byte* data, std::size_t bytes) {
  return t == DType::BF16 ? all_finite_bits<std::uint16_t, 0x7f80>(data, bytes)
                          : all_finite_bits<std::uint32_t, 0x7f800000>(data, bytes);
}
bool all_finite(std::span<const float> values) {
  const auto bytes = std::as_bytes(values);
  return all_finite_stored(DType::F32, bytes.data(), bytes.size());
}

template <class T>
void split_pairs(std::vector<T>& values, std::int64_t head_dim, std::int64_t size) {
  std::vector<T> halves(values.size());
  pairs_to_halves(values, head_dim, size, halves.data());
  values.swap(halves);
}

}  // namespace

bool WeightSource::ignorable(const std::string& name) const {
  if (layout.gguf) return name == "rope_freqs.weight";
  return name.ends_with("rotary_emb.inv_freq") ||
         (layout.family->conv1d &&
          (name.ends_with(".attn.bias") || name.ends_with(".masked_bias")));
}

const GgmlType* WeightLoader::kept_type(const WeightSlot& slot) const {
  if (storage_ == WeightStorage::Dense || slot.shape.rank() != 2) return nullptr;
  const StoredTensor stored = source_.layout.find(slot);
  if (stored.transposed || stored.minus_one) return nullptr;
  const GgmlType* type = source_.reader->quantised_type(stored.name);
  return type && backend_.keeps_quantised(*type) ? type : nullptr;
}

std::int64_t WeightLoader::bytes(const WeightSlot& slot) const {
  if (const GgmlType* type = kept_type(slot)) return slot.shape[0] * type->row_bytes(slot.shape[1]);
  return slot.shape.numel() * static_cast<std::int64_t>(dtype_size(dtype_));
}

Weight WeightLoader::load(const WeightSlot& slot, RowHashes* hashes) {
  if (const GgmlType* type = kept_type(slot)) {
    check(!hashes, slot.name, ": blocks are for inference, and are not hashed");
    return Weight(slot.name, load_blocks(slot, *type), slot.shape, *type, dtype_);
  }
  return Weight(slot.name, load_dense(slot, hashes));
}

void WeightLoader::check_finite(const std::string& name, bool finite) const {
  if (!finite)
    throw InputError(
        concat(source_.reader->path(), ": tensor ", name, " holds a number that is not finite"));
}

// Rows as the file has them. They are dequantised too, to see that all values are finite.
Tensor WeightLoader::load_blocks(const WeightSlot& slot, const GgmlType& type) const {
  const std::int64_t rows = slot.shape[0], cols = slot.shape[1], row_bytes = type.row_bytes(cols);
  Tensor tensor = backend_.empty(Tag::Weights, DType::U8, {rows, row_bytes});
  const StoredTensor stored = source_.layout.find(slot);
  const std::int64_t unit = std::max<std::int64_t>(1, stored.pair_rows);  // rows
  backend_.upload_made(
      tensor, static_cast<std::size_t>(unit * row_bytes),
      [&](std::int64_t first, std::int64_t last, std::byte* to) {
        const std::int64_t n = (last - first) * unit;
        std::vector<std::uint8_t> blocks(static_cast<std::size_t>(n * row_bytes));
        source_.reader->read_stored(stored.name, first * unit, last * unit, blocks.data());
        std::vector<float> row(static_cast<std::size_t>(cols));
        for (std::int64_t i = 0; i < n; ++i) {
          type.decode(blocks.data() + i * row_bytes, cols / type.block_values, row.data());
          check_finite(stored.name, all_finite(row));
        }
        if (stored.pair_rows) split_pairs(blocks, stored.pair_rows, row_bytes);
        std::memcpy(to, blocks.data(), blocks.size());
      });
  return tensor;
}

// Units are rows, or whole heads where rows are in pairs. Bytes that are stored as they are wanted
// go straight to where the device takes them.
Tensor WeightLoader::load_dense(const WeightSlot& slot, RowHashes* hashes) {
  Tensor tensor = backend_.empty(Tag::Weights, dtype_, slot.shape);
  const StoredTensor stored = source_.layout.find(slot);
  if (stored.transposed) {
    load_transposed(stored.name, tensor);
    if (hashes) *hashes = hash_rows(tensor);
    return tensor;
  }
  // A vector is one row to the reader; a bias of q or k is permuted by element.
  const bool vector = slot.shape.rank() == 1;
  const std::int64_t cols = vector ? 1 : slot.shape[1];
  const std::int64_t unit =
      vector ? slot.shape[0] : std::max<std::int64_t>(1, stored.pair_rows);  // rows
  const bool as_stored =
      !stored.pair_rows && !stored.minus_one && source_.reader->plain_type(stored.name) == dtype_;
  const std::size_t unit_bytes = static_cast<std::size_t>(unit * cols) * dtype_size(dtype_);
  backend_.upload_made(
      tensor, unit_bytes, [&](std::int64_t first, std::int64_t last, std::byte* to) {
        const std::int64_t begin = vector ? 0 : first * unit, end = vector ? 1 : last * unit;
        const std::size_t n = static_cast<std::size_t>((last - first) * unit * cols);
        if (as_stored) {
          source_.reader->read_stored(stored.name, begin, end, reinterpret_cast<std::uint8_t*>(to));
          check_finite(stored.name, all_finite_stored(dtype_, to, n * dtype_size(dtype_)));
        } else {
          std::vector<float> values(n);
          source_.reader->read_rows(stored.name, begin, end, values.data());
          check_finite(stored.name, all_finite(values));
          if (stored.pair_rows) split_pairs(values, stored.pair_rows, cols);
          if (stored.minus_one)
            for (float& v : values) v += 1.0f;
          dispatch_float(dtype_, [&]<class T>() {
            T* rounded = reinterpret_cast<T*>(to);
            for (std::size_t i = 0; i < n; ++i) rounded[i] = static_cast<T>(values[i]);
          });
        }
        if (hashes) hashes->take(begin, end, to);
      });
  return tensor;
}

// A block of stored rows is a block of our columns.
void WeightLoader::load_transposed(const std::string& name, const Tensor& tensor) {
  const std::int64_t out = tensor.rows(), in = tensor.cols();
  const std::int64_t step = std::max<std::int64_t>(1, kWeightBlockBytes / (4 * out));
  for (std::int64_t begin = 0; begin < in; begin += step) {
    const std::int64_t end = std::min(begin + step, in), n = end - begin;
    values_.resize(static_cast<std::size_t>(n * out));
    transposed_.resize(values_.size());
    for_parts(n, (n + 15) / 16, [&](std::int64_t first, std::int64_t last) {
      std::span<float> part(values_.data() + first * out, values_.data() + last * out);
      source_.reader->read_rows(name, begin + first, begin + last, part.data());
      check_finite(name, all_finite(part));
    });
    transpose(values_, n, out, transposed_);
    Tensor block = n == in ? tensor : backend_.empty(Tag::Workspace, dtype_, {out, n});
    upload_rounded(backend_, block, transposed_);
    if (n != in) backend_.copy(tensor.slice_cols(begin, end), block);
  }
}

}  // namespace lk
