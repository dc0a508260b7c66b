#include "modelfile/weight_hash.h"

#include <algorithm>

#include "tensor/backend.h"

namespace lk {

RowHashes::RowHashes(const Shape& shape, DType dtype)
    : row_bytes_(dtype_size(dtype) *
                 static_cast<std::size_t>(shape.rank() == 2 ? shape.cols() : shape.numel())),
      digests_(static_cast<std::size_t>(shape.rank() == 2 ? shape.rows() : 1)) {}

void RowHashes::take(std::int64_t first, std::int64_t last, const std::byte* from) {
  for (std::int64_t row = first; row < last; ++row, from += row_bytes_) {
    Sha256 hash;
    hash.update(from, row_bytes_);
    digests_[static_cast<std::size_t>(row)] = hash.digest();
  }
}

Sha256::Digest RowHashes::digest() const {
  Sha256 hash;
  hash.update(digests_.data(), digests_.size() * sizeof(Sha256::Digest));
  return hash.digest();
}

// Rows that have gaps between them are copied to blocks that have none.
RowHashes hash_rows(const Tensor& t) {
  RowHashes hashes(t.shape(), t.dtype());
  if (t.bytes() == 0) return hashes;
  auto take = [&](const Tensor& block, std::int64_t begin) {
    block.backend().look_at(block, hashes.row_bytes(),
                            [&](std::int64_t first, std::int64_t last, const std::byte* from) {
                              hashes.take(begin + first, begin + last, from);
                            });
  };
  if (t.contiguous()) {
    take(t, 0);
    return hashes;
  }
  const std::int64_t step =
      std::max<std::int64_t>(1, kWeightBlockBytes / static_cast<std::int64_t>(hashes.row_bytes()));
  for (std::int64_t begin = 0; begin < t.rows(); begin += step)
    take(dense(t.slice_rows(begin, std::min(begin + step, t.rows()))), begin);
  return hashes;
}

std::string tensor_sha256(const Tensor& t) { return sha256_hex(hash_rows(t).digest()); }

void WeightsHash::add(const std::string& name, const RowHashes& rows) {
  all_.update(name.c_str(), name.size() + 1);  // the terminating zero keeps name and hash apart
  const Sha256::Digest digest = rows.digest();
  all_.update(digest.data(), digest.size());
}

void WeightsHash::add(const Weight& weight) {
  if (!weight.quantised()) return add(weight.name(), hash_rows(weight.values()));
  check(weight.has_values(), weight.name(), ": packed for inference, and not hashed");
  for (const Tensor& plane : weight.quantised()->planes)
    if (plane) add(weight.name() + ":" + weight.quantised()->format.name(), hash_rows(plane));
}

std::string weights_sha256(const ModelWeights& weights) {
  WeightsHash all;
  visit_weights(weights, [&](const Weight& weight) { all.add(weight); });
  return all.hex();
}

}  // namespace lk
