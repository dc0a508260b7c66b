// QuantisedMatrix: a frozen matrix (N,K) in fewer bits than a dense one, as its file holds it: codes,
// and what makes numbers of them. Every device dequantises such a matrix into dense scratch
// (tensor/dense_scratch.h) and then multiplies as if it were dense.
//
//   Blocks   ggml's types: rows of blocks that hold their own scales (tensor/ggml_type.h)
//   Nf4,Fp4  bitsandbytes: 4-bit codes of the flattened matrix, the even element in the high nibble,
//            values from a table times a scale for each `block` consecutive elements. Nested scales
//            are 8-bit codes themselves: scale_i = map[code_i] * outer[i / 256] + offset, rounded
//            after each of the two operations.
//   Fp8      E4M3 codes; a scale for each scale_rows x block elements, cut at the edges
//   Int4     4-bit codes along K, the even element in the low nibble; value = (code - zero) * scale,
//            a zero and a scale for each `block` elements of a row
//
// Arithmetic is F32; each value is rounded to `rounded` first and to the asked dtype then.
// Sources: bitsandbytes 0.50 (functional.py), compressed-tensors, AutoAWQ, transformers' fp8.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "tensor/ggml_type.h"
#include "tensor/tensor.h"

namespace lk {

enum class Encoding : std::uint8_t { Blocks, Nf4, Fp4, Fp8, Int4 };
enum class RoundedTo : std::uint8_t { F32, BF16, F16 };

// The arrays that make up a quantised matrix. All but the codes may be absent.
enum class Plane : std::uint8_t { Codes, Scales, Outer, Map, Zeros };
inline constexpr std::size_t kPlanes = 5;
inline constexpr std::int64_t kNestedBlock = 256;  // scales that share an outer one
inline constexpr float kSmallestE4m3Row = 0x1p-100f;

// How many blocks n elements take, the last of which may be cut.
inline std::int64_t blocks_in(std::int64_t n, std::int64_t block) {
  return (n + block - 1) / block;
}

struct PlaneShape {
  DType dtype = DType::U8;
  std::int64_t rows = 0, cols = 0;  // 0: absent
  std::int64_t bytes() const { return rows * cols * static_cast<std::int64_t>(dtype_size(dtype)); }
};

struct QuantisedFormat {
  Encoding encoding = Encoding::Blocks;
  const GgmlType* blocks = nullptr;  // of Encoding::Blocks; must outlive the format
  std::int64_t block = 64;           // see above
  std::int64_t scale_rows = 1;       // Fp8
  bool nested = false;               // Nf4, Fp4
  RoundedTo rounded = RoundedTo::F32;
  // Fp8: whether products run on the codes themselves where a device does that, with activations
  // rounded to E4M3 (Note [FP8 products] in tensor/fp8_product.h). `rounded` counts for nothing then.
  bool multiplied = false;

  std::string name() const;  // "Q4_K", "nf4", ...
  PlaneShape plane(Plane p, const Shape& shape) const;
  std::int64_t bytes(const Shape& shape) const;  // of all planes
};
inline QuantisedFormat block_format(const GgmlType& type) {
  return {Encoding::Blocks, &type, type.block_values};
}

struct QuantisedMatrix {
  QuantisedFormat format;
  float offset = 0;  // of nested scales
  std::array<Tensor, kPlanes> planes;
  const Tensor& operator[](Plane p) const { return planes[static_cast<std::size_t>(p)]; }
  Tensor& operator[](Plane p) { return planes[static_cast<std::size_t>(p)]; }
  // Where a plane lies; null if it is absent.
  template <class T>
  const T* plane(Plane p) const {
    return (*this)[p] ? static_cast<const T*>((*this)[p].raw()) : nullptr;
  }
};

inline QuantisedMatrix of_blocks(Tensor blocks, const GgmlType& type) {
  return {block_format(type), 0, {std::move(blocks)}};
}

// A quantised matrix in host memory.
struct HostQuantised {
  QuantisedFormat format;
  Shape shape;
  float offset = 0;
  std::array<const void*, kPlanes> planes = {};
  template <class T>
  const T* data(Plane p) const {
    return static_cast<const T*>(planes[static_cast<std::size_t>(p)]);
  }
};
// Checks that q has the planes that its format asks for. Throws Error naming `what`.
void check_planes(const QuantisedMatrix& q, const Shape& shape, const std::string& what);

HostQuantised host_view(const QuantisedMatrix& q, const Shape& shape);

// dst (end - begin, K) = rows [begin, end), exactly as the formats' own packages dequantise them.
void dequantise_rows(const HostQuantised& q, std::int64_t begin, std::int64_t end, float* dst);

// The 16 values of Nf4 and Fp4, by code.
const std::array<float, 16>& codebook(Encoding encoding);
// The E4M3 number of a code: sign, four bits of exponent (bias 7), three of mantissa; 0x7f and 0xff
// are NaN and there is no infinity.
float e4m3_to_float(std::uint8_t code);
// The nearest code, ties to even; numbers beyond 448 give 448, a NaN gives 0x7f.
std::uint8_t float_to_e4m3(float x);
// What a row is divided by before it is rounded to E4M3: its largest magnitude / 448. 1 for a row of
// zeros, and of numbers so small that the scale would have no inverse. Not finite if `most` is not.
inline float e4m3_row_scale(float most) { return most < kSmallestE4m3Row ? 1 : most / 448; }
// Rounds to the nearest half, ties to even, and widens it again.
float round_to_half(float x);

}  // namespace lk
