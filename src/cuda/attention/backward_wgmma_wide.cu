// Attention backward on Hopper's tensor cores (wgmma, BF16) for head sizes above 128, padded with
// zeros to 256.
//
// Maths      as attention/backward.cu
// Shapes     as forward; dk, dv (T, G*D) sum over the query heads of their group
// Plan       two passes, so that every output has one owner and no sums are added in memory. A
//            warpgroup's registers hold the sums of 64 rows of one output, so two warpgroups share
//            the same 64 rows: warpgroup 0 computes S and the probabilities P, warpgroup 1 dP. Each
//            keeps the rows that it multiplies, K or V (for dk, dv), Q or dO (for dq), in registers
//            as its left operand, and shared memory holds six stages of 32 passing rows.
//            dk, dv  rows are keys, queries pass by. Warpgroup 0 sums dV; it leaves P in shared
//                    memory for warpgroup 1, which is one tile behind, makes dS and sums dK.
//            dq      rows are queries, keys pass by. The warpgroups exchange P and dP - delta, both
//                    make dS, and each sums half of dQ's columns: those whose pairs under a
//                    rotation it holds itself.
//            Few keys are shared by clusters of blocks: Note [Shares of a walk].
// Work       7 products of T T D, as at smaller head sizes
// Numbers    F32 sums; p and ds are rounded to BF16 as operands
// Limits     one block per multiprocessor; with 64 rows per block, reads of the passing tiles from
//            L2 take about as long as the products. Tiles on the diagonal are computed whole.
#include "cuda/attention/backward_wgmma.cuh"

namespace lk {
namespace {

constexpr int D = 256, kThreads = 2 * kWarpgroup, kRows = 64, kPassing = 32, kStages = 6;
[[maybe_unused]] constexpr int kNT = kPassing / 8;  // C tiles of a warp's scores
using Own = PanelTile<kRows, D>;
using Passing = PanelTile<kPassing, D>;

// Shared memory: the stages, two passing tiles each; lse and delta of a stage's rows; scores that
// the warpgroups exchange, in the order in which threads hold them.
constexpr std::uint32_t kStageBytes = 2 * Passing::kBytes, kNumbers = kStages * kStageBytes,
                        kNumberBytes = 2 * kPassing * sizeof(float),
                        kScores = kNumbers + kStages * kNumberBytes,
                        kScoreBytes = kRows * kPassing * sizeof(float);
// The own tiles pass through the last two stages on their way into registers.
static_assert(Own::kBytes == kStageBytes);
[[maybe_unused]] constexpr std::uint32_t kOwnTiles = (kStages - 2) * kStageBytes;
constexpr std::uint32_t kKvShared = kScores + 2 * kScoreBytes, kQShared = kScores + 4 * kScoreBytes;

#ifdef LK_DEVICE_HAS_WGMMA
// A thread's place in a buffer of exchanged scores.
struct Scores {
  float4* at;
  __device__ __forceinline__ Scores(unsigned char* shared, int buffer)
      : at(reinterpret_cast<float4*>(shared + kScores + buffer * kScoreBytes) +
           threadIdx.x % kWarpgroup) {}
  __device__ __forceinline__ void write(const float (&c)[kNT][4]) const {
#pragma unroll
    for (int nt = 0; nt < kNT; ++nt)
      at[nt * kWarpgroup] = make_float4(c[nt][0], c[nt][1], c[nt][2], c[nt][3]);
  }
  // c *= what the other warpgroup's thread wrote
  __device__ __forceinline__ void multiply(float (&c)[kNT][4]) const {
#pragma unroll
    for (int nt = 0; nt < kNT; ++nt) {
      float4 x = at[nt * kWarpgroup];
      c[nt][0] *= x.x, c[nt][1] *= x.y, c[nt][2] *= x.z, c[nt][3] *= x.w;
    }
  }
};
#endif

// PADDED: in.head_dim may be less than D, by a multiple of 8; there are no angles then.
template <bool PADDED>
__global__ void __launch_bounds__(kThreads, 1)
    attention_backward_kv_kernel(const __grid_constant__ AttentionInputs<__nv_bfloat16> in,
                                 Matrix<const __nv_bfloat16> dout, Statistics stats,
                                 const __grid_constant__ Angles angles, Matrix<__nv_bfloat16> dk,
                                 Matrix<__nv_bfloat16> dv) {
#ifdef LK_DEVICE_HAS_WGMMA
  extern __shared__ __align__(1024) unsigned char shared[];
  std::uint32_t base = shared_address(shared);
  int shares = cluster_size(), share = cluster_rank();
  BlockPlace place = place_of_block(in.heads_together, shares);
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, kRows, place.slot, tile)) return;
  const int head_dim = PADDED ? in.head_dim : D;
  int kv_head = place.head;
  int group = warpgroup_index(), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  int g = lane / 4, t = lane % 4;
  int row0 = in.q_offsets[tile.document];  // the document's first row, of queries and keys alike
  int n_rows = min(kRows, tile.length - tile.begin);
  i64 own_row = static_cast<i64>(row0) + tile.begin, kv_col = static_cast<i64>(kv_head) * head_dim;
  Own k_tile{base + kOwnTiles}, v_tile{base + kOwnTiles + kStageBytes};
  k_tile.template load_async<kThreads>(in.k.at(own_row, kv_col), in.k.ld, n_rows, head_dim);
  v_tile.template load_async<kThreads>(in.v.at(own_row, kv_col), in.v.ld, n_rows, head_dim);
  copy_async_commit();

  // The walk takes the tiles from query tile.begin to the last that sees a key of the group's first
  // head, then of its second, ... This block's tile i is the walk's tile share + i * shares.
  int query_end = queries_seeing(tile.begin, tile.begin + n_rows - 1, in.window, tile.length).end;
  int per_head = (query_end - tile.begin + kPassing - 1) / kPassing;
  int n = (per_head * in.group - share + shares - 1) / shares;
  auto advance = [&](WalkPlace<kPassing>& at) { at.advance(shares, tile.begin, query_end); };
  WalkPlace<kPassing> loading{kv_head * in.group, tile.begin + (share - shares) * kPassing};
  advance(loading);
  WalkPlace<kPassing> scoring = loading;
  // Loads the next tile, which is tile i, into its stage; nothing if there is none.
  auto load = [&](int i) {
    if (i < n) {
      auto [head, query] = loading;
      advance(loading);
      int valid = tile.length - query, stage = i % kStages;
      i64 row = static_cast<unsigned>(row0 + query), col = static_cast<unsigned>(head * head_dim);
      Passing q_tile{base + stage * kStageBytes}, dout_tile{q_tile.base + Passing::kBytes};
      q_tile.template load_async<kThreads>(in.q.at(row, col), in.q.ld, valid, head_dim);
      dout_tile.template load_async<kThreads>(dout.at(row, col), dout.ld, valid, head_dim);
      // Rows behind the end get q = dout = 0, lse = delta = 0: they add 0.
      int thread = threadIdx.x;
      asm volatile("" : "+r"(thread));  // addresses are computed here, not kept in registers
      if (thread < 2 * kPassing) {
        const float* from = thread < kPassing ? stats.lse : stats.delta;
        int query_row = thread % kPassing;
        bool inside = query_row < valid;
        copy_async_4(base + kNumbers + stage * kNumberBytes + thread * 4,
                     inside ? from + head * in.total_q + row + query_row : from, inside);
      }
    }
    copy_async_commit();
  };
  load(0), load(1), load(2);
  copy_async_wait_but<2>();
  fence_async_proxy();
  __syncthreads();

  LeftOperand<kRows, D, true> own(group == 0 ? k_tile : v_tile, 0);
  own.read(warp * 16);
  float sum[D / 8][4], s[kNT][4];  // group 0: dV, S then P; group 1: dK, dP then dS
  undefined(sum);                  // tile 0 overwrites it
  Fragment4 operand[kNT / 2];
  float scale_log2 = in.scale * kLog2e;
  int key0 = tile.begin + warp * 16;  // this warp's first key
  // Which half of a stage the first product reads; the second product reads the other.
  std::uint32_t first_half = group * Passing::kBytes, second_half = Passing::kBytes - first_half;
  auto stage_of = [&](int i) { return base + i % kStages * kStageBytes; };

  // Tile i + 1 has arrived. All are done with tile i - 3, whose stage is filled again: running
  // products read tiles from i - 2 on.
  auto begin_turn = [&](int i) {
    copy_async_wait_but<1>();
    fence_async_proxy();
    __syncthreads();
    load(i + 3);
  };
  // Turns S or dP of tile i into P or dS.
  auto finish_scores = [&](int i) {
    hold(s);
    const float* numbers =
        reinterpret_cast<const float*>(shared + kNumbers + i % kStages * kNumberBytes);
    Scores scores(shared, i & 1);
    if (group == 0) {
      int query0 = scoring.query;
      advance(scoring);
#pragma unroll
      for (int nt = 0; nt < kNT; ++nt) {
        float2 lse = *reinterpret_cast<const float2*>(numbers + nt * 8 + 2 * t);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          s[nt][j] = exp2_fast(s[nt][j] * scale_log2 - (j % 2 ? lse.y : lse.x) * kLog2e);
      }
      bool all_visible =
          key0 + 15 <= query0 && (in.window <= 0 || key0 > query0 + kPassing - 1 - in.window);
      if (!all_visible) {
#pragma unroll
        for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
          for (int j = 0; j < 4; ++j)
            if (!sees(query0 + nt * 8 + 2 * t + j % 2, key0 + g + j / 2 * 8, 0, in.window))
              s[nt][j] = 0.0f;
      }
      scores.write(s);
    } else {
#pragma unroll
      for (int nt = 0; nt < kNT; ++nt) {
        float2 delta = *reinterpret_cast<const float2*>(numbers + kPassing + nt * 8 + 2 * t);
#pragma unroll
        for (int j = 0; j < 4; ++j) s[nt][j] -= j % 2 ? delta.y : delta.x;
      }
      scores.multiply(s);
    }
  };
  // Ends the sums of the tile before, which read the operand, and puts the scores there.
  auto take_scores = [&] {
    wgmma_wait<0>();
    hold(s);
    pack_fragments<kNT>(operand, s);
    wgmma_fence();
  };
  if (n > 0) {
    wgmma_fence();
    own.times_transpose(s, Passing{stage_of(0) + first_half});
    wgmma_wait<0>();
    if (group == 1) begin_turn(0);
    finish_scores(0);
#pragma unroll 1
    for (int i = 0; i < n - 1; ++i) {
      begin_turn(i + group);
      take_scores();
      own.times_transpose(s, Passing{stage_of(i + 1) + first_half});
      wgmma_pb(sum, operand, Passing{stage_of(i) + second_half}, i > 0);
      wgmma_wait<1>();
      finish_scores(i + 1);
    }
    begin_turn(n - 1 + group);
    take_scores();
    wgmma_pb(sum, operand, Passing{stage_of(n - 1) + second_half}, n > 1);
    wgmma_wait<0>();
    hold(sum);
    if (group == 0) begin_turn(n);
  }
  copy_async_wait();
  __syncthreads();  // nobody reads the stages any more
  asm volatile(""
               : "+r"(tile.begin), "+r"(row0),
                 "+r"(kv_head));  // computed again, not kept in registers
  own_row = static_cast<unsigned>(row0 + tile.begin), n_rows = min(kRows, tile.length - tile.begin);
  kv_col = static_cast<i64>(kv_head) * head_dim;

  static_assert(2 * SharedSums<D>::kBytes <= kNumbers);
  SharedSums<D> sums(base + group * SharedSums<D>::kBytes);
  sums.leave(sum, n > 0);
  cluster_sync();
  if (group == 0)
    sums.store_totals(dv.at(own_row, kv_col), dv.ld, own_row, n_rows, head_dim, 1.0f);
  else
    sums.store_totals(dk.at(own_row, kv_col), dk.ld, own_row, n_rows, head_dim, in.scale, angles);
  cluster_sync();  // no block ends while others read its shared memory
#else
  __trap();  // attention.cu calls this on compute capability 9.0 only
#endif
}

template <bool PADDED>
__global__ void __launch_bounds__(kThreads, 1)
    attention_backward_q_kernel(const __grid_constant__ AttentionInputs<__nv_bfloat16> in,
                                Matrix<const __nv_bfloat16> dout, Statistics stats,
                                const __grid_constant__ Angles angles, Matrix<__nv_bfloat16> dq) {
#ifdef LK_DEVICE_HAS_WGMMA
  extern __shared__ __align__(1024) unsigned char shared[];
  std::uint32_t base = shared_address(shared);
  BlockPlace place = place_of_block(in.heads_together);
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, kRows, gridDim.y - 1 - place.slot, tile)) return;
  const int head_dim = PADDED ? in.head_dim : D;
  int head = place.head;
  int group = warpgroup_index(), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  int g = lane / 4, t = lane % 4;
  int n_rows = min(kRows, tile.length - tile.begin);
  i64 row0 = in.q_offsets[tile.document], own_row = row0 + tile.begin;
  i64 col = static_cast<i64>(head) * head_dim;
  i64 kv_col = static_cast<i64>(head / in.group) * head_dim;
  Own q_tile{base + kOwnTiles}, dout_tile{base + kOwnTiles + kStageBytes};
  q_tile.template load_async<kThreads>(in.q.at(own_row, col), in.q.ld, n_rows, head_dim);
  dout_tile.template load_async<kThreads>(dout.at(own_row, col), dout.ld, n_rows, head_dim);
  copy_async_commit();

  KeyRange range = keys_seen(tile.begin, tile.begin + n_rows - 1, 0, in.window, tile.length);
  int first = range.begin / kPassing, n = (range.end - 1) / kPassing - first + 1;
  auto stage_of = [&](int i) { return base + i % kStages * kStageBytes; };
  // Loads the i-th of n key tiles into its stage; nothing if there is none.
  auto load = [&](int i) {
    if (i < n) {
      int key = (first + i) * kPassing, valid = tile.length - key;
      Passing k_tile{stage_of(i)}, v_tile{k_tile.base + Passing::kBytes};
      k_tile.template load_async<kThreads>(in.k.at(row0 + key, kv_col), in.k.ld, valid, head_dim);
      v_tile.template load_async<kThreads>(in.v.at(row0 + key, kv_col), in.v.ld, valid, head_dim);
    }
    copy_async_commit();
  };
  load(0), load(1), load(2), load(3);
  float number[2] = {};  // of rows g and g + 8: group 0 lse, group 1 delta
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int row = warp * 16 + g + 8 * half;
    if (row >= n_rows) continue;
    i64 at = head * in.total_q + own_row + row;
    number[half] = group == 0 ? stats.lse[at] * kLog2e : stats.delta[at];
  }
  copy_async_wait_but<3>();
  fence_async_proxy();
  __syncthreads();

  LeftOperand<kRows, D, true> own(group == 0 ? q_tile : dout_tile, 0);
  own.read(warp * 16);
  // The sums of the panels group and group + 2: columns 64 group + [0, 64) and D/2 behind them.
  constexpr int kDT = D / 16;
  float sum[kDT][4], s[kNT][4];  // s: group 0 S then P, group 1 dP; then both dS
  undefined(sum);                // tile 0 overwrites it
  Fragment4 operand[kNT / 2];
  float scale_log2 = in.scale * kLog2e;
  int query0 = tile.begin + warp * 16;  // this warp's first query
  std::uint32_t own_half = group * Passing::kBytes;
  // Turns S of tile i into P, or dP into dP - delta, and leaves it for the other warpgroup.
  auto finish_scores = [&](int i) {
    hold(s);
    if (group == 0) {
      int key0 = (first + i) * kPassing;
      bool all_visible =
          key0 + kPassing - 1 <= query0 && (in.window <= 0 || key0 > query0 + 15 - in.window);
#pragma unroll
      for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
        for (int j = 0; j < 4; ++j) s[nt][j] = exp2_fast(s[nt][j] * scale_log2 - number[j / 2]);
      if (!all_visible) {
#pragma unroll
        for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
          for (int j = 0; j < 4; ++j)
            if (!sees(query0 + g + j / 2 * 8, key0 + nt * 8 + 2 * t + j % 2, 0, in.window))
              s[nt][j] = 0.0f;
      }
    } else {
#pragma unroll
      for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
        for (int j = 0; j < 4; ++j) s[nt][j] -= number[j / 2];
    }
    Scores(shared, (i & 1) * 2 + group).write(s);
  };
  // Multiplies P and dP - delta of tile i, when the sums of the tile before have ended, which read
  // the operand.
  auto begin_turn = [&](int i) {
    copy_async_wait_but<2>();
    fence_async_proxy();
    __syncthreads();  // the other's scores and tile i + 1 are here; all are done with tile i - 2
    load(i + 4);
    Scores(shared, (i & 1) * 2 + 1 - group).multiply(s);
    wgmma_wait<0>();
    hold(s);
    pack_fragments<kNT>(operand, s);
    wgmma_fence();
  };
  auto add_products = [&](int i) {
    Passing k_tile{stage_of(i)};
#pragma unroll
    for (int step = 0; step < kPassing / 16; ++step)
      wgmma_ab(sum, operand[step], k_tile.block_of_rows(step, group, 2), i > 0 || step > 0);
    wgmma_commit();
  };
  wgmma_fence();
  own.times_transpose(s, Passing{stage_of(0) + own_half});
  wgmma_wait<0>();
  finish_scores(0);
#pragma unroll 1
  for (int i = 0; i < n - 1; ++i) {
    begin_turn(i);
    own.times_transpose(s, Passing{stage_of(i + 1) + own_half});
    add_products(i);
    wgmma_wait<1>();
    finish_scores(i + 1);
  }
  begin_turn(n - 1);
  add_products(n - 1);
  wgmma_wait<0>();
  hold(sum);

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int row = warp * 16 + g + 8 * half;
    if (row >= n_rows) continue;
#pragma unroll
    for (int dt = 0; dt < kDT / 2; ++dt) {
      int column = group * 64 + dt * 8 + 2 * t;
      float a[2] = {sum[dt][2 * half], sum[dt][2 * half + 1]};
      float b[2] = {sum[dt + kDT / 2][2 * half], sum[dt + kDT / 2][2 * half + 1]};
      if (angles.table.data) angles.turn_back<D / 2>(a, b, own_row + row, column);
      __nv_bfloat16* at = dq.at(own_row + row, col + column);
      *reinterpret_cast<std::uint32_t*>(at) = pack_bf16(in.scale * a[0], in.scale * a[1]);
      if (!PADDED || column + D / 2 < head_dim)
        *reinterpret_cast<std::uint32_t*>(at + D / 2) = pack_bf16(in.scale * b[0], in.scale * b[1]);
    }
  }
#else
  __trap();
#endif
}

}  // namespace

void attention_backward_wgmma_wide(const AttentionBackward& a, cudaStream_t stream) {
  auto in = attention_inputs<bf16>(a.q, a.k, a.v, a.shape, a.seg, a.seg);
  auto kv_in = in;
  kv_in.heads_together = kv_heads_together(a);
  Statistics stats{a.lse.data<float>(), a.delta.data<float>()};
  Angles angles = angles_of(a.rotation);
  i64 slots = tile_slots(a.seg.total(), a.seg.count(), kRows);
  unsigned shares = shares_of_walk(a, slots * a.shape.n_kv_heads, kPassing, 1);
  auto go = [&]<bool PADDED>() {
    launch_clusters("attention_backward_kv_wgmma", attention_backward_kv_kernel<PADDED>,
                    grid_of(static_cast<i64>(a.shape.n_kv_heads) * shares, slots), shares,
                    dim3(kThreads), kKvShared, stream, kv_in, const_matrix<bf16>(a.dout), stats,
                    angles, matrix<bf16>(a.dk), matrix<bf16>(a.dv));
    launch("attention_backward_q_wgmma", attention_backward_q_kernel<PADDED>,
           grid_of(a.shape.n_heads, slots), dim3(kThreads), kQShared, stream, in,
           const_matrix<bf16>(a.dout), stats, angles, matrix<bf16>(a.dq));
  };
  a.shape.head_dim == D ? go.template operator()<false>() : go.template operator()<true>();
}

}  // namespace lk
