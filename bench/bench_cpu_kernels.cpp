// Each kernel of the CPU backend at the sizes of one SmolLM2-135M training step (2 x 256 tokens),
// compared with what this machine was just measured to do.
//
// Columns    GFLOP/s counts the products that the maths needs (attention: causal halves, backward 5
//            products); GB/s counts each input read once and each output written once; `roof%` is
//            the share of the roof: multiply-adds that never leave the registers, or a copy of 64
//            MiB, on all threads. Small tensors stay in cache, so roof% of a copy may exceed 100.
#include <benchmark/benchmark.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "autograd/thin.h"
#include "cpu/cpu_backend.h"
#include "cpu/fast/gemm_tile.h"
#include "kernel_cases.h"
#include "nn/cached_ops.h"
#include "roofline.h"
#include "tensor/adapter_kernels.h"
#include "tensor/shared_keys.h"

using namespace lk;

namespace {

constexpr std::int64_t T = 512, C = 576, F = 1536, V = 49152, H = 9, G = 3, D = 64, R = 8;

Backend& host() {
  static std::unique_ptr<Backend> backend = make_cpu_backend();
  return *backend;
}

Tensor random_tensor(DType dtype, Shape shape) {
  static unsigned seed = 0;
  return bench::random_tensor(host(), dtype, shape, ++seed);
}
Weight random_weight(DType dtype, Shape shape) {
  Weight w("w", random_tensor(dtype, shape));
  if (shape.rank() == 2) host().prepare_linear(w);
  return w;
}

template <class Call>
double best_seconds(Call&& call) {
  double best = 1e300;
  for (int i = 0; i < 10; ++i) {
    auto start = std::chrono::steady_clock::now();
    call();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// Multiplies a tile whose operands stay in the first-level cache, on every thread at once.
double multiply_roof() {
  static double flops = [] {
    const cpu::GemmTile& tile = cpu::best_gemm_tile();
    constexpr std::int64_t rows = 12, K = 128, repeats = 2000;
    double seconds = best_seconds([&] {
#pragma omp parallel
      {
        alignas(64) float a[rows * K] = {}, b[K * 32] = {}, out[rows * 32];
        for (std::int64_t i = 0; i < repeats; ++i)
          tile.multiply(rows, K, a, K, 1, b, tile.wide(), tile.wide(), out, tile.wide(), false);
        benchmark::DoNotOptimize(out[0]);
      }
    });
    return 2.0 * rows * K * tile.wide() * repeats * omp_get_max_threads() / seconds;
  }();
  return flops;
}

double copy_roof() {
  static double bytes_per_second = [] {
    Tensor x = random_tensor(DType::F32, {1 << 12, 1 << 12}),
           y = random_tensor(DType::F32, {1 << 12, 1 << 12});
    return 2.0 * static_cast<double>(x.bytes()) / best_seconds([&] { host().copy(y, x); });
  }();
  return bytes_per_second;
}

template <class Call>
void measure(benchmark::State& state, double flops, double bytes, Call&& call) {
  const double roof = flops > 0 ? multiply_roof() : copy_roof();
  for (auto _ : state) call();
  const double runs = static_cast<double>(state.iterations()), work = flops > 0 ? flops : bytes;
  using benchmark::Counter;
  state.counters[flops > 0 ? "GFLOP/s" : "GB/s"] = Counter(work * runs * 1e-9, Counter::kIsRate);
  state.counters["roof%"] = Counter(work * runs / roof * 100, Counter::kIsRate);
}

double size(DType t) { return static_cast<double>(dtype_size(t)); }

void linear(benchmark::State& state, DType t, std::int64_t N, std::int64_t K, bool backward) {
  Tensor x = random_tensor(t, {T, K}), y = random_tensor(t, {T, N});
  Weight w = random_weight(t, {N, K});
  measure(state, 2.0 * T * static_cast<double>(N * K), 0, [&] {
    if (backward)
      host().linear_backward_x(x, GradMode::Write, y, w);
    else
      host().linear_forward(y, x, w);
  });
}

// The gate and up products, or q, k and v, of one row in a step of generation.
void linear_parts(benchmark::State& state, DType t, const std::vector<std::int64_t>& widths) {
  Tensor x = random_tensor(t, {1, C}), normed = random_tensor(t, {1, C});
  Weight gain = random_weight(t, {C});
  const MadeInput norm{&gain, 1e-5, normed};
  std::vector<Weight> w;
  for (std::int64_t N : widths) w.push_back(random_weight(t, {N, C}));
  std::vector<LinearPart> parts;
  double bytes = 0;
  for (const Weight& one : w) {
    parts.push_back({random_tensor(t, {1, one.shape()[0]}), &one});
    bytes += static_cast<double>(one.values().bytes());
  }
  measure(state, 0, bytes, [&] { cached::linear_parts(host(), x, &norm, parts); });
}

// The six products of one adapter on a projection K -> N.
void lora(benchmark::State& state, DType t, std::int64_t N, std::int64_t K) {
  Tensor x = random_tensor(t, {T, K}), y = random_tensor(t, {T, N}), s = random_tensor(t, {T, R});
  Tensor A = random_tensor(t, {R, K}), B = random_tensor(t, {N, R});
  Tensor dA = random_tensor(DType::F32, {R, K}), dB = random_tensor(DType::F32, {N, R});
  measure(state, 2.0 * T * R * 3 * static_cast<double>(N + K), 0, [&] {
    host().matmul_nt(s, GradMode::Write, 1, x, A);
    host().matmul_nt(y, GradMode::Add, 1, s, B);
    host().weight_gradient(dB, GradMode::Write, 1, y, s);
    host().matmul_nn(s, GradMode::Write, 1, y, B);
    host().weight_gradient(dA, GradMode::Write, 1, s, x);
    host().matmul_nn(x, GradMode::Add, 1, s, A);
  });
}

// Eight documents of one token, each with its own adapter on a projection K -> N.
void lora_segments(benchmark::State& state, DType t, std::int64_t N, std::int64_t K) {
  constexpr std::int32_t kDocuments = 8;
  Tensor x = random_tensor(t, {kDocuments, K}), y = random_tensor(t, {kDocuments, N});
  std::vector<LoraFactors> factors;
  std::vector<std::int32_t> offsets{0}, which;
  for (std::int32_t i = 0; i < kDocuments; ++i) {
    factors.push_back({random_tensor(t, {R, K}), random_tensor(t, {R, N}), 1.0f});
    offsets.push_back(i + 1);
    which.push_back(i);
  }
  LoraTable table = make_lora_table(host(), factors);
  Segments documents = make_segments(host(), offsets);
  RowVariants variants{which, to_device(host(), Tag::Workspace, which)};
  measure(state, 2.0 * kDocuments * R * static_cast<double>(N + K), 0,
          [&] { host().adapter_kernels()->lora_segments(y, x, table, documents, variants); });
}

// A prefix of 20 keys, forward and backward.
void shared_keys(benchmark::State& state, DType t) {
  constexpr std::int64_t n = 20;
  const Tensor q = random_tensor(t, {T, H * D}), o = random_tensor(t, {T, H * D}),
               lse = random_tensor(DType::F32, {H, T}), dk = random_tensor(t, {n, G * D});
  const SharedKeys keys{random_tensor(t, {n, G * D}), random_tensor(t, {n, G * D})};
  const AttentionShape shape{H, G, D, 0.125f, 0};
  measure(state, 14.0 * T * H * D * n, 0, [&] {
    host().shared_key_kernels()->shared_keys_forward(o, lse, GradMode::Write, q, keys, shape);
    host().shared_key_kernels()->shared_keys_backward(q, GradMode::Write, dk, keys.v, lse, o, q,
                                                      keys, o, lse, shape);
  });
}

// The products of one adapter with its factors next to the frozen matrix (autograd/joined.h).
void joined(benchmark::State& state, DType t, std::int64_t N, std::int64_t K) {
  Tensor x = random_tensor(t, {T, K}), y = random_tensor(t, {T, N}), z = random_tensor(t, {T, N}),
         s = random_tensor(t, {T, R}), W = random_tensor(t, {N, K}), B = random_tensor(t, {N, R});
  const std::vector<ThinPart> b{{0, N, 0, R, random_tensor(DType::F32, {N, R})}},
      a{{0, K, 0, R, random_tensor(DType::F32, {R, K})}};
  measure(state, 2.0 * T * static_cast<double>(N * K + 2 * R * N + R * K), 0, [&] {
    host().matmul_nt(z, GradMode::Write, 1.0, x, W, y);
    thin::backward_b(host(), {}, s, 1, y, B, s, b);
    thin::backward_a(host(), {}, s, x, nullptr, a);
  });
}

// The thin products alone, with dropout on the factors' input.
void thin_dropout(benchmark::State& state, DType t, std::int64_t K) {
  Tensor x = random_tensor(t, {T, K}), s = random_tensor(t, {T, R}), A = random_tensor(t, {R, K});
  const std::vector<ThinPart> parts{{0, K, 0, R, random_tensor(DType::F32, {R, K})}};
  const InputDropout drop{0.1f, {1, 2, 0}};
  measure(state, 2.0 * T * 3 * static_cast<double>(R * K), 0, [&] {
    thin::forward(host(), {}, s, 1, x, A, parts, drop);
    thin::into_x(host(), {}, x, s, A, parts, drop);
    thin::backward_a(host(), {}, s, x, nullptr, parts, drop);
  });
}

enum class Pass { Forward, Backward, RopeBackward };

void attention(benchmark::State& state, DType t, Pass pass) {
  Tensor q = random_tensor(t, {T, H * D}), k = random_tensor(t, {T, G * D}),
         v = random_tensor(t, {T, G * D});
  Tensor o = random_tensor(t, {T, H * D}), lse = random_tensor(DType::F32, {H, T});
  Tensor dq = random_tensor(t, {T, H * D}), dk = random_tensor(t, {T, G * D}),
         dv = random_tensor(t, {T, G * D});
  Segments segments = make_segments(host(), {0, T / 2, T});
  AttentionShape shape{H, G, D, 0.125f, 0};
  host().attention_forward(o, lse, q, k, v, shape, segments, segments);
  const double product =
      2.0 * 2 * H * D * (T / 2) * (T / 2) / 2;  // one causal product, both documents
  const Rotation rotation{random_tensor(DType::F32, {T, D}),
                          to_device(host(), Tag::Workspace, std::vector<std::int32_t>(T, 7))};
  measure(state, product * (pass == Pass::Forward ? 2 : 5), 0, [&] {
    if (pass == Pass::Forward)
      host().attention_forward(o, lse, q, k, v, shape, segments, segments);
    else if (pass == Pass::Backward)
      host().attention_backward(dq, dk, dv, q, q, k, v, o, lse, shape, segments);
    else
      host().attention_backward(dq, dk, dv, q, q, k, v, o, lse, shape, segments, &rotation);
  });
}

// A token of generation over 255 others, with all that comes before its attention.
void attend(benchmark::State& state, DType t) {
  constexpr std::int64_t kKeys = 256;
  Tensor q = random_tensor(t, {1, H * D}), k = random_tensor(t, {1, G * D}),
         v = random_tensor(t, {1, G * D}), o = random_tensor(t, {1, H * D}),
         lse = random_tensor(DType::F32, {H, 1}), keys = random_tensor(t, {kKeys, G * D}),
         values = random_tensor(t, {kKeys, G * D});
  const Tensor last = to_device(host(), Tag::Workspace, std::vector<std::int32_t>{kKeys - 1});
  const AttentionShape shape{H, G, D, 0.125f, 0};
  const Segments segments = make_segments(host(), {0, 1});
  const KeyRows rows = make_segments(host(), {0, kKeys});
  const CachedAttention a{.o = o,
                          .lse = lse,
                          .q = q,
                          .k = k,
                          .v = v,
                          .rotation = {random_tensor(DType::F32, {kKeys, D}), last},
                          .cache = {keys, values, last},
                          .shape = shape,
                          .q_seg = segments,
                          .k_rows = rows};
  measure(state, 4.0 * H * D * kKeys, 0, [&] { cached::attend(host(), a); });
}

// The most likely of GPT-2's tokens for 16 sequences.
void choose_next(benchmark::State& state, DType t) {
  constexpr std::int64_t kRows = 16, kVocab = 50257;
  const Tensor logits = random_tensor(t, {kRows, kVocab}),
               chosen = host().empty(Tag::Workspace, DType::F32, {kRows}),
               at = to_device(host(), Tag::Workspace, std::vector<std::int32_t>(kRows));
  measure(state, 0, static_cast<double>(kRows * kVocab) * size(t), [&] {
    cached::choose_next(host(), {chosen, at, at, at, at}, logits);
  });
}

// The rotations of a step of generation, the result of swiglu into LoRA's factor, and copies.
void rows(benchmark::State& state, DType t, const std::string& op) {
  const std::int64_t cols = op == "thin_swiglu_backward" ? F : C;
  Tensor x = random_tensor(t, {T, cols}), y = random_tensor(t, {T, cols}),
         z = random_tensor(t, {T, cols}), w = random_tensor(t, {T, cols});
  Tensor table = random_tensor(DType::F32, {T, D});
  std::vector<std::int32_t> at(T);
  for (std::size_t i = 0; i < at.size(); ++i) at[i] = static_cast<std::int32_t>(i);
  Tensor positions = to_device(host(), Tag::Workspace, at);
  const double matrix = static_cast<double>(T * cols) * size(t);
  auto run = [&](double matrices, auto&& call) { measure(state, 0, matrices * matrix, call); };
  std::vector<char> outside(x.bytes());
  if (op == "upload") run(2, [&] { host().upload(x, outside.data(), outside.size()); });
  if (op == "download") run(2, [&] { host().download(outside.data(), x, outside.size()); });
  if (op == "rope_into_cache") {
    Tensor k = random_tensor(t, {T, G * D}), v = random_tensor(t, {T, G * D});
    const CacheRows cache{random_tensor(t, {T, G * D}), random_tensor(t, {T, G * D}), positions};
    run(2 + 4.0 * G / H,
        [&] { cached::rope_into_cache(host(), y, k, v, cache, table, positions, D); });
  }
  const std::size_t row_bytes = x.bytes() / static_cast<std::size_t>(x.rows());
  if (op == "upload_made")
    run(2, [&] {
      host().upload_made(x, row_bytes, [&](std::int64_t first, std::int64_t last, std::byte* to) {
        std::memcpy(to, outside.data() + static_cast<std::size_t>(first) * row_bytes,
                    static_cast<std::size_t>(last - first) * row_bytes);
      });
    });
  if (op == "look_at")
    run(2, [&] {
      host().look_at(x, row_bytes,
                     [&](std::int64_t first, std::int64_t last, const std::byte* from) {
                       std::memcpy(outside.data() + static_cast<std::size_t>(first) * row_bytes,
                                   from, static_cast<std::size_t>(last - first) * row_bytes);
                     });
    });
  if (op == "thin_swiglu_backward") {
    const std::vector<ThinPart> parts{{0, cols, 0, R, random_tensor(stat_dtype(t), {R, cols})}};
    Tensor ds = random_tensor(t, {T, R});
    run(6, [&] { thin::swiglu_backward(host(), {}, y, w, x, y, z, ds, parts); });
  }
}

void shared(benchmark::State& state, const bench::KernelCase& one) {
  const bench::KernelCall call = one.make(host());
  const Work work = bench::work_of(call);
  measure(state, work.flops, work.bytes, [&] { call(host()); });
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  benchmark::AddCustomContext("device", host().description());
  for (DType t : {DType::F32, DType::BF16}) {
    auto add = [&](const std::string& name, auto&& body) {
      benchmark::RegisterBenchmark((std::string(dtype_name(t)) + "/" + name).c_str(), body)
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    };
    const struct {
      const char* name;
      std::int64_t N, K;
    } maps[] = {
        {"q_o", C, C}, {"k_v", G * D, C}, {"gate_up", F, C}, {"down", C, F}, {"head", V, C}};
    for (auto [name, N, K] : maps) {
      add(std::string("linear/") + name, [=](benchmark::State& s) { linear(s, t, N, K, false); });
      add(std::string("linear_backward/") + name,
          [=](benchmark::State& s) { linear(s, t, N, K, true); });
      if (N != V)
        add(std::string("lora_segments/") + name,
            [=](benchmark::State& s) { lora_segments(s, t, N, K); });
      if (N != V) add(std::string("lora/") + name, [=](benchmark::State& s) { lora(s, t, N, K); });
      if (N != V)
        add(std::string("joined/") + name, [=](benchmark::State& s) { joined(s, t, N, K); });
    }
    add("thin_dropout", [=](benchmark::State& s) { thin_dropout(s, t, C); });
    add("linear_parts/qkv", [=](benchmark::State& s) { linear_parts(s, t, {C, G * D, G * D}); });
    add("linear_parts/gate_up", [=](benchmark::State& s) { linear_parts(s, t, {F, F}); });
    add("shared_keys", [=](benchmark::State& s) { shared_keys(s, t); });
    add("attention", [=](benchmark::State& s) { attention(s, t, Pass::Forward); });
    add("attention_backward", [=](benchmark::State& s) { attention(s, t, Pass::Backward); });
    add("attend", [=](benchmark::State& s) { attend(s, t); });
    add("choose_next", [=](benchmark::State& s) { choose_next(s, t); });
    add("attention_rope_backward",
        [=](benchmark::State& s) { attention(s, t, Pass::RopeBackward); });
    for (const char* op : {"rope_into_cache", "thin_swiglu_backward", "upload", "download",
                           "upload_made", "look_at"})
      add(op, [=](benchmark::State& s) { rows(s, t, op); });
    // Both factors of rank 8 on SmolLM2-135M, counted as one matrix.
    const bench::KernelSizes sizes{.dtype = t,
                                   .T = T,
                                   .C = C,
                                   .F = F,
                                   .D = D,
                                   .V = V,
                                   .loss_rows = T,
                                   .factors = 1,
                                   .factor_numel = 2442240};
    for (const bench::KernelCase& one : bench::kernel_cases(sizes))
      add(one.name, [=](benchmark::State& s) { shared(s, one); });
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
