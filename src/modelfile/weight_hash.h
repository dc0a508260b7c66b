// SHA-256 of tensors on a device, and of all weights of a model: proof that the base did not
// change.
//
// A tensor's hash is that of its rows' hashes, so that any number of threads can share the work and
// whoever moves a tensor can hash the rows that pass by: loading does (modelfile/load.h), and saves
// reading 13 GB back from the device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/sha256.h"
#include "nn/model_weights.h"
#include "tensor/tensor.h"

namespace lk {

// The hashes of a tensor's rows, taken in any order. A vector is one row. Meant for rows of a
// kilobyte and more: each costs a block of SHA-256 besides its own bytes, so 64 bytes cost four
// times as much for their length.
class RowHashes {
 public:
  // Makes room for the rows of a matrix (rows, cols) or a vector of `dtype`.
  RowHashes(const Shape& shape, DType dtype);
  std::size_t row_bytes() const { return row_bytes_; }
  // Hashes rows [first, last), whose bytes are at `from`. Several threads may call it at once, for
  // different rows.
  void take(std::int64_t first, std::int64_t last, const std::byte* from);
  // The tensor's hash, once every row was taken.
  Sha256::Digest digest() const;

 private:
  std::size_t row_bytes_;
  std::vector<Sha256::Digest> digests_;
};

// Hashes t's rows as they are on its device now, with all threads. t may have gaps between rows.
RowHashes hash_rows(const Tensor& t);
// The digest of hash_rows() as 64 hex digits.
std::string tensor_sha256(const Tensor& t);

// The hash of all weights: over each one's name and hash, in the order of weight_slots().
class WeightsHash {
 public:
  void add(const std::string& name, const RowHashes& rows);
  // Hashes a weight as it lies on its device: its values, or its codes and scales.
  void add(const Weight& weight);
  std::string hex() { return all_.hex(); }  // finishes; 64 hex digits

 private:
  Sha256 all_;
};
// Hashes the weights as they are on their device now; a tied head is not repeated. An Error if one
// is packed for inference.
std::string weights_sha256(const ModelWeights& weights);

}  // namespace lk
