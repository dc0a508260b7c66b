// Times quantised matrices: made dense, multiplied as they lie, and products in FP8.
#include "cuda_kernels.h"
#include "io/ggml_blocks.h"
#include "modelfile/quantise.h"
#include "tensor/fp8_kernels.h"
#include "tensor/quantised_kernels.h"

namespace lk::bench::cuda {

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
              fp8->quantise_rows(to, x, columns, {});
            };
          });
  for (auto [n, k] : {std::pair{C, C}, {F, C}, {C, F}})
    add(concat("fp8_transpose_", n, "x", k), {.bytes = 2.0 * static_cast<double>(n * k)},
        [=, n = n, k = k] {
          return [=, from = gpu().empty(Tag::Workspace, DType::U8, {n, k}), to = rows(k, n)] {
            fp8->transpose(to, from);
          };
        });
  // What a LoRA term of rank 16 costs beside a product: codes put into wider rows, its factor's pairs.
  for (auto [n, k] : {std::pair{C, C}, {2 * F, C}, {C, F}}) {
    const std::int64_t width = 128, S = 32;
    add(concat("fp8_put_", n, "x", k), {.bytes = 2.0 * static_cast<double>(n * k)},
        [=, n = n, k = k] {
          return [=, from = rows(n, k), to = rows(n, k + width)] {
            fp8->put({to.codes.slice_cols(0, k), to.scales}, from);
          };
        });
    for (bool turned : {false, true})
      add(concat("fp8_factor_", turned ? k : n, turned ? "_turned" : ""),
          {.bytes = static_cast<double>((turned ? k : n) * (4 * S + width))},
          [=, length = turned ? k : n] {
            return
                [=, to = gpu().empty(Tag::Workspace, DType::U8, {length, width}),
                 bounds = gpu().empty(Tag::Workspace, DType::F32, {Fp8Thin::kBounds}),
                 scales = random_tensor(DType::F32, {length}, 1),
                 f = random_tensor(DType::BF16, turned ? Shape{S, length} : Shape{length, S}, 2)] {
                  fp8->quantise_factor(to, {f, bounds}, turned, scales);
                };
          });
  }
  for (auto [n, k] : {std::pair{C, C}, {F, C}, {2 * F, C}, {C, F}, {C, 2 * F}, {C, 3 * C}})
    for (GradMode mode : {GradMode::Write, GradMode::Add})
      add(concat("fp8_product_", n, "x", k, mode == GradMode::Add ? "_add" : ""),
          {.flops = 2.0 * static_cast<double>(T * n) * static_cast<double>(k)}, [=, n = n, k = k] {
            auto codes = [=](std::int64_t height, unsigned seed) {
              const Fp8Rows to = rows(height, k);
              fp8->quantise_rows(to, random_tensor(DType::BF16, {height, k}, seed), {}, {});
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

}  // namespace lk::bench::cuda
