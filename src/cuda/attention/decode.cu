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
//            the piece and the sum of values. Blocks count their arrivals; the last of a document and
//            its group of heads adds up the pieces, in order. Where pieces begin depends on the
//            document alone, and how many are launched depends on the cache's capacity, so the work
//            can be recorded while documents grow, and a document's bits do not depend on the others.
//            Every block norms and rotates its queries itself; the one that has the document's last
//            key makes that too and puts it and the value into the cache. So a step of generation has
//            no launches for that.
// Bytes      k, v once; partial sums (n, H, pieces, D) F32 through L2
// Numbers    everything F32; what is normed and what is rotated is rounded to T, as apart from this
// Limits     empty pieces of a large capacity are launched, and return when they know their document
#include "cuda/attention/tiles.cuh"
#include "cuda/cache_kernels.h"
#include "cuda/reduce.cuh"

namespace lk {
namespace {

constexpr int kPiece = 64, kThreads = 128, kWarps = kThreads / 32;

struct MaxOp {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// What the pieces of (document, head) leave for the last of them: sums (D), largest score, sum of exp.
struct Partials {
  float *sums, *stats;
  // (documents, heads of keys, groups of their queries): zero between launches.
  std::uint32_t* arrivals;
  int n_heads, n_pieces, first_document;
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

  __device__ __forceinline__ MakeRow(const NewTokens<T>& tokens, int position, int lane)
      : turns(tokens.table.data != nullptr), lane(lane), eps(tokens.eps) {
    if (!turns) return;
    const float* angles = tokens.table.at(position, lane % (LANES / 2) * N);
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

// Executed by the block that is the last to arrive: adds up the pieces [pieces.begin, pieces.end) of n_heads heads
// from head0 on. A head's threads, four columns each, are in kSlots groups that take turns along the pieces, eight of
// which are on their way at once; what the groups have is added in order.
template <class T, int HEADS, int D>
__device__ __forceinline__ void combine(const Partials& parts, const Matrix<T>& o, float* lse,
                                        i64 total_q, int document, int head0, int n_heads,
                                        KeyRange pieces, float* sums) {
  constexpr int kPacks = D / 4, kGroups = kThreads / kPacks, kAhead = 8;
  constexpr int kSlots = kGroups > HEADS ? kGroups / HEADS : 1;
  __shared__ float largest_of[HEADS][kSlots], total_of[HEADS][kSlots];
  const int slot = threadIdx.x / kPacks % kSlots, pack = threadIdx.x % kPacks;
  for (int h = threadIdx.x / kPacks / kSlots; h < n_heads; h += kGroups / kSlots) {
    const i64 first = parts.index(document, head0 + h, 0);
    const float2* stats = reinterpret_cast<const float2*>(parts.stats) + first;
    const float4* from = reinterpret_cast<const float4*>(parts.sums + first * D) + pack;
    float largest = -INFINITY, total = 0.0f;
    float4 sum{};
    for (int p0 = pieces.begin + slot; p0 < pieces.end; p0 += kAhead * kSlots) {
      float2 stat[kAhead];
      float4 v[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int p = p0 + i * kSlots;
        stat[i] = {-INFINITY, 0.0f}, v[i] = {};
        if (p < pieces.end) stat[i] = __ldcg(stats + p), v[i] = __ldcg(from + p * kPacks);
      }
      float now = largest;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) now = fmaxf(now, stat[i].x);
      const float kept = expf(largest - now);
      total *= kept;
      sum = {sum.x * kept, sum.y * kept, sum.z * kept, sum.w * kept};
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const float f = expf(stat[i].x - now);
        total = fmaf(f, stat[i].y, total);
        sum = {fmaf(f, v[i].x, sum.x), fmaf(f, v[i].y, sum.y), fmaf(f, v[i].z, sum.z),
               fmaf(f, v[i].w, sum.w)};
      }
      largest = now;
    }
    *reinterpret_cast<float4*>(sums + (h * kSlots + slot) * D + 4 * pack) = sum;
    if (pack == 0) largest_of[h][slot] = largest, total_of[h][slot] = total;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n_heads * D; i += kThreads) {
    const int h = i / D, d = i % D;
    float largest = -INFINITY, total = 0.0f, sum = 0.0f;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) largest = fmaxf(largest, largest_of[h][s]);
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const float f = expf(largest_of[h][s] - largest);
      total = fmaf(f, total_of[h][s], total);
      sum = fmaf(f, sums[(h * kSlots + s) * D + d], sum);
    }
    *o.at(document, static_cast<i64>(head0 + h) * D + d) = from_float<T>(sum / total);
    if (d == 0) lse[(head0 + h) * total_q + document] = largest + logf(total);
  }
}

// LANES lanes hold a row of a head, N elements each; at most HEADS query heads.
template <class T, int LANES, int HEADS>
__global__ void __launch_bounds__(kThreads)
    attention_decode_kernel(const __grid_constant__ AttentionInputs<T> in,
                            const __grid_constant__ NewTokens<T> tokens, Partials out, Matrix<T> o,
                            float* lse, int head_groups) {
  constexpr int N = 16 / static_cast<int>(sizeof(T)), D = LANES * N, kTeams = kThreads / LANES;
  // Rows that a team has on their way.
  constexpr int kBatch = kPiece / kTeams < 8 ? kPiece / kTeams : 8;
  using Row = Pack<T, N>;
  __shared__ float score[HEADS][kPiece];
  __shared__ __align__(16) float parts[kTeams][HEADS][D];
  __shared__ bool is_last;
  // Note [Early launches]: the projections, of which new tokens come, may be right before. Where documents lie, and
  // the keys that they have already, are older.
  const bool has_new = tokens.k.data != nullptr;
  if (!has_new) wait_for_previous();
  const int document = out.first_document + blockIdx.z, piece = blockIdx.y;
  const int kv_head = blockIdx.x / head_groups, first = blockIdx.x % head_groups * HEADS;
  const int n_heads = min(HEADS, in.group - first), head0 = kv_head * in.group + first;
  const int team = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const i64 col = static_cast<i64>(kv_head) * D + lane * N;
  // There is one query for each document.
  const int position = tokens.table.data ? tokens.positions[document] : 0;
  const int k_begin = in.k_begins[document], n_keys = in.k_ends[document] - k_begin;
  const KeyRange range = piece_range(piece, n_keys, in.window);
  const int n = range.end - range.begin;
  const bool makes = has_new && range.end == n_keys;  // the last key
  const int n_cached = makes ? n - 1 : n;
  const i64 row0 = static_cast<i64>(k_begin) + range.begin;

  Row rows[kBatch];
  const auto load_keys = [&](int j0) {  // a new key's place is filled with anything
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (const int at = min(j0 + i * kTeams + team, n_cached - 1); at >= 0)
        rows[i] = *reinterpret_cast<const Row*>(in.k.at(row0 + at, col));
  };
  const auto load_values = [&](int j0) {  // a new value is read where its projection left it
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = min(j0 + i * kTeams + team, n - 1);
      rows[i] = *reinterpret_cast<const Row*>(at < n_cached ? in.v.at(row0 + at, col)
                                                            : tokens.v.at(document, col));
    }
  };
  load_keys(0);
  constexpr int kLine = 128 / sizeof(T), kLines = (D + kLine - 1) / kLine;
  for (int i = threadIdx.x; i < n_cached * kLines; i += kThreads)
    prefetch_l2(in.v.at(row0 + i / kLines, static_cast<i64>(kv_head) * D + i % kLines * kLine));
  const MakeRow<T, LANES, N> make(tokens, position, lane);
  if (has_new) wait_for_previous();
  if (n <= 0) return;
  float q[HEADS][N], new_key[N] = {};
#pragma unroll
  for (int h = 0; h < HEADS; ++h)
    load_pack<N>(in.q.at(document, static_cast<i64>(head0 + min(h, n_heads - 1)) * D + lane * N),
                 q[h]);
  if (has_new) {
    load_pack<N>(tokens.k.at(document, col), new_key);
#pragma unroll
    for (int h = 0; h < HEADS; ++h) make(q[h], tokens.q_gain);
    if (makes) {
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
  for (int j0 = 0; j0 < n; j0 += kBatch * kTeams) {
    if (j0 > 0) load_keys(j0);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int j = j0 + i * kTeams + team;
      const bool added = min(j, n - 1) >= n_cached;
#pragma unroll
      for (int h = 0; h < HEADS; ++h) {
        float sum = 0.0f;
#pragma unroll
        for (int e = 0; e < N; ++e)
          sum = fmaf(q[h][e], added ? new_key[e] : to_float(rows[i].v[e]), sum);
#pragma unroll
        for (int offset = LANES / 2; offset > 0; offset /= 2)
          sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        if (lane == 0 && j < n) score[h][j] = in.scale * sum;
      }
    }
  }
  load_values(0);
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
  for (int j0 = 0; j0 < n; j0 += kBatch * kTeams) {
    if (j0 > 0) load_values(j0);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int j = j0 + i * kTeams + team;
#pragma unroll
      for (int h = 0; h < HEADS; ++h) {
        const float p = h < n_heads && j < n ? score[h][j] : 0.0f;
        if (j < n)
#pragma unroll
          for (int e = 0; e < N; ++e) sum[h][e] = fmaf(p, to_float(rows[i].v[e]), sum[h][e]);
      }
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

  // The block that finds all others of its document and heads arrived adds up what they have left.
  const KeyRange seen = keys_seen(0, 0, n_keys - 1, in.window, n_keys);
  const KeyRange pieces{seen.begin / kPiece, (seen.end + kPiece - 1) / kPiece};
  __syncthreads();
  if (threadIdx.x == 0) {  // a barrier of the block on both sides: it speaks for all threads
    const unsigned last = pieces.end - pieces.begin - 1;
    __threadfence();
    is_last = atomicInc(out.arrivals + blockIdx.z * gridDim.x + blockIdx.x, last) == last;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  combine<T, HEADS, D>(out, o, lse, in.total_q, document, head0, n_heads, pieces, &parts[0][0][0]);
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
bool decode(const AttentionForward& a, const CachedAttention* c, CudaBackend& backend) {
  const std::vector<std::int32_t>& offsets = a.q_seg.host;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i)
    if (offsets[i + 1] != offsets[i] + 1) return false;
  for (std::size_t i = 0; i < a.k_rows.begins.size(); ++i) {
    const std::int32_t n_keys = a.k_rows.ends[i] - a.k_rows.begins[i];
    check(n_keys <= a.k_rows.most, "attention_decode: a document of ", n_keys, " keys, where ",
          a.k_rows.most, " are the most");  // pieces would be missing, and their arrivals
    if (n_keys == 0) return false;
  }
  return dispatch_device(a.q.dtype(), [&]<class T>() {
    const int lanes = lanes_of<T>(a);
    constexpr int N = 16 / static_cast<int>(sizeof(T));
    if (lanes == 0 || (c && !packable(N, a.shape.head_dim, c->k, c->v))) return false;
    for (const Weight* gain : {c ? c->q_gain : nullptr, c ? c->k_gain : nullptr})
      if (gain && !packable(N, a.shape.head_dim, gain->values())) return false;
    const int H = a.shape.n_heads, D = a.shape.head_dim, group = H / a.shape.n_kv_heads;
    const int heads = group <= 2 ? group : group <= 4 ? 4 : 8;  // of a block
    const i64 n = a.q_seg.count(), pieces = ceil_div(a.k_rows.most, kPiece);
    const i64 groups = ceil_div(group, heads), per_document = a.shape.n_kv_heads * groups;
    if (per_document > CudaBackend::kArrivals) return false;
    Tensor sums = backend.empty(Tag::Workspace, DType::F32, {n * H * pieces, D});
    Tensor stats = backend.empty(Tag::Workspace, DType::F32, {n * H * pieces, 2});
    auto in = attention_inputs<T>(a.q, a.k, a.v, a.shape, a.q_seg, a.k_rows);
    // So many documents at a time as there are counts of arrivals.
    const i64 together = CudaBackend::kArrivals / per_document;
    for (i64 first = 0; first < n; first += together) {
      const Partials parts{.sums = sums.data<float>(),
                           .stats = stats.data<float>(),
                           .arrivals = backend.arrivals(),
                           .n_heads = H,
                           .n_pieces = static_cast<int>(pieces),
                           .first_document = static_cast<int>(first)};
      auto go = [&]<int LANES, int HEADS>() {
        launch_early("attention_decode", attention_decode_kernel<device_t<T>, LANES, HEADS>,
                     grid_of(per_document, pieces, std::min(together, n - first)), dim3(kThreads),
                     0, backend.stream(), in, new_tokens<T>(c), parts, matrix<T>(a.o),
                     a.lse.data<float>(), static_cast<int>(groups));
      };
      auto with_heads = [&]<int LANES>() {
        heads == 1   ? go.template operator()<LANES, 1>()
        : heads == 2 ? go.template operator()<LANES, 2>()
        : heads == 4 ? go.template operator()<LANES, 4>()
                     : go.template operator()<LANES, 8>();
      };
      lanes == 4    ? with_heads.template operator()<4>()
      : lanes == 8  ? with_heads.template operator()<8>()
      : lanes == 16 ? with_heads.template operator()<16>()
                    : with_heads.template operator()<32>();
    }
    return true;
  });
}

}  // namespace

bool attention_decode(const AttentionForward& a, CudaBackend& backend) {
  return decode(a, nullptr, backend);
}

bool CudaCacheKernels::attend(const CachedAttention& c) {
  return decode({c.o, c.lse, c.q, c.cache.keys, c.cache.values, c.shape, c.q_seg, c.k_rows}, &c,
                backend_);
}

}  // namespace lk
