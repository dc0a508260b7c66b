// Attention of one new query per document to its cache (decoding); keys are cut into pieces that
// blocks work on in parallel. After Dao et al., "Flash-Decoding for long-context inference", 2023.
//
// Maths      as attention/forward.cu, for one query: it sees all keys of its document, or the last
//            `window` of them
// Shapes     q, o (n, H*D), k, v (Tk, G*D), lse (H, n); D = 32, 64, 128 or 256 in packs of 16 bytes
// Plan       a block: a piece of 64 keys of one document, one key/value head and up to 8 of its
//            query heads, so that keys and values are read once for all of them. Lanes that share
//            a key hold 16 bytes of it each. Scores go to shared memory, then follow the softmax of
//            the piece and the sum of values; a second launch adds up the pieces in order. Where
//            pieces begin depends on the document alone, and how many are launched depends on the
//            cache's capacity, so the work can be recorded while documents grow, and a document's
//            bits do not depend on the others.
// Bytes      k, v once; partial sums (n, H, pieces, D) F32 through L2
// Numbers    everything F32
// Limits     empty pieces of a large capacity are launched and return at once
#include "cuda/attention/tiles.cuh"
#include "cuda/reduce.cuh"

namespace lk {
namespace {

constexpr int kPiece = 64, kThreads = 128, kWarps = kThreads / 32;

struct MaxOp {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Partial results of piece p of (document, head): sums (D), largest score, sum of exp.
struct Partials {
  float *sums, *stats;
  int n_heads, n_pieces, head_dim;
  __device__ __forceinline__ i64 index(int document, int head, int piece) const {
    return (static_cast<i64>(document) * n_heads + head) * n_pieces + piece;
  }
};

// The keys [begin, end) of a document's piece that its query sees.
__device__ __forceinline__ KeyRange piece_range(int piece, int n_keys, int window) {
  KeyRange seen = keys_seen(0, 0, n_keys - 1, window, n_keys);
  return {max(seen.begin, piece * kPiece), min(seen.end, (piece + 1) * kPiece)};
}

// LANES lanes hold a row of a head, N elements each; at most HEADS query heads.
template <class T, int LANES, int HEADS>
__global__ void __launch_bounds__(kThreads)
    attention_decode_kernel(const __grid_constant__ AttentionInputs<T> in, Partials out,
                            int head_groups) {
  constexpr int N = 16 / static_cast<int>(sizeof(T)), D = LANES * N, kTeams = kThreads / LANES;
  __shared__ float score[HEADS][kPiece];
  __shared__ float parts[kTeams][HEADS][D];
  wait_for_previous();  // Note [Early launches]
  int document = blockIdx.z, piece = blockIdx.y;
  int kv_head = blockIdx.x / head_groups, first = blockIdx.x % head_groups * HEADS;
  int n_heads = min(HEADS, in.group - first), head0 = kv_head * in.group + first;
  int k_begin = in.k_begins[document];
  KeyRange range = piece_range(piece, in.k_ends[document] - k_begin, in.window);
  int n = range.end - range.begin;
  if (n <= 0) return;
  int team = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  i64 row0 = static_cast<i64>(k_begin) + range.begin,
      col = static_cast<i64>(kv_head) * D + lane * N;

  float q[HEADS][N];
  i64 q_row = in.q_offsets[document];
#pragma unroll
  for (int h = 0; h < HEADS; ++h)
    load_pack<N>(in.q.at(q_row, static_cast<i64>(head0 + min(h, n_heads - 1)) * D + lane * N),
                 q[h]);
    // All lanes of a warp run the same number of turns: they exchange sums.
#pragma unroll 4
  for (int j0 = 0; j0 < n; j0 += kTeams) {
    int j = j0 + team;
    float key[N];
    load_pack<N>(in.k.at(row0 + min(j, n - 1), col), key);
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < N; ++i) sum = fmaf(q[h][i], key[i], sum);
#pragma unroll
      for (int offset = LANES / 2; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      if (lane == 0 && j < n) score[h][j] = in.scale * sum;
    }
  }
  __syncthreads();

  for (int h = threadIdx.x / 32; h < n_heads; h += kWarps) {
    float largest = -INFINITY, total = 0.0f;
    for (int j = threadIdx.x % 32; j < n; j += 32) largest = fmaxf(largest, score[h][j]);
    largest = warp_reduce(largest, MaxOp{});
    for (int j = threadIdx.x % 32; j < n; j += 32) {
      float p = expf(score[h][j] - largest);
      score[h][j] = p;
      total += p;
    }
    total = warp_sum(total);
    if (threadIdx.x % 32 == 0) {
      float* stats = out.stats + 2 * out.index(document, head0 + h, piece);
      stats[0] = largest, stats[1] = total;
    }
  }
  __syncthreads();

  float sum[HEADS][N] = {};
#pragma unroll 4
  for (int j = team; j < n; j += kTeams) {
    float value[N];
    load_pack<N>(in.v.at(row0 + j, col), value);
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      float p = h < n_heads ? score[h][j] : 0.0f;
#pragma unroll
      for (int i = 0; i < N; ++i) sum[h][i] = fmaf(p, value[i], sum[h][i]);
    }
  }
#pragma unroll
  for (int h = 0; h < HEADS; ++h)
#pragma unroll
    for (int i = 0; i < N; ++i) parts[team][h][lane * N + i] = sum[h][i];
  __syncthreads();
  for (int i = threadIdx.x; i < n_heads * D; i += kThreads) {
    int h = i / D, d = i % D;
    float total = 0.0f;
#pragma unroll
    for (int t = 0; t < kTeams; ++t) total += parts[t][h][d];
    out.sums[out.index(document, head0 + h, piece) * D + d] = total;
  }
}

// Adds up the pieces of (head, document) in order.
template <class T>
__global__ void __launch_bounds__(256)
    attention_combine_kernel(const __grid_constant__ AttentionInputs<T> in, Partials parts,
                             Matrix<T> o, float* lse) {
  wait_for_previous();
  int head = blockIdx.x, document = blockIdx.y;
  int n_keys = in.k_ends[document] - in.k_begins[document];
  KeyRange seen = keys_seen(0, 0, n_keys - 1, in.window, n_keys);
  int first = seen.begin / kPiece, end = static_cast<int>(ceil_div(seen.end, kPiece));
  const float* stats = parts.stats + 2 * parts.index(document, head, 0);
  const float* sums = parts.sums + parts.index(document, head, 0) * parts.head_dim;
  float largest = -INFINITY;
  for (int p = first; p < end; ++p) largest = fmaxf(largest, stats[2 * p]);
  float total = 0.0f, sum = 0.0f;
  for (int p = first; p < end; ++p) {
    float f = expf(stats[2 * p] - largest);
    total = fmaf(f, stats[2 * p + 1], total);
    if (threadIdx.x < parts.head_dim)
      sum = fmaf(f, sums[static_cast<i64>(p) * parts.head_dim + threadIdx.x], sum);
  }
  i64 row = in.q_offsets[document];
  if (threadIdx.x < parts.head_dim)
    *o.at(row, static_cast<i64>(head) * parts.head_dim + threadIdx.x) = from_float<T>(sum / total);
  if (threadIdx.x == 0) lse[head * in.total_q + row] = largest + logf(total);
}

template <class T>
int lanes_of(const AttentionForward& a) {
  constexpr int N = 16 / static_cast<int>(sizeof(T));
  const int lanes = a.shape.head_dim % N == 0 ? a.shape.head_dim / N : 0;
  const bool supported = lanes == 4 || lanes == 8 || lanes == 16 || lanes == 32;
  return supported && packable(N, a.shape.head_dim, a.q, a.k, a.v) ? lanes : 0;
}

}  // namespace

bool attention_decode(const AttentionForward& a, Backend& backend, cudaStream_t stream) {
  const std::vector<std::int32_t>& offsets = a.q_seg.host;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i)
    if (offsets[i + 1] != offsets[i] + 1) return false;
  for (std::size_t i = 0; i < a.k_rows.begins.size(); ++i)
    if (a.k_rows.begins[i] == a.k_rows.ends[i]) return false;
  return dispatch_device(a.q.dtype(), [&]<class T>() {
    const int lanes = lanes_of<T>(a);
    if (lanes == 0) return false;
    const int H = a.shape.n_heads, D = a.shape.head_dim, group = H / a.shape.n_kv_heads;
    const i64 n = a.q_seg.count(), pieces = ceil_div(a.k_rows.most, kPiece);
    Tensor sums = backend.empty(Tag::Workspace, DType::F32, {n * H * pieces, D});
    Tensor stats = backend.empty(Tag::Workspace, DType::F32, {n * H * pieces, 2});
    const Partials parts{sums.data<float>(), stats.data<float>(), H, static_cast<int>(pieces), D};
    auto in = attention_inputs<T>(a.q, a.k, a.v, a.shape, a.q_seg, a.k_rows);
    auto go = [&]<int LANES, int HEADS>() {
      const int groups = static_cast<int>(ceil_div(group, HEADS));
      launch_early("attention_decode", attention_decode_kernel<device_t<T>, LANES, HEADS>,
                   grid_of(static_cast<i64>(a.shape.n_kv_heads) * groups, pieces, n),
                   dim3(kThreads), 0, stream, in, parts, groups);
    };
    auto heads = [&]<int LANES>() {
      if (group == 1)
        go.template operator()<LANES, 1>();
      else if (group <= 4)
        go.template operator()<LANES, 4>();
      else
        go.template operator()<LANES, 8>();
    };
    if (lanes == 4)
      heads.template operator()<4>();
    else if (lanes == 8)
      heads.template operator()<8>();
    else if (lanes == 16)
      heads.template operator()<16>();
    else
      heads.template operator()<32>();
    launch_early("attention_combine", attention_combine_kernel<device_t<T>>, grid_of(H, n),
                 dim3(static_cast<unsigned>(ceil_div(D, 32) * 32)), 0, stream, in, parts,
                 matrix<T>(a.o), a.lse.data<float>());
    return true;
  });
}

}  // namespace lk
