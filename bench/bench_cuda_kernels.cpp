// Each kernel of the CUDA backend compared with its roofline: the copy (GB/s) or product (BF16
// TFLOP/s, 8192^3) that was just measured on this GPU, not what a data sheet says.
//
// Columns    GB/s counts each input read once and each output written once; TFLOP/s counts the
//            products that the maths needs (attention backward: 5, causal halves); `roof%` is the
//            share of the roof.
// Numbers    random, never zeros: zeros run faster. Buffers are larger than the L2 cache where the
//            op allows.
#include <cmath>
#include <cstring>

#include "cuda_kernels.h"
#include "kernel_cases.h"
#include "nn/cached_ops.h"

using namespace lk;
using namespace lk::bench::cuda;

namespace {

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

// The products of a step of generation: weights (N,K), each multiplied with x or with its norm or, if
// it is gated, with act(gate) * x. Four copies of the weights take turns, so that none is found in L2.
void register_generation() {
  enum Input { Plain, Normed, Gated };
  auto parts = [](const char* name, std::int64_t rows, int n_parts, std::int64_t N, std::int64_t K,
                  Input made) {
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
                  gate = random_tensor(DType::BF16, {rows, K}, 4),
                  n = gpu().empty(Tag::Workspace, DType::BF16, {rows, K})]() mutable {
            std::vector<LinearPart> of_turn;
            for (int i = 0; i < n_parts; ++i)
              of_turn.push_back({y[static_cast<std::size_t>(i)],
                                 &w[static_cast<std::size_t>(turn * n_parts + i)]});
            turn = (turn + 1) % 4;
            MadeInput input{&gain, 1e-5, n};
            if (made == Gated) input.gate = gate;
            cached::linear_parts(gpu(), x, made == Plain ? nullptr : &input, of_turn);
          };
        });
  };
  for (std::int64_t rows : {1, 8}) {
    parts("qkv", rows, 3, C, C, Plain);
    parts("qkv_normed", rows, 3, C, C, Normed);
    parts("o", rows, 1, C, C, Plain);
    parts("gate_up_normed", rows, 2, F, C, Normed);
    parts("down", rows, 1, C, F, Plain);
    parts("down_gated", rows, 1, C, F, Gated);
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
  for (std::int64_t n : {1, 16})
    add(concat("choose_next_", n), {.bytes = 2.0 * static_cast<double>(n) * 128256}, [=] {
      return [at = to_device(gpu(), Tag::Workspace,
                             std::vector<std::int32_t>(static_cast<std::size_t>(n))),
              chosen = gpu().empty(Tag::Workspace, DType::F32, {n}),
              logits = random_tensor(DType::BF16, {n, 128256}, 1)] {
        cached::choose_next(gpu(), {chosen, at, at, at, at}, logits);
      };
    });
  constexpr std::int64_t kKeys = 512;
  add("attend", {.bytes = 2.0 * 2 * kKeys * C}, [] {
    return [at = to_device(gpu(), Tag::Workspace, std::vector<std::int32_t>{kKeys - 1}),
            q = random_tensor(DType::BF16, {1, C}, 1), k = random_tensor(DType::BF16, {1, C}, 2),
            v = random_tensor(DType::BF16, {1, C}, 3), o = random_tensor(DType::BF16, {1, C}, 4),
            lse = random_tensor(DType::F32, {C / 128, 1}, 5),
            keys = random_tensor(DType::BF16, {kKeys, C}, 6),
            values = random_tensor(DType::BF16, {kKeys, C}, 7),
            table = random_tensor(DType::F32, {kKeys, 128}, 8),
            segments = make_segments(gpu(), {0, 1}),
            rows = KeyRows(make_segments(gpu(), {0, kKeys}))] {
      const AttentionShape shape{C / 128, C / 128, 128, 0.09f, 0};
      cached::attend(gpu(), {.o = o,
                             .lse = lse,
                             .q = q,
                             .k = k,
                             .v = v,
                             .rotation = {table, at},
                             .cache = {keys, values, at},
                             .shape = shape,
                             .q_seg = segments,
                             .k_rows = rows});
    };
  });
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
