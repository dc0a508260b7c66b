// Each kernel of the CUDA backend compared with its roofline: the copy (GB/s) or product (BF16
// TFLOP/s, 8192^3) that was just measured on this GPU, not what a data sheet says.
//
// Columns    GB/s counts each input read once and each output written once; TFLOP/s counts the
//            products that the maths needs (attention backward: 5, causal halves); `roof%` is the
//            share of the roof.
// Numbers    random, never zeros: zeros run faster. Buffers are larger than the L2 cache where the
//            op allows.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cmath>
#include <cstring>

#include "autograd/thin.h"
#include "cuda/open_device.h"
#include "io/ggml_blocks.h"
#include "kernel_cases.h"
#include "modelfile/quantise.h"
#include "nn/cached_ops.h"
#include "roofline.h"
#include "tensor/adapter_kernels.h"
#include "tensor/fp8_kernels.h"
#include "tensor/quantised_kernels.h"
#include "tensor/shared_keys.h"

using namespace lk;

namespace {

Backend& gpu() {
  static std::unique_ptr<Backend> backend = open_device("auto");
  return *backend;
}

Tensor random_tensor(DType dtype, Shape shape, unsigned seed) {
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

const bench::Roofs& roofs() {
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
constexpr std::int64_t T = 8192, C = 4096, F = 11008, V = 128256;

void add_shared(const bench::KernelCase& one, const std::string& suffix = "") {
  auto run = [one](benchmark::State& state) {
    const bench::KernelCall call = one.make(gpu());
    time(state, bench::work_of(call), [&] { call(gpu()); });
  };
  benchmark::RegisterBenchmark((one.name + suffix).c_str(), run)->UseManualTime()->Iterations(3);
}

// The cases that the CPU's bench times too, at this model's sizes. The adapter has rank 16 on all
// linear layers of 7B: 40 M numbers in 448 factors.
void register_shared() {
  const bench::KernelSizes sizes{.T = T,
                                 .C = C,
                                 .F = F,
                                 .D = 128,
                                 .V = V,
                                 .loss_rows = 2048,
                                 .factors = 448,
                                 .factor_numel = 90000};
  for (const bench::KernelCase& one : bench::kernel_cases(sizes)) add_shared(one);
}

void register_memory_bound() {
  const double tc = static_cast<double>(T * C) * 2;
  // SmolLM2-135M's width.
  bench::KernelSizes narrow{.T = T,
                            .C = 576,
                            .F = 1536,
                            .D = 64,
                            .V = 49152,
                            .loss_rows = 64,
                            .factors = 1,
                            .factor_numel = 1};
  for (const bench::KernelCase& one : bench::kernel_cases(narrow))
    if (one.name.starts_with("rmsnorm")) add_shared(one, "_576");
  // swiglu's backward combined with LoRA's dA at rank 16.
  for (std::int64_t width : {F, std::int64_t{1536}})
    add("thin_swiglu_backward" + (width == F ? "" : concat("_", width)),
        {.bytes = 5 * 2.0 * static_cast<double>(T * width)}, [=] {
          return [=, g = random_tensor(DType::BF16, {T, width}, 1),
                  u = random_tensor(DType::BF16, {T, width}, 2),
                  dy = random_tensor(DType::BF16, {T, width}, 3),
                  ds = random_tensor(DType::BF16, {T, 16}, 4),
                  parts = std::vector<ThinPart>{{0, width, 0, 16,
                                                 random_tensor(DType::F32, {16, width}, 5)}},
                  plan = ThinPlan({width, C, 16, DType::BF16, false, {{0, C, 0, 16}}})] {
            thin::swiglu_backward(gpu(), plan, g, u, dy, g, u, ds, parts);
          };
        });
  add("rmsnorm_forward_by_head", {.bytes = 2 * tc}, [] {  // 128 columns each
    return [x = random_tensor(DType::BF16, {T * C / 128, 128}, 1),
            y = gpu().empty(Tag::Workspace, DType::BF16, {T * C / 128, 128}),
            r = gpu().empty(Tag::Workspace, DType::F32, {T * C / 128}),
            w = Weight("w", random_tensor(DType::BF16, {128}, 2))] {
      gpu().rmsnorm_forward(y, r, x, w, 1e-5);
    };
  });
  // Copies over PCIe through pinned memory; the copy roof is that of the GPU's own memory.
  const std::size_t host_bytes = std::size_t{64} << 20;
  add("upload_64MiB", {.bytes = static_cast<double>(host_bytes)}, [=] {
    return [=, host = std::vector<char>(host_bytes),
            t = gpu().empty(Tag::Workspace, DType::U8, {static_cast<std::int64_t>(host_bytes)})] {
      gpu().upload(t, host.data(), host_bytes);
    };
  });
  add("download_64MiB", {.bytes = static_cast<double>(host_bytes)}, [=] {
    return [=, host = std::make_shared<std::vector<char>>(host_bytes),
            t = gpu().empty(Tag::Workspace, DType::U8, {static_cast<std::int64_t>(host_bytes)})] {
      gpu().download(host->data(), t, host_bytes);
    };
  });
  // Copies as loading and hashing do them: on all threads, without a second copy on the host.
  auto whole = [=] {
    return gpu().empty(Tag::Workspace, DType::U8, {static_cast<std::int64_t>(8 * host_bytes)});
  };
  add("upload_made_512MiB", {.bytes = 8.0 * host_bytes}, [=] {
    return [t = whole(), host = std::vector<std::byte>(host_bytes)] {
      gpu().upload_made(t, 4096, [&](std::int64_t first, std::int64_t last, std::byte* to) {
        const std::size_t at = static_cast<std::size_t>(first) * 4096 % host.size();
        std::memcpy(to, host.data() + at, static_cast<std::size_t>(last - first) * 4096);
      });
    };
  });
  add("look_at_512MiB", {.bytes = 8.0 * host_bytes}, [=] {
    return [t = whole()] {
      gpu().look_at(t, 4096, [](std::int64_t first, std::int64_t last, const std::byte* from) {
        std::uint64_t sum = 0, word = 0;  // reads every byte
        for (const std::byte* end = from + (last - first) * 4096; from < end; from += sizeof word) {
          std::memcpy(&word, from, sizeof word);
          sum += word;
        }
        benchmark::DoNotOptimize(sum);
      });
    };
  });
}

// The frozen products through their own entry points.
void register_linear() {
  auto linear = [](const char* name, std::int64_t rows, std::int64_t N, std::int64_t K) {
    const double inputs = 2.0 * static_cast<double>(rows * (N + K) + N * K),
                 flops = 2.0 * static_cast<double>(rows) * static_cast<double>(N * K);
    auto weight = [=] {
      Weight w("w", random_tensor(DType::BF16, {N, K}, 2));
      gpu().prepare_linear(w);
      return w;
    };
    add(concat("linear_forward_", name), {.flops = flops, .bytes = inputs}, [=] {
      return [w = weight(), x = random_tensor(DType::BF16, {rows, K}, 1),
              y = gpu().empty(Tag::Workspace, DType::BF16, {rows, N})] {
        gpu().linear_forward(y, x, w);
      };
    });
    for (GradMode mode : {GradMode::Write, GradMode::Add})
      add(concat("linear_backward_x_", name, mode == GradMode::Add ? "_add" : ""),
          {.flops = flops, .bytes = inputs}, [=] {
            return [=, w = weight(), dy = random_tensor(DType::BF16, {rows, N}, 1),
                    dx = random_tensor(DType::BF16, {rows, K}, 3)] {
              gpu().linear_backward_x(dx, mode, dy, w);
            };
          });
  };
  linear("q_o", T, C, C);
  linear("gate_up", T, F, C);
  linear("down", T, C, F);
  linear("head_2048", 2048, V, C);
}

// Products in FP8 and what is made for them: activations rounded row by row (those of gradients with
// scales of columns), codes transposed. The roof is that of BF16 products.
void register_fp8() {
  Fp8Kernels* fp8 = gpu().quantised_kernels()->fp8_kernels();
  if (!fp8) return;
  auto rows = [](std::int64_t n, std::int64_t k) {
    return Fp8Rows{gpu().empty(Tag::Workspace, DType::U8, {n, k}),
                   gpu().empty(Tag::Workspace, DType::F32, {n})};
  };
  for (std::int64_t width : {C, F, 2 * F})
    for (bool scaled : {false, true})
      add(concat("fp8_quantise_", width, scaled ? "_scaled" : ""),
          {.bytes = 3.0 * static_cast<double>(T * width)}, [=] {
            std::vector<Tensor> columns;
            if (scaled) columns.push_back(random_tensor(DType::F32, {width}, 2));
            return [=, x = random_tensor(DType::BF16, {T, width}, 1), to = rows(T, width)] {
              fp8->quantise_rows(to, x, columns);
            };
          });
  for (auto [n, k] : {std::pair{C, C}, {F, C}, {C, F}})
    add(concat("fp8_transpose_", n, "x", k), {.bytes = 2.0 * static_cast<double>(n * k)},
        [=, n = n, k = k] {
          return [=, from = gpu().empty(Tag::Workspace, DType::U8, {n, k}), to = rows(k, n)] {
            fp8->transpose(to, from);
          };
        });
  for (auto [n, k] : {std::pair{C, C}, {F, C}, {2 * F, C}, {C, F}, {C, 2 * F}, {C, 3 * C}})
    for (GradMode mode : {GradMode::Write, GradMode::Add})
      add(concat("fp8_product_", n, "x", k, mode == GradMode::Add ? "_add" : ""),
          {.flops = 2.0 * static_cast<double>(T * n) * static_cast<double>(k)}, [=, n = n, k = k] {
            auto codes = [=](std::int64_t height, unsigned seed) {
              const Fp8Rows to = rows(height, k);
              fp8->quantise_rows(to, random_tensor(DType::BF16, {height, k}, seed), {});
              return to;
            };
            return [=, y = random_tensor(DType::BF16, {T, n}, 1), a = codes(T, 2),
                    b = codes(n, 3)] { fp8->multiply(y, mode, a, b, {}); };
          });
}

// Quantised matrices of gate_up's size: to BF16, with margin columns as in a joined product, and times
// one row of x, from the codes as they lie.
void register_quantised() {
  const Shape shape{F, C};
  auto weight = [=](const QuantisedFormat& format) {
    HostPlanes planes(format, shape);
    std::uint32_t state = 1;
    for (auto& plane : planes.planes)
      for (std::byte& b : plane) b = std::byte((state = state * 1664525 + 1013904223) >> 24);
    return Weight("w", planes.upload(gpu()), shape, DType::BF16);
  };
  auto quantised = [=](const std::string& name, const QuantisedFormat& format) {
    const double stored = static_cast<double>(format.bytes(shape)),
                 dense = 2.0 * static_cast<double>(shape.numel());
    add("dequantise_" + name, {.bytes = stored + dense}, [=] {
      return [w = weight(format),
              to = gpu().empty_with_margin(Tag::Workspace, DType::BF16, shape, 64)] {
        gpu().quantised_kernels()->dequantise(to, w);
      };
    });
    add("one_row_" + name, {.bytes = stored}, [=] {
      return
          [w = weight(format), x = random_tensor(DType::BF16, {1, C}, 1),
           y = gpu().empty(Tag::Workspace, DType::BF16, {1, F})] { gpu().linear_forward(y, x, w); };
    });
  };
  for (std::uint32_t id : {2u, 3u, 6u, 7u, 8u, 10u, 11u, 12u, 13u, 14u, 20u, 23u, 39u}) {
    const GgmlType& type = *find_ggml_type(id);
    quantised(type.name, block_format(type));
  }
  quantised("nf4", own_format(Encoding::Nf4, shape));
  quantised("nf4_plain", {Encoding::Nf4, nullptr, 64});
  quantised("fp4", own_format(Encoding::Fp4, shape));
  quantised("fp8_rows", own_format(Encoding::Fp8, shape));
  quantised("fp8_128x128", {Encoding::Fp8, nullptr, 128, 128});
  quantised("int4_g128", {Encoding::Int4, nullptr, 128});
}

void register_products() {
  auto gemm = [](const char* name, char form, std::int64_t m, std::int64_t n, std::int64_t k,
                 GradMode mode) {
    bool tn = form == 't';
    double out_bytes = static_cast<double>(m * n) * (tn ? 4 : 2) * (mode == GradMode::Add ? 2 : 1);
    const Work work{
        .flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k),
        .bytes = 2.0 * static_cast<double>(m * k + n * k) + out_bytes};
    add(name, work, [=] {
      Tensor a = random_tensor(DType::BF16, tn ? Shape{k, m} : Shape{m, k}, 1);
      Tensor b = random_tensor(DType::BF16, form == 'f' ? Shape{n, k} : Shape{k, n}, 2);
      Tensor c = random_tensor(tn ? DType::F32 : DType::BF16, {m, n}, 3);
      return [=] {
        if (form == 'f')
          gpu().matmul_nt(c, mode, 1.0, a, b);
        else if (tn)
          gpu().weight_gradient(c, mode, 1.0, a, b);
        else
          gpu().matmul_nn(c, mode, 1.0, a, b);
      };
    });
  };
  for (std::int64_t r : {8, 16, 64}) {
    std::string s = std::to_string(r);
    gemm(("lora_S_r" + s).c_str(), 'f', T, r, C, GradMode::Write);   // S = x Aᵀ
    gemm(("lora_y_r" + s).c_str(), 'f', T, C, r, GradMode::Add);     // y += S Bᵀ
    gemm(("lora_dS_r" + s).c_str(), 'n', T, r, C, GradMode::Write);  // dS = dy B
    gemm(("lora_dx_r" + s).c_str(), 'n', T, C, r, GradMode::Add);    // dx += dS A
    gemm(("lora_dA_r" + s).c_str(), 't', r, C, T, GradMode::Write);  // dA = dSᵀ x
    gemm(("lora_dB_r" + s).c_str(), 't', C, r, T, GradMode::Write);  // dB = dyᵀ S
  }
  gemm("lora_S_r7", 'f', T, 7, C, GradMode::Write);
  gemm("lora_dA_r7", 't', 7, C, T, GradMode::Write);
}

// Each document has its own adapter of rank 16.
void register_lora_segments() {
  auto segments = [](int documents, int length) {
    const std::int64_t rank = 16, n = static_cast<std::int64_t>(documents) * length;
    const double factors = 2.0 * documents * rank * (C + C), rows = static_cast<double>(n);
    add(concat("lora_segments_", documents, "x", length),
        {.flops = 4.0 * rows * rank * C, .bytes = factors + 2.0 * rows * 3 * C}, [=] {
          std::vector<LoraFactors> f;
          std::vector<std::int32_t> offsets{0}, which;
          for (int i = 0; i < documents; ++i) {
            f.push_back({random_tensor(DType::BF16, {rank, C}, 1),
                         random_tensor(DType::BF16, {rank, C}, 2), 1.0f});
            offsets.push_back((i + 1) * length);
            which.push_back(i);
          }
          return [=, table = make_lora_table(gpu(), f), seg = make_segments(gpu(), offsets),
                  variants = RowVariants{which, to_device(gpu(), Tag::Workspace, which)},
                  x = random_tensor(DType::BF16, {n, C}, 3),
                  y = random_tensor(DType::BF16, {n, C}, 4)] {
            gpu().adapter_kernels()->lora_segments(y, x, table, seg, variants);
          };
        });
  };
  segments(1, 1);
  segments(16, 1);
  segments(100, 1);
  segments(16, 128);
}

// The products of a step of generation: weights (N,K), each multiplied with x or, if `normed`, with
// its norm. Four copies of the weights take turns, so that none is found in L2.
void register_generation() {
  auto parts = [](const char* name, std::int64_t rows, int n_parts, std::int64_t N, std::int64_t K,
                  bool normed) {
    add(concat("linear_parts_", name, "_", rows),
        {.bytes = 2.0 * n_parts * static_cast<double>(N * K)}, [=] {
          std::vector<Weight> w;
          std::vector<Tensor> y;
          for (int i = 0; i < 4 * n_parts; ++i)
            w.emplace_back("w", random_tensor(DType::BF16, {N, K}, 2));
          for (int i = 0; i < n_parts; ++i)
            y.push_back(gpu().empty(Tag::Workspace, DType::BF16, {rows, N}));
          return [=, gain = Weight("gain", random_tensor(DType::BF16, {K}, 3)), turn = 0,
                  x = random_tensor(DType::BF16, {rows, K}, 1),
                  n = gpu().empty(Tag::Workspace, DType::BF16, {rows, K})]() mutable {
            std::vector<LinearPart> of_turn;
            for (int i = 0; i < n_parts; ++i)
              of_turn.push_back({y[static_cast<std::size_t>(i)],
                                 &w[static_cast<std::size_t>(turn * n_parts + i)]});
            turn = (turn + 1) % 4;
            const InputNorm norm{&gain, 1e-5, n};
            cached::linear_parts(gpu(), x, normed ? &norm : nullptr, of_turn);
          };
        });
  };
  for (std::int64_t rows : {1, 8}) {
    parts("qkv", rows, 3, C, C, false);
    parts("qkv_normed", rows, 3, C, C, true);
    parts("o", rows, 1, C, C, false);
    parts("gate_up_normed", rows, 2, F, C, true);
    parts("down", rows, 1, C, F, false);
  }
  add("rope_into_cache_16", {.bytes = 2.0 * 16 * (2 + 4) * C}, [] {
    std::vector<std::int32_t> rows;
    for (int i = 0; i < 16; ++i) rows.push_back(100 * i);
    return [at = to_device(gpu(), Tag::Workspace, rows), q = random_tensor(DType::BF16, {16, C}, 1),
            k = random_tensor(DType::BF16, {16, C}, 2), v = random_tensor(DType::BF16, {16, C}, 3),
            keys = random_tensor(DType::BF16, {1600, C}, 4),
            values = random_tensor(DType::BF16, {1600, C}, 5),
            table = random_tensor(DType::F32, {1600, 128}, 6)] {
      cached::rope_into_cache(gpu(), q, k, v, {keys, values, at}, table, at, 128);
    };
  });
}

// LoRA's products for q, k and v together, as in training: x (T,C), dy (T,3C), rank 16.
void register_thin_products() {
  const std::int64_t R = 16, N = 3 * C, S = 3 * R;
  const double factors = 2.0 * 4 * static_cast<double>(N * R);
  ThinShape shape{C, N, S, DType::BF16, false, {}};
  for (std::int64_t p = 0; p < 3; ++p) shape.parts.push_back({p * C, (p + 1) * C, p * R, R});
  const ThinPlan plan(shape);
  add("thin_backward_b_qkv", {.bytes = 2.0 * T * (N + 2 * S) + factors}, [=] {
    Tensor dy = random_tensor(DType::BF16, {T, N + S}, 1),
           db = random_tensor(DType::F32, {N, R}, 2);
    return [=, b = random_tensor(DType::BF16, {N, S}, 3),
            s = random_tensor(DType::BF16, {T, S}, 4)] {
      std::vector<ThinPart> parts;
      for (std::int64_t p = 0; p < 3; ++p)
        parts.push_back({p * C, (p + 1) * C, p * R, R, db.slice_rows(p * C, (p + 1) * C)});
      thin::backward_b(gpu(), plan, dy.slice_cols(N, N + S), 1.0, dy.slice_cols(0, N), b, s, parts);
    };
  });
  for (bool normed : {false, true})
    add(normed ? "thin_backward_a_qkv_normed" : "thin_backward_a_qkv",
        {.bytes = 2.0 * T * (C + S) + 4.0 * C * S}, [=] {
          NormedInput norm{random_tensor(DType::F32, {T}, 1),
                           Weight("gain", random_tensor(DType::BF16, {C}, 2)), 1e-5};
          return [=, da = random_tensor(DType::F32, {S, C}, 3),
                  x = random_tensor(DType::BF16, {T, C}, 4),
                  ds = random_tensor(DType::BF16, {T, S}, 5)] {
            std::vector<ThinPart> parts;
            for (std::int64_t p = 0; p < 3; ++p)
              parts.push_back({0, C, p * R, R, da.slice_rows(p * R, (p + 1) * R)});
            thin::backward_a(gpu(), plan, ds, x, normed ? &norm : nullptr, parts);
          };
        });
  // The thin products with dropout: one mask for each of the three projections.
  std::vector<ThinPart> masked;
  for (std::int64_t p = 0; p < 3; ++p)
    masked.push_back({0, C, p * R, R, {}, GradMode::Write, static_cast<std::uint32_t>(p)});
  const InputDropout drop{0.1f, {1, 2, 0}};
  add("thin_forward_qkv", {.bytes = 2.0 * T * (C + S) + 2.0 * C * S}, [=] {
    return [=, s = random_tensor(DType::BF16, {T, S}, 1), x = random_tensor(DType::BF16, {T, C}, 2),
            a = random_tensor(DType::BF16, {S, C}, 3)] {
      thin::forward(gpu(), plan, s, 1.0, x, a, masked, drop);
    };
  });
  add("thin_into_x_qkv", {.bytes = 2.0 * T * (2 * C + S) + 2.0 * C * S}, [=] {
    return [=, ds = random_tensor(DType::BF16, {T, S}, 1),
            x = random_tensor(DType::BF16, {T, C}, 2), a = random_tensor(DType::BF16, {S, C}, 3)] {
      thin::into_x(gpu(), plan, x, ds, a, masked, drop);
    };
  });
  add("thin_backward_a_qkv_dropout", {.bytes = 2.0 * T * (C + S) + 4.0 * C * S}, [=] {
    return [=, da = random_tensor(DType::F32, {S, C}, 3), x = random_tensor(DType::BF16, {T, C}, 4),
            ds = random_tensor(DType::BF16, {T, S}, 5)] {
      std::vector<ThinPart> parts = masked;
      for (std::size_t p = 0; p < 3; ++p)
        parts[p].dw =
            da.slice_rows(static_cast<std::int64_t>(p) * R, static_cast<std::int64_t>(p + 1) * R);
      thin::backward_a(gpu(), plan, ds, x, nullptr, parts, drop);
    };
  });
  add("matmul_nt_onto_down", {.flops = 2.0 * T * C * F, .bytes = 2.0 * (T * F + C * F + 2 * T * C)},
      [=] {
        return
            [h = random_tensor(DType::BF16, {T, C}, 1), x = random_tensor(DType::BF16, {T, F}, 2),
             w = random_tensor(DType::BF16, {C, F}, 3),
             y = gpu().empty(Tag::Workspace, DType::BF16, {T, C})] {
              gpu().matmul_nt(y, GradMode::Write, 1.0, x, w, h);
            };
      });
}

enum class Pass { Forward, OtherForward, Backward, RopeBackward };

void register_attention() {
  auto attention = [](DType t, int heads, int kv_heads, int head_dim, int documents, int length,
                      int window = 0) {
    std::string name = concat("attention_", dtype_name(t), "_H", heads, "_G", kv_heads, "_D",
                              head_dim, "_", documents, "x", length);
    if (window > 0) name += concat("_W", window);
    double pairs = 0.5 * length * length;
    if (window > 0 && window < length) pairs -= 0.5 * (length - window) * (length - window);
    double flops = 4.0 * documents * heads * head_dim * pairs;  // 2 products
    auto make = [=](Pass pass) {
      std::int64_t n = static_cast<std::int64_t>(documents) * length;
      std::vector<std::int32_t> offsets;
      for (int i = 0; i <= documents; ++i) offsets.push_back(i * length);
      Tensor q = random_tensor(t, {n, heads * head_dim}, 1),
             k = random_tensor(t, {n, kv_heads * head_dim}, 2),
             v = random_tensor(t, {n, kv_heads * head_dim}, 3),
             o = random_tensor(t, {n, heads * head_dim}, 4),
             dout = random_tensor(t, {n, heads * head_dim}, 5),
             lse = random_tensor(DType::F32, {heads, n}, 6);
      Tensor dq = random_tensor(t, {n, heads * head_dim}, 7),
             dk = random_tensor(t, {n, kv_heads * head_dim}, 8),
             dv = random_tensor(t, {n, kv_heads * head_dim}, 9);
      Segments seg = make_segments(gpu(), offsets);
      AttentionShape shape{heads, kv_heads, head_dim, static_cast<float>(1 / std::sqrt(head_dim)),
                           window};
      Rotation rotation{random_tensor(DType::F32, {length, head_dim}, 10),
                        to_device(gpu(), Tag::Workspace, std::vector<std::int32_t>(n, 7))};
      gpu().attention_forward(o, lse, q, k, v, shape, seg, seg);
      return [=] {
        if (pass == Pass::OtherForward) setenv("LORIKEET_FORWARD_PLAN", "3", 1);
        if (pass == Pass::Forward || pass == Pass::OtherForward)
          gpu().attention_forward(o, lse, q, k, v, shape, seg, seg);
        if (pass == Pass::OtherForward) unsetenv("LORIKEET_FORWARD_PLAN");
        if (pass == Pass::Forward || pass == Pass::OtherForward) return;
        if (pass == Pass::Backward)
          gpu().attention_backward(dq, dk, dv, dout, q, k, v, o, lse, shape, seg);
        else
          gpu().attention_backward(dq, dk, dv, dout, q, k, v, o, lse, shape, seg, &rotation);
      };
    };
    add(name + "_forward", {.flops = flops}, [=] { return make(Pass::Forward); });
    if (t == DType::BF16 && (head_dim == 64 || head_dim == 128))
      add(name + "_forward_plan3", {.flops = flops}, [=] { return make(Pass::OtherForward); });
    add(name + "_backward", {.flops = 2.5 * flops}, [=] { return make(Pass::Backward); });
    add(name + "_rope_backward", {.flops = 2.5 * flops}, [=] { return make(Pass::RopeBackward); });
  };
  attention(DType::BF16, 32, 32, 128, 4, 2048);
  attention(DType::BF16, 32, 8, 128, 4, 2048);
  attention(DType::BF16, 32, 8, 128, 1, 8192);
  attention(DType::BF16, 32, 8, 64, 4, 2048);
  attention(DType::BF16, 9, 3, 64, 16, 512);
  for (int head_dim : {64, 128, 256})  // 2048 columns and 16384 rows: as attention is compared
    for (int length : {512, 2048, 8192, 32768})
      if (head_dim < 256 || length <= 8192)
        attention(DType::BF16, 2048 / head_dim, 2048 / head_dim, head_dim,
                  std::max(1, 16384 / length), length);
  attention(DType::BF16, 4, 1, 256, 4, 1024);  // gemma3-1b: its global and its local layers
  attention(DType::BF16, 4, 1, 256, 4, 1024, 512);
  for (int head_dim : {80, 96, 192}) attention(DType::BF16, 16, 16, head_dim, 4, 2048);
  attention(DType::F32, 9, 3, 64, 4, 512);
  // One new token per document against a cache of 2048 keys; bytes, not products, are the roof.
  add("attention_bf16_H32_G8_D128_decode_8x2048", {.bytes = 2.0 * 8 * 2048 * 8 * 128 * 2}, [] {
    std::vector<std::int32_t> one, keys;
    for (int i = 0; i <= 8; ++i) one.push_back(i), keys.push_back(2048 * i);
    Tensor q = random_tensor(DType::BF16, {8, 4096}, 1),
           k = random_tensor(DType::BF16, {8 * 2048, 1024}, 2),
           v = random_tensor(DType::BF16, {8 * 2048, 1024}, 3),
           o = random_tensor(DType::BF16, {8, 4096}, 4),
           lse = random_tensor(DType::F32, {32, 8}, 5);
    Segments qs = make_segments(gpu(), one), ks = make_segments(gpu(), keys);
    return [=] { gpu().attention_forward(o, lse, q, k, v, {32, 8, 128, 0.088f, 0}, qs, ks); };
  });
}

// A prefix of 30 keys beside the attention of a layer with eight key/value heads.
void register_shared_keys() {
  constexpr std::int64_t n = 30, kv_width = 8 * 128;
  const AttentionShape shape{32, 8, 128, 0.088f, 0};
  const double flops = 4.0 * T * C * n, bytes = 2.0 * T * C;
  auto make = [=](bool backward) {
    const Tensor q = random_tensor(DType::BF16, {T, C}, 1),
                 o = random_tensor(DType::BF16, {T, C}, 2),
                 dout = random_tensor(DType::BF16, {T, C}, 3),
                 dq = random_tensor(DType::BF16, {T, C}, 4),
                 lse = random_tensor(DType::F32, {32, T}, 5),
                 delta = random_tensor(DType::F32, {32, T}, 6),
                 dk = random_tensor(DType::BF16, {n, kv_width}, 7),
                 dv = random_tensor(DType::BF16, {n, kv_width}, 8);
    const SharedKeys keys{random_tensor(DType::BF16, {n, kv_width}, 9),
                          random_tensor(DType::BF16, {n, kv_width}, 10)};
    return [=] {
      if (backward)
        gpu().shared_key_kernels()->shared_keys_backward(dq, GradMode::Add, dk, dv, delta, dout, q,
                                                         keys, o, lse, shape);
      else
        gpu().shared_key_kernels()->shared_keys_forward(o, lse, GradMode::Add, q, keys, shape);
    };
  };
  add("shared_keys_forward", {.flops = flops, .bytes = 3 * bytes}, [=] { return make(false); });
  add("shared_keys_backward", {.flops = 3.5 * flops, .bytes = 5 * bytes},
      [=] { return make(true); });
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (n_gpus() == 0) {
    std::fprintf(stderr, "SKIPPED: no GPU\n");
    return 77;
  }
  benchmark::AddCustomContext("device", gpu().description());
  benchmark::AddCustomContext("copy GB/s", std::to_string(roofs().bytes_per_second * 1e-9));
  benchmark::AddCustomContext("bf16 8192^3 TFLOP/s",
                              std::to_string(roofs().flops_per_second * 1e-12));
  register_shared();
  register_memory_bound();
  register_linear();
  register_quantised();
  register_fp8();
  register_products();
  register_thin_products();
  register_lora_segments();
  register_generation();
  register_attention();
  register_shared_keys();
  benchmark::RunSpecifiedBenchmarks();
  gpu().synchronize();
}
