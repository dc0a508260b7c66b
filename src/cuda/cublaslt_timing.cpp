// Times the algorithms that cuBLASLt offers for a product, of which one is taken that leaves the same bits as
// its first choice: Note [Plans].
//
// Numbers    operands are filled with numbers of either sign, and so is c before each product, which may add
//            to it; two products are equal if a sum over all of c's bits is. On an H200 38 of 40 shapes
//            of decoders have only equal candidates; the two others cut a sum into parts.
// Time       each candidate runs once for its bits and then some times for the clock, unless the first
//            of these is a tenth slower than the best: for 8 candidates 20 to 30 products
#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/cublaslt_plan.h"
#include "cuda/cuda_check.h"
#include "cuda/timing_kernels.h"

namespace lk {
namespace {

constexpr float kWorthIt = 0.99f, kHopeless = 1.1f, kTimedMs = 0.4f;

constexpr std::size_t rounded(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

struct Event {
  cudaEvent_t event = nullptr;
  Event() { cuda_check(cudaEventCreate(&event), "event"); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
};

}  // namespace

// Where a product's operands lie in memory that holds them all.
struct CublasLt::Operands {
  std::size_t a, b, c, addend, scale_a, scale_b, bits, end;

  explicit Operands(const Gemm& g) {
    const auto bytes = [](std::int64_t rows, std::int64_t ld, DType t) {
      return rounded(static_cast<std::size_t>(rows * ld) * dtype_size(t));
    };
    a = 0;
    b = a + bytes(g.transpose_a ? g.k : g.m, g.lda, g.in);
    c = b + bytes(g.transpose_b ? g.n : g.k, g.ldb, g.in);
    addend = c + bytes(g.m, g.ldc, g.out);
    scale_a = addend + (g.ld_addend ? bytes(g.m, g.ld_addend, g.out) : 0);
    scale_b = scale_a + (g.in == DType::U8 ? bytes(g.m, 1, DType::F32) : 0);
    bits = scale_b + (g.in == DType::U8 ? bytes(g.n, 1, DType::F32) : 0);
    end = bits + rounded(sizeof(unsigned long long));
  }
};

std::size_t CublasLt::bytes_to_time(const std::set<Key>& keys) const {
  std::size_t most = 0;
  for (const Key& key : keys) {
    const auto at = plans_.find(key);
    if (at != plans_.end() && !at->second->timed) most = std::max(most, Operands(key.gemm).end);
  }
  return most;
}

bool CublasLt::time_plans(const std::set<Key>& keys, std::byte* memory, std::size_t bytes,
                          void* workspace, cudaStream_t stream) {
  bool changed = false;
  for (const Key& key : keys) {
    const auto at = plans_.find(key);
    if (at == plans_.end() || at->second->timed || Operands(key.gemm).end > bytes) continue;
    at->second->timed = true;
    if (at->second->candidates.size() > 1)
      changed |= time_plan(key.gemm, *at->second, memory, workspace, stream);
  }
  return changed;
}

bool CublasLt::time_plan(const Gemm& g, Plan& p, std::byte* memory, void* workspace,
                         cudaStream_t stream) {
  const Operands at(g);
  std::byte *c = memory + at.c, *addend = g.ld_addend ? memory + at.addend : c;
  auto* bits = reinterpret_cast<unsigned long long*>(memory + at.bits);
  fill_numbers(memory + at.a, at.b - at.a, g.in, 1, stream);
  fill_numbers(memory + at.b, at.c - at.b, g.in, 2, stream);
  fill_numbers(memory + at.addend, at.scale_a - at.addend, g.out, 3, stream);
  fill_numbers(memory + at.scale_a, at.bits - at.scale_a, DType::F32, 4, stream);
  if (g.in == DType::U8)
    set_scales(p, {reinterpret_cast<const float*>(memory + at.scale_a),
                   reinterpret_cast<const float*>(memory + at.scale_b)});
  const float alpha = 1.0f, beta = g.accumulate ? 1.0f : 0.0f;
  const auto run = [&](const cublasLtMatmulAlgo_t& algo) {
    return cublasLtMatmul(handle_, p.desc, &alpha, memory + at.b, p.a, memory + at.a, p.b, &beta,
                          addend, p.addend, c, p.c, &algo, workspace, kWorkspaceBytes,
                          stream) == CUBLAS_STATUS_SUCCESS;
  };
  const Event start, stop;
  const auto milliseconds = [&](const cublasLtMatmulAlgo_t& algo, int runs) {
    cuda_check(cudaEventRecord(start.event, stream), "event");
    for (int i = 0; i < runs; ++i) run(algo);
    cuda_check(cudaEventRecord(stop.event, stream), "event");
    cuda_check(cudaEventSynchronize(stop.event), "event");
    float ms = 0;
    cuda_check(cudaEventElapsedTime(&ms, start.event, stop.event), "event");
    return ms / static_cast<float>(runs);
  };

  unsigned long long want = 0;
  float first = 0, best = 0;
  std::size_t chosen = 0;
  for (std::size_t i = 0; i < p.candidates.size(); ++i) {
    const cublasLtMatmulAlgo_t& algo = p.candidates[i];
    fill_numbers(c, at.addend - at.c, g.out, 5, stream);
    cuda_check(cudaMemsetAsync(bits, 0, sizeof *bits, stream), "cublasLt: timing");
    if (!run(algo)) continue;
    add_bits(bits, c, at.addend - at.c, stream);
    unsigned long long have = 0;
    cuda_check(cudaMemcpyAsync(&have, bits, sizeof have, cudaMemcpyDeviceToHost, stream),
               "cublasLt: timing");
    cuda_check(cudaStreamSynchronize(stream), "cublasLt: timing");
    if (i == 0) want = have;
    if (have != want) continue;
    float ms = milliseconds(algo, 1);
    if (i > 0 && ms > kHopeless * best) continue;
    const int runs = std::clamp(static_cast<int>(kTimedMs / std::max(ms, 1e-3f)), 1, 8);
    for (int j = 0; j < 2; ++j) ms = std::min(ms, milliseconds(algo, runs));
    if (i == 0)
      first = best = ms;
    else if (ms < best)
      best = ms, chosen = i;
  }
  if (best > kWorthIt * first) chosen = 0;
  p.chosen = chosen;
  return chosen != 0;
}

}  // namespace lk
