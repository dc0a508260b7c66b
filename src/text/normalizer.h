// Normalizer: the steps that change a text before it is cut into pieces, in a file's order.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "text/unicode.h"

namespace lk {

class Normalizer {
 public:
  // The most steps, the longest prefix in bytes, and how many times as long a replacement may be as
  // what it replaces: no file can make a text grow without bounds.
  static constexpr std::size_t kMaxSteps = 4, kMaxPrefix = 16, kMaxGrowth = 3;

  bool full() const { return steps_.size() >= kMaxSteps; }
  void add_nfc() { steps_.push_back({Kind::Nfc, "", ""}); }
  // Puts `what` before every text that is not empty.
  void add_prepend(std::string what) { steps_.push_back({Kind::Prepend, "", std::move(what)}); }
  // Writes `to` for every `from` (not empty), from the left.
  void add_replace(std::string from, std::string to) {
    steps_.push_back({Kind::Replace, std::move(from), std::move(to)});
  }

  bool prepends() const {
    return std::any_of(steps_.begin(), steps_.end(),
                       [](const Step& step) { return step.kind == Kind::Prepend; });
  }
  // Whether the steps leave `text`, valid UTF-8, as it is (false may be a false alarm).
  bool surely_keeps(std::string_view text) const;
  // The text after all steps, with where each byte came from.
  Normalized apply(std::string_view text) const;

 private:
  enum class Kind { Nfc, Prepend, Replace };
  struct Step {
    Kind kind;
    std::string from, to;
  };
  static Normalized run(const Step& step, std::string_view text);
  std::vector<Step> steps_;
};

}  // namespace lk
