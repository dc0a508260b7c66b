#include "cpu/fast/quantised_linear.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "cpu/fast/simd.h"
#include "cpu/kernels.h"
#include "tensor/backend.h"
#include "tensor/half.h"

namespace lk::cpu {
namespace {

// Fewer multiply-adds than this are not worth a second thread.
constexpr std::int64_t kSerialProducts = std::int64_t{1} << 17;
// Bytes of rounded activations that a thread works through before the next group of rows: half a
// core's second-level cache; the other half is for the weight.
constexpr std::int64_t kChunkBytes = std::int64_t{1} << 18;
constexpr std::int64_t kMaxChunkRows = 256;

int find_layout(const GgmlType& type) {
  for (int i = 0; i < kLayouts; ++i)
    if (kBlockLayouts[i].type == type.id) return i;
  return -1;
}

// ---- packing: see Note [Packed blocks] ----------------------------------------------------------

// A block of 32 values of one row as ggml stores it, taken apart: the halves that scale it, its
// scales in bytes, and its quanta.
struct LooseBlock {
  const std::uint8_t* halves[2] = {};  // d, and m if there is one
  std::uint8_t scales[2] = {};         // s, t
  std::uint8_t quanta[kBlock];
};

void take_nibbles(const std::uint8_t* qs, std::uint8_t* quanta) {
  for (int j = 0; j < 16; ++j) quanta[j] = qs[j] & 15, quanta[j + 16] = qs[j] >> 4;
}
void add_fifth_bits(const std::uint8_t* qh, std::uint8_t* quanta) {
  for (int j = 0; j < kBlock; ++j)
    quanta[j] = static_cast<std::uint8_t>(quanta[j] | (qh[j / 8] >> j % 8 & 1) << 4);
}

// Takes apart block b of a row of blocks; io/ggml_blocks.cpp describes the layouts.
LooseBlock take_block(const GgmlType& type, const std::uint8_t* row, std::int64_t b) {
  LooseBlock out;
  const std::int64_t at = b * kBlock / type.block_values;
  const int j = static_cast<int>(b % (type.block_values / kBlock));  // within 256 values
  const std::uint8_t* p = row + at * type.block_bytes;
  out.halves[0] = p, out.halves[1] = p + 2;
  switch (type.id) {
    case 2:  // Q4_0
      take_nibbles(p + 2, out.quanta);
      break;
    case 3:  // Q4_1
      take_nibbles(p + 4, out.quanta);
      break;
    case 6:  // Q5_0
      take_nibbles(p + 6, out.quanta);
      add_fifth_bits(p + 2, out.quanta);
      break;
    case 7:  // Q5_1
      take_nibbles(p + 8, out.quanta);
      add_fifth_bits(p + 4, out.quanta);
      break;
    case 8:  // Q8_0
      std::memcpy(out.quanta, p + 2, kBlock);
      break;
    case 12:    // Q4_K
    case 13: {  // Q5_K
      const KScale s = k_scale(p + 4, j);
      out.scales[0] = s.scale, out.scales[1] = s.minimum;
      const std::uint8_t* fifth = p + 16;
      const std::uint8_t* qs = p + (type.id == 12 ? 16 : 48) + j / 2 * 32;
      for (int l = 0; l < kBlock; ++l) {
        out.quanta[l] = qs[l] >> j % 2 * 4 & 15;
        if (type.id == 13)
          out.quanta[l] = static_cast<std::uint8_t>(out.quanta[l] | (fifth[l] >> j & 1) << 4);
      }
      break;
    }
    default: {  // Q6_K
      const int half = j / 4, run = j % 4;
      const std::uint8_t *low = p + half * 64 + run % 2 * 32, *high = p + 128 + half * 32;
      for (int l = 0; l < kBlock; ++l)
        out.quanta[l] =
            static_cast<std::uint8_t>((low[l] >> run / 2 * 4 & 15) | (high[l] >> run * 2 & 3) << 4);
      out.scales[0] = p[192 + 2 * j], out.scales[1] = p[192 + 2 * j + 1];
      out.halves[0] = p + 208;
      break;
    }
  }
  return out;
}

// Writes the quanta of row r to those of a packed block, and reads them back.
void put_quanta(const BlockLayout& layout, int r, const std::uint8_t* q, std::uint8_t* packed) {
  packed += 4 * r;
  if (layout.quanta == Quanta::Nibbles) {
    for (int g = 0; g < 4; ++g, q += 8, packed += 64)
      for (int i = 0; i < 4; ++i) packed[i] = static_cast<std::uint8_t>(q[i] | q[4 + i] << 4);
  } else {
    for (int g = 0; g < 8; ++g, q += 4, packed += 64) std::memcpy(packed, q, 4);
  }
}
void take_quanta(const BlockLayout& layout, int r, const std::uint8_t* packed, std::uint8_t* q) {
  packed += 4 * r;
  if (layout.quanta == Quanta::Nibbles) {
    for (int g = 0; g < 4; ++g, q += 8, packed += 64)
      for (int i = 0; i < 4; ++i) q[i] = packed[i] & 15, q[4 + i] = packed[i] >> 4;
  } else {
    for (int g = 0; g < 8; ++g, q += 4, packed += 64) std::memcpy(q, packed, 4);
  }
}

// Packs one group: `rows` rows of blocks (kGroupRows, or fewer at the end, where the others are
// zero).
void pack_group(const GgmlType& type, const BlockLayout& layout, const std::uint8_t* blocks,
                std::int64_t row_bytes, int rows, std::int64_t n_blocks, std::uint8_t* to) {
  std::memset(to, 0, static_cast<std::size_t>(layout.group_bytes(n_blocks)));
  for (std::int64_t b = 0; b < n_blocks; ++b) {
    std::uint8_t* super = to;
    if (layout.super() && b % kSuperBlocks == 0) to += layout.super_bytes();
    for (int r = 0; r < rows; ++r) {
      const LooseBlock block = take_block(type, blocks + r * row_bytes, b);
      if (layout.super()) {
        if (b % kSuperBlocks == 0) {
          std::memcpy(super + 2 * r, block.halves[0], 2);
          if (layout.scales == Scales::Groups) std::memcpy(super + 32 + 2 * r, block.halves[1], 2);
        }
        to[r] = block.scales[0], to[16 + r] = block.scales[1];
      } else {
        std::memcpy(to + 2 * r, block.halves[0], 2);
        if (layout.scales == Scales::Minimum) std::memcpy(to + 32 + 2 * r, block.halves[1], 2);
      }
      put_quanta(layout, r, block.quanta, to + layout.scale_bytes());
    }
    to += layout.scale_bytes() + layout.quanta_bytes();
  }
}

// Dequantises row r of a packed group: the same products as in io/ggml_blocks.cpp.
void unpack_row(const BlockLayout& layout, const std::uint8_t* p, int r, std::int64_t n_blocks,
                float* dst) {
  const auto half = [r](const std::uint8_t* halves) {
    std::uint16_t h;
    std::memcpy(&h, halves + 2 * r, sizeof h);
    return half_to_float(h);
  };
  float super_d = 0, super_m = 0;
  for (std::int64_t b = 0; b < n_blocks; ++b, dst += kBlock) {
    if (layout.super() && b % kSuperBlocks == 0) {
      super_d = half(p);
      if (layout.scales == Scales::Groups) super_m = half(p + 32);
      p += layout.super_bytes();
    }
    float scale[2] = {}, minimum = 0;  // of each half of the block; value = scale q + minimum
    switch (layout.scales) {
      case Scales::Plain:
        scale[0] = scale[1] = half(p);
        break;
      case Scales::Minimum:
        scale[0] = scale[1] = half(p), minimum = half(p + 32);
        break;
      case Scales::Groups:
        scale[0] = scale[1] = super_d * static_cast<float>(p[r]);
        minimum = -(super_m * static_cast<float>(p[16 + r]));
        break;
      case Scales::Halves:
        for (int h = 0; h < 2; ++h)
          scale[h] = super_d * static_cast<float>(static_cast<std::int8_t>(p[16 * h + r]));
        break;
    }
    std::uint8_t quanta[kBlock];
    take_quanta(layout, r, p + layout.scale_bytes(), quanta);
    for (int k = 0; k < kBlock; ++k) {
      const int q = layout.quanta == Quanta::Signed ? static_cast<std::int8_t>(quanta[k])
                                                    : static_cast<int>(quanta[k]);
      const float value = scale[k / 16] * static_cast<float>(q - layout.offset);
      dst[k] = layout.scales == Scales::Minimum || layout.scales == Scales::Groups ? value + minimum
                                                                                   : value;
    }
    p += layout.scale_bytes() + layout.quanta_bytes();
  }
}

// ---- rounding activations ---------------------------------------------------------------------

// Rounds one row of K = 32 n values. A block whose largest value is below 1e-30 counts as zero; a
// block with a number that is not finite gets the scale NaN, so that all results computed from it
// are NaN.
template <class T>
LK_SIMD void round_row(const T* x, std::int64_t n_blocks, int offset, bool halves, std::int8_t* q,
                       float* d, float* sum, std::int32_t* correction) {
  constexpr std::int32_t kInfinity = 0x7f800000;
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  for (std::int64_t b = 0; b < n_blocks; ++b, x += kBlock, q += kBlock) {
    std::int32_t top = 0;  // |x| as integers, which order like the numbers, with NaN above all
#pragma omp simd reduction(max : top)
    for (int j = 0; j < kBlock; ++j) {
      const std::int32_t bits = __builtin_bit_cast(std::int32_t, widen(x[j])) & 0x7fffffff;
      top = bits > top ? bits : top;
    }
    const float largest = __builtin_bit_cast(float, top);
    const bool finite = top < kInfinity, zero = largest < 1e-30f;
    const float inverse = zero || !finite ? 0.0f : 127.0f / largest;
    d[b] = !finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : largest / 127.0f;
    std::int32_t total[2] = {};
    for (int h = 0; h < 2; ++h) {
      std::int32_t part = 0;
#pragma omp simd reduction(+ : part)
      for (int j = 16 * h; j < 16 * h + 16; ++j) {
        const float shifted = (finite ? widen(x[j]) : 0.0f) * inverse + magic;
        const std::int32_t i =
            __builtin_bit_cast(std::int32_t, shifted) - __builtin_bit_cast(std::int32_t, magic);
        q[j] = static_cast<std::int8_t>(i);
        part += i;
      }
      total[h] = part;
    }
    sum[b] = d[b] * static_cast<float>(total[0] + total[1]);
    if (halves) {
      correction[2 * b] = -offset * total[0];
      correction[2 * b + 1] = -offset * total[1];
    } else {
      correction[b] = -offset * (total[0] + total[1]);
    }
  }
}

template <class T>
LK_SIMD void store_rows(T* y, std::int64_t y_row, const float* x, std::int64_t M, std::int64_t n) {
  for (std::int64_t i = 0; i < M; ++i)
    for (std::int64_t j = 0; j < n; ++j) y[i * y_row + j] = narrow<T>(x[i * kGroupRows + j]);
}

}  // namespace

std::span<const QuantisedTile* const> quantised_tiles() {
#if defined(__x86_64__)
  static const std::vector<const QuantisedTile*> tiles = [] {
    std::vector<const QuantisedTile*> t;
    if (__builtin_cpu_supports("x86-64-v3")) {
      t.push_back(&isa_q_v3::quantised_tile);
      if (__builtin_cpu_supports("avxvnni")) t.push_back(&isa_q_v3_vnni::quantised_tile);
      if (__builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("avx512vnni"))
        t.push_back(&isa_q_v4_vnni::quantised_tile);
    }
    return t;
  }();
  return tiles;
#else
  return {};
#endif
}

bool multiplies_quantised(const GgmlType& type) {
  return find_layout(type) >= 0 && !quantised_tiles().empty();
}

QuantisedLinear::QuantisedLinear(Backend& backend, const Weight& w, const QuantisedTile* tile)
    : tile_(tile ? *tile : *quantised_tiles().back()),
      layout_(find_layout(*w.quantised()->format.blocks)),
      rows_(w.shape()[0]),
      n_blocks_(w.shape()[1] / kBlock) {
  const GgmlType& type = *w.quantised()->format.blocks;
  check(layout_ >= 0, w.name(), ": no kernels for ", type.name);
  const BlockLayout& layout = kBlockLayouts[layout_];
  const std::int64_t n_groups = (rows_ + kGroupRows - 1) / kGroupRows;
  group_bytes_ = layout.group_bytes(n_blocks_);
  packed_ = backend.empty(Tag::Weights, DType::U8, {n_groups, group_bytes_});
  const Tensor& codes = (*w.quantised())[Plane::Codes];
  const std::uint8_t* blocks = codes.data<std::uint8_t>();
  std::uint8_t* packed = packed_.data<std::uint8_t>();
  const std::int64_t row_bytes = codes.cols();
  parallel_for(n_groups, w.numel(), [&](std::int64_t g) {
    const std::int64_t first = g * kGroupRows;
    const int rows = static_cast<int>(std::min<std::int64_t>(kGroupRows, rows_ - first));
    pack_group(type, layout, blocks + first * row_bytes, row_bytes, rows, n_blocks_,
               packed + g * group_bytes_);
  });
}

void QuantisedLinear::row(std::int64_t n, float* dst) const {
  unpack_row(kBlockLayouts[layout_], packed_.data<std::uint8_t>() + n / kGroupRows * group_bytes_,
             static_cast<int>(n % kGroupRows), n_blocks_, dst);
}

template <class T>
void QuantisedLinear::multiply(const Tensor& y, const Tensor& x) const {
  const BlockLayout& layout = kBlockLayouts[layout_];
  const Matrix<T> to = matrix<T>(y), from = matrix<T>(x);
  const std::int64_t M = from.rows, K = from.cols, n_groups = packed_.rows();
  const bool halves = layout.scales == Scales::Halves;
  const int offset = layout.quanta == Quanta::Signed ? tile_.signed_offset : layout.offset;
  const std::int64_t n_corrections = halves ? 2 * n_blocks_ : n_blocks_;

  Tensor scales =
      packed_.backend().empty(Tag::Workspace, DType::F32, {M, 2 * n_blocks_ + n_corrections});
  Tensor rounded = packed_.backend().empty(Tag::Workspace, DType::U8, {M, K});
  auto* q = reinterpret_cast<std::int8_t*>(rounded.data<std::uint8_t>());
  float *d = scales.data<float>(), *sum = d + M * n_blocks_;
  auto* correction = reinterpret_cast<std::int32_t*>(sum + M * n_blocks_);
  parallel_for(M, M * K, [&](std::int64_t m) {
    round_row(from[m], n_blocks_, offset, halves, q + m * K, d + m * n_blocks_, sum + m * n_blocks_,
              correction + m * n_corrections);
  });

  const std::int64_t chunk = std::clamp<std::int64_t>(kChunkBytes / K, 8, kMaxChunkRows);
  const std::uint8_t* packed = packed_.data<std::uint8_t>();
#pragma omp parallel if (M * K * rows_ > kSerialProducts)
  {
    const std::int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const std::int64_t begin = n_groups * thread / threads;
    const std::int64_t end = n_groups * (thread + 1) / threads;
    for (std::int64_t m = 0; m < M; m += chunk) {
      const std::int64_t rows = std::min(chunk, M - m);
      const RoundedRows part{q + m * K, d + m * n_blocks_, sum + m * n_blocks_,
                             correction + m * n_corrections, n_blocks_};
      for (std::int64_t g = begin; g < end; ++g) {
        const std::int64_t first = g * kGroupRows,
                           n = std::min<std::int64_t>(kGroupRows, rows_ - first);
        if constexpr (std::is_same_v<T, float>)
          if (n == kGroupRows) {
            tile_.multiply(layout_, packed + g * group_bytes_, part, rows, to[m] + first, to.ld);
            continue;
          }
        float out[kMaxChunkRows * kGroupRows];
        tile_.multiply(layout_, packed + g * group_bytes_, part, rows, out, kGroupRows);
        store_rows(to[m] + first, to.ld, out, rows, n);
      }
    }
  }
}

void QuantisedLinear::forward(const Tensor& y, const Tensor& x) const {
  check(x.dtype() == y.dtype(), "linear: x is ", dtype_name(x.dtype()), ", y ",
        dtype_name(y.dtype()));
  if (x.dtype() == DType::BF16)
    multiply<bf16>(y, x);
  else
    multiply<float>(y, x);
}

void quantised_row(const Weight& w, std::int64_t n, float* dst) {
  if (auto* packed = dynamic_cast<const QuantisedLinear*>(w.packed())) return packed->row(n, dst);
  dequantise_rows(host_view(*w.quantised(), w.shape()), n, n + 1, dst);
}

}  // namespace lk::cpu
