// The plan of gemm.cpp around the tiles of bf16_tile.cpp. Nothing is converted: the left operand is
// read in place, and the right one is packed as pairs. Work is cut into equal parts, one or a few
// per thread, because most products here (those of LoRA's factors) take less than 50 us.
#include "cpu/fast/gemm_bf16.h"

#include <omp.h>

#include <algorithm>
#include <atomic>

#include "cpu/fast/bf16_rows.h"

namespace lk::cpu {
namespace {

constexpr std::int64_t kPacked = 1 << 20;  // elements of the right operand at a time
constexpr std::int64_t kStrip = 96;        // rows per unit of work
constexpr std::int64_t kTileRows = 12;     // rows of a tile
constexpr std::int64_t kPanels = 8;        // panels per unit of work
constexpr std::int64_t kPackK = 256;       // K per unit of packing; even
constexpr std::int64_t kShortK = 64;       // so few terms that writing the result takes longest
constexpr std::int64_t kDownRows = 64;     // of K at a time where K runs down the rows; even
constexpr std::int64_t kDownPanels = 4;    // panels at a time where K runs down the rows
constexpr std::int64_t kSerial = std::int64_t{1} << 16;  // multiply-adds not worth a second thread
constexpr std::int64_t kWide = Bf16Tile::kWide;

using Half = std::uint16_t;
std::int64_t blocks(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }
std::int64_t round_up(std::int64_t n, std::int64_t unit) { return blocks(n, unit) * unit; }

void multiply(const Bf16Tile& tile, std::int64_t rows, std::int64_t n, std::int64_t K, Bf16Left a,
              Bf16Panels b, float* out, std::int64_t out_row, float alpha, bool add) {
  tile.multiply_f32(rows, n, K, a, b, out, out_row, alpha, add);
}
void multiply(const Bf16Tile& tile, std::int64_t rows, std::int64_t n, std::int64_t K, Bf16Left a,
              Bf16Panels b, bf16* out, std::int64_t out_row, float alpha, bool add) {
  tile.multiply_bf16(rows, n, K, a, b, reinterpret_cast<Half*>(out), out_row, alpha, add);
}

// c (rows,n) (+)= alpha * from, element by element, along whichever side of c is adjacent.
template <class TC>
void store(Strided<TC> c, const float* from, std::int64_t from_row, std::int64_t from_col,
           std::int64_t rows, std::int64_t n, float alpha, bool add) {
  if (c.col != 1) return store(c.transposed(), from, from_col, from_row, n, rows, alpha, add);
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      TC& to = c.data[i * c.row + j];
      const float x = alpha * from[i * from_row + j * from_col];
      to = static_cast<TC>(add ? static_cast<float>(to) + x : x);
    }
}

// The right operand as panels; panel p starts at column p * kWide.
struct Panels {
  Half* data;
  std::int64_t N, K;
  std::int64_t count() const { return blocks(N, kWide); }
  std::int64_t columns() const { return N < kWide ? Bf16Tile::columns_for(N) : kWide; }
  std::int64_t next() const { return columns() * round_up(K, 2); }
  Bf16Panels from(std::int64_t p) const { return {data + p * next(), 2 * columns(), next()}; }
  // Packs rows [k, k + kPackK) of panel p of b (K,N).
  void pack(const Bf16Tile& tile, Strided<const bf16> b, std::int64_t p, std::int64_t k) const {
    const Half* from = bits(b.data) + k * b.row + p * kWide * b.col;
    Half* to = data + p * next() + k * columns();
    const std::int64_t rows = std::min(kPackK, K - k), n = std::min(kWide, N - p * kWide);
    if (b.col == 1)
      tile.pack_rows(from, b.row, rows, n, columns(), to);
    else
      tile.pack_columns(from, b.col, rows, n, columns(), to);
  }
};

// c (M,N) (+)= alpha a (M,K) b (K,N) for a.col = 1, K <= kBlockK and as many columns as fit
// `right`.
template <class TC>
void multiply_block(const Bf16Tile& tile, const Panels& right, Strided<TC> c, bool add, float alpha,
                    Strided<const bf16> a, Strided<const bf16> b, std::int64_t M) {
  const std::int64_t N = right.N, K = right.K, n_groups = blocks(right.count(), kPanels);
  const std::int64_t n_packs = blocks(K, kPackK);
#pragma omp parallel if (M * N * K > kSerial)
  {
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < right.count() * n_packs; ++unit)
      right.pack(tile, b, unit / n_packs, unit % n_packs * kPackK);
    const std::int64_t n_threads = omp_get_num_threads();
    const std::int64_t n_strips =
        std::min(blocks(M, kTileRows),
                 round_up(blocks(M, kStrip), n_groups % n_threads == 0 ? 1 : n_threads));
    const std::int64_t strip = blocks(M, n_strips);
    // Short sums walk along the rows of c; long ones keep a panel in the core's cache.
    const std::int64_t step = c.col == 1 && K <= kShortK ? kPanels : 1;
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < n_strips * n_groups; ++unit) {
      const std::int64_t begin = unit / n_groups * strip, rows = std::min(strip, M - begin);
      const std::int64_t p0 = unit % n_groups * kPanels, p1 = std::min(right.count(), p0 + kPanels);
      const Bf16Left left{bits(a.data) + begin * a.row, a.row, 2};
      for (std::int64_t p = p0; rows > 0 && p < p1; p += step) {
        const std::int64_t n = std::min(std::min(p1, p + step) * kWide, N) - p * kWide;
        const Strided<TC> to{c.data + begin * c.row + p * kWide * c.col, c.row, c.col};
        if (c.col == 1) {
          multiply(tile, rows, n, K, left, right.from(p), to.data, to.row, alpha, add);
        } else {
          alignas(64) float sums[kStrip * kWide];
          tile.multiply_f32(rows, n, K, left, right.from(p), sums, kWide, 1.0f, false);
          store(to, sums, kWide, 1, rows, n, alpha, add);
        }
      }
    }
  }
}

// c (M,N) (+)= alpha a (M,K) b (K,N) where K runs down the rows of both operands and M <= kStrip:
// the gradient of a LoRA factor. Rows are brought to the core once, a few at a time.
template <class TC>
void multiply_down_rows(const Bf16Tile& tile, Strided<TC> c, bool add, float alpha,
                        Strided<const bf16> a, Strided<const bf16> b, std::int64_t M,
                        std::int64_t N, std::int64_t K) {
  const std::int64_t n_panels = blocks(N, kWide), left_columns = round_up(M, 8);
#pragma omp parallel if (M * N * K > kSerial)
  {
    const std::int64_t n_threads = omp_get_num_threads();
    const std::int64_t n_units =
        std::min(n_panels, round_up(blocks(n_panels, kDownPanels), n_threads));
    alignas(64) Half packed[kDownRows * kDownPanels * kWide], left[kDownRows * kStrip];
    alignas(64) float sums[kStrip * kDownPanels * kWide];
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < n_units; ++unit) {
      const std::int64_t begin = unit * n_panels / n_units * kWide;
      const std::int64_t n = std::min(N, (unit + 1) * n_panels / n_units * kWide) - begin;
      const std::int64_t columns = round_up(n, kWide);
      for (std::int64_t k = 0; k < K; k += kDownRows) {
        const std::int64_t rows = std::min(kDownRows, K - k);
        tile.pack_rows(bits(a.data) + k * a.col, a.col, rows, M, left_columns, left);
        tile.pack_rows(bits(b.data) + k * b.row + begin, b.row, rows, n, columns, packed);
        tile.multiply_f32(M, columns, rows, {left, 2, 2 * left_columns},
                          {packed, 2 * columns, 2 * kWide}, sums, columns, 1.0f, k > 0);
      }
      store<TC>({c.data + begin * c.col, c.row, c.col}, sums, columns, 1, M, n, alpha, add);
    }
  }
}

std::atomic<bool> allowed = true;

}  // namespace

void allow_bf16_tile(bool yes) { allowed = yes; }

#if defined(__x86_64__)
static bool native_bf16() {
  static const bool native =
      __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("avx512bf16");
  return native && allowed;
}
const Bf16Tile* best_bf16_tile() { return native_bf16() ? &isa_bf16::bf16_tile : nullptr; }
const Bf16Rows* best_bf16_rows() { return native_bf16() ? &isa_bf16::bf16_rows : nullptr; }
#else
const Bf16Tile* best_bf16_tile() { return nullptr; }
const Bf16Rows* best_bf16_rows() { return nullptr; }
#endif

Bf16Blocks bf16_blocks(std::int64_t N, std::int64_t K) {
  const std::int64_t k = K <= kBlockK ? K : round_up(blocks(K, blocks(K, kBlockK)), 2);
  return {std::min(blocks(N, kWide), std::max<std::int64_t>(1, kPacked / (k * kWide))) * kWide, k};
}

template <class TC>
void gemm_bf16(const Bf16Tile& tile, Backend& backend, Strided<TC> c, bool add, float alpha,
               Strided<const bf16> a, Strided<const bf16> b, std::int64_t M, std::int64_t N,
               std::int64_t K) {
  if (a.col != 1 || (a.row == 1 && b.col == 1 && M > 1)) {
    for (std::int64_t i = 0; i < M; i += kStrip)
      multiply_down_rows<TC>(tile, {c.data + i * c.row, c.row, c.col}, add, alpha,
                             {a.data + i, a.row, a.col}, b, std::min(kStrip, M - i), N, K);
    return;
  }
  const Bf16Blocks block = bf16_blocks(N, K);
  const auto [block_n, block_k] = block;
  Tensor packed = backend.empty(Tag::Workspace, DType::BF16, {2 * block.packed_floats()});
  for (std::int64_t j = 0; j < N; j += block_n)
    for (std::int64_t k = 0; k < K; k += block_k) {
      const Panels right{reinterpret_cast<Half*>(packed.data<bf16>()), std::min(block_n, N - j),
                         std::min(block_k, K - k)};
      multiply_block<TC>(tile, right, {c.data + j * c.col, c.row, c.col}, add || k > 0, alpha,
                         {a.data + k, a.row, a.col}, {b.data + k * b.row + j * b.col, b.row, b.col},
                         M);
    }
}

template void gemm_bf16<float>(const Bf16Tile&, Backend&, Strided<float>, bool, float,
                               Strided<const bf16>, Strided<const bf16>, std::int64_t, std::int64_t,
                               std::int64_t);
template void gemm_bf16<bf16>(const Bf16Tile&, Backend&, Strided<bf16>, bool, float,
                              Strided<const bf16>, Strided<const bf16>, std::int64_t, std::int64_t,
                              std::int64_t);

}  // namespace lk::cpu
