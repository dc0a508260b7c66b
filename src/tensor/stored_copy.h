// StoredCopy: a tensor's bytes in other memory, and on their way there and back, concurrent with the
// device's other work. Made by Backend::offload() in host memory and by Backend::shard() on several
// devices; the Backend outlives it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>

namespace lk {

class Tensor;

class StoredCopy {
 public:
  virtual ~StoredCopy() = default;
  // Work submitted from here on may overwrite what was copied.
  virtual void sent() = 0;
  // Starts to copy the bytes into `to`, a tensor of the same shape, dtype and margin, once the work
  // submitted so far is done. Call it after sent(), as often as the bytes are needed. Copies into
  // the same memory follow each other, so one that nobody waits for may be followed by another's.
  virtual void fetch(const Tensor& to) = 0;
  // Work submitted from here on finds the bytes in the tensor given to the last fetch().
  virtual void arrived() = 0;
};

// The bytes [begin, end) of a tensor that process `rank` of `size` keeps: from a multiple of 256 on, the
// same number for each but the last ones, which may have fewer or none.
struct ShardRange {
  std::size_t begin = 0, end = 0;
  std::size_t size() const { return end - begin; }
};
inline ShardRange shard_range(std::size_t bytes, int rank, int size) {
  const auto n = static_cast<std::size_t>(size), r = static_cast<std::size_t>(rank);
  const std::size_t each = (bytes + n * 256 - 1) / (n * 256) * 256;
  return {std::min(r * each, bytes), std::min((r + 1) * each, bytes)};
}

// One of which each of several processes of a machine keeps a part on its device. All have the same
// bytes; fetch() reads the others' parts, whatever they do meanwhile, once they are known by name.
class ShardedCopy : public StoredCopy {
 public:
  // How the other processes find this one's part. Its bytes are there: waits for the device.
  virtual std::string name() = 0;
  // The names of all parts, by rank. From now on none may be given up while another process fetches.
  // Throws UsageError if a process's memory can't be read from here.
  virtual void open(std::span<const std::string> names) = 0;
};

}  // namespace lk
