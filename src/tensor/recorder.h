// Recorder: runs repeating work as recordings (tensor/recording.h).
//
// Note [Recorded steps]: on a GPU, small models spend their time launching kernels. So work of
// given sizes is launched kernel by kernel the first time, recorded the second, and run as one from
// then on: the same kernels in the same order, hence the same bits. A recording reads and writes
// the tensors that it was made with. The caller looks for it first and uploads the next inputs
// straight into those tensors; a device does its work in order, so an upload waits for whatever
// still reads the old values.
//
// Recordings run one after the other, so all of them share the memory that the first one set apart
// for its temporaries. The most recently used ones are kept. Sizes that do not come again soon are
// never recorded: they would pay for recordings that never run.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <utility>

#include "tensor/backend.h"

namespace lk {

// `Sizes` identifies the work (it has ==). `Tensors` holds what the work reads and writes and what
// stays where it is from run to run; a copy of it refers to the same memory.
template <class Sizes, class Tensors>
class Recorder {
 public:
  struct Limits {
    std::size_t recordings = 0;  // kept at a time
    std::size_t launched = 0;    // most recent sizes that count as seen before
  };
  // If `enabled` is false nothing is ever recorded.
  Recorder(Backend& backend, bool enabled, Limits limits)
      : backend_(backend), enabled_(enabled), limits_(limits) {}

  bool enabled() const { return enabled_; }
  // The tensors of the recording for these sizes, for new inputs; null if there is no recording.
  Tensors* find(const Sizes& sizes) {
    auto at = std::find_if(recorded_.begin(), recorded_.end(),
                           [&](const Recorded& r) { return r.sizes == sizes; });
    if (at == recorded_.end()) return nullptr;
    std::rotate(at, at + 1, recorded_.end());
    return &recorded_.back().tensors;
  }
  // Submits the recording that find() found.
  void replay() { recorded_.back().recording->run(); }

  // Call it for sizes without a recording. If they were seen before, records `work`, submits it and
  // returns true; `work` must suit Backend::record() and may set handles in `tensors`. Otherwise
  // returns false, and the caller launches the work.
  bool record(const Sizes& sizes, const Tensors& tensors, const std::function<void()>& work) {
    if (!enabled_) return false;
    const auto before = std::find(launched_.begin(), launched_.end(), sizes);
    if (before == launched_.end()) {
      launched_.push_back(sizes);
      if (launched_.size() > limits_.launched) launched_.pop_front();
      return false;
    }
    if (recorded_.size() >= limits_.recordings) recorded_.pop_front();
    const Recording* beside = recorded_.empty() ? nullptr : recorded_.front().recording.get();
    std::unique_ptr<Recording> recording = backend_.record(work, beside);
    if (!recording) return false;
    launched_.erase(before);
    recorded_.push_back({sizes, tensors, std::move(recording)});
    replay();
    return true;
  }

  // Runs other work now, in the memory of the recordings if there are any. The work must leave
  // nothing there.
  void run_beside(const std::function<void()>& work) {
    if (recorded_.empty())
      work();
    else
      recorded_.back().recording->run_beside(work);
  }

  // Forgets which sizes were seen before; recordings stay.
  void forget_launched() { launched_.clear(); }
  // Drops the recordings too. Call it before memory that they use is freed.
  void clear() {
    launched_.clear();
    recorded_.clear();
  }

 private:
  struct Recorded {
    Sizes sizes;
    Tensors tensors;
    std::unique_ptr<Recording> recording;
  };
  Backend& backend_;
  bool enabled_;
  Limits limits_;
  std::deque<Sizes> launched_;     // most recent last
  std::deque<Recorded> recorded_;  // most recently used last
};

}  // namespace lk
