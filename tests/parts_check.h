// Checks of Backend::upload_made() and look_at() that are the same for every device.
#pragma once

#include <atomic>
#include <cstring>
#include <vector>

#include "harness.h"
#include "tensor/backend.h"

namespace lk::test {

// Units made by many threads must lie where they belong, for work that is submitted next and for
// look_at(), which must see each unit once.
inline void check_parts(Backend& b, std::int64_t units, std::size_t size) {
  auto value = [](std::int64_t unit, std::size_t j) {
    return static_cast<std::byte>(static_cast<std::size_t>(unit) * 7 + j);
  };
  Tensor t = b.empty(Tag::Workspace, DType::U8, {units, static_cast<std::int64_t>(size)});
  b.upload_made(t, size, [&](std::int64_t first, std::int64_t last, std::byte* to) {
    for (std::int64_t i = first; i < last; ++i)
      for (std::size_t j = 0; j < size; ++j) *to++ = value(i, j);
  });
  // A copy on the device reads what was just sent: a GPU's stream waits for all of it.
  Tensor copy = b.empty(Tag::Workspace, DType::U8, t.shape());
  b.copy(copy, t);
  std::vector<std::byte> all(t.bytes());
  b.download(all.data(), copy, all.size());
  bool right = true;
  for (std::size_t k = 0; k < all.size(); ++k)
    right &= all[k] == value(static_cast<std::int64_t>(k / size), k % size);
  CHECK_MESSAGE(right, units, " units of ", size);
  std::atomic<std::int64_t> seen = 0, wrong = 0;
  b.look_at(t, size, [&](std::int64_t first, std::int64_t last, const std::byte* at) {
    wrong += std::memcmp(at, all.data() + static_cast<std::size_t>(first) * size,
                         static_cast<std::size_t>(last - first) * size) != 0;
    seen += last - first;
  });
  CHECK(seen == units);
  CHECK(wrong == 0);
}

// An exception of one thread reaches the caller.
inline void check_failing_part(Backend& b) {
  Tensor t = b.empty(Tag::Workspace, DType::U8, {64, 1 << 20});
  CHECK_THROWS_AS(b.upload_made(t, 1 << 20,
                                [](std::int64_t first, std::int64_t, std::byte*) {
                                  if (first > 10) throw InputError("row 11");
                                }),
                  InputError);
}

}  // namespace lk::test
