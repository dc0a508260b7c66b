// Attention forward on tensor cores (BF16), without ever storing T x T. After Dao,
// "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023.
//
// Maths      s = scale * q kᵀ,  masked causally inside each document,  o = softmax(s) v,  lse = log
//            sum exp s.
//            Keys are visited in tiles; a row keeps its running maximum m and sum l, and what was
//            summed under an older maximum is scaled by exp(m_old - m).
// Shapes     q, o (Tq, H*D), k, v (Tk, G*D), lse (H, Tq); D <= 256, padded with zeros to 64, 128
//            or 256
// Plan       a block: one head, 128 queries; 4 warps of 32 queries each (every fragment of K and V
//            that is read from shared memory feeds two products; registers allow half as many at
//            D = 256); keys in tiles of 64. Grid: heads x query tiles, the tiles with most keys first. V is copied while S = Q Kᵀ runs, and
//            the next K while softmax and P V run.
// Bytes      q, o once; k, v once per query tile, from L2
// Numbers    S, m, l, o in F32; P is rounded to BF16 for P V, l sums the unrounded P
// Limits     registers (o takes 128 per thread at D = 128) allow two blocks per multiprocessor.
//            mma.sync reaches about 60 % of a Hopper GPU's peak; the rest needs wgmma. A single new
//            query (decoding) leaves most of its tile empty.
#include "cuda/attention/tiles.cuh"
#include "cuda/mma.cuh"

namespace lk {
namespace {

constexpr int kKeys = 64, kWarps = 4, kThreads = 32 * kWarps;
constexpr float kLog2e = 1.4426950408889634f;

template <int D>
struct Plan {
  static constexpr int kMT = D <= 128 ? 2 : 1,
                       kNT = kKeys / 8;  // C tiles of a warp: 16 kMT queries
  static constexpr int kQueries = kWarps * 16 * kMT, kBlocks = D <= 128 ? 2 : 1;
  static constexpr std::size_t kSharedBytes = (kQueries + 2 * kKeys) * D * sizeof(__nv_bfloat16);
};

template <int D>
__global__ void __launch_bounds__(kThreads, Plan<D>::kBlocks)
    attention_forward_kernel(const __grid_constant__ AttentionInputs<__nv_bfloat16> in,
                             Matrix<__nv_bfloat16> o, float* lse) {
  constexpr int kMT = Plan<D>::kMT, kNT = Plan<D>::kNT, kDT = D / 8;
  constexpr int kQueries = Plan<D>::kQueries;
  extern __shared__ __align__(1024) unsigned char shared[];
  SwizzledTile<D> q_tile{shared_address(shared)};
  SwizzledTile<D> k_tile{q_tile.base + kQueries * SwizzledTile<D>::kRowBytes};
  SwizzledTile<D> v_tile{k_tile.base + kKeys * SwizzledTile<D>::kRowBytes};

  BlockPlace place = place_of_block(in.heads_together);
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, kQueries, gridDim.y - 1 - place.slot, tile)) return;
  int head = place.head, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int g = lane / 4, t = lane % 4;
  int n_rows = min(kQueries, tile.length - tile.begin);
  int k_begin = in.k_begins[tile.document];
  int n_keys = in.k_ends[tile.document] - k_begin, shift = n_keys - tile.length;
  i64 q_row = static_cast<i64>(in.q_offsets[tile.document]) + tile.begin;
  const __nv_bfloat16* q = in.q.at(q_row, static_cast<i64>(head) * in.head_dim);
  const __nv_bfloat16* k = in.k.at(k_begin, static_cast<i64>(head / in.group) * in.head_dim);
  const __nv_bfloat16* v = in.v.at(k_begin, static_cast<i64>(head / in.group) * in.head_dim);
  KeyRange range = keys_seen(tile.begin, tile.begin + n_rows - 1, shift, in.window, n_keys);
  int first = range.begin / kKeys, last = range.end > 0 ? (range.end - 1) / kKeys : -1;

  auto load_keys = [&](SwizzledTile<D> to, const __nv_bfloat16* from, i64 ld, int n) {
    to.template load_async<kKeys, kThreads>(from + static_cast<i64>(n) * kKeys * ld, ld,
                                            n_keys - n * kKeys, in.head_dim);
    copy_async_commit();
  };
  q_tile.template load_async<kQueries, kThreads>(q, in.q.ld, n_rows, in.head_dim);
  if (first <= last) load_keys(k_tile, k, in.k.ld, first);

  float out[kMT][kDT][4] = {};
  float m[kMT][2], l[kMT][2] = {};
#pragma unroll
  for (int mt = 0; mt < kMT; ++mt) m[mt][0] = m[mt][1] = -INFINITY;
  float scale_log2 = in.scale * kLog2e;
  int row0 = tile.begin + warp * 16 * kMT;  // this warp's first query

#pragma unroll 1
  for (int n = first; n <= last; ++n) {
    q_tile.pin(), k_tile.pin(), v_tile.pin();
    copy_async_wait();
    __syncthreads();  // K of this tile is here; everyone is done with V of the last
    load_keys(v_tile, v, in.v.ld, n);

    float s[kMT][kNT][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      Fragment4 fq[kMT];
#pragma unroll
      for (int mt = 0; mt < kMT; ++mt) fq[mt] = fragment_a(q_tile, (warp * kMT + mt) * 16, step);
#pragma unroll
      for (int nt = 0; nt < kNT; nt += 2) {
        Fragment4 fk = fragment_b_of_transpose(k_tile, 8 * nt, step);
#pragma unroll
        for (int mt = 0; mt < kMT; ++mt) {
          mma(s[mt][nt], fq[mt], fk.r[0], fk.r[1]);
          mma(s[mt][nt + 1], fq[mt], fk.r[2], fk.r[3]);
        }
      }
    }
    copy_async_wait();
    __syncthreads();  // V is here; everyone is done with K
    if (n < last) load_keys(k_tile, k, in.k.ld, n + 1);

    // Keys behind the document's end are hidden too: no query of the document reaches that far.
    int key0 = n * kKeys;
    bool all_visible = key0 + kKeys - 1 <= row0 + shift &&
                       (in.window <= 0 || key0 > row0 + 16 * kMT - 1 + shift - in.window);
    if (!all_visible) {
#pragma unroll
      for (int mt = 0; mt < kMT; ++mt)
#pragma unroll
        for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (!sees(row0 + mt * 16 + g + i / 2 * 8, key0 + nt * 8 + 2 * t + i % 2, shift,
                      in.window))
              s[mt][nt][i] = -INFINITY;
    }

#pragma unroll
    for (int mt = 0; mt < kMT; ++mt)
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // rows g and g + 8
        float max = m[mt][half];
#pragma unroll
        for (int nt = 0; nt < kNT; ++nt)
          max = fmaxf(max, fmaxf(s[mt][nt][2 * half], s[mt][nt][2 * half + 1]));
        max = quad_max(max);
        float offset = max == -INFINITY ? 0.0f : max * scale_log2;  // -inf: nothing seen yet
        float correction = exp2_fast(m[mt][half] * scale_log2 - offset);
        m[mt][half] = max;
        float sum = 0.0f;
#pragma unroll
        for (int nt = 0; nt < kNT; ++nt)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            s[mt][nt][i] = exp2_fast(s[mt][nt][i] * scale_log2 - offset);
            sum += s[mt][nt][i];
          }
        l[mt][half] = l[mt][half] * correction + sum;  // this lane's share, added up at the end
#pragma unroll
        for (int dt = 0; dt < kDT; ++dt) {
          out[mt][dt][2 * half] *= correction;
          out[mt][dt][2 * half + 1] *= correction;
        }
      }

#pragma unroll
    for (int kt = 0; kt < kNT; kt += 2) {
      Fragment4 fp[kMT];
#pragma unroll
      for (int mt = 0; mt < kMT; ++mt) fp[mt] = pack_a(s[mt][kt], s[mt][kt + 1]);
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        Fragment4 fv = fragment_b(v_tile, 8 * kt, step);
#pragma unroll
        for (int mt = 0; mt < kMT; ++mt) {
          mma(out[mt][2 * step], fp[mt], fv.r[0], fv.r[1]);
          mma(out[mt][2 * step + 1], fp[mt], fv.r[2], fv.r[3]);
        }
      }
    }
  }
  copy_async_wait();  // waits for q alone if there were no keys

#pragma unroll
  for (int mt = 0; mt < kMT; ++mt)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = quad_sum(l[mt][half]);
      int row = (warp * kMT + mt) * 16 + g + 8 * half;
      if (row >= n_rows) continue;
      float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
      if (t == 0)
        lse[head * in.total_q + q_row + row] =
            sum == 0.0f ? -INFINITY : m[mt][half] * in.scale + logf(sum);
      __nv_bfloat16* to = o.at(q_row + row, static_cast<i64>(head) * in.head_dim + 2 * t);
#pragma unroll
      for (int dt = 0; dt < kDT; ++dt)
        if (dt * 8 < in.head_dim)
          *reinterpret_cast<std::uint32_t*>(to + dt * 8) =
              pack_bf16(out[mt][dt][2 * half] * inverse, out[mt][dt][2 * half + 1] * inverse);
    }
}

}  // namespace

void attention_forward_mma(const AttentionForward& a, cudaStream_t stream) {
  auto in = attention_inputs<bf16>(a.q, a.k, a.v, a.shape, a.q_seg, a.k_rows);
  auto go = [&]<int D>() {
    dim3 grid =
        grid_of(a.shape.n_heads, tile_slots(a.q_seg.total(), a.q_seg.count(), Plan<D>::kQueries));
    launch("attention_forward", attention_forward_kernel<D>, grid, dim3(kThreads),
           Plan<D>::kSharedBytes, stream, in, matrix<bf16>(a.o), a.lse.data<float>());
  };
  if (a.shape.head_dim <= 64)
    go.template operator()<64>();
  else if (a.shape.head_dim <= 128)
    go.template operator()<128>();
  else
    go.template operator()<256>();
}

}  // namespace lk
