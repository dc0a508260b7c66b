// Attention forward on Hopper's tensor cores (wgmma, BF16). After Shah et al., "FlashAttention-3:
// Fast and Accurate Attention with Asynchrony and Low-precision", 2024: warps that only copy, softmax
// beside the products of its own warpgroup, and warpgroups that take turns at issuing products.
//
// Maths      as attention/forward.cu
// Shapes     q, o (Tq, H*D), k, v (Tk, G*D), lse (H, Tq); D = 64, 128 or 256, or
//            between, padded with zeros to 128 or 256
// Plan       a block works on tiles of queries of a head: on one or, where documents are short, on one
//            after the other (PERSISTENT), by tickets; those with most keys come first. Each of two
//            warpgroups (three at D = 64, where documents are long) owns 64 queries; a warpgroup before
//            them copies, two warps Q and K and two V, K and V in two stages, and is a tile of queries
//            ahead while the others end theirs. While a warpgroup computes softmax of key tile n + 1,
//            its P V of tile n runs, and S and P V of the others. Barriers in shared memory say what is
//            full and what may be filled again.
// Bytes      q, o once; k, v once per query tile, from L2
// Numbers    S, m, l, o in F32; m is the maximum or kSlack less; P is rounded to BF16 for P V, l sums
//            the unrounded P
// Limits     tiles on the diagonal are computed whole. For few queries per document
//            attention/forward.cu has the smaller tile.
#include "cuda/attention/tiles.cuh"
#include "cuda/specialised.cuh"

namespace lk {
namespace {

[[maybe_unused]] constexpr float kLog2e = 1.4426950408889634f;
// A row keeps its maximum until a score exceeds it by this power of two, so that what was summed is
// seldom scaled: P then goes up to 2^8 instead of 1, with the same relative rounding. The idea is
// FlashAttention-4's. 0: the maximum is always the largest score so far.
[[maybe_unused]] constexpr float kSlack = 8.0f;

template <int D, bool PERSISTENT>
struct Plan {
  static constexpr int kWarpgroups = D == 64 && !PERSISTENT ? 3 : 2, kKeys = D == 256 ? 64 : 128;
  static constexpr int kThreads = (1 + kWarpgroups) * kWarpgroup, kQueries = kWarpgroups * 64;
  static constexpr int kLoaders = 64;  // threads for K, and as many for V
  // At a time, of queries; and of descriptions of what is to be done.
  static constexpr int kQueryTiles = PERSISTENT && D <= 128 ? 2 : 1, kWorkTiles = 4;
  // Of a thread that copies and of one that computes: together all of a multiprocessor's.
  static constexpr int kCopyRegisters = PERSISTENT ? 40 : kWarpgroups == 3 ? 32 : 24;
  static constexpr int kRegisters = PERSISTENT ? 232 : kWarpgroups == 3 ? 160 : 240;
  using Queries = PanelTile<kQueries, D>;
  using Keys = PanelTile<kKeys, D>;
  static constexpr std::uint32_t kBarriers = kQueryTiles * Queries::kBytes + 4 * Keys::kBytes,
                                 kWork = kBarriers + 128, kSharedBytes = kWork + 128;
};

// A tile of queries with the keys that it sees, of which there is at least one: no document has more
// queries than keys.
struct alignas(16) QueryTile {
  int head, begin, n_rows;  // the queries; the first one's place among the document's keys
  int q_row;                // and its row
  int k_row, n_keys;        // the document's keys
  int first_key, tiles;     // where the first of the tiles of them begins, and how many there are
};

// The tile at a place in the order of work. Returns false for a surplus one.
template <class P>
__device__ __forceinline__ bool find_work(const AttentionInputs<__nv_bfloat16>& in, int n_heads,
                                          int slots, int index, QueryTile& work) {
  const BlockPlace place = place_of(index, in.heads_together, n_heads, slots);
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, P::kQueries, slots - 1 - place.slot, tile))
    return false;
  work.head = place.head;
  work.n_rows = min(P::kQueries, tile.length - tile.begin);
  work.q_row = in.q_offsets[tile.document] + tile.begin;
  work.k_row = in.k_begins[tile.document];
  work.n_keys = in.k_ends[tile.document] - work.k_row;
  work.begin = tile.begin + work.n_keys - tile.length;
  const KeyRange range =
      keys_seen(work.begin, work.begin + work.n_rows - 1, 0, in.window, work.n_keys);
  work.first_key = range.begin / P::kKeys * P::kKeys;
  work.tiles = (range.end - work.first_key + P::kKeys - 1) / P::kKeys;
  return true;
}

// PADDED: in.head_dim may be less than D, by a multiple of 8.
template <int D, bool PADDED, bool PERSISTENT>
__global__ void __launch_bounds__(Plan<D, PERSISTENT>::kThreads, 1)
    attention_forward_kernel(const __grid_constant__ AttentionInputs<__nv_bfloat16> in,
                             Matrix<__nv_bfloat16> o, float* lse, int n_heads, int slots,
                             std::uint32_t* tickets) {
#ifdef LK_DEVICE_HAS_WGMMA
  using P = Plan<D, PERSISTENT>;
  constexpr int kQueries = P::kQueries, kKeys = P::kKeys, kNT = kKeys / 8, kDT = D / 8;
  using Keys = typename P::Keys;
  extern __shared__ __align__(1024) unsigned char shared[];
  const std::uint32_t base = shared_address(shared),
                      stages = base + P::kQueryTiles * P::Queries::kBytes;
  // The places of key tile n and of the block's query tile i, both counted from 0, and their barriers.
  auto barrier = [&](int i) { return SharedBarrier{base + P::kBarriers + i * 8}; };
  auto k_tile = [&](int n) { return Keys{stages + (n & 1) * Keys::kBytes}; };
  auto k_full = [&](int n) { return barrier(n & 1); };
  auto k_empty = [&](int n) { return barrier(2 + (n & 1)); };
  auto v_tile = [&](int n) { return Keys{stages + (2 + (n & 1)) * Keys::kBytes}; };
  auto v_full = [&](int n) { return barrier(4 + (n & 1)); };
  auto v_empty = [&](int n) { return barrier(6 + (n & 1)); };
  auto q_tile = [&](int i) {
    return typename P::Queries{base + i % P::kQueryTiles * P::Queries::kBytes};
  };
  auto q_empty = [&](int i) { return barrier(8 + i % P::kQueryTiles); };
  auto work_full = [&](int i) { return barrier(10 + i % P::kWorkTiles); };
  auto work_place = [&](int i) {
    return reinterpret_cast<QueryTile*>(shared + P::kWork) + i % P::kWorkTiles;
  };
  // Finds the block's query tile i for all its threads: one without rows if there is none.
  auto publish_work = [&](int i, int ticket) {
    QueryTile work = {};
    while (ticket < n_heads * slots && !find_work<P>(in, n_heads, slots, ticket, work) &&
           PERSISTENT)
      ticket = gridDim.x + take_ticket(tickets);
    *work_place(i) = work;
    work_full(i).arrive();
  };
  const int head_dim = PADDED ? in.head_dim : D;
  if (threadIdx.x == 0) {
    for (int n = 0; n < 2; ++n) {
      k_full(n).init(P::kLoaders), k_empty(n).init(P::kWarpgroups * 4);
      v_full(n).init(P::kLoaders), v_empty(n).init(P::kWarpgroups * 4);
    }
    for (int i = 0; i < P::kQueryTiles; ++i) q_empty(i).init(kWarpgroup + P::kWarpgroups * 4);
    for (int i = 0; i < P::kWorkTiles; ++i) work_full(i).init(1);
    publish_work(0, blockIdx.x);
  }
  __syncthreads();
  const int role = warpgroup_index();

  if (role == 0) {
    give_registers_down_to<P::kCopyRegisters>();
    const bool values = threadIdx.x >= P::kLoaders;
    const Matrix<const __nv_bfloat16> from = values ? in.v : in.k;
    int n = 0;  // tiles of keys so far
    int i = 0;
    do {
      work_full(i).wait(i / P::kWorkTiles);
      const QueryTile work = *work_place(i);
      if (work.n_rows == 0) break;
      if constexpr (PERSISTENT) {
        q_empty(i).wait(i / P::kQueryTiles - 1);
        q_empty(i).arrive();  // this thread has read what it is to do
      }
      if (!values)
        q_tile(i).template load_async<P::kLoaders>(
            in.q.at(work.q_row, static_cast<i64>(work.head) * head_dim), in.q.ld, work.n_rows,
            head_dim);
      int row = work.first_key;
      const __nv_bfloat16* rows = from.at(static_cast<i64>(work.k_row) + row,
                                          static_cast<i64>(work.head / in.group) * head_dim);
#pragma unroll 1
      for (int left = work.tiles; left > 0; --left, ++n) {
        (values ? v_empty(n) : k_empty(n)).wait((n >> 1) - 1);
        (values ? v_tile(n) : k_tile(n))
            .template load_async<P::kLoaders>(rows, from.ld, work.n_keys - row, head_dim);
        rows += kKeys * from.ld;
        row += kKeys;
        copy_async_commit();
        if (PERSISTENT && left == work.tiles && threadIdx.x == P::kLoaders)
          publish_work(i + 1, gridDim.x + take_ticket(tickets));
        copy_async_wait();
        fence_async_proxy();
        (values ? v_full(n) : k_full(n)).arrive();
      }
      ++i;
    } while (PERSISTENT);
    return;
  }
  take_registers_up_to<P::kRegisters>();
  const int group = role - 1, warp = static_cast<int>(threadIdx.x) / 32 - 4,
            lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;

  float out[kDT][4], s[kNT][4], m[2], l[2], correction[2];
  Fragment4 p[kNT / 2];
  const float scale_log2 = in.scale * kLog2e;
  int n = 0;                                                       // tiles of keys so far
  if (group == P::kWarpgroups - 1) arrive_for<2 * kWarpgroup>(1);  // the first may begin

  // Turns scores of the keys from key0 on into probabilities under the new maximum. What was summed under the
  // old maximum must be scaled by `correction`.
  auto softmax = [&](int row0, int key0) {
    // Keys behind the document's end are hidden too: no query of the document reaches that far.
    bool all_visible = key0 + kKeys - 1 <= row0 && (in.window <= 0 || key0 > row0 + 15 - in.window);
    if (!all_visible) {
#pragma unroll
      for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (!sees(row0 + g + i / 2 * 8, key0 + nt * 8 + 2 * t + i % 2, 0, in.window))
            s[nt][i] = -INFINITY;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // rows g and g + 8
      float max = m[half];
#pragma unroll
      for (int nt = 0; nt < kNT; ++nt)
        max = fmaxf(max, fmaxf(s[nt][2 * half], s[nt][2 * half + 1]));
      max = quad_max(max);
      if ((max - m[half]) * scale_log2 <= kSlack) max = m[half];  // false for the first score seen
      float offset = max == -INFINITY ? 0.0f : max * scale_log2;  // -inf: nothing seen yet
      correction[half] = exp2_fast(m[half] * scale_log2 - offset);
      m[half] = max;
      float sum = 0.0f;
#pragma unroll
      for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[nt][i] = exp2_fast(s[nt][i] * scale_log2 - offset);
          sum += s[nt][i];
        }
      l[half] = l[half] * correction[half] + sum;  // this lane's share, added up at the end
    }
  };

  int i = 0;
  do {
    work_full(i).wait(i / P::kWorkTiles);
    const QueryTile work = *work_place(i);
    if (work.n_rows == 0) break;
    const LeftOperand<kQueries, D, false> queries(q_tile(i), group * 64);
    const int row0 = work.begin + warp * 16;  // this warp's first query, counted as keys are
#pragma unroll
    for (int dt = 0; dt < kDT; ++dt)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[dt][i] = 0.0f;
    m[0] = m[1] = -INFINITY, l[0] = l[1] = 0.0f;
    int key0 = work.first_key;
    const int last = n + work.tiles - 1;
    k_full(n).wait(n >> 1);
    wgmma_fence();
    queries.times_transpose(s, k_tile(n));
    wgmma_wait<0>();
    hold(s);
    if (lane == 0) {
      k_empty(n).arrive();
      if (PERSISTENT && n == last) q_empty(i).arrive();
    }
    softmax(row0, key0);

    // Ends P V of the previous turn, then puts P of tile n in its operand's place. A turn begins
    // with this instead of ending with it: inside one block of code the compiler would wait first
    // and compute softmax then.
    auto begin_turn = [&](bool previous) {
      wgmma_wait<0>();
      hold(out), hold(s);
      if (previous && lane == 0) v_empty(n - 1).arrive();
      bool same_maxima = correction[0] == 1.0f && correction[1] == 1.0f;
      if (!__all_sync(0xffffffffu, same_maxima)) {
#pragma unroll
        for (int dt = 0; dt < kDT; ++dt)
#pragma unroll
          for (int i = 0; i < 4; ++i) out[dt][i] *= correction[i / 2];
      }
      pack_fragments<kNT>(p, s);
    };
#pragma unroll 1
    for (; n < last; ++n) {
      begin_turn(key0 > work.first_key);
      k_full(n + 1).wait((n + 1) >> 1);
      v_full(n).wait(n >> 1);
      sync_threads_of<2 * kWarpgroup>(1 + group);  // this warpgroup's turn at issuing products
      hold(out), hold(s);
      wgmma_fence();
      queries.times_transpose(s, k_tile(n + 1));
      wgmma_pb(out, p, v_tile(n), true);
      arrive_for<2 * kWarpgroup>(1 + (group + 1) % P::kWarpgroups);
      wgmma_wait<1>();
      hold(s);
      if (lane == 0) {
        k_empty(n + 1).arrive();
        if (PERSISTENT && n + 1 == last) q_empty(i).arrive();
      }
      key0 += kKeys;
      softmax(row0, key0);
    }
    begin_turn(key0 > work.first_key);
    v_full(n).wait(n >> 1);
    hold(out);
    wgmma_fence();
    wgmma_pb(out, p, v_tile(n), true);
    wgmma_wait<0>();
    hold(out);
    if (lane == 0) v_empty(n).arrive();
    ++n;

    // Read again, so as not to be kept in registers during the loop.
    const int head = work_place(i)->head, n_rows = work_place(i)->n_rows,
              q_row = work_place(i)->q_row;
    const i64 q_col = static_cast<i64>(head) * head_dim;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = quad_sum(l[half]);
      int row = warp * 16 + g + 8 * half;
      if (row >= n_rows) continue;
      float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
      if (t == 0)
        lse[head * in.total_q + q_row + row] =
            sum == 0.0f ? -INFINITY : m[half] * in.scale + logf(sum);
      __nv_bfloat16* to = o.at(q_row + row, q_col + 2 * t);
#pragma unroll
      for (int dt = 0; dt < kDT; ++dt)
        if (!PADDED || dt * 8 < head_dim)
          *reinterpret_cast<std::uint32_t*>(to + dt * 8) =
              pack_bf16(out[dt][2 * half] * inverse, out[dt][2 * half + 1] * inverse);
    }
    ++i;
  } while (PERSISTENT);
#else
  __trap();  // attention.cu calls this on compute capability 9.0 only
#endif
}

}  // namespace

void attention_forward_wgmma(const AttentionForward& a, cudaStream_t stream) {
  auto in = attention_inputs<bf16>(a.q, a.k, a.v, a.shape, a.q_seg, a.k_rows);
  const i64 n_heads = a.shape.n_heads, rows = a.q_seg.total(), documents = a.q_seg.count();
  auto run = [&]<int D, bool PADDED, bool PERSISTENT>(i64 blocks) {
    using P = Plan<D, PERSISTENT>;
    const i64 slots = tile_slots(rows, documents, P::kQueries);
    auto* tickets = reinterpret_cast<std::uint32_t*>(a.tickets.data<std::int32_t>());
    if (PERSISTENT)
      cuda_check(cudaMemsetAsync(tickets, 0, a.tickets.bytes(), stream), "clearing the tickets");
    launch("attention_forward_wgmma", attention_forward_kernel<D, PADDED, PERSISTENT>,
           grid_of(PERSISTENT ? blocks : n_heads * slots), dim3(P::kThreads), P::kSharedBytes,
           stream, in, matrix<bf16>(a.o), a.lse.data<float>(), static_cast<int>(n_heads),
           static_cast<int>(slots), tickets);
  };
  // Where each multiprocessor gets several tiles and their ends cost something beside them: measured.
  auto go = [&]<int D, bool PADDED>() {
    constexpr i64 kLong = D == 256 ? 1536 : 3072;
    const i64 blocks = multiprocessors();
    const i64 tiles = n_heads * tile_slots(rows, documents, Plan<D, true>::kQueries);
    if (tiles > blocks && rows < kLong * documents)
      run.template operator()<D, PADDED, true>(blocks);
    else
      run.template operator()<D, PADDED, false>(blocks);
  };
  const int head_dim = a.shape.head_dim;
  if (head_dim <= 128)
    with_head_size(head_dim, go);
  else if (head_dim == 256)
    go.template operator()<256, false>();
  else
    go.template operator()<256, true>();
}

}  // namespace lk
