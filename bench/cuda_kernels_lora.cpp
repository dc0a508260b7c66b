// Times LoRA's own products.
#include "autograd/thin.h"
#include "cuda_kernels.h"
#include "tensor/adapter_kernels.h"

namespace lk::bench::cuda {
namespace {

// Dropout of x (T,K) with the masks that a forward drew, for the backwards.
InputDropout drawn(const ThinPlan& plan, std::int64_t K, std::int64_t S,
                   std::span<const ThinPart> parts) {
  const InputDropout drop{0.1f, {1, 2, 0}, thin::empty_bits(gpu(), plan, T)};
  thin::forward(gpu(), plan, random_tensor(DType::BF16, {T, S}, 1), 1.0,
                random_tensor(DType::BF16, {T, K}, 2), random_tensor(DType::BF16, {S, K}, 3), parts,
                drop);
  return drop;
}

}  // namespace

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

namespace {

// The backward's products of `n` projections of rank 16 that share an input (T,K), each `width` wide.
void register_thin_backward(const std::string& name, std::int64_t n, std::int64_t width,
                            std::int64_t K) {
  const std::int64_t R = 16, N = n * width, S = n * R;
  const double factors = 2.0 * 4 * static_cast<double>(N * R);
  ThinShape shape{K, N, S, DType::BF16, false, {}};
  for (std::int64_t p = 0; p < n; ++p)
    shape.parts.push_back({p * width, (p + 1) * width, p * R, R});
  const ThinPlan plan(shape);
  add("thin_backward_b_" + name, {.bytes = 2.0 * T * static_cast<double>(N + 2 * S) + factors},
      [=] {
        Tensor dy = random_tensor(DType::BF16, {T, N + S}, 1),
               db = random_tensor(DType::F32, {N, R}, 2);
        return [=, b = random_tensor(DType::BF16, {N, S}, 3),
                s = random_tensor(DType::BF16, {T, S}, 4)] {
          std::vector<ThinPart> parts;
          for (std::int64_t p = 0; p < n; ++p)
            parts.push_back(
                {p * width, (p + 1) * width, p * R, R, db.slice_rows(p * width, (p + 1) * width)});
          thin::backward_b(gpu(), plan, dy.slice_cols(N, N + S), 1.0, dy.slice_cols(0, N), b, s,
                           parts);
        };
      });
  for (bool normed : {false, true})
    add(concat("thin_backward_a_", name, normed ? "_normed" : ""),
        {.bytes = 2.0 * T * static_cast<double>(K + S) + 4.0 * static_cast<double>(K * S)}, [=] {
          NormedInput norm{random_tensor(DType::F32, {T}, 1),
                           Weight("gain", random_tensor(DType::BF16, {K}, 2)), 1e-5};
          return [=, da = random_tensor(DType::F32, {S, K}, 3),
                  x = random_tensor(DType::BF16, {T, K}, 4),
                  ds = random_tensor(DType::BF16, {T, S}, 5)] {
            std::vector<ThinPart> parts;
            for (std::int64_t p = 0; p < n; ++p)
              parts.push_back({0, K, p * R, R, da.slice_rows(p * R, (p + 1) * R)});
            thin::backward_a(gpu(), plan, ds, x, normed ? &norm : nullptr, parts);
          };
        });
}

}  // namespace

// LoRA's products as in training, of rank 16; q, k and v read one x (T,C).
void register_thin_products() {
  register_thin_backward("qkv", 3, C, C);
  register_thin_backward("gate_up", 2, F, C);
  register_thin_backward("o", 1, C, C);
  const std::int64_t R = 16, N = 3 * C, S = 3 * R;
  ThinShape shape{C, N, S, DType::BF16, false, {}};
  for (std::int64_t p = 0; p < 3; ++p) shape.parts.push_back({p * C, (p + 1) * C, p * R, R});
  const ThinPlan plan(shape);
  // The thin products with dropout: one mask for each of the three projections, drawn and kept by
  // forward, or drawn alone where the block will run again, and read by the others.
  std::vector<ThinPart> masked;
  for (std::int64_t p = 0; p < 3; ++p)
    masked.push_back({0, C, p * R, R, {}, GradMode::Write, static_cast<std::uint32_t>(p)});
  const double bits = 3.0 * T * C / 8;
  for (bool keep : {true, false})
    add(keep ? "thin_forward_qkv" : "thin_forward_qkv_unkept",
        {.bytes = 2.0 * T * (C + S) + 2.0 * C * S + (keep ? bits : 0)}, [=] {
          InputDropout drop{0.1f, {1, 2, 0}};
          if (keep) drop.bits = thin::empty_bits(gpu(), plan, T);
          return [=, s = random_tensor(DType::BF16, {T, S}, 1),
                  x = random_tensor(DType::BF16, {T, C}, 2),
                  a = random_tensor(DType::BF16, {S, C}, 3)] {
            thin::forward(gpu(), plan, s, 1.0, x, a, masked, drop);
          };
        });
  add("thin_into_x_qkv", {.bytes = 2.0 * T * (2 * C + S) + 2.0 * C * S + bits}, [=] {
    return [=, drop = drawn(plan, C, S, masked), ds = random_tensor(DType::BF16, {T, S}, 1),
            x = random_tensor(DType::BF16, {T, C}, 2), a = random_tensor(DType::BF16, {S, C}, 3)] {
      thin::into_x(gpu(), plan, x, ds, a, masked, drop);
    };
  });
  add("thin_backward_a_qkv_dropout", {.bytes = 2.0 * T * (C + S) + 4.0 * C * S + bits}, [=] {
    return [=, drop = drawn(plan, C, S, masked), da = random_tensor(DType::F32, {S, C}, 3),
            x = random_tensor(DType::BF16, {T, C}, 4), ds = random_tensor(DType::BF16, {T, S}, 5)] {
      std::vector<ThinPart> parts = masked;
      for (std::size_t p = 0; p < 3; ++p)
        parts[p].dw =
            da.slice_rows(static_cast<std::int64_t>(p) * R, static_cast<std::int64_t>(p + 1) * R);
      thin::backward_a(gpu(), plan, ds, x, nullptr, parts, drop);
    };
  });
  // s without dropout: of q, k and v, and of down.
  for (auto [width, thin] : {std::pair{C, S}, {C, R}, {C, 2 * R}, {F, R}})
    add(concat("matmul_nt_s_", width, "_", thin),
        {.bytes = 2.0 * T * static_cast<double>(width + thin)}, [=, width = width, thin = thin] {
          return [=, s = random_tensor(DType::BF16, {T, thin}, 1),
                  x = random_tensor(DType::BF16, {T, width}, 2),
                  a = random_tensor(DType::BF16, {thin, width}, 3)] {
            gpu().matmul_nt(s, GradMode::Write, 1.0, x, a);
          };
        });
  // swiglu's backward combined with LoRA's dA at rank 16, with and without a mask.
  for (bool dropout : {false, true})
    for (std::int64_t width : {F, std::int64_t{1536}}) {
      const double numbers = static_cast<double>(T * width);
      add(concat("thin_swiglu_backward", dropout ? "_dropout" : "",
                 width == F ? "" : concat("_", width)),
          {.bytes = 5 * 2.0 * numbers + (dropout ? numbers / 8 : 0)}, [=] {
            const ThinPlan of_down({width, C, R, DType::BF16, dropout, {{0, C, 0, R}}});
            std::vector<ThinPart> parts{
                {0, width, 0, R, random_tensor(DType::F32, {R, width}, 5), GradMode::Write, 7}};
            return [=, drop = dropout ? drawn(of_down, width, R, parts) : InputDropout(),
                    g = random_tensor(DType::BF16, {T, width}, 1),
                    u = random_tensor(DType::BF16, {T, width}, 2),
                    dy = random_tensor(DType::BF16, {T, width}, 3),
                    ds = random_tensor(DType::BF16, {T, R}, 4)] {
              thin::swiglu_backward(gpu(), of_down, g, u, dy, g, u, ds, parts, drop);
            };
          });
    }
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

}  // namespace lk::bench::cuda
