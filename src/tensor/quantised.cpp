#include "tensor/quantised.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace lk {
namespace {

// bitsandbytes' tables: csrc/kernels.cu and functional.py. Dettmers et al., "QLoRA", 2023.
constexpr std::array<float, 16> kNf4 = {-1.0f,
                                        -0.6961928009986877f,
                                        -0.5250730514526367f,
                                        -0.39491748809814453f,
                                        -0.28444138169288635f,
                                        -0.18477343022823334f,
                                        -0.09105003625154495f,
                                        0.0f,
                                        0.07958029955625534f,
                                        0.16093020141124725f,
                                        0.24611230194568634f,
                                        0.33791524171829224f,
                                        0.44070982933044434f,
                                        0.5626170039176941f,
                                        0.7229568362236023f,
                                        1.0f};
constexpr std::array<float, 16> kFp4 = {
    0.0f,  0.005208333333f,  0.66666667f,  1.0f,  0.33333333f,  0.5f,  0.16666667f,  0.25f,
    -0.0f, -0.005208333333f, -0.66666667f, -1.0f, -0.33333333f, -0.5f, -0.16666667f, -0.25f};

template <RoundedTo R>
float round_first(float x) {
  if constexpr (R == RoundedTo::BF16) return static_cast<float>(bf16(x));
  if constexpr (R == RoundedTo::F16) return round_to_half(x);
  return x;
}

// The scale of a block. Two roundings: built without fused multiply-add, see meson.build.
float block_scale(const HostQuantised& q, std::int64_t i) {
  if (!q.format.nested) return q.data<float>(Plane::Scales)[i];
  const float inner = q.data<float>(Plane::Map)[q.data<std::uint8_t>(Plane::Scales)[i]];
  const float scaled = inner * q.data<float>(Plane::Outer)[i / kNestedBlock];
  return scaled + q.offset;
}

template <RoundedTo R>
void codebook_rows(const HostQuantised& q, std::int64_t begin, std::int64_t end, float* dst) {
  const std::array<float, 16>& table = codebook(q.format.encoding);
  const std::uint8_t* codes = q.data<std::uint8_t>(Plane::Codes);
  const std::int64_t first = begin * q.shape[1], last = end * q.shape[1], block = q.format.block;
  for (std::int64_t at = first; at < last;) {
    const std::int64_t b = at / block, stop = std::min(last, (b + 1) * block);
    const float scale = block_scale(q, b);
    for (; at < stop; ++at) {
      const int code = at % 2 ? codes[at / 2] & 15 : codes[at / 2] >> 4;
      *dst++ = round_first<R>(table[static_cast<std::size_t>(code)] * scale);
    }
  }
}

template <RoundedTo R>
void fp8_rows(const HostQuantised& q, std::int64_t begin, std::int64_t end, float* dst) {
  const std::int64_t K = q.shape[1], block = q.format.block, grid = blocks_in(K, block);
  for (std::int64_t n = begin; n < end; ++n) {
    const std::uint8_t* codes = q.data<std::uint8_t>(Plane::Codes) + n * K;
    const float* scales = q.data<float>(Plane::Scales) + n / q.format.scale_rows * grid;
    for (std::int64_t k = 0; k < K; ++k)
      *dst++ = round_first<R>(e4m3_to_float(codes[k]) * scales[k / block]);
  }
}

template <RoundedTo R>
void int4_rows(const HostQuantised& q, std::int64_t begin, std::int64_t end, float* dst) {
  const std::int64_t K = q.shape[1], block = q.format.block, groups = blocks_in(K, block);
  for (std::int64_t n = begin; n < end; ++n) {
    const std::uint8_t* codes = q.data<std::uint8_t>(Plane::Codes) + n * blocks_in(K, 2);
    const float* scales = q.data<float>(Plane::Scales) + n * groups;
    const std::uint8_t* zeros = q.data<std::uint8_t>(Plane::Zeros) + n * groups;
    for (std::int64_t k = 0; k < K; ++k) {
      const int code = k % 2 ? codes[k / 2] >> 4 : codes[k / 2] & 15;
      const std::int64_t g = k / block;
      *dst++ = round_first<R>(static_cast<float>(code - zeros[g]) * scales[g]);
    }
  }
}

template <RoundedTo R>
void rows_of(const HostQuantised& q, std::int64_t begin, std::int64_t end, float* dst) {
  switch (q.format.encoding) {
    case Encoding::Blocks: {
      const GgmlType& type = *q.format.blocks;
      const std::int64_t row_bytes = type.row_bytes(q.shape[1]);
      type.decode(q.data<std::uint8_t>(Plane::Codes) + begin * row_bytes,
                  (end - begin) * q.shape[1] / type.block_values, dst);
      return;
    }
    case Encoding::Nf4:
    case Encoding::Fp4:
      return codebook_rows<R>(q, begin, end, dst);
    case Encoding::Fp8:
      return fp8_rows<R>(q, begin, end, dst);
    case Encoding::Int4:
      return int4_rows<R>(q, begin, end, dst);
  }
}

}  // namespace

std::string QuantisedFormat::name() const {
  switch (encoding) {
    case Encoding::Blocks:
      return blocks->name;
    case Encoding::Nf4:
      return "nf4";
    case Encoding::Fp4:
      return "fp4";
    case Encoding::Fp8:
      return "fp8";
    case Encoding::Int4:
      return concat("int4 g", block);
  }
  return "";
}

PlaneShape QuantisedFormat::plane(Plane p, const Shape& shape) const {
  const std::int64_t N = shape[0], K = shape[1];
  const bool book = encoding == Encoding::Nf4 || encoding == Encoding::Fp4;
  const std::int64_t n_scales = blocks_in(N * K, block);  // of a codebook
  switch (p) {
    case Plane::Codes:
      if (encoding == Encoding::Blocks) return {DType::U8, N, blocks->row_bytes(K)};
      if (encoding == Encoding::Fp8) return {DType::U8, N, K};
      if (encoding == Encoding::Int4) return {DType::U8, N, blocks_in(K, 2)};
      if (K % 2 == 0) return {DType::U8, N, K / 2};
      return {DType::U8, 1, blocks_in(N * K, 2)};
    case Plane::Scales:
      if (encoding == Encoding::Blocks) return {};
      if (encoding == Encoding::Fp8)
        return {DType::F32, blocks_in(N, scale_rows), blocks_in(K, block)};
      if (encoding == Encoding::Int4) return {DType::F32, N, blocks_in(K, block)};
      if (K % block == 0) return {nested ? DType::U8 : DType::F32, N, K / block};
      return {nested ? DType::U8 : DType::F32, 1, n_scales};
    case Plane::Outer:
      return book && nested ? PlaneShape{DType::F32, 1, blocks_in(n_scales, kNestedBlock)}
                            : PlaneShape{};
    case Plane::Map:
      return book && nested ? PlaneShape{DType::F32, 1, 256} : PlaneShape{};
    case Plane::Zeros:
      return encoding == Encoding::Int4 ? PlaneShape{DType::U8, N, blocks_in(K, block)}
                                        : PlaneShape{};
  }
  return {};
}

std::int64_t QuantisedFormat::bytes(const Shape& shape) const {
  std::int64_t total = 0;
  for (std::size_t p = 0; p < kPlanes; ++p) total += plane(static_cast<Plane>(p), shape).bytes();
  return total;
}

void check_planes(const QuantisedMatrix& q, const Shape& shape, const std::string& what) {
  const GgmlType* blocks = q.format.blocks;
  check(shape.rank() == 2 && (!blocks || shape[1] % blocks->block_values == 0), what, ": ", shape,
        " as ", q.format.name());
  for (std::size_t p = 0; p < kPlanes; ++p) {
    const PlaneShape want = q.format.plane(static_cast<Plane>(p), shape);
    const Tensor& have = q.planes[p];
    check(have.defined() == (want.bytes() > 0) &&
              (!have || (have.dtype() == want.dtype && have.contiguous() &&
                         static_cast<std::int64_t>(have.bytes()) == want.bytes())),
          what, ": plane ", p, " of ", q.format.name(), " is missing or of a wrong size");
  }
}

HostQuantised host_view(const QuantisedMatrix& q, const Shape& shape) {
  HostQuantised view{q.format, shape, q.offset, {}};
  for (std::size_t p = 0; p < kPlanes; ++p)
    if (q.planes[p]) view.planes[p] = q.planes[p].raw();
  return view;
}

void dequantise_rows(const HostQuantised& q, std::int64_t begin, std::int64_t end, float* dst) {
  switch (q.format.rounded) {
    case RoundedTo::F32:
      return rows_of<RoundedTo::F32>(q, begin, end, dst);
    case RoundedTo::BF16:
      return rows_of<RoundedTo::BF16>(q, begin, end, dst);
    case RoundedTo::F16:
      return rows_of<RoundedTo::F16>(q, begin, end, dst);
  }
}

const std::array<float, 16>& codebook(Encoding encoding) {
  return encoding == Encoding::Fp4 ? kFp4 : kNf4;
}

// The seven bits after the sign are a float's, but for the exponent's bias; a subnormal is one too.
float e4m3_to_float(std::uint8_t code) {
  const std::uint32_t magnitude = code & 0x7fu;
  if (magnitude == 0x7f) return std::nanf("");
  const float x = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  return code & 0x80 ? -x : x;
}

// Subnormal codes are multiples of 2^-9, the spacing of floats at 2^14; the rest is a float's bits,
// rounded to three of mantissa, but for the exponent's bias.
std::uint8_t float_to_e4m3(float x) {
  if (std::isnan(x)) return 0x7f;
  const auto sign = static_cast<std::uint32_t>(std::signbit(x)) << 7;
  const float size = std::min(std::abs(x), 448.0f);
  std::uint32_t code = 0;
  if (size < 0x1p-6f) {
    code = std::bit_cast<std::uint32_t>(size + 0x1p14f) - std::bit_cast<std::uint32_t>(0x1p14f);
  } else {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(size);
    code = ((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - (120u << 3);
  }
  return static_cast<std::uint8_t>(sign | code);
}

float round_to_half(float x) {
  const float size = std::abs(x);
  if (size < 0x1p-14f) {  // subnormal halves are multiples of 2^-24, the spacing of floats at 1/2
    const float sum = size + 0.5f;
    return std::copysign(sum - 0.5f, x);
  }
  std::uint32_t bits = std::bit_cast<std::uint32_t>(size);
  bits = (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
  const float rounded = std::bit_cast<float>(bits);
  return std::copysign(rounded > 65504.0f && !std::isnan(x) ? HUGE_VALF : rounded, x);
}

}  // namespace lk
