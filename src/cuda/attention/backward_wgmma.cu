// Attention backward on Hopper's tensor cores (wgmma, BF16); probabilities are recomputed from q, k
// and lse.
//
// Maths      as attention/backward.cu
// Shapes     as forward; D = 64 or 128, or between, padded with zeros to 128; larger ones are left
//            to attention/backward_wgmma_wide.cu; dk, dv (T, G*D) sum over the query heads of their
//            group
// Plan       two passes, so that every output has one owner and no sums are added in memory:
//            dk, dv  a block owns keys of one key/value head, a warpgroup 64 of them, and walks
//                    over all queries of the group that see them, 64 at a time. It computes Sᵀ and
//                    dPᵀ, keys as rows: so Pᵀ and dSᵀ lie in registers as the left operands of the
//                    products that follow.
//            dq      a block owns queries of one head, a warpgroup 64 of them, and walks over the
//                    keys they see. Its rows of Q and dO stay in registers as left operands.
//            Few keys are shared by clusters of blocks: Note [Shares of a walk].
//            The walked tiles have three stages: one is used, the next arrives, and products may
//            still read the one before. One barrier per tile. Exponentials overlap with dP, dS with
//            dV, and all of them with the other warpgroup's products.
// Work       7 products of T T D; attention/backward_one_pass.cu has 5, and serves long documents, whose
//            blocks are many enough to take turns at dq.
// Numbers    F32 sums; p and ds are rounded to BF16 as operands
// Limits     two warpgroups per multiprocessor. Tiles on the diagonal are computed whole.
#include "cuda/attention/backward_wgmma.cuh"

namespace lk {
namespace {

constexpr int kStages = 3;

// The tiles that a block owns, and those that pass by.
template <int D, int WARPGROUPS, int PASSING>
struct Pass {
  static constexpr int kThreads = WARPGROUPS * kWarpgroup, kRows = WARPGROUPS * 64,
                       kPassing = PASSING;  // rows of a tile that passes by
  // A stage holds two passing tiles and lse and delta of their rows. A block holds two tiles that
  // stay, and its stages.
  static constexpr std::uint32_t kStageBytes = 2 * PanelTile<kPassing, D>::kBytes + 1024;
  static constexpr std::uint32_t kFirstStage = 2 * PanelTile<kRows, D>::kBytes,
                                 kSharedBytes = kFirstStage + kStages * kStageBytes;
  static_assert(2 * kPassing * sizeof(float) <= 1024);
  static __device__ __forceinline__ std::uint32_t stage_behind(std::uint32_t stage) {
    stage += kStageBytes;
    return stage == kSharedBytes ? kFirstStage : stage;
  }
};
// At D = 64 two blocks of one warpgroup share a multiprocessor: measured faster than one block of
// two.
template <int D>
constexpr int kBlocks = D == 64 ? 2 : 1;
template <int D>
using KvPass = Pass<D, 2 / kBlocks<D>, 64>;
template <int D>
using QPass = Pass<D, 2 / kBlocks<D>, 64>;

// PADDED: in.head_dim may be less than D, by a multiple of 8; there are no angles then.
template <int D, bool PADDED>
__global__ void __launch_bounds__(KvPass<D>::kThreads, kBlocks<D>)
    attention_backward_kv_kernel(const __grid_constant__ AttentionInputs<__nv_bfloat16> in,
                                 Matrix<const __nv_bfloat16> dout, Statistics stats,
                                 const __grid_constant__ Angles angles, Matrix<__nv_bfloat16> dk,
                                 Matrix<__nv_bfloat16> dv) {
#ifdef LK_DEVICE_HAS_WGMMA
  using P = KvPass<D>;
  constexpr int kRows = P::kRows, kQueries = P::kPassing, kNT = kQueries / 8;
  using Own = PanelTile<kRows, D>;
  using Passing = PanelTile<kQueries, D>;
  const int head_dim = PADDED ? in.head_dim : D;
  extern __shared__ __align__(1024) unsigned char shared[];
  std::uint32_t base = shared_address(shared);
  Own k_tile{base}, v_tile{base + Own::kBytes};
  constexpr std::uint32_t kNumbers = 2 * Passing::kBytes;  // offset of lse and delta in a stage

  int shares = cluster_size();
  BlockPlace place = place_of_block(in.heads_together, shares);
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, kRows, place.slot, tile)) return;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int row0 = in.q_offsets[tile.document];  // the document's first row, of queries and keys alike
  int kv_head = place.head;
  i64 own_row = static_cast<i64>(row0) + tile.begin, kv_col = static_cast<i64>(kv_head) * head_dim;
  int n_rows = min(kRows, tile.length - tile.begin);
  k_tile.template load_async<P::kThreads>(in.k.at(own_row, kv_col), in.k.ld, n_rows, head_dim);
  v_tile.template load_async<P::kThreads>(in.v.at(own_row, kv_col), in.v.ld, n_rows, head_dim);

  // Loads the tile at a query of a head into the stage at byte `to`.
  auto load = [&](int head, int query, std::uint32_t to) {
    int valid = tile.length - query;
    i64 row = static_cast<unsigned>(row0 + query), col = static_cast<unsigned>(head * head_dim);
    Passing q_tile{base + to}, dout_tile{base + to + Passing::kBytes};
    q_tile.template load_async<P::kThreads>(in.q.at(row, col), in.q.ld, valid, head_dim);
    dout_tile.template load_async<P::kThreads>(dout.at(row, col), dout.ld, valid, head_dim);
    // Rows behind the end get q = dout = 0, lse = delta = 0: they add 0.
    unsigned i = threadIdx.x;
    asm volatile("" : "+r"(i));
    if (i < 2 * kQueries) {
      const float* from = i < kQueries ? stats.lse : stats.delta;
      bool inside = static_cast<int>(i % kQueries) < valid;
      copy_async_4(base + to + kNumbers + i * 4,
                   inside ? from + head * in.total_q + row + i % kQueries : from, inside);
    }
  };
  static_assert(P::kThreads >= 2 * kQueries);

  float dk_sum[D / 8][4], dv_sum[D / 8][4], p[kNT][4], ds[kNT][4];
  undefined(dk_sum), undefined(dv_sum);  // step 0 overwrites them
  Fragment4 p_operand[kNT / 2], ds_operand[kNT / 2];
  float scale_log2 = in.scale * kLog2e;
  int key0 = tile.begin + warp * 16;  // this warp's first key
  int group_row = static_cast<int>(threadIdx.x) / kWarpgroup * 64;
  LeftOperand<kRows, D, false> keys(k_tile, group_row), values(v_tile, group_row);

  // The walk takes the tiles from query tile.begin to query_end of the group's first head, then of
  // its second, ...; this block takes its share of them.
  int query_end = queries_seeing(tile.begin, tile.begin + n_rows - 1, in.window, tile.length).end;
  WalkPlace<kQueries> next{kv_head * in.group, tile.begin};  // the tile that is loaded next
  next.advance(cluster_rank(), tile.begin, query_end);
  auto inside_walk = [&] { return next.head < (kv_head + 1) * in.group; };
  std::uint32_t stage = P::kFirstStage;
  bool more = inside_walk(), any = more;
  if (more) load(next.head, next.query, stage);
  copy_async_commit();
#pragma unroll 1
  for (bool add = false; more; add = true) {
    copy_async_wait();
    fence_async_proxy();
    __syncthreads();  // this turn's tiles have arrived; all are done with those of two turns ago
    Passing q_tile{base + stage}, dout_tile{base + stage + Passing::kBytes};
    const float* lse = reinterpret_cast<const float*>(shared + stage + kNumbers);
    const float* delta = lse + kQueries;
    int query0 = next.query;
    stage = P::stage_behind(stage);
    next.advance(shares, key0 - warp * 16, query_end);
    more = inside_walk();
    if (more) load(next.head, next.query, stage);
    copy_async_commit();

    wgmma_fence();
    keys.times_transpose(p, q_tile);  // rows: 64 keys, columns: the queries
    values.times_transpose(ds, dout_tile);
    wgmma_wait<1>();  // S is here, and dV and dK of the step before are done
    hold(p);
#pragma unroll
    for (int nt = 0; nt < kNT; ++nt) {
      float2 offset = *reinterpret_cast<const float2*>(lse + nt * 8 + 2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        p[nt][i] = exp2_fast(p[nt][i] * scale_log2 - (i % 2 ? offset.y : offset.x) * kLog2e);
    }
    bool all_visible =
        key0 + 15 <= query0 && (in.window <= 0 || key0 > query0 + kQueries - 1 - in.window);
    if (!all_visible) {
#pragma unroll
      for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (!sees(query0 + nt * 8 + 2 * t + i % 2, key0 + g + i / 2 * 8, 0, in.window))
            p[nt][i] = 0.0f;
    }
    pack_fragments<kNT>(p_operand, p);
    wgmma_fence();
    wgmma_pb(dv_sum, p_operand, dout_tile, add);
    wgmma_wait<1>();  // dP is here
    hold(ds);
#pragma unroll
    for (int nt = 0; nt < kNT; ++nt) {
      float2 offset = *reinterpret_cast<const float2*>(delta + nt * 8 + 2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        ds[nt][i] = p[nt][i] * (ds[nt][i] - (i % 2 ? offset.y : offset.x));
    }
    pack_fragments<kNT>(ds_operand, ds);
    wgmma_fence();
    wgmma_pb(dk_sum, ds_operand, q_tile, add);
  }
  wgmma_wait<0>();
  hold(dk_sum), hold(dv_sum);
  int begin = key0 - warp * 16;
  asm volatile("" : "+r"(begin));  // computed again, not kept in registers during the loop
  own_row = static_cast<unsigned>(row0 + begin), n_rows = min(kRows, tile.length - begin);
  if (shares == 1) {
    store_rows<D>(dk_sum, dk, warp, own_row, kv_col, n_rows, head_dim, in.scale, angles);
    store_rows<D>(dv_sum, dv, warp, own_row, kv_col, n_rows, head_dim, 1.0f);
    return;
  }
  copy_async_wait();
  __syncthreads();  // nobody reads the tiles any more
  using Sums = SharedSums<D>;
  static_assert(2 * kRows / 64 * Sums::kBytes <= P::kSharedBytes);
  Sums dk_shared(base + 2 * group_row / 64 * Sums::kBytes);
  Sums dv_shared(base + (2 * group_row / 64 + 1) * Sums::kBytes);
  dk_shared.leave(dk_sum, any), dv_shared.leave(dv_sum, any);
  cluster_sync();
  own_row += group_row, n_rows -= group_row;
  dk_shared.store_totals(dk.at(own_row, kv_col), dk.ld, own_row, n_rows, head_dim, in.scale,
                         angles);
  dv_shared.store_totals(dv.at(own_row, kv_col), dv.ld, own_row, n_rows, head_dim, 1.0f);
  cluster_sync();  // no block ends while others read its shared memory
#else
  __trap();  // attention.cu calls this on compute capability 9.0 only
#endif
}

template <int D, bool PADDED>
__global__ void __launch_bounds__(QPass<D>::kThreads, kBlocks<D>)
    attention_backward_q_kernel(const __grid_constant__ AttentionInputs<__nv_bfloat16> in,
                                Matrix<const __nv_bfloat16> dout, Statistics stats,
                                const __grid_constant__ Angles angles, Matrix<__nv_bfloat16> dq) {
#ifdef LK_DEVICE_HAS_WGMMA
  using P = QPass<D>;
  constexpr int kRows = P::kRows, kKeys = P::kPassing, kNT = kKeys / 8;
  using Own = PanelTile<kRows, D>;
  using Passing = PanelTile<kKeys, D>;
  const int head_dim = PADDED ? in.head_dim : D;
  extern __shared__ __align__(1024) unsigned char shared[];
  std::uint32_t base = shared_address(shared);
  Own q_tile{base}, dout_tile{base + Own::kBytes};

  BlockPlace place = place_of_block(in.heads_together);
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, kRows, gridDim.y - 1 - place.slot, tile)) return;
  int head = place.head, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int g = lane / 4, t = lane % 4;
  int n_rows = min(kRows, tile.length - tile.begin);
  i64 row0 = in.q_offsets[tile.document];
  i64 col = static_cast<i64>(head) * head_dim;
  i64 kv_col = static_cast<i64>(head / in.group) * head_dim;
  q_tile.template load_async<P::kThreads>(in.q.at(row0 + tile.begin, col), in.q.ld, n_rows,
                                          head_dim);
  dout_tile.template load_async<P::kThreads>(dout.at(row0 + tile.begin, col), dout.ld, n_rows,
                                             head_dim);

  // Loads key tile n into the stage at byte `to`.
  auto load = [&](int n, std::uint32_t to) {
    int valid = tile.length - n * kKeys;
    i64 row = row0 + static_cast<i64>(n) * kKeys;
    Passing k_tile{base + to}, v_tile{base + to + Passing::kBytes};
    k_tile.template load_async<P::kThreads>(in.k.at(row, kv_col), in.k.ld, valid, head_dim);
    v_tile.template load_async<P::kThreads>(in.v.at(row, kv_col), in.v.ld, valid, head_dim);
  };
  KeyRange range = keys_seen(tile.begin, tile.begin + n_rows - 1, 0, in.window, tile.length);
  int first = range.begin / kKeys, last = (range.end - 1) / kKeys;
  std::uint32_t stage = P::kFirstStage;
  load(first, stage);
  copy_async_commit();

  float lse[2] = {}, delta[2] = {};  // of rows g and g + 8
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int row = warp * 16 + g + 8 * half;
    if (row >= n_rows) continue;
    i64 at = head * in.total_q + row0 + tile.begin + row;
    lse[half] = stats.lse[at] * kLog2e, delta[half] = stats.delta[at];
  }
  float dq_sum[D / 8][4] = {}, p[kNT][4], ds[kNT][4];
  Fragment4 ds_operand[kNT / 2];
  float scale_log2 = in.scale * kLog2e;
  int query0 = tile.begin + warp * 16;  // this warp's first query
  int group_row = static_cast<int>(threadIdx.x) / kWarpgroup * 64;
  LeftOperand<kRows, D, true> queries(q_tile, group_row), douts(dout_tile, group_row);

  // Issues S and dP of key tile n and turns S into P while dP runs.
  auto begin_tile = [&](int n) {
    wgmma_fence();
    queries.times_transpose(p, Passing{base + stage});  // rows: 64 queries, columns: the keys
    douts.times_transpose(ds, Passing{base + stage + Passing::kBytes});
    wgmma_wait<1>();  // S is here, and dQ of the tile before is done
    hold(p), hold(dq_sum);
    int key0 = n * kKeys;
    bool all_visible =
        key0 + kKeys - 1 <= query0 && (in.window <= 0 || key0 > query0 + 15 - in.window);
    if (!all_visible) {
#pragma unroll
      for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (!sees(query0 + g + i / 2 * 8, key0 + nt * 8 + 2 * t + i % 2, 0, in.window))
            p[nt][i] = -INFINITY;
    }
#pragma unroll
    for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
      for (int i = 0; i < 4; ++i) p[nt][i] = exp2_fast(p[nt][i] * scale_log2 - lse[i / 2]);
  };
  // Waits for dP of the tile, computes dS and issues dQ. A turn of the loop begins with this
  // instead of ending with it: inside one block of code the compiler would wait first and compute P
  // then.
  auto end_tile = [&] {
    wgmma_wait<0>();
    hold(p), hold(ds);
#pragma unroll
    for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
      for (int i = 0; i < 4; ++i) ds[nt][i] = p[nt][i] * (ds[nt][i] - delta[i / 2]);
    pack_fragments<kNT>(ds_operand, ds);
    wgmma_fence();
    wgmma_pb(dq_sum, ds_operand, Passing{base + stage}, true);
  };

  copy_async_wait();
  fence_async_proxy();
  __syncthreads();
  queries.read(warp * 16), douts.read(warp * 16);
  if (first < last) load(first + 1, P::stage_behind(stage));
  copy_async_commit();
  begin_tile(first);
#pragma unroll 1
  for (int n = first + 1; n <= last; ++n) {
    end_tile();
    stage = P::stage_behind(stage);
    copy_async_wait();
    fence_async_proxy();
    __syncthreads();  // tile n is here; everyone is done with tile n - 2
    if (n < last) load(n + 1, P::stage_behind(stage));
    copy_async_commit();
    begin_tile(n);
  }
  end_tile();
  wgmma_wait<0>();
  hold(dq_sum);
  store_rows<D>(dq_sum, dq, warp, row0 + tile.begin, col, n_rows, head_dim, in.scale, angles);
#else
  __trap();
#endif
}

}  // namespace

void attention_backward_wgmma(const AttentionBackward& a, cudaStream_t stream) {
  auto in = attention_inputs<bf16>(a.q, a.k, a.v, a.shape, a.seg, a.seg);
  auto kv_in = in;
  kv_in.heads_together = kv_heads_together(a);
  Statistics stats{a.lse.data<float>(), a.delta.data<float>()};
  Angles angles = angles_of(a.rotation);
  auto go = [&]<int D, bool PADDED>() {
    auto slots = [&](int rows) { return tile_slots(a.seg.total(), a.seg.count(), rows); };
    const i64 walks = slots(KvPass<D>::kRows) * a.shape.n_kv_heads;
    const unsigned shares = shares_of_walk(a, walks, KvPass<D>::kPassing, kBlocks<D>);
    launch_clusters("attention_backward_kv_wgmma", attention_backward_kv_kernel<D, PADDED>,
                    grid_of(static_cast<i64>(a.shape.n_kv_heads) * shares, slots(KvPass<D>::kRows)),
                    shares, dim3(KvPass<D>::kThreads), KvPass<D>::kSharedBytes, stream, kv_in,
                    const_matrix<bf16>(a.dout), stats, angles, matrix<bf16>(a.dk),
                    matrix<bf16>(a.dv));
    launch("attention_backward_q_wgmma", attention_backward_q_kernel<D, PADDED>,
           grid_of(a.shape.n_heads, slots(QPass<D>::kRows)), dim3(QPass<D>::kThreads),
           QPass<D>::kSharedBytes, stream, in, const_matrix<bf16>(a.dout), stats, angles,
           matrix<bf16>(a.dq));
  };
  if (a.shape.head_dim > 128)
    attention_backward_wgmma_wide(a, stream);
  else
    with_head_size(a.shape.head_dim, go);
}

}  // namespace lk
