// Fine-tuning runs of tests: what they say is heard, and they can be stopped after a step.
#pragma once

#include <atomic>
#include <string>

#include "run/finetune.h"

namespace lk::test {

struct Ear : FinetuneListener {
  std::string heard;
  std::atomic<int> stop{0};
  std::int64_t stop_after = -1;
  void message(const std::string& text) override { heard += text + "\n"; }
  void stepped(const StepReport& r, const StepProgress&) override {
    if (r.step == stop_after) stop = 15;
  }
};

// Runs to the end, or stops as by a signal after step `stop_after`. `said` is what it said, also
// when it throws.
inline FinetuneResult hear_run(const FinetuneSettings& settings, std::int64_t stop_after,
                               std::string& said) {
  Ear ear;
  ear.stop_after = stop_after;
  try {
    FinetuneResult result = finetune(settings, ear, ear.stop);
    said = ear.heard;
    return result;
  } catch (...) {
    said = ear.heard;
    throw;
  }
}

}  // namespace lk::test
