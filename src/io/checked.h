// CheckedU64: the only form in which a number from a file enters the parsers. Sums, products and
// paddings never wrap: an overflow makes the value invalid for good (as NaN does), and an invalid
// value passes no comparison and can't be taken out. There is no implicit conversion, so raw
// arithmetic on a number from a file does not compile.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tensor/error.h"

namespace lk {

class CheckedU64 {
 public:
  constexpr explicit CheckedU64(std::uint64_t value) : value_(value) {}

  friend constexpr CheckedU64 operator+(CheckedU64 a, CheckedU64 b) {
    CheckedU64 r(0);
    r.valid_ = !__builtin_add_overflow(a.value_, b.value_, &r.value_) && a.valid_ && b.valid_;
    return r;
  }
  friend constexpr CheckedU64 operator*(CheckedU64 a, CheckedU64 b) {
    CheckedU64 r(0);
    r.valid_ = !__builtin_mul_overflow(a.value_, b.value_, &r.value_) && a.valid_ && b.valid_;
    return r;
  }
  // a - b, invalid if b > a.
  friend constexpr CheckedU64 operator-(CheckedU64 a, CheckedU64 b) {
    CheckedU64 r(0);
    r.valid_ = !__builtin_sub_overflow(a.value_, b.value_, &r.value_) && a.valid_ && b.valid_;
    return r;
  }
  // Division rounds down; callers check is_multiple_of where a remainder would be an error.
  friend constexpr CheckedU64 operator/(CheckedU64 a, std::uint64_t divisor) {
    CheckedU64 r(divisor == 0 ? 0 : a.value_ / divisor);
    r.valid_ = a.valid_ && divisor != 0;
    return r;
  }
  // Rounds up to the next multiple of `alignment` (any positive number).
  constexpr CheckedU64 padded_to(std::uint64_t alignment) const {
    return (*this + CheckedU64(alignment - 1)) / alignment * CheckedU64(alignment);
  }

  // False for an invalid value, whatever is asked.
  constexpr bool at_most(std::uint64_t limit) const { return valid_ && value_ <= limit; }
  constexpr bool equals(std::uint64_t other) const { return valid_ && value_ == other; }
  constexpr bool is_multiple_of(std::uint64_t divisor) const {
    return valid_ && value_ % divisor == 0;
  }

  // The number, once it is known to be at most `limit`; throws InputError(message) otherwise.
  // `message` is a callable, so the text is only built when needed.
  template <class Message>
  std::uint64_t within(std::uint64_t limit, Message&& message) const {
    if (!at_most(limit)) throw InputError(message());
    return value_;
  }
  // The number's digits for a message, or "a number over 2^64".
  std::string str() const { return valid_ ? std::to_string(value_) : "a number over 2^64"; }

 private:
  std::uint64_t value_;
  bool valid_ = true;
};

// x without its fraction if that lies in [min, max], else nothing. Every double that an integer is
// made of comes this way: a cast of NaN or of a number out of range is undefined.
constexpr std::optional<std::int64_t> to_integer(double x, std::int64_t min, std::int64_t max) {
  if (!(x >= -0x1p63 && x < 0x1p63)) return std::nullopt;
  const auto whole = static_cast<std::int64_t>(x);
  if (whole < min || whole > max) return std::nullopt;
  return whole;
}

}  // namespace lk
