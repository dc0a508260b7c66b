// Attention backward on tensor cores (BF16); probabilities are recomputed from q, k and lse.
//
// Maths      p = exp(s - lse), s = scale * q kᵀ;  delta = rowsum(dout * o), from attention.cu;
//            dv = pᵀ dout;  dp = dout vᵀ;  ds = p (dp - delta);
//            dq = scale * ds k;  dk = scale * dsᵀ q
// Shapes     as forward; dk, dv (T, G*D) sum over the query heads of their group
// Plan       two passes, so that every output has one owner and no sums are added in memory:
//            dk, dv  a block owns 64 keys of one key/value head and walks over all queries of the
//                    group that see them. It computes Sᵀ and dPᵀ, keys as rows: so Pᵀ and dSᵀ lie
//                    in registers as the left operands of the products that follow.
//            dq      a block owns 64 queries of one head and walks over the keys they see.
//            4 warps of 16 rows; the walked tiles (64 rows) are double-buffered: the next one is
//            copied while this one is used. At D = 256 registers hold the sums of one output, so
//            dk and dv have a pass each, and shared memory one tile of 32 walked rows.
// Work       7 products of T T D; a single pass that adds dq atomically has 5. The 40 % more buy
//            sums in a fixed order and the same bits every run. 8 products at D = 256.
// Numbers    F32 sums; p and ds are rounded to BF16 as operands
// Limits     registers: two blocks per multiprocessor at D = 128, one at 256, whose copies are not
//            hidden
#include "cuda/attention/tiles.cuh"
#include "cuda/mma.cuh"

namespace lk {
namespace {

constexpr int kRows = 64, kWarps = 4, kThreads = 32 * kWarps;
constexpr float kLog2e = 1.4426950408889634f;

// Two tiles that stay, stages of two tiles that pass by, and the latter's lse and delta.
template <int D>
struct Plan {
  static constexpr int kPassing = D <= 128 ? 64 : 32, kStages = D <= 128 ? 2 : 1;
  static constexpr int kBlocks = D <= 128 ? 2 : 1;
  static constexpr std::uint32_t kOwnBytes = kRows * D * sizeof(__nv_bfloat16),
                                 kPassingBytes = kPassing * D * sizeof(__nv_bfloat16),
                                 kNumbers = 2 * kOwnBytes + 2 * kStages * kPassingBytes,
                                 kSharedBytes = kNumbers + 2 * kStages * kPassing * sizeof(float);
  // The first or second tile of a stage.
  static __device__ __forceinline__ SwizzledTile<D> passing(std::uint32_t base, int stage,
                                                            int which) {
    return {base + 2 * kOwnBytes + (2 * stage + which) * kPassingBytes};
  }
};

struct Statistics {
  const float *lse, *delta;  // (H, T)
};

// Stores a warp's 16 x D sums as rows [0, n_rows) of a matrix; `to` is row 0 of the block's tile.
template <int D>
__device__ __forceinline__ void store_rows(const float (&c)[D / 8][4], Matrix<__nv_bfloat16> m,
                                           i64 row0, i64 col0, int n_rows, int head_dim,
                                           float factor) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int row = threadIdx.x / 32 * 16 + g + 8 * half;
    if (row >= n_rows) continue;
    __nv_bfloat16* to = m.at(row0 + row, col0 + 2 * t);
#pragma unroll
    for (int dt = 0; dt < D / 8; ++dt)
      if (dt * 8 < head_dim)
        *reinterpret_cast<std::uint32_t*>(to + dt * 8) =
            pack_bf16(factor * c[dt][2 * half], factor * c[dt][2 * half + 1]);
  }
}

// Computes dk, dv or both.
template <int D, bool DK, bool DV>
__global__ void __launch_bounds__(kThreads, Plan<D>::kBlocks)
    attention_backward_kv_kernel(const __grid_constant__ AttentionInputs<__nv_bfloat16> in,
                                 Matrix<const __nv_bfloat16> dout, Statistics stats,
                                 Matrix<__nv_bfloat16> dk, Matrix<__nv_bfloat16> dv) {
  using P = Plan<D>;
  constexpr int kPassing = P::kPassing, kNT = kPassing / 8;
  extern __shared__ __align__(1024) unsigned char shared[];
  std::uint32_t base = shared_address(shared);
  SwizzledTile<D> k_tile{base}, v_tile{base + P::kOwnBytes};
  float* numbers = reinterpret_cast<float*>(shared + P::kNumbers);  // [stage][lse, delta][kPassing]

  BlockPlace place = place_of_block(in.heads_together);
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, kRows, place.slot, tile)) return;
  int kv_head = place.head, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int g = lane / 4, t = lane % 4;
  int n_rows = min(kRows, tile.length - tile.begin);
  i64 row0 = in.q_offsets[tile.document];  // the document's first row, of queries and keys alike
  i64 kv_col = static_cast<i64>(kv_head) * in.head_dim;
  k_tile.template load_async<kRows, kThreads>(in.k.at(row0 + tile.begin, kv_col), in.k.ld, n_rows,
                                              in.head_dim);
  v_tile.template load_async<kRows, kThreads>(in.v.at(row0 + tile.begin, kv_col), in.v.ld, n_rows,
                                              in.head_dim);

  // Step i: query tile first + i % per_head of the group's head i / per_head.
  KeyRange range = queries_seeing(tile.begin, tile.begin + n_rows - 1, in.window, tile.length);
  int first = range.begin / kPassing, per_head = (range.end - 1) / kPassing - first + 1;
  int n_steps = per_head * in.group;
  auto load_step = [&](int step) {
    int head = kv_head * in.group + step / per_head, begin = (first + step % per_head) * kPassing;
    int stage = step % P::kStages, valid = tile.length - begin;
    i64 row = row0 + begin, col = static_cast<i64>(head) * in.head_dim;
    P::passing(base, stage, 0)
        .template load_async<kPassing, kThreads>(in.q.at(row, col), in.q.ld, valid, in.head_dim);
    P::passing(base, stage, 1)
        .template load_async<kPassing, kThreads>(dout.at(row, col), dout.ld, valid, in.head_dim);
    int i = threadIdx.x % kPassing;
    bool is_delta = threadIdx.x >= kPassing;
    const float* from = is_delta ? stats.delta : stats.lse;
    bool inside = i < valid;  // rows behind the end get q = dout = 0, lse = delta = 0: they add 0
    if (threadIdx.x < 2 * kPassing)
      copy_async_4(shared_address(numbers + (2 * stage + is_delta) * kPassing + i),
                   inside ? from + head * in.total_q + row + i : from, inside);
    copy_async_commit();
  };
  static_assert(kThreads >= 2 * kPassing);

  float dk_sum[DK ? D / 8 : 1][4] = {}, dv_sum[DV ? D / 8 : 1][4] = {};
  float scale_log2 = in.scale * kLog2e;
  int key0 = tile.begin + warp * 16;  // this warp's first key
  load_step(0);
#pragma unroll 1
  for (int step = 0; step < n_steps; ++step) {
    k_tile.pin(), v_tile.pin();
    copy_async_wait();
    __syncthreads();  // this step's tiles are here; everyone is done with the other stage
    if (P::kStages > 1 && step + 1 < n_steps) load_step(step + 1);
    int stage = step % P::kStages;
    SwizzledTile<D> q_tile = P::passing(base, stage, 0), dout_tile = P::passing(base, stage, 1);
    const float* lse = numbers + 2 * stage * kPassing;
    const float* delta = lse + kPassing;
    int query0 = (first + step % per_head) * kPassing;

    float p[kNT][4] = {};  // rows: 16 keys, columns: the queries
    multiply_abt<kNT>(p, k_tile, warp * 16, q_tile);
    bool all_visible =
        key0 + 15 <= query0 && (in.window <= 0 || key0 > query0 + kPassing - 1 - in.window);
#pragma unroll
    for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int query = nt * 8 + 2 * t + i % 2;
        float x = exp2_fast(p[nt][i] * scale_log2 - lse[query] * kLog2e);
        bool visible = all_visible || sees(query0 + query, key0 + g + i / 2 * 8, 0, in.window);
        p[nt][i] = visible ? x : 0.0f;
      }
    if constexpr (DV) multiply_pb<kNT, D>(dv_sum, p, dout_tile);

    if constexpr (DK) {
      float ds[kNT][4] = {};
      multiply_abt<kNT>(ds, v_tile, warp * 16, dout_tile);
#pragma unroll
      for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          ds[nt][i] = p[nt][i] * (ds[nt][i] - delta[nt * 8 + 2 * t + i % 2]);
      multiply_pb<kNT, D>(dk_sum, ds, q_tile);
    }
    if (P::kStages == 1 && step + 1 < n_steps) {
      __syncthreads();  // everyone is done with the only stage
      load_step(step + 1);
    }
  }
  if constexpr (DK)
    store_rows<D>(dk_sum, dk, row0 + tile.begin, kv_col, n_rows, in.head_dim, in.scale);
  if constexpr (DV) store_rows<D>(dv_sum, dv, row0 + tile.begin, kv_col, n_rows, in.head_dim, 1.0f);
}

template <int D>
__global__ void __launch_bounds__(kThreads, Plan<D>::kBlocks)
    attention_backward_q_kernel(const __grid_constant__ AttentionInputs<__nv_bfloat16> in,
                                Matrix<const __nv_bfloat16> dout, Statistics stats,
                                Matrix<__nv_bfloat16> dq) {
  using P = Plan<D>;
  constexpr int kPassing = P::kPassing, kNT = kPassing / 8;
  extern __shared__ __align__(1024) unsigned char shared[];
  std::uint32_t base = shared_address(shared);
  SwizzledTile<D> q_tile{base}, dout_tile{base + P::kOwnBytes};

  BlockPlace place = place_of_block(in.heads_together);
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, kRows, gridDim.y - 1 - place.slot, tile)) return;
  int head = place.head, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int g = lane / 4, t = lane % 4;
  int n_rows = min(kRows, tile.length - tile.begin);
  i64 row0 = in.q_offsets[tile.document];
  i64 col = static_cast<i64>(head) * in.head_dim;
  i64 kv_col = static_cast<i64>(head / in.group) * in.head_dim;
  q_tile.template load_async<kRows, kThreads>(in.q.at(row0 + tile.begin, col), in.q.ld, n_rows,
                                              in.head_dim);
  dout_tile.template load_async<kRows, kThreads>(dout.at(row0 + tile.begin, col), dout.ld, n_rows,
                                                 in.head_dim);
  float lse[2] = {}, delta[2] = {};  // of rows g and g + 8
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int row = warp * 16 + g + 8 * half;
    if (row >= n_rows) continue;
    i64 at = head * in.total_q + row0 + tile.begin + row;
    lse[half] = stats.lse[at] * kLog2e, delta[half] = stats.delta[at];
  }

  KeyRange range = keys_seen(tile.begin, tile.begin + n_rows - 1, 0, in.window, tile.length);
  int first = range.begin / kPassing, last = (range.end - 1) / kPassing;
  auto load_step = [&](int n) {
    int stage = (n - first) % P::kStages, valid = tile.length - n * kPassing;
    i64 row = row0 + static_cast<i64>(n) * kPassing;
    P::passing(base, stage, 0)
        .template load_async<kPassing, kThreads>(in.k.at(row, kv_col), in.k.ld, valid, in.head_dim);
    P::passing(base, stage, 1)
        .template load_async<kPassing, kThreads>(in.v.at(row, kv_col), in.v.ld, valid, in.head_dim);
    copy_async_commit();
  };

  float dq_sum[D / 8][4] = {};
  float scale_log2 = in.scale * kLog2e;
  int query0 = tile.begin + warp * 16;
  load_step(first);
#pragma unroll 1
  for (int n = first; n <= last; ++n) {
    q_tile.pin(), dout_tile.pin();
    copy_async_wait();
    __syncthreads();  // this step's tiles are here; everyone is done with the other stage
    if (P::kStages > 1 && n < last) load_step(n + 1);
    int stage = (n - first) % P::kStages, key0 = n * kPassing;
    SwizzledTile<D> k_tile = P::passing(base, stage, 0), v_tile = P::passing(base, stage, 1);

    float p[kNT][4] = {}, ds[kNT][4] = {};  // rows: 16 queries, columns: the keys
    multiply_abt<kNT>(p, q_tile, warp * 16, k_tile);
    multiply_abt<kNT>(ds, dout_tile, warp * 16, v_tile);
    bool all_visible =
        key0 + kPassing - 1 <= query0 && (in.window <= 0 || key0 > query0 + 15 - in.window);
#pragma unroll
    for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x = exp2_fast(p[nt][i] * scale_log2 - lse[i / 2]);
        bool visible = all_visible ||
                       sees(query0 + g + i / 2 * 8, key0 + nt * 8 + 2 * t + i % 2, 0, in.window);
        ds[nt][i] = visible ? x * (ds[nt][i] - delta[i / 2]) : 0.0f;
      }
    multiply_pb<kNT, D>(dq_sum, ds, k_tile);
    if (P::kStages == 1 && n < last) {
      __syncthreads();  // everyone is done with the only stage
      load_step(n + 1);
    }
  }
  store_rows<D>(dq_sum, dq, row0 + tile.begin, col, n_rows, in.head_dim, in.scale);
}

}  // namespace

void attention_backward_mma(const AttentionBackward& a, cudaStream_t stream) {
  i64 slots = tile_slots(a.seg.total(), a.seg.count(), kRows);
  auto in = attention_inputs<bf16>(a.q, a.k, a.v, a.shape, a.seg, a.seg);
  auto kv_in = in;
  kv_in.heads_together = kv_heads_together(a);
  Statistics stats{a.lse.data<float>(), a.delta.data<float>()};
  auto kv = [&]<int D, bool DK, bool DV>() {
    launch("attention_backward_kv", attention_backward_kv_kernel<D, DK, DV>,
           grid_of(a.shape.n_kv_heads, slots), dim3(kThreads), Plan<D>::kSharedBytes, stream, kv_in,
           const_matrix<bf16>(a.dout), stats, matrix<bf16>(a.dk), matrix<bf16>(a.dv));
  };
  auto q = [&]<int D>() {
    launch("attention_backward_q", attention_backward_q_kernel<D>, grid_of(a.shape.n_heads, slots),
           dim3(kThreads), Plan<D>::kSharedBytes, stream, in, const_matrix<bf16>(a.dout), stats,
           matrix<bf16>(a.dq));
  };
  if (a.shape.head_dim <= 64) {
    kv.template operator()<64, true, true>();
    q.template operator()<64>();
  } else if (a.shape.head_dim <= 128) {
    kv.template operator()<128, true, true>();
    q.template operator()<128>();
  } else {
    kv.template operator()<256, false, true>();
    kv.template operator()<256, true, false>();
    q.template operator()<256>();
  }
}

}  // namespace lk
