// Attention backward in one pass over the scores on Hopper's tensor cores (wgmma, BF16), for long
// documents: five products of T T D, where two passes (attention/backward_wgmma.cu) have seven.
//
// Maths      as attention/backward.cu
// Shapes     as forward; D = 64 or 128, or between, padded with zeros to 128
// Plan       a block owns 128 keys of one key/value head and walks over the queries of its group that see
//            them, 64 at a time (128 at D = 64). Warps have tasks, after Shah et al., "FlashAttention-3",
//            2024: two copy the tiles that pass by; two warpgroups hold 64 keys each, with dK and dV in
//            registers, and compute Sᵀ, dPᵀ and dSᵀ as the two passes do. They leave dS in shared memory
//            and multiply it by all 128 keys: each makes half of the tile's share of dq, and leaves it
//            while dK is computed. Two more warps add the shares to the sums in global memory, one those
//            of every other tile: a single one, which waits for its turn, for L2 and for what it wrote,
//            was busy all the time.
// Order      Note [Turns]
// Bytes      q, dout once per block of keys, and dq's F32 sums written, added to by every block but
//            one, and read: from L2
// Numbers    F32 sums; p and ds are rounded to BF16 as operands; dq is summed over blocks of keys in their
//            order
// Limits     one block per multiprocessor; few keys in all would leave multiprocessors idle, which clusters
//            of the two passes don't: backward_sums() in scratch.h chooses
#include "cuda/attention/backward_wgmma.cuh"
#include "cuda/scratch.h"
#include "cuda/specialised.cuh"

namespace lk {
namespace {

// Note [Turns]. Blocks of keys add to a tile of dq in a fixed order, so two runs give the same bits: the
// first that its queries see stores its share, then the next adds, and so on; a count for each tile says
// whose turn it is. Blocks begin in that order too, by tickets and not by their index, so whoever is waited
// for has begun and none waits for ever. All walk down from the last queries, the heads of a group at
// each tile: so one block is a step behind the one before and seldom waits again, and the longest walks
// begin first.
struct OrderedSums {
  float* values;         // (heads * slots, queries * D), a tile as the threads hold it
  std::uint32_t* turns;  // (heads * slots), and the tickets
  int slots;             // tiles of a head
};

// A place of a walk over tiles of queries, from the last to the first, and at each over a group's heads.
struct WalkDown {
  int head, query;
  __device__ __forceinline__ void step(int kv_head, int group, int rows) {
    if (++head == (kv_head + 1) * group) head = kv_head * group, query -= rows;
  }
};

template <int D>
struct Plan {
  static constexpr int kConsumers = 2 * kWarpgroup, kThreads = kWarpgroup + kConsumers;
  static constexpr int kLoaders = 64;  // threads of warpgroup 0, whose other two warps write sums
  static constexpr int kKeys = kOnePassKeys, kQueries = D == 64 ? 128 : 64, kStages = 2;
  using Own = PanelTile<kKeys, D>;
  using Passing = PanelTile<kQueries, D>;
  using Scores = PanelTile<kQueries, kKeys>;
  static constexpr std::uint32_t kNumbers = 2 * Passing::kBytes;  // lse and delta in a stage
  static constexpr std::uint32_t kStageBytes = kNumbers + 1024, kSumBytes = kQueries * D * 4;
  static constexpr std::uint32_t kFirstStage = 2 * Own::kBytes,
                                 kScores = kFirstStage + kStages * kStageBytes,
                                 kSums = kScores + 2 * Scores::kBytes,
                                 kBarriers = kSums + 2 * kSumBytes, kTicket = kBarriers + 64,
                                 kSharedBytes = kTicket + 64;
  static_assert(2 * kQueries * sizeof(float) <= 1024);
};

// PADDED: in.head_dim may be less than D, by a multiple of 8; there are no angles then.
template <int D, bool PADDED>
__global__ void __launch_bounds__(Plan<D>::kThreads, 1)
    attention_backward_one_pass_kernel(const __grid_constant__ AttentionInputs<__nv_bfloat16> in,
                                       Matrix<const __nv_bfloat16> dout, Statistics stats,
                                       const __grid_constant__ Angles angles,
                                       Matrix<__nv_bfloat16> dk, Matrix<__nv_bfloat16> dv,
                                       OrderedSums sums, int n_kv_heads, int slots) {
#ifdef LK_DEVICE_HAS_WGMMA
  using P = Plan<D>;
  constexpr int kQueries = P::kQueries, kNT = kQueries / 8;
  using Passing = typename P::Passing;
  const int head_dim = PADDED ? in.head_dim : D;
  extern __shared__ __align__(1024) unsigned char shared[];
  const std::uint32_t base = shared_address(shared);
  const auto barrier = [&](int i) { return SharedBarrier{base + P::kBarriers + 8 * i}; };
  const auto full = [&](int stage) { return barrier(stage); };
  const auto empty = [&](int stage) { return barrier(2 + stage); };
  const auto sums_full = [&](int writer) { return barrier(4 + writer); };
  const auto sums_empty = [&](int writer) { return barrier(6 + writer); };
  const auto stage_at = [&](int stage) { return base + P::kFirstStage + stage * P::kStageBytes; };

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < P::kStages; ++stage)
      full(stage).init(P::kLoaders), empty(stage).init(P::kConsumers / 32);
    for (int writer = 0; writer < 2; ++writer)
      sums_full(writer).init(P::kConsumers), sums_empty(writer).init(1);
    *reinterpret_cast<std::uint32_t*>(shared + P::kTicket) =
        take_ticket(sums.turns + static_cast<i64>(sums.slots) * n_kv_heads * in.group);
  }
  __syncthreads();
  const BlockPlace place = place_of(*reinterpret_cast<const int*>(shared + P::kTicket),
                                    in.heads_together, n_kv_heads, slots);
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, P::kKeys, place.slot, tile)) return;
  const int row0 = in.q_offsets[tile.document];  // the document's first row
  const int n_rows = min(P::kKeys, tile.length - tile.begin);
  const i64 own_row = static_cast<i64>(row0) + tile.begin;
  const i64 kv_col = static_cast<i64>(place.head) * head_dim;
  const typename P::Own k_tile{base}, v_tile{base + P::Own::kBytes};
  // The walk over the queries that see these keys.
  const int query_end =
      queries_seeing(tile.begin, tile.begin + n_rows - 1, in.window, tile.length).end;
  WalkDown at{place.head * in.group,
              tile.begin + (query_end - tile.begin - 1) / kQueries * kQueries};
  const auto walking = [&] { return at.query >= tile.begin; };
  const auto next = [&] { at.step(place.head, in.group, kQueries); };
  const int role = warpgroup_index();

  if (role == 0) {
    give_registers_down_to<24>();
    if (threadIdx.x < P::kLoaders) {
      k_tile.template load_async<P::kLoaders>(in.k.at(own_row, kv_col), in.k.ld, n_rows, head_dim);
      v_tile.template load_async<P::kLoaders>(in.v.at(own_row, kv_col), in.v.ld, n_rows, head_dim);
#pragma unroll 1
      for (int n = 0; walking(); ++n, next()) {
        const int stage = n & 1, valid = tile.length - at.query;
        const i64 row = row0 + at.query, col = static_cast<i64>(at.head) * head_dim;
        const std::uint32_t to = stage_at(stage);
        empty(stage).wait((n >> 1) - 1);
        Passing{to}.template load_async<P::kLoaders>(in.q.at(row, col), in.q.ld, valid, head_dim);
        Passing{to + Passing::kBytes}.template load_async<P::kLoaders>(dout.at(row, col), dout.ld,
                                                                       valid, head_dim);
        // Rows behind the end get q = dout = 0, lse = delta = 0: they add 0.
        for (int i = static_cast<int>(threadIdx.x); i < 2 * kQueries; i += P::kLoaders) {
          const float* from = i < kQueries ? stats.lse : stats.delta;
          const bool inside = i % kQueries < valid;
          copy_async_4(to + P::kNumbers + i * 4,
                       inside ? from + at.head * in.total_q + row + i % kQueries : from, inside);
        }
        copy_async_commit();
        copy_async_wait();
        fence_async_proxy();
        full(stage).arrive();
      }
    } else if (threadIdx.x % 32 == 0) {
      const int writer = static_cast<int>(threadIdx.x) / 32 - P::kLoaders / 32;
      const std::uint32_t from = base + P::kSums + writer * P::kSumBytes;
      const int first_slot = in.q_offsets[tile.document] / kQueries + tile.document;
#pragma unroll 1
      for (int n = 0; walking(); ++n, next()) {
        if (n % 2 != writer) continue;
        const i64 slot = static_cast<i64>(at.head) * sums.slots + first_slot + at.query / kQueries;
        // Blocks before `first` end before the window of the tile's first query.
        const int hidden = in.window > 0 ? at.query - in.window - P::kKeys + 1 : -1;
        const int first = hidden < 0 ? 0 : hidden / P::kKeys + 1;
        const auto turn = static_cast<std::uint32_t>(tile.begin / P::kKeys - first);
        float* to = sums.values + slot * (kQueries * D);
        sums_full(writer).wait(n >> 1);
        if (turn == 0) {
          bulk_store<false>(to, from, P::kSumBytes);
        } else {
          wait_for_turn(sums.turns + slot, turn);
          bulk_store<true>(to, from, P::kSumBytes);
        }
        bulk_wait_read();
        sums_empty(writer).arrive();
        bulk_wait();
        end_turn(sums.turns + slot);
      }
    }
    return;
  }

  take_registers_up_to<240>();
  const int group = role - 1, warp = static_cast<int>(threadIdx.x) / 32 - 4,
            lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  float dk_sum[D / 8][4], dv_sum[D / 8][4], p[kNT][4], ds[kNT][4], dq[8][4];
  undefined(dk_sum), undefined(dv_sum);  // tile 0 overwrites them
  Fragment4 p_operand[kNT / 2], ds_operand[kNT / 2];
  const float scale_log2 = in.scale * kLog2e;
  const int key0 = tile.begin + warp * 16;  // this warp's first key
  const LeftOperand<P::kKeys, D, false> keys(k_tile, group * 64), values(v_tile, group * 64);
  // Where this lane puts dS of the warp's keys, transposed: queries are rows, keys columns.
  const int block = lane / 8;
  const std::uint32_t scores_place = typename P::Scores{base + P::kScores}.panel(group).at(
      block / 2 * 8 + lane % 8, warp % 4 * 2 + block % 2);
  // This thread's part of its warpgroup's half of the tile's dq.
  const std::uint32_t sums_place = base + P::kSums +
                                   (threadIdx.x - kWarpgroup) / kWarpgroup * (8 * kWarpgroup * 16) +
                                   threadIdx.x % kWarpgroup * 16;
#pragma unroll 1
  for (int n = 0; walking(); ++n, next()) {
    const Passing q_tile{stage_at(n & 1)}, dout_tile{q_tile.base + Passing::kBytes};
    const float* lse = reinterpret_cast<const float*>(shared + (q_tile.base - base) + P::kNumbers);
    const float* delta = lse + kQueries;
    full(n & 1).wait(n >> 1);
    wgmma_fence();
    keys.times_transpose(p, q_tile);  // rows: 64 keys, columns: the queries
    values.times_transpose(ds, dout_tile);
    wgmma_wait<1>();  // S is here
    hold(p);
#pragma unroll
    for (int nt = 0; nt < kNT; ++nt) {
      const float2 offset = *reinterpret_cast<const float2*>(lse + nt * 8 + 2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        p[nt][i] = exp2_fast(p[nt][i] * scale_log2 - (i % 2 ? offset.y : offset.x) * kLog2e);
    }
    // Keys behind the document's end are hidden too: no query reaches that far.
    const bool all_visible =
        key0 + 15 <= at.query && (in.window <= 0 || key0 > at.query + kQueries - 1 - in.window);
    if (!all_visible) {
#pragma unroll
      for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (!sees(at.query + nt * 8 + 2 * t + i % 2, key0 + g + i / 2 * 8, 0, in.window))
            p[nt][i] = 0.0f;
    }
    pack_fragments<kNT>(p_operand, p);
    wgmma_fence();
    wgmma_pb(dv_sum, p_operand, dout_tile, n > 0);
    wgmma_wait<1>();  // dP is here
    hold(ds);
#pragma unroll
    for (int nt = 0; nt < kNT; ++nt) {
      const float2 offset = *reinterpret_cast<const float2*>(delta + nt * 8 + 2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        ds[nt][i] = p[nt][i] * (ds[nt][i] - (i % 2 ? offset.y : offset.x));
    }
    pack_fragments<kNT>(ds_operand, ds);
    // The buffer that tile n - 2 used: its product was done before either warpgroup met the other for
    // tile n - 1.
    const std::uint32_t half = (n & 1) * P::Scores::kBytes;
#pragma unroll
    for (int i = 0; i < kNT / 2; ++i)
      store_transposed(scores_place + half + i * 16 * P::Scores::kRowBytes, ds_operand[i]);
    fence_async_proxy();
    sync_threads_of<P::kConsumers>(1);
    const typename P::Scores scores{base + P::kScores + half};
    const int row = D == 64 ? group * 64 : 0, panel = D == 64 ? 0 : group;
    wgmma_fence();
    wgmma_ab<false>(dq, scores.rows_from(row, 0), k_tile.block_of_rows(0, panel, 1));
#pragma unroll
    for (int step = 1; step < P::kKeys / 16; ++step)
      wgmma_ab<true>(dq, scores.rows_from(row, step), k_tile.block_of_rows(step, panel, 1));
    wgmma_commit();
    wgmma_pb(dk_sum, ds_operand, q_tile, n > 0);
    wgmma_wait<1>();  // dq is here
    hold(dq);
    sums_empty(n & 1).wait((n >> 1) - 1);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      store_shared(sums_place + (n & 1) * P::kSumBytes + i * (kWarpgroup * 16),
                   make_float4(dq[i][0], dq[i][1], dq[i][2], dq[i][3]));
    fence_async_proxy();
    sums_full(n & 1).arrive();
    wgmma_wait<0>();
    if (lane == 0) empty(n & 1).arrive();
  }
  hold(dk_sum), hold(dv_sum);
  store_rows<D>(dk_sum, dk, warp, own_row, kv_col, n_rows, head_dim, in.scale, angles);
  store_rows<D>(dv_sum, dv, warp, own_row, kv_col, n_rows, head_dim, 1.0f);
#else
  __trap();  // attention.cu calls this on compute capability 9.0 only
#endif
}

// dq = scale * sums, rotated back if there are angles. Block (x, y): tile x of head y; each thread takes C
// tiles whose columns lie D / 2 apart, which a rotation mixes.
template <int D>
__global__ void __launch_bounds__(256)
    round_dq_kernel(const __grid_constant__ AttentionInputs<__nv_bfloat16> in,
                    const __grid_constant__ Angles angles, Matrix<__nv_bfloat16> dq,
                    OrderedSums sums) {
  constexpr int kQueries = Plan<D>::kQueries,
                kTiles = kQueries * D / 256;  // of a warpgroup's 64 x 8
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, kQueries, static_cast<int>(blockIdx.x), tile))
    return;
  const int head = blockIdx.y;
  const auto* from = reinterpret_cast<const float4*>(
      sums.values + (static_cast<i64>(head) * sums.slots + blockIdx.x) * (kQueries * D));
  const i64 row0 = static_cast<i64>(in.q_offsets[tile.document]) + tile.begin;
  for (int i = static_cast<int>(threadIdx.x); i < kTiles / 4 * kWarpgroup; i += 256) {
    const int thread = i % kWarpgroup, pair = i / kWarpgroup, lane = thread % 32;
    // Tiles of 64 rows x 8 columns: the first of the pair, and the one D / 2 columns on.
    const int low_tile = D == 64 ? pair / 4 * 8 + pair % 4 : pair;
    const float4 low = from[low_tile * kWarpgroup + thread],
                 high = from[(low_tile + D / 16) * kWarpgroup + thread];
    const int column = low_tile % 8 * 8 + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = low_tile / 8 * 64 + thread / 32 * 16 + lane / 4 + 8 * half;
      if (tile.begin + row >= tile.length) continue;
      float a[2] = {half ? low.z : low.x, half ? low.w : low.y};
      float b[2] = {half ? high.z : high.x, half ? high.w : high.y};
      if (angles.table.data) angles.turn_back<D / 2>(a, b, row0 + row, column);
      __nv_bfloat16* to = dq.at(row0 + row, static_cast<i64>(head) * in.head_dim + column);
      *reinterpret_cast<std::uint32_t*>(to) = pack_bf16(in.scale * a[0], in.scale * a[1]);
      if (column + D / 2 < in.head_dim)
        *reinterpret_cast<std::uint32_t*>(to + D / 2) = pack_bf16(in.scale * b[0], in.scale * b[1]);
    }
  }
}

}  // namespace

void attention_backward_one_pass(const AttentionBackward& a, cudaStream_t stream) {
  auto in = attention_inputs<bf16>(a.q, a.k, a.v, a.shape, a.seg, a.seg);
  in.heads_together = kv_heads_together(a);
  const Statistics stats{a.lse.data<float>(), a.delta.data<float>()};
  const Angles angles = angles_of(a.rotation);
  const i64 tiles = a.sums.rows() / a.shape.n_heads;
  const OrderedSums sums{a.sums.data<float>(),
                         reinterpret_cast<std::uint32_t*>(a.turns.data<std::int32_t>()),
                         static_cast<int>(tiles)};
  cuda_check(cudaMemsetAsync(sums.turns, 0, a.turns.bytes(), stream), "clearing the turns");
  auto go = [&]<int D, bool PADDED>() {
    using P = Plan<D>;
    check(a.sums.cols() == P::kQueries * D, "attention: sums ", a.sums.shape());
    const i64 slots = tile_slots(a.seg.total(), a.seg.count(), P::kKeys);
    launch("attention_backward_one_pass", attention_backward_one_pass_kernel<D, PADDED>,
           grid_of(slots * a.shape.n_kv_heads), dim3(P::kThreads), P::kSharedBytes, stream, in,
           const_matrix<bf16>(a.dout), stats, angles, matrix<bf16>(a.dk), matrix<bf16>(a.dv), sums,
           a.shape.n_kv_heads, static_cast<int>(slots));
    launch("round_dq", round_dq_kernel<D>, grid_of(tiles, a.shape.n_heads), dim3(256), 0, stream,
           in, angles, matrix<bf16>(a.dq), sums);
  };
  with_head_size(a.shape.head_dim, go);
}

}  // namespace lk
