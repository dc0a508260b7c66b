// Attention forward on Hopper's tensor cores (wgmma, BF16). After Shah et al., "FlashAttention-3:
// Fast and Accurate Attention with Asynchrony and Low-precision", 2024: the overlap of softmax with
// the products inside a warpgroup, without its copy engine and specialised warps.
//
// Maths      as attention/forward.cu
// Shapes     q, o (Tq, H*D), k, v (Tk, G*D), lse (H, Tq); D = 64, 128 or 256, or
//            between, padded with zeros to 128 or 256
// Plan       a block: one head; each warpgroup owns 64 queries; keys in tiles, two stages each of K
//            and V. Grid: heads x query tiles, the tiles with most keys first. While a warpgroup
//            computes softmax of key tile n + 1, its P V of tile n runs, and S and P V of the
//            others. One barrier per key tile: the tiles of the next turn have arrived, and all are
//            done with the stages that are filled next.
// Bytes      q, o once; k, v once per query tile, from L2
// Numbers    S, m, l, o in F32; m is the maximum or kSlack less; P is rounded to BF16 for P V, l sums
//            the unrounded P
// Limits     D >= 128: one block per multiprocessor, its first loads and last stores are not
//            hidden. Tiles on the diagonal are computed whole. For few queries per document
//            attention/forward.cu has the smaller tile.
#include "cuda/attention/tiles.cuh"
#include "cuda/wgmma.cuh"

namespace lk {
namespace {

[[maybe_unused]] constexpr float kLog2e = 1.4426950408889634f;
// A row keeps its maximum until a score exceeds it by this power of two, so that what was summed is
// seldom scaled: P then goes up to 2^8 instead of 1, with the same relative rounding. The idea is
// FlashAttention-4's. 0: the maximum is always the largest score so far.
[[maybe_unused]] constexpr float kSlack = 8.0f;

// At D = 64 two smaller blocks share a multiprocessor: measured faster than one.
template <int D>
struct Plan {
  static constexpr int kWarpgroups = 2, kKeys = D == 256 ? 64 : D, kBlocks = D == 64 ? 2 : 1;
  static constexpr int kThreads = kWarpgroups * kWarpgroup, kQueries = kWarpgroups * 64;
  static __device__ __forceinline__ constexpr bool queries_in_registers() { return D == 64; }
  static constexpr std::size_t kSharedBytes =
      (kQueries + 4 * kKeys) * D * sizeof(__nv_bfloat16);  // Q, two stages of K, two of V
};

// PADDED: in.head_dim may be less than D, by a multiple of 8.
template <int D, bool PADDED>
__global__ void __launch_bounds__(Plan<D>::kThreads, Plan<D>::kBlocks)
    attention_forward_kernel(const __grid_constant__ AttentionInputs<__nv_bfloat16> in,
                             Matrix<__nv_bfloat16> o, float* lse) {
#ifdef LK_DEVICE_HAS_WGMMA
  constexpr int kQueries = Plan<D>::kQueries, kKeys = Plan<D>::kKeys, kThreads = Plan<D>::kThreads;
  constexpr int kNT = kKeys / 8, kDT = D / 8;
  using Queries = PanelTile<kQueries, D>;
  using Keys = PanelTile<kKeys, D>;
  extern __shared__ __align__(1024) unsigned char shared[];
  Queries q_tile{shared_address(shared)};
  auto k_tile = [&](int n) { return Keys{q_tile.base + Queries::kBytes + (n & 1) * Keys::kBytes}; };
  auto v_tile = [&](int n) {
    return Keys{q_tile.base + Queries::kBytes + (2 + (n & 1)) * Keys::kBytes};
  };

  BlockPlace place = place_of_block(in.heads_together);
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, kQueries, gridDim.y - 1 - place.slot, tile)) return;
  const int head_dim = PADDED ? in.head_dim : D;
  int head = place.head, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int g = lane / 4, t = lane % 4;
  int n_rows = min(kQueries, tile.length - tile.begin);
  int k_begin = in.k_begins[tile.document];
  int n_keys = in.k_ends[tile.document] - k_begin, shift = n_keys - tile.length;
  int q_row = in.q_offsets[tile.document] + tile.begin;
  i64 q_col = static_cast<i64>(head) * head_dim;
  i64 kv_col = static_cast<i64>(head / in.group) * head_dim;
  KeyRange range = keys_seen(tile.begin, tile.begin + n_rows - 1, shift, in.window, n_keys);
  int first = range.begin / kKeys, last = range.end > 0 ? (range.end - 1) / kKeys : -1;
  // Loads key tile n; nothing if it is behind the last one.
  auto load_keys = [&](Keys to, const Matrix<const __nv_bfloat16>& from, int n) {
    if (n <= last)
      to.template load_async<kThreads>(from.at(k_begin + static_cast<i64>(n) * kKeys, kv_col),
                                       from.ld, n_keys - n * kKeys, head_dim);
  };

  float out[kDT][4] = {}, s[kNT][4];
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {}, correction[2];
  Fragment4 p[kNT / 2];
  float scale_log2 = in.scale * kLog2e;
  int row0 = tile.begin + warp * 16;  // this warp's first query
  LeftOperand<kQueries, D, Plan<D>::queries_in_registers()> queries(
      q_tile, static_cast<int>(threadIdx.x) / kWarpgroup * 64);

  // Turns scores of key tile n into probabilities under the new maximum. What was summed under the
  // old maximum must be scaled by `correction`.
  auto softmax = [&](int n) {
    // Keys behind the document's end are hidden too: no query of the document reaches that far.
    int key0 = n * kKeys;
    bool all_visible = key0 + kKeys - 1 <= row0 + shift &&
                       (in.window <= 0 || key0 > row0 + 15 + shift - in.window);
    if (!all_visible) {
#pragma unroll
      for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (!sees(row0 + g + i / 2 * 8, key0 + nt * 8 + 2 * t + i % 2, shift, in.window))
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

  if (first <= last) {
    q_tile.template load_async<kThreads>(in.q.at(q_row, q_col), in.q.ld, n_rows, head_dim);
    load_keys(k_tile(first), in.k, first);
    copy_async_commit();
    load_keys(v_tile(first), in.v, first);
    load_keys(k_tile(first + 1), in.k, first + 1);
    copy_async_commit();
    copy_async_wait_but<1>();
    fence_async_proxy();
    __syncthreads();
    queries.read(warp * 16);
    wgmma_fence();
    queries.times_transpose(s, k_tile(first));
    wgmma_wait<0>();
    hold(s);
    softmax(first);

    // Ends P V of the previous turn, then puts P of tile n in its operand's place. A turn begins
    // with this instead of ending with it: inside one block of code the compiler would wait first
    // and compute softmax then.
    auto begin_turn = [&] {
      wgmma_wait<0>();
      hold(out), hold(s);
      bool same_maxima = correction[0] == 1.0f && correction[1] == 1.0f;
      if (!__all_sync(0xffffffffu, same_maxima)) {
#pragma unroll
        for (int dt = 0; dt < kDT; ++dt)
#pragma unroll
          for (int i = 0; i < 4; ++i) out[dt][i] *= correction[i / 2];
      }
      pack_fragments<kNT>(p, s);
      copy_async_wait();
      fence_async_proxy();
      __syncthreads();  // V of tile n and K of n + 1 are here; all are done with K of n, V of n - 1
    };
#pragma unroll 1
    for (int n = first; n < last; ++n) {
      begin_turn();
      load_keys(v_tile(n + 1), in.v, n + 1);
      load_keys(k_tile(n + 2), in.k, n + 2);
      copy_async_commit();
      hold(out), hold(s);
      wgmma_fence();
      queries.times_transpose(s, k_tile(n + 1));
      wgmma_pb(out, p, v_tile(n), true);
      wgmma_wait<1>();
      hold(s);
      softmax(n + 1);
    }
    begin_turn();
    hold(out);
    wgmma_fence();
    wgmma_pb(out, p, v_tile(last), true);
    wgmma_wait<0>();
    hold(out);
  }

  asm volatile("" : "+r"(head));  // computed again, not kept in registers during the loop
  q_col = static_cast<i64>(head) * head_dim;
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
#else
  __trap();  // attention.cu calls this on compute capability 9.0 only
#endif
}

}  // namespace

void attention_forward_wgmma(const AttentionForward& a, cudaStream_t stream) {
  auto in = attention_inputs<bf16>(a.q, a.k, a.v, a.shape, a.q_seg, a.k_rows);
  auto go = [&]<int D, bool PADDED>() {
    dim3 grid =
        grid_of(a.shape.n_heads, tile_slots(a.q_seg.total(), a.q_seg.count(), Plan<D>::kQueries));
    launch("attention_forward_wgmma", attention_forward_kernel<D, PADDED>, grid,
           dim3(Plan<D>::kThreads), Plan<D>::kSharedBytes, stream, in, matrix<bf16>(a.o),
           a.lse.data<float>());
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
