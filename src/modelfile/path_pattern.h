// PathPattern: a regular expression from adapter_config.json or config.json, written for Python's re, that is
// matched against module paths ("model.layers.3.self_attn.q_proj").
#pragma once

#include <memory>
#include <string>

namespace lk {

class PathPattern {
 public:
  enum class Match {
    Whole,  // re.fullmatch(text, path)
    Start,  // re.match(text, path)
    Tail,   // re.fullmatch(r"(.*\.)?(text)", path): what text matches may follow any dot
  };
  // Throws InputError, its message starting with `where`, if `text` is no regular expression or
  // uses what Python reads in a way of its own: flags, lookbehind, back references, escapes other
  // than \d \w \s \b and those of signs, possessive repeats, sets within sets.
  PathPattern(const std::string& text, Match match, const std::string& where);
  // Takes time in proportion to the path's length, whatever the pattern.
  bool matches(const std::string& path) const;

 private:
  struct Compiled;
  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace lk
