// LoRA's thin products with dropout on their input: each projection has a mask of its own.
//
// Maths      forward:  s_p = scale dropout_p(x) a_pᵀ;  into_x:  dx += sum over p of
//            dropout_p(ds_p a_p). dA's masks are in thin_backward.cu and thin_swiglu.cu.
// Shapes     x, dx (T,K) wide, a (S,K), s, ds (T,S) thin; all BF16
// Why own    with separate products each projection would write a masked copy of x and read it
//            back, in forward, for dA and for dx; here x is read once, and of a mask one bit an
//            element is written in forward and read back for dA and for dx.
// Plan       forward: a block owns 64 tokens and a slab of 128-column tiles. Tiles of x and a go
//            through kStages buffers; while one is multiplied, the masks of the next are drawn into
//            bits (dropout_mask.cuh). Warps take 16 tokens and half of a tile's columns each; the
//            halves are added at the end, slabs by a second kernel, in order.
//            into_x: a block owns 64 x 128 of dx; its bits travel with its operands. Each part's
//            product is masked in registers before the parts are added in F32.
// Bytes      the wide matrix once (dx: in and out), the bits once: 1 / 16 of it for each projection.
//            Drawing costs about 9 instructions an element and projection, as much as reading x
//            takes or more: forward is not bound by memory, so backward does not draw.
// Numbers    1 / (1 - p) multiplies the F32 sum, not x
// Limits     those of ThinPlan: ranks, in eights, together <= 96; parts and rows that start at 16
//            bytes; others take a masked copy for each projection
#include "cuda/lora/thin_products.cuh"

namespace lk {
using namespace thin;

namespace {

constexpr int kStages = 3, kTileBytes = kTokens * kColumns * 2;

struct ForwardArgs {
  Matrix<const __nv_bfloat16> x, a;
  Matrix<__nv_bfloat16> s;
  float* partial;  // (slabs, T, S); null if there is one slab
  i64 tokens, columns;
  int thin_columns, tiles_per_slab, n_slabs;
  float scale;
};

template <int NR>
constexpr int kFactorBytes = 16 * NR* kColumns * 2;

// fa where the part's mask keeps it, zero elsewhere. fa holds rows [row, row + 16) of a tile,
// columns 16 step...
__device__ __forceinline__ Fragment4 keep_of_fragment(const Fragment4& fa, MaskTile mask, int part,
                                                      int row, int step) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  // Bits 2t and 2t + 1 of both octets are shifted to the top of bytes 0 and 1.
  const std::uint32_t upper = mask.two_octets(part, row + g, 2 * step) << (6 - 2 * t),
                      lower = mask.two_octets(part, row + g + 8, 2 * step) << (6 - 2 * t);
  return {{fa.r[0] & pair_mask<0>(upper << 1, upper), fa.r[1] & pair_mask<0>(lower << 1, lower),
           fa.r[2] & pair_mask<1>(upper << 1, upper), fa.r[3] & pair_mask<1>(lower << 1, lower)}};
}

// Block (x, y): slab x of columns, tokens from 64 y on.
template <int NR>
__global__ void __launch_bounds__(kThreads)
    thin_forward_kernel(const __grid_constant__ ForwardArgs p,
                        const __grid_constant__ ThinDropout drop) {
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int kStageBytes = kTileBytes + kFactorBytes<NR>;
  unsigned char* bits = shared + kStages * kStageBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const i64 row0 = static_cast<i64>(blockIdx.y) * kTokens;
  const int rows = static_cast<int>(min(p.tokens - row0, i64{kTokens}));
  const i64 column0 = static_cast<i64>(blockIdx.x) * p.tiles_per_slab * kColumns;
  const i64 column1 = min(p.columns, column0 + static_cast<i64>(p.tiles_per_slab) * kColumns);
  const int n_tiles = static_cast<int>((column1 - column0 + kColumns - 1) / kColumns);

  auto fetch = [&](int i) {
    if (i < n_tiles) {
      const i64 column = column0 + static_cast<i64>(i) * kColumns;
      const int valid = static_cast<int>(min(column1 - column, i64{kColumns}));
      const std::uint32_t at = shared_address(shared) + i % kStages * kStageBytes;
      SwizzledTile<kColumns>{at}.template load_async<kTokens, kThreads>(p.x.at(row0, column),
                                                                        p.x.ld, rows, valid);
      SwizzledTile<kColumns>{at + kTileBytes}.template load_async<16 * NR, kThreads>(
          p.a.at(0, column), p.a.ld, p.thin_columns, valid);
    }
    copy_async_commit();  // commits even an empty group: the wait below counts groups
  };
  auto mask_of = [&](int i) { return MaskTile{bits + i % 2 * drop.n_parts * MaskTile::kBytes}; };
  auto draw = [&](int i) {
    if (i < n_tiles)
      drop.draw<kThreads>(mask_of(i), row0, column0 + static_cast<i64>(i) * kColumns);
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i);
  draw(0);

  const int row = 16 * (warp % 4), half = warp / 4;
  float sum[2 * NR][4] = {};
  for (int i = 0; i < n_tiles; ++i) {
    copy_async_wait_but<kStages - 2>();
    __syncthreads();
    fetch(i + kStages - 1);
    const std::uint32_t at = shared_address(shared) + i % kStages * kStageBytes;
    const SwizzledTile<kColumns> tile{at}, factor{at + kTileBytes};
    const MaskTile mask = mask_of(i);
#pragma unroll
    for (int j = 0; j < kColumns / 32; ++j) {
      const int step = half * (kColumns / 32) + j;
      const Fragment4 fa = fragment_a(tile, row, step);
      Fragment4 kept{};
      int kept_of = -1;
#pragma unroll
      for (int n = 0; n < NR; ++n) {
        const Fragment4 fb = fragment_b_of_transpose(factor, 16 * n, step);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int part = drop.part_of_eight[2 * n + e];
          if (part < 0) continue;
          if (part != kept_of) kept = keep_of_fragment(fa, mask, part, row, step), kept_of = part;
          mma(sum[2 * n + e], kept, fb.r[2 * e], fb.r[2 * e + 1]);
        }
      }
    }
    draw(i + 1);
  }

  // The second half's sums go through shared memory; then both halves are written together.
  copy_async_wait();
  __syncthreads();
  float2* other = reinterpret_cast<float2*>(shared);
  auto place = [&](int n, int lower) { return ((warp % 4 * 2 * NR + n) * 2 + lower) * 32 + lane; };
  if (half == 1) {
#pragma unroll
    for (int n = 0; n < 2 * NR; ++n)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower)
        other[place(n, lower)] = make_float2(sum[n][2 * lower], sum[n][2 * lower + 1]);
  }
  __syncthreads();
  if (half == 1) return;
#pragma unroll
  for (int n = 0; n < 2 * NR; ++n)
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int r = row + g + 8 * lower, column = 8 * n + 2 * t;
      if (r >= rows || column >= p.thin_columns) continue;
      float2 v = other[place(n, lower)];
      v.x += sum[n][2 * lower], v.y += sum[n][2 * lower + 1];
      if (p.partial)
        *reinterpret_cast<float2*>(p.partial + (blockIdx.x * p.tokens + row0 + r) * p.thin_columns +
                                   column) = v;
      else
        *reinterpret_cast<__nv_bfloat162*>(p.s.at(row0 + r, column)) =
            __floats2bfloat162_rn(p.scale * v.x, p.scale * v.y);
    }
}

__global__ void __launch_bounds__(kThreads)
    thin_forward_add_kernel(const __grid_constant__ ForwardArgs p) {
  const i64 i = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x;
  const i64 row = i / p.thin_columns;
  if (row >= p.tokens) return;
  float sum = 0.0f;
  for (int z = 0; z < p.n_slabs; ++z) sum += p.partial[z * p.tokens * p.thin_columns + i];
  *p.s.at(row, i % p.thin_columns) = from_float<__nv_bfloat16>(p.scale * sum);
}

template <int NR>
void run_forward(ForwardArgs& p, const ThinDropout& drop, const ThinCut& cut,
                 CudaBackend& backend) {
  cudaStream_t stream = backend.stream();
  p.tiles_per_slab = cut.tiles_per_slab;
  p.n_slabs = cut.column_slabs;
  Tensor partial;
  if (cut.partial_s) {
    partial = backend.empty(Tag::Workspace, DType::F32, *cut.partial_s);
    p.partial = partial.data<float>();
  }
  const std::size_t shared =
      kStages * (kTileBytes + kFactorBytes<NR>)+std::size_t{2} * drop.n_parts * MaskTile::kBytes;
  launch("thin_forward", thin_forward_kernel<NR>, grid_of(p.n_slabs, ceil_div(p.tokens, kTokens)),
         dim3(kThreads), shared, stream, p, drop);
  if (p.partial)
    launch("thin_forward_add", thin_forward_add_kernel,
           grid_of(ceil_div(p.tokens * p.thin_columns, kThreads)), dim3(kThreads), 0, stream, p);
}

struct IntoXArgs {
  Matrix<__nv_bfloat16> dx;
  Matrix<const __nv_bfloat16> ds, a;
  i64 tokens, columns;
  int thin_columns;
};

// c += a b over eight k: mma.m16n8k8's fragments are halves of m16n8k16's.
__device__ __forceinline__ void mma_eight(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                          std::uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
}

// Block (x, y): columns from 128 x on, tokens from 64 y on. Each warp: 16 tokens and 64 columns.
template <int NR>
__global__ void __launch_bounds__(kThreads)
    thin_into_x_kernel(const __grid_constant__ IntoXArgs p,
                       const __grid_constant__ ThinDropout drop) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const SwizzledTile<kColumns> dx{shared_address(shared)}, factor{dx.base + kTileBytes};
  const ThinTile<NR> ds{factor.base + kFactorBytes<NR>};
  const MaskTile mask{shared + kTileBytes + kFactorBytes<NR> + kTokens * ThinTile<NR>::kRowBytes};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const i64 row0 = static_cast<i64>(blockIdx.y) * kTokens;
  const i64 column0 = static_cast<i64>(blockIdx.x) * kColumns;
  const int rows = static_cast<int>(min(p.tokens - row0, i64{kTokens}));
  const int columns = static_cast<int>(min(p.columns - column0, i64{kColumns}));

  dx.template load_async<kTokens, kThreads>(p.dx.at(row0, column0), p.dx.ld, rows, columns);
  factor.template load_async<16 * NR, kThreads>(p.a.at(0, column0), p.a.ld, p.thin_columns,
                                                columns);
  for (int i = threadIdx.x; i < kTokens * 2 * NR; i += kThreads) {
    const int r = i / (2 * NR), chunk = i % (2 * NR);
    const bool inside = r < rows && chunk * 8 < p.thin_columns;
    copy_async_16(ds.at(r, chunk), inside ? p.ds.at(row0 + r, chunk * 8) : p.ds.data, inside);
  }
  drop.fetch<kThreads>(mask, row0, column0);
  copy_async_commit();
  copy_async_wait();
  __syncthreads();

  const int row = 16 * (warp % 4);
#pragma unroll 1
  for (int j = 0; j < kColumns / 32; ++j) {
    const int step = warp / 4 * (kColumns / 32) + j;  // columns [16 step, 16 step + 16)
    float total[2][4] = {}, sum[2][4] = {};
    int sum_of = -1;
    auto take_over = [&] {  // adds the finished part's sum where its mask keeps it
      if (sum_of < 0) return;
      const std::uint32_t bits[2] = {mask.two_octets(sum_of, row + g, 2 * step) >> 2 * t,
                                     mask.two_octets(sum_of, row + g + 8, 2 * step) >> 2 * t};
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (bits[k / 2] >> (8 * n + k % 2) & 1) total[n][k] += sum[n][k];
          sum[n][k] = 0.0f;
        }
    };
#pragma unroll
    for (int k = 0; k < NR; ++k) {
      const Fragment4 fa = load_matrix_x4(ds.at(row + lane % 16, 2 * k + lane / 16));
      const Fragment4 fb = fragment_b(factor, 16 * k, step);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int part = drop.part_of_eight[2 * k + e];
        if (part < 0) continue;
        if (part != sum_of) take_over(), sum_of = part;
        mma_eight(sum[0], fa.r[2 * e], fa.r[2 * e + 1], fb.r[e]);
        mma_eight(sum[1], fa.r[2 * e], fa.r[2 * e + 1], fb.r[2 + e]);
      }
    }
    take_over();
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        auto* pair = reinterpret_cast<__nv_bfloat162*>(
            shared + (dx.at(row + g + 8 * lower, 2 * step + n) - dx.base) + 4 * t);
        const float2 old = __bfloat1622float2(*pair);
        *pair = __floats2bfloat162_rn(fmaf(drop.keep_scale, total[n][2 * lower], old.x),
                                      fmaf(drop.keep_scale, total[n][2 * lower + 1], old.y));
      }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTokens * kColumns / 8; i += kThreads) {
    const int r = i / (kColumns / 8), chunk = i % (kColumns / 8);
    if (r < rows && chunk * 8 < columns)
      *reinterpret_cast<uint4*>(p.dx.at(row0 + r, column0 + chunk * 8)) =
          *reinterpret_cast<const uint4*>(shared + (dx.at(r, chunk) - dx.base));
  }
}

template <int NR>
void run_into_x(const IntoXArgs& p, const ThinDropout& drop, cudaStream_t stream) {
  const std::size_t shared = kTileBytes + kFactorBytes<NR> + kTokens * ThinTile<NR>::kRowBytes +
                             std::size_t(drop.n_parts) * MaskTile::kBytes;
  launch("thin_into_x", thin_into_x_kernel<NR>,
         grid_of(ceil_div(p.columns, kColumns), ceil_div(p.tokens, kTokens)), dim3(kThreads),
         shared, stream, p, drop);
}

}  // namespace

void CudaLoraKernels::forward(const ThinPlan& plan, const Tensor& s, double scale, const Tensor& x,
                              const Tensor& a, std::span<const ThinPart> parts,
                              const InputDropout& drop) {
  check(packable(8, x.cols(), x, s, a), "cuda thin forward: rows must start at 16 bytes");
  const ThinDropout masks = thin_dropout(plan, x, drop, parts);
  ForwardArgs p{.x = const_matrix<bf16>(x),
                .a = const_matrix<bf16>(a),
                .s = matrix<bf16>(s),
                .partial = nullptr,
                .tokens = x.rows(),
                .columns = x.cols(),
                .thin_columns = static_cast<int>(s.cols()),
                .tiles_per_slab = 0,
                .n_slabs = 0,
                .scale = static_cast<float>(scale) * masks.keep_scale};
  const ThinCut cut = plan.cut_forward(x.rows());
  with_sixteens(plan.forward(), [&]<int NR>() { run_forward<NR>(p, masks, cut, backend_); });
}

void CudaLoraKernels::into_x(const ThinPlan& plan, const Tensor& dx, const Tensor& ds,
                             const Tensor& a, std::span<const ThinPart> parts,
                             const InputDropout& drop) {
  check(packable(8, dx.cols(), dx, ds, a), "cuda thin into_x: rows must start at 16 bytes");
  const IntoXArgs p{.dx = matrix<bf16>(dx),
                    .ds = const_matrix<bf16>(ds),
                    .a = const_matrix<bf16>(a),
                    .tokens = dx.rows(),
                    .columns = dx.cols(),
                    .thin_columns = static_cast<int>(ds.cols())};
  const ThinDropout masks = kept_dropout(plan, dx, drop, parts);
  with_sixteens(plan.into_x(), [&]<int NR>() { run_into_x<NR>(p, masks, backend_.stream()); });
}

}  // namespace lk
