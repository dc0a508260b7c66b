// Attention of one new query per document to its cache (decoding), of which the query and its own key
// and value may come as their projections give them; keys are cut into pieces that blocks work on in
// parallel. After Dao et al., "Flash-Decoding for long-context inference", 2023.
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
//            bits do not depend on the others. Every block norms and rotates its queries itself; the
//            one that has the document's last key makes that too and puts it and the value into the
//            cache. So a step of generation has no launches for that.
// Bytes      k, v once; partial sums (n, H, pieces, D) F32 through L2
// Numbers    everything F32; what is normed and what is rotated is rounded to T, as apart from this
// Limits     empty pieces of a large capacity are launched and return at once
#include "cuda/attention/tiles.cuh"
#include "cuda/cache_kernels.h"
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

// CachedAttention as the kernel reads it. k.data is null where the cache has the new keys already and
// the queries are as they should be.
template <class T>
struct NewTokens {
  Matrix<const T> k, v;
  Matrix<T> keys, values, made_q;  // made_q.data may be null
  const T *q_gain, *k_gain;        // null: not normed
  Matrix<const float> table;       // data null: not rotated
  const int* positions;
  float eps;
};

// How a head's row of a token is made. Each of LANES lanes holds N of its elements; all lanes of the
// warp take part.
template <class T, int LANES, int N>
struct MakeRow {
  static constexpr int D = LANES * N;
  float cos[N], sin[N];  // of the lane's pairs
  bool turns;
  int lane;
  float eps;

  __device__ __forceinline__ MakeRow(const NewTokens<T>& tokens, int token, int lane)
      : turns(tokens.table.data != nullptr), lane(lane), eps(tokens.eps) {
    if (!turns) return;
    const float* angles = tokens.table.at(tokens.positions[token], lane % (LANES / 2) * N);
#pragma unroll
    for (int i = 0; i < N; ++i) cos[i] = angles[i], sin[i] = angles[D / 2 + i];
  }
  __device__ __forceinline__ void operator()(float (&x)[N], const T* gain) const {
    constexpr unsigned kAll = 0xffffffffu;
    if (gain) {
      float sum = 0.0f, w[N];
      load_pack<N>(gain + lane * N, w);
#pragma unroll
      for (int i = 0; i < N; ++i) sum = fmaf(x[i], x[i], sum);
#pragma unroll
      for (int offset = LANES / 2; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(kAll, sum, offset);
      const float r = 1.0f / sqrtf(sum / static_cast<float>(D) + eps);
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = to_float(from_float<T>(x[i] * r * w[i]));
    }
    if (turns) {
      const bool first = lane < LANES / 2;  // of a pair (a, b): a cos - b sin, b cos + a sin
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float other = __shfl_xor_sync(kAll, x[i], LANES / 2);
        x[i] = to_float(from_float<T>(x[i] * cos[i] + (first ? -other : other) * sin[i]));
      }
    }
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
    attention_decode_kernel(const __grid_constant__ AttentionInputs<T> in,
                            const __grid_constant__ NewTokens<T> tokens, Partials out,
                            int head_groups) {
  constexpr int N = 16 / static_cast<int>(sizeof(T)), D = LANES * N, kTeams = kThreads / LANES;
  __shared__ float score[HEADS][kPiece];
  __shared__ float parts[kTeams][HEADS][D];
  wait_for_previous();  // Note [Early launches]
  int document = blockIdx.z, piece = blockIdx.y;
  int kv_head = blockIdx.x / head_groups, first = blockIdx.x % head_groups * HEADS;
  int n_heads = min(HEADS, in.group - first), head0 = kv_head * in.group + first;
  int k_begin = in.k_begins[document];
  int n_keys = in.k_ends[document] - k_begin;
  KeyRange range = piece_range(piece, n_keys, in.window);
  int n = range.end - range.begin;
  if (n <= 0) return;
  const bool makes = tokens.k.data && range.end == n_keys;  // the last key
  const int n_cached = makes ? n - 1 : n;
  int team = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  i64 row0 = static_cast<i64>(k_begin) + range.begin,
      col = static_cast<i64>(kv_head) * D + lane * N;

  // There is one query for each document.
  float q[HEADS][N], new_key[N];
  const T* new_k = tokens.k.data ? tokens.k.at(document, col) : nullptr;
#pragma unroll
  for (int h = 0; h < HEADS; ++h)
    load_pack<N>(in.q.at(document, static_cast<i64>(head0 + min(h, n_heads - 1)) * D + lane * N),
                 q[h]);
  if (tokens.k.data) {
    const MakeRow<T, LANES, N> make(tokens, document, lane);
#pragma unroll
    for (int h = 0; h < HEADS; ++h) make(q[h], tokens.q_gain);
    if (makes) {
      load_pack<N>(new_k, new_key);
      make(new_key, tokens.k_gain);
      if (team == 0 && first == 0) {
        float value[N];
        load_pack<N>(tokens.v.at(document, col), value);
        store_pack<N>(tokens.keys.at(row0 + n_cached, col), new_key);
        store_pack<N>(tokens.values.at(row0 + n_cached, col), value);
      }
#pragma unroll
      for (int h = 0; h < HEADS; ++h)
        if (team == 0 && h < n_heads && tokens.made_q.data)
          store_pack<N>(tokens.made_q.at(document, static_cast<i64>(head0 + h) * D + lane * N),
                        q[h]);
    }
  }
  // All lanes of a warp run the same number of turns: they exchange sums.
#pragma unroll 4
  for (int j0 = 0; j0 < n; j0 += kTeams) {
    int j = j0 + team, at = min(j, n - 1);
    float key[N];
    load_pack<N>(at < n_cached ? in.k.at(row0 + at, col) : new_k, key);
    if (at >= n_cached)
#pragma unroll
      for (int i = 0; i < N; ++i) key[i] = new_key[i];
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
    load_pack<N>(j < n_cached ? in.v.at(row0 + j, col) : tokens.v.at(document, col), value);
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
  if (threadIdx.x < parts.head_dim)
    *o.at(document, static_cast<i64>(head) * parts.head_dim + threadIdx.x) =
        from_float<T>(sum / total);
  if (threadIdx.x == 0) lse[head * in.total_q + document] = largest + logf(total);
}

template <class T>
int lanes_of(const AttentionForward& a) {
  constexpr int N = 16 / static_cast<int>(sizeof(T));
  const int lanes = a.shape.head_dim % N == 0 ? a.shape.head_dim / N : 0;
  const bool supported = lanes == 4 || lanes == 8 || lanes == 16 || lanes == 32;
  return supported && packable(N, a.shape.head_dim, a.q, a.k, a.v) ? lanes : 0;
}

template <class T>
NewTokens<device_t<T>> new_tokens(const CachedAttention* c) {
  NewTokens<device_t<T>> n{};
  if (!c) return n;
  n.k = const_matrix<T>(c->k), n.v = const_matrix<T>(c->v);
  n.keys = matrix<T>(c->cache.keys), n.values = matrix<T>(c->cache.values);
  if (c->made_q) n.made_q = matrix<T>(c->made_q);
  if (c->q_gain) n.q_gain = pointer<T>(c->q_gain->values());
  if (c->k_gain) n.k_gain = pointer<T>(c->k_gain->values());
  if (c->rotation.table) {
    n.table = const_matrix<float>(c->rotation.table);
    n.positions = c->rotation.positions.data<std::int32_t>();
  }
  n.eps = static_cast<float>(c->eps);
  return n;
}

// `c` is null where the cache has the new keys already.
bool decode(const AttentionForward& a, const CachedAttention* c, Backend& backend,
            cudaStream_t stream) {
  const std::vector<std::int32_t>& offsets = a.q_seg.host;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i)
    if (offsets[i + 1] != offsets[i] + 1) return false;
  for (std::size_t i = 0; i < a.k_rows.begins.size(); ++i)
    if (a.k_rows.begins[i] == a.k_rows.ends[i]) return false;
  return dispatch_device(a.q.dtype(), [&]<class T>() {
    const int lanes = lanes_of<T>(a);
    constexpr int N = 16 / static_cast<int>(sizeof(T));
    if (lanes == 0 || (c && !packable(N, a.shape.head_dim, c->k, c->v))) return false;
    for (const Weight* gain : {c ? c->q_gain : nullptr, c ? c->k_gain : nullptr})
      if (gain && !packable(N, a.shape.head_dim, gain->values())) return false;
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
                   dim3(kThreads), 0, stream, in, new_tokens<T>(c), parts, groups);
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

}  // namespace

bool attention_decode(const AttentionForward& a, Backend& backend, cudaStream_t stream) {
  return decode(a, nullptr, backend, stream);
}

bool CudaCacheKernels::attend(const CachedAttention& c) {
  return decode({c.o, c.lse, c.q, c.cache.keys, c.cache.values, c.shape, c.q_seg, c.k_rows}, &c,
                backend_, backend_.stream());
}

}  // namespace lk
