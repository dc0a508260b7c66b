// Bounds how deep the evaluation of a template may nest: the machine's stack is finite.
#pragma once

#include "text/jinja/eval.h"

namespace lk::jinja {

inline constexpr int kMaxEvaluationDepth = 400;

class Evaluator::Deeper {
 public:
  explicit Deeper(int& depth) : depth_(depth) {
    if (depth_ >= kMaxEvaluationDepth) fail("the template nests too deeply");
    ++depth_;
  }
  ~Deeper() { --depth_; }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;

 private:
  int& depth_;
};

}  // namespace lk::jinja
