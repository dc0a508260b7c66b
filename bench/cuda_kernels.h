// What the files of bench_cuda_kernels share: the GPU, its roofs, and how a kernel is timed and named.
#pragma once

#include <benchmark/benchmark.h>

#include <chrono>

#include "cuda/open_device.h"
#include "roofline.h"

namespace lk::bench::cuda {

inline Backend& gpu() {
  static std::unique_ptr<Backend> backend = open_device("auto");
  return *backend;
}

inline Tensor random_tensor(DType dtype, Shape shape, unsigned seed) {
  return bench::random_tensor(gpu(), dtype, shape, seed);
}

// Mean seconds of one call, from a batch long enough to hide launch and clock.
template <class F>
double seconds(F&& call, int batch) {
  gpu().synchronize();
  auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < batch; ++i) call();
  gpu().synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / batch;
}

inline const bench::Roofs& roofs() {
  static const bench::Roofs seen = bench::measure_roofs(gpu(), DType::BF16);
  return seen;
}

// Times one kernel; `work` is the least that a call has to do.
template <class Call>
void time(benchmark::State& state, const Work& work, Call&& call) {
  seconds(call, 3);  // warm up: plans, allocations
  for (auto _ : state) {
    const double s = seconds(call, 20);
    state.SetIterationTime(s);
    state.counters["us"] = 1e6 * s;
    if (work.flops > 0) state.counters["TFLOP/s"] = work.flops / s * 1e-12;
    if (work.bytes > 0) state.counters["GB/s"] = work.bytes / s * 1e-9;
    state.counters["roof%"] =
        100 *
        std::max(work.bytes / roofs().bytes_per_second, work.flops / roofs().flops_per_second) / s;
  }
}

// Registers one kernel: `make` allocates and returns the call.
template <class Make>
void add(const std::string& name, const Work& work, Make make) {
  auto run = [=](benchmark::State& state) { time(state, work, make()); };
  benchmark::RegisterBenchmark(name.c_str(), run)->UseManualTime()->Iterations(3);
}

// A 7B model's layer: 8192 tokens, width 4096.
inline constexpr std::int64_t T = 8192, C = 4096, F = 11008, V = 128256;

// In cuda_kernels_quantised.cpp, cuda_kernels_lora.cpp and cuda_kernels_attention.cpp.
void register_quantised();
void register_fp8();
void register_thin_products();
void register_lora_segments();
void register_attention();
void register_shared_keys();

}  // namespace lk::bench::cuda
