// The matrix product around the tiles of gemm_tile.cpp.
//
// The plan is that of Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
// (2008), with one change. A block of the right operand (kBlockK x columns, a few MiB: the shared
// cache) is repacked into panels two vectors wide; panels meet strips of the left operand (kStrip
// rows: the core's own cache), tile by tile in registers. The left operand is read in place: a tile
// needs only single elements of it, so packing would only cost. It is repacked only to convert
// BF16, or when its elements along K are not adjacent. BF16 is converted while packing, which makes
// it as fast as F32 on processors without BF16 arithmetic; processors with it use gemm_bf16.cpp. Where
// the left operand is short, packing is most of the work: gemm_short.h.
#include "cpu/fast/gemm.h"

#include <algorithm>

#include "cpu/fast/gemm_bf16.h"
#include "cpu/fast/gemm_pack.h"
#include "cpu/fast/gemm_short.h"

namespace lk::cpu {
namespace {

constexpr std::int64_t kPackedFloats = 1 << 20;  // of the right operand at a time
constexpr std::int64_t kPackedRows = 1024;       // of the left operand at a time, if it is packed
constexpr std::int64_t kRows = 32;               // of K at a time where K is long and M is short
constexpr std::int64_t kFewRows = 16;            // least rows of a left operand worth packing

// c (M,N) (+)= alpha a (M,K) b (K,N) for K <= kBlockK and as many columns as `packed_b` holds.
// `packed_a` is null if a can be read in place.
template <class T, class TC>
void multiply_block(const GemmTile& tile, float* packed_a, float* packed_b, Strided<TC> c, bool add,
                    float alpha, Strided<const T> a, Strided<const T> b, std::int64_t M,
                    std::int64_t N, std::int64_t K) {
  const int wide = tile.wide();
  const std::int64_t n_panels = blocks(N, wide), n_groups = blocks(n_panels, kPanels);
  auto width = [&](std::int64_t p) { return std::min<std::int64_t>(wide, N - p * wide); };
  auto columns = [&](std::int64_t p) { return width(p) <= tile.narrow() ? tile.narrow() : wide; };
  // Tiles may write results in place if nothing else is to be done to them. With Add that is so
  // only while the sum is a single chain, which both ways add to c at once.
  const bool in_place =
      std::is_same_v<TC, float> && c.col == 1 && alpha == 1 && (!add || K <= kChain);
  const std::int64_t step = packed_a ? kPackedRows : M;
#pragma omp parallel if (M * N * K > kSerial)
  {
#pragma omp for
    for (std::int64_t group = 0; group < n_groups; ++group)
      pack_group<T>(tile, b, K, N, group, packed_b);
    for (std::int64_t first = 0; first < M; first += step) {
      const std::int64_t rows = std::min(step, M - first);
      Strided<const float> left{packed_a, K, 1};
      if (packed_a && a.col == 1) {
#pragma omp for
        for (std::int64_t i = 0; i < rows; ++i)
          widen_row(packed_a + i * K, a.data + (first + i) * a.row, K);
      } else if (packed_a) {
        left = {packed_a, 1, rows};
#pragma omp for
        for (std::int64_t k = 0; k < K; ++k)
          widen_row(packed_a + k * rows, a.data + first + k * a.col, rows);
      } else if constexpr (std::is_same_v<T, float>) {
        left = a;
      }
      const std::int64_t n_units = blocks(rows, kStrip) * n_groups;
#pragma omp for schedule(dynamic)
      for (std::int64_t unit = 0; unit < n_units; ++unit) {
        alignas(64) float strip[kStrip * kWidest];
        const std::int64_t i = unit / n_groups * kStrip, m = std::min(rows - i, kStrip);
        const std::int64_t p0 = unit % n_groups * kPanels, p1 = std::min(n_panels, p0 + kPanels);
        for (std::int64_t p = p0; p < p1; ++p) {
          const float* from = left.data + i * left.row;
          const float* panel = packed_b + p * wide * K;
          const int n = static_cast<int>(columns(p));
          const Strided<TC> to{c.data + (first + i) * c.row + p * wide * c.col, c.row, c.col};
          if constexpr (std::is_same_v<TC, float>)
            if (in_place && width(p) == n) {
              tile.multiply(m, K, from, left.row, left.col, panel, n, n, to.data, to.row, add);
              continue;
            }
          tile.multiply(m, K, from, left.row, left.col, panel, n, n, strip, n, false);
          store_strip(to, add, alpha, strip, m, width(p), n);
        }
      }
    }
  }
}

// c (M,N) (+)= alpha a (M,K) b (K,N) where K runs down the rows of both operands and M <= kStrip:
// the gradient of a LoRA factor. There is little to do with each element of b, so each is brought
// to the core once, a few rows at a time, and everything else stays in the core's first-level
// cache.
template <class T, class TC>
void multiply_down_rows(Strided<TC> c, bool add, float alpha, Strided<const T> a,
                        Strided<const T> b, std::int64_t M, std::int64_t N, std::int64_t K) {
  const GemmTile& tile = best_gemm_tile();
  const std::int64_t wide = tile.wide(), group_columns = kPanels * wide;
#pragma omp parallel for schedule(dynamic) if (M * N * K > kSerial)
  for (std::int64_t group = 0; group < blocks(N, group_columns); ++group) {
    alignas(64) float packed[kRows * kPanels * kWidest], left[kRows * kStrip];
    alignas(64) float strip[kStrip * kPanels * kWidest];
    const std::int64_t begin = group * group_columns, n = std::min(group_columns, N - begin);
    for (std::int64_t k = 0; k < K; k += kRows) {
      const std::int64_t rows = std::min(kRows, K - k);
      pack_group<T>(tile, {b.data + begin + k * b.row, b.row, 1}, rows, n, 0, packed);
      for (std::int64_t i = 0; i < rows; ++i) widen_row(left + i * M, a.data + (k + i) * a.col, M);
      for (std::int64_t j = 0; j < n; j += wide) {
        const int columns = n - j <= tile.narrow() ? tile.narrow() : tile.wide();
        tile.multiply(M, rows, left, 1, M, packed + j * rows, columns, columns, strip + j,
                      group_columns, k > 0);
      }
    }
    store_strip<TC>({c.data + begin * c.col, c.row, c.col}, add, alpha, strip, M, n, group_columns);
  }
}

// The right operand is packed by blocks of so many of its columns and rows.
struct BlockSizes {
  std::int64_t n, k;
};
BlockSizes block_sizes(const GemmTile& tile, std::int64_t N, std::int64_t K) {
  const std::int64_t k = block_length(K), wide = tile.wide();
  return {std::min(blocks(N, wide), blocks(kPackedFloats, k * wide)) * wide, k};
}

// Transposing everything makes the right operand the left one. Where K runs down the rows, the smaller
// operand should be the left one. Where K runs along them packing has to transpose, so a left operand of only
// a few rows is packed instead of the right one.
bool changes_sides(Contiguous operands, std::int64_t M, std::int64_t N) {
  return operands == Contiguous::AlongK ? M <= kFewRows && M < N
                                        : operands == Contiguous::AcrossK && M > N;
}

// Multiplies all blocks of columns and of K. If K takes more than one block, TC is float.
template <class T, class TC>
void multiply_blocks(Backend& backend, Strided<TC> c, GradMode mode, float alpha,
                     Strided<const T> a, Strided<const T> b, std::int64_t M, std::int64_t N,
                     std::int64_t K) {
  const GemmTile& tile = best_gemm_tile();
  const auto [block_n, block_k] = block_sizes(tile, N, K);
  Tensor packed_b = backend.empty(Tag::Workspace, DType::F32, {block_n, block_k}), packed_a;
  if (!std::is_same_v<T, float>)
    packed_a = backend.empty(Tag::Workspace, DType::F32, {std::min(M, kPackedRows), block_k});
  for (std::int64_t j = 0; j < N; j += block_n)
    for (std::int64_t k = 0; k < K; k += block_k)
      multiply_block<T, TC>(
          tile, packed_a ? packed_a.data<float>() : nullptr, packed_b.data<float>(),
          {c.data + j * c.col, c.row, c.col}, mode == GradMode::Add || k > 0, alpha,
          {a.data + k * a.col, a.row, a.col}, {b.data + k * b.row + j * b.col, b.row, b.col}, M,
          std::min(block_n, N - j), std::min(block_k, K - k));
}

}  // namespace

const GemmTile& best_gemm_tile() {
#if defined(__x86_64__)
  static const GemmTile& tile = __builtin_cpu_supports("x86-64-v4")   ? isa_v4::gemm_tile
                                : __builtin_cpu_supports("x86-64-v3") ? isa_v3::gemm_tile
                                                                      : isa_base::gemm_tile;
  return tile;
#else
  return isa_base::gemm_tile;
#endif
}

GemmScratch gemm_scratch(DType in, DType out, Contiguous operands, std::int64_t M, std::int64_t N,
                         std::int64_t K) {
  if (in == DType::F64 || M * N * K == 0) return {};
  GemmScratch taken{out != DType::F32 && K > kBlockK ? M * N : 0};
  if (changes_sides(operands, M, N)) std::swap(M, N);
  if (in == DType::BF16 && best_bf16_tile()) {
    if (operands != Contiguous::AcrossK) taken.right = bf16_blocks(N, K).packed_floats();
    return taken;
  }
  if (operands == Contiguous::AcrossK && M <= kStrip) return taken;
  if (is_long(M, K)) return taken.right = long_floats(best_gemm_tile(), M, N), taken;
  if (is_short(M, N, K)) return taken;
  const auto [n, k] = block_sizes(best_gemm_tile(), N, K);
  taken.right = n * k;
  if (in == DType::BF16) taken.left = std::min(M, kPackedRows) * k;
  return taken;
}

template <class T, class TC>
void gemm(Backend& backend, Strided<TC> c, GradMode mode, double alpha, Strided<const T> a,
          Strided<const T> b, std::int64_t M, std::int64_t N, std::int64_t K) {
  if (M == 0 || N == 0) return;
  if (!std::is_same_v<TC, float> && K > kBlockK) {  // partial sums must not be rounded
    Tensor total = backend.empty(Tag::Workspace, DType::F32, {M, N});
    float* sum = total.data<float>();
    gemm<T, float>(backend, {sum, N, 1}, GradMode::Write, alpha, a, b, M, N, K);
#pragma omp parallel for
    for (std::int64_t i = 0; i < M; ++i)
      store_strip<TC>({c.data + i * c.row, c.row, c.col}, mode == GradMode::Add, 1.0f, sum + i * N,
                      1, N, N);
    return;
  }
  if (K == 0) {  // an empty sum
    const float zero = 0;
    for (std::int64_t i = 0; i < M && mode == GradMode::Write; ++i)
      for (std::int64_t j = 0; j < N; ++j) c.data[i * c.row + j * c.col] = narrow<TC>(zero);
    return;
  }
  const auto factor = static_cast<float>(alpha);
  const Contiguous operands = a.col == 1 && b.row == 1   ? Contiguous::AlongK
                              : a.row == 1 && b.col == 1 ? Contiguous::AcrossK
                                                         : Contiguous::Mixed;
  if (changes_sides(operands, M, N)) {
    c = c.transposed();
    std::swap(a, b);
    a = a.transposed(), b = b.transposed();
    std::swap(M, N);
  }
  if constexpr (std::is_same_v<T, bf16>)
    if (const Bf16Tile* tile = best_bf16_tile())
      return gemm_bf16<TC>(*tile, backend, c, mode == GradMode::Add, factor, a, b, M, N, K);
  const bool add = mode == GradMode::Add;
  if (operands == Contiguous::AcrossK && M <= kStrip)
    return multiply_down_rows<T, TC>(c, add, factor, a, b, M, N, K);
  if constexpr (std::is_same_v<TC, float>)
    if (is_long(M, K)) return multiply_long<T>(backend, c, add, factor, a, b, M, N, K);
  if (is_short(M, N, K)) return multiply_short<T, TC>(c, add, factor, a, b, M, N, K);
  multiply_blocks<T, TC>(backend, c, mode, factor, a, b, M, N, K);
}

template void gemm<float, float>(Backend&, Strided<float>, GradMode, double, Strided<const float>,
                                 Strided<const float>, std::int64_t, std::int64_t, std::int64_t);
template void gemm<bf16, bf16>(Backend&, Strided<bf16>, GradMode, double, Strided<const bf16>,
                               Strided<const bf16>, std::int64_t, std::int64_t, std::int64_t);
template void gemm<bf16, float>(Backend&, Strided<float>, GradMode, double, Strided<const bf16>,
                                Strided<const bf16>, std::int64_t, std::int64_t, std::int64_t);

}  // namespace lk::cpu
