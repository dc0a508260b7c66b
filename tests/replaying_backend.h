// ReplayingBackend: a CPU that records work by keeping the function, and runs it again by calling
// it, so that code around recordings can be tested without a GPU. The work must hold what it reads
// and writes by value, and leave its results there.
#pragma once

#include <functional>
#include <memory>

#include "cpu/cpu_backend_impl.h"

namespace lk::test {

class ReplayingBackend : public CpuBackend {
 public:
  explicit ReplayingBackend(CpuMode mode = CpuMode::Fast)
      : CpuBackend(mode, Products::Best, recording_traits()) {}

  int recorded = 0, recorded_beside = 0;  // recordings; how many of them in another's memory
  int replayed = 0, run_beside = 0;       // calls of Recording's functions
  int live = 0;                           // recordings that exist
  bool refuses = false;                   // record() returns null

  std::unique_ptr<Recording> record(const std::function<void()>& work,
                                    const Recording* beside) override {
    if (refuses) return nullptr;
    ++recorded;
    recorded_beside += beside != nullptr;
    return std::make_unique<Kept>(*this, work);
  }

 private:
  static DeviceTraits recording_traits() {
    DeviceTraits traits = kCpuTraits;
    traits.can_record = true;
    return traits;
  }
  struct Kept final : Recording {
    ReplayingBackend& backend;
    std::function<void()> work;
    Kept(ReplayingBackend& b, std::function<void()> w) : backend(b), work(std::move(w)) {
      ++backend.live;
    }
    ~Kept() override { --backend.live; }
    void run() override {
      ++backend.replayed;
      work();
    }
    void run_beside(const std::function<void()>& other) override {
      ++backend.run_beside;
      other();
    }
  };
};

}  // namespace lk::test
