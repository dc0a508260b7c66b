// Attention of all tokens to n keys that they share: the prefix of prefix tuning, the adapter of
// LLaMA-Adapter.
//
// Maths      tensor/shared_keys.h. The forward onto other keys' o and lse adds them to the softmax
//            as one more term: M = max(m, lse), o = (sum p v + o exp(lse - M)) / (l + exp(lse - M))
// Shapes     q, o (T,H*D), k, v (n,G*D), lse, delta (H,T); D up to 256, any n
// Plan       a row is a token and a query head; the group's rows of one key/value head lie behind
//            each other: row r is token r / group, head g * group + r % group. A block holds
//            4 * ROWS rows and walks over the keys in tiles of 32, all in shared memory as F32.
//            Scores: lane j of a warp has key j, for the warp's ROWS rows. Output: lane l has the
//            columns l + 32 c.
//            dq is computed like the forward. dk and dv: a block owns 32 keys and a chunk of the
//            rows, and writes partial sums; another kernel adds the chunks in order. Chunks depend
//            on the shape alone (cuda/scratch.h), so two runs give the same bits on any GPU.
// Bytes      q, o, dout and dq once, and keys once for every block through L2; partial sums of dk
//            and dv, 2 chunks n G D F32
// Numbers    everything F32; with GradMode::Add, o and dq are rounded once more than alone
// Limits     no tensor cores: with n = 30 keys it is a small part of a layer, with 1000 it is not
#include "cuda/attention/shared_keys.h"

#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"
#include "cuda/scratch.h"

namespace lk {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps, kKeys = 32, kKeysPerWarp = kKeys / kWarps;
constexpr int kMaxHeadDim = 256;

struct LargerOp {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Rows in shared memory are padded with zeros to whole quads, for any head size.
__host__ __device__ __forceinline__ int whole_quads(int head_dim) { return (head_dim + 3) / 4 * 4; }

template <class T>
struct SharedKeyInputs {
  Matrix<const T> q, k, v;
  const int* positions;  // null without a window
  int first_token, window;
  int n_rows, n_keys;  // rows of a key/value head: tokens * group
  i64 tokens;
  int group, head_dim;
  float scale;

  __device__ __forceinline__ int token(int row) const { return row / group; }
  __device__ __forceinline__ int head(int row) const { return blockIdx.z * group + row % group; }
  __device__ __forceinline__ i64 column(int row) const {
    return static_cast<i64>(head(row)) * head_dim;
  }
  // Where a row's lse and delta are.
  __device__ __forceinline__ i64 statistic(int row) const {
    return head(row) * tokens + token(row);
  }
  // The first key that a row sees; it sees all that follow. Rows beyond the last see none.
  __device__ __forceinline__ int first_seen(int row) const {
    if (row >= n_rows) return n_keys;
    if (!positions) return 0;
    return max(0, first_token + positions[token(row)] - window + 1);
  }
};

// The rows [first, first + count) of the block's key/value head, as F32 rows of `width` floats.
template <class T>
__device__ __forceinline__ void load_rows(float* to, int width, int count, Matrix<const T> from,
                                          int first, const SharedKeyInputs<T>& in) {
  for (int i = threadIdx.x; i < count * width; i += kThreads) {
    int row = first + i / width, d = i % width;
    bool inside = row < in.n_rows && d < in.head_dim;
    to[i] = inside ? to_float(*from.at(in.token(row), in.column(row) + d)) : 0.0f;
  }
}
// The keys or values [first, first + 32), as rows of `width` floats and one more, so that lanes
// that read a column of 32 rows use 32 banks.
template <class T>
__device__ __forceinline__ void load_keys(float* to, int width, Matrix<const T> from, int first,
                                          const SharedKeyInputs<T>& in) {
  i64 column = static_cast<i64>(blockIdx.z) * in.head_dim;
  for (int i = threadIdx.x; i < kKeys * width; i += kThreads) {
    int key = i / width, d = i % width;
    bool inside = first + key < in.n_keys && d < in.head_dim;
    to[key * (width + 1) + d] = inside ? to_float(*from.at(first + key, column + d)) : 0.0f;
  }
}

// s[i] = row i of `rows` . the lane's key
template <int ROWS>
__device__ __forceinline__ void dot_rows(float (&s)[ROWS], const float* rows, const float* key,
                                         int width) {
#pragma unroll
  for (int i = 0; i < ROWS; ++i) s[i] = 0.0f;
  for (int d = 0; d < width; d += 4) {
    float k0 = key[d], k1 = key[d + 1], k2 = key[d + 2], k3 = key[d + 3];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      float4 x = *reinterpret_cast<const float4*>(rows + i * width + d);
      s[i] = fmaf(x.w, k3, fmaf(x.z, k2, fmaf(x.y, k1, fmaf(x.x, k0, s[i]))));
    }
  }
}

// sum[i] += sum over the tile's keys j of weight[i] in lane j times row j of `keys`
template <int ROWS, int C>
__device__ __forceinline__ void add_keys(float (&sum)[ROWS][C], const float (&weight)[ROWS],
                                         const float* keys, int width, int head_dim) {
  int lane = threadIdx.x % 32;
  for (int j = 0; j < kKeys; ++j) {
    float w[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) w[i] = __shfl_sync(0xffffffffu, weight[i], j);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      int d = lane + 32 * c;
      float x = d < head_dim ? keys[j * (width + 1) + d] : 0.0f;
#pragma unroll
      for (int i = 0; i < ROWS; ++i) sum[i][c] = fmaf(w[i], x, sum[i][c]);
    }
  }
}

template <class T, int C, int ROWS>
__global__ void __launch_bounds__(kThreads)
    shared_keys_forward_kernel(const __grid_constant__ SharedKeyInputs<T> in, Matrix<T> o,
                               float* lse, bool onto) {
  extern __shared__ __align__(16) float shared_keys_memory[];
  int d = in.head_dim, width = whole_quads(d), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float *rows = shared_keys_memory, *keys = rows + kWarps * ROWS * width,
        *values = keys + kKeys * (width + 1);
  int block_row = blockIdx.x * (kWarps * ROWS), first_row = block_row + warp * ROWS;
  load_rows(rows, width, kWarps * ROWS, in.q, block_row, in);

  float m[ROWS], l[ROWS], sum[ROWS][C];
  int first_seen[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    m[i] = -INFINITY, l[i] = 0.0f, first_seen[i] = in.first_seen(first_row + i);
#pragma unroll
    for (int c = 0; c < C; ++c) sum[i][c] = 0.0f;
  }
  for (int key0 = 0; key0 < in.n_keys; key0 += kKeys) {
    __syncthreads();
    load_keys(keys, width, in.k, key0, in);
    load_keys(values, width, in.v, key0, in);
    __syncthreads();
    float s[ROWS], p[ROWS];
    dot_rows<ROWS>(s, rows + warp * ROWS * width, keys + lane * (width + 1), width);
    int key = key0 + lane;
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      float score = key < in.n_keys && key >= first_seen[i] ? s[i] * in.scale : -INFINITY;
      float largest = fmaxf(m[i], warp_reduce(score, LargerOp{}));
      float base = largest == -INFINITY ? 0.0f : largest, correction = expf(m[i] - base);
      m[i] = largest;
      p[i] = expf(score - base);
      l[i] = l[i] * correction + warp_sum(p[i]);
#pragma unroll
      for (int c = 0; c < C; ++c) sum[i][c] *= correction;
    }
    add_keys<ROWS, C>(sum, p, values, width, d);
  }
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    int row = first_row + i;
    if (row >= in.n_rows) continue;  // the whole warp
    float others = onto ? lse[in.statistic(row)] : -INFINITY, largest = fmaxf(m[i], others);
    float base = largest == -INFINITY ? 0.0f : largest;
    float of_keys = expf(m[i] - base), of_others = expf(others - base);
    float total = l[i] * of_keys + of_others, factor = total > 0.0f ? 1.0f / total : 0.0f;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      int col = lane + 32 * c;
      if (col >= d) continue;
      T* to = o.at(in.token(row), in.column(row) + col);
      float before = onto ? to_float(*to) * of_others : 0.0f;
      *to = from_float<T>((sum[i][c] * of_keys + before) * factor);
    }
    __syncwarp();  // all lanes have read lse
    if (lane == 0) lse[in.statistic(row)] = total > 0.0f ? base + logf(total) : -INFINITY;
  }
}

// delta, and dq unless its data is null.
template <class T, int C, int ROWS>
__global__ void __launch_bounds__(kThreads)
    shared_keys_backward_q_kernel(const __grid_constant__ SharedKeyInputs<T> in,
                                  Matrix<const T> dout, Matrix<const T> o, const float* lse,
                                  float* delta, Matrix<T> dq, bool add) {
  extern __shared__ __align__(16) float shared_keys_memory[];
  int d = in.head_dim, width = whole_quads(d), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float *rows = shared_keys_memory, *dout_rows = rows + kWarps * ROWS * width,
        *keys = dout_rows + kWarps * ROWS * width, *values = keys + kKeys * (width + 1);
  int block_row = blockIdx.x * (kWarps * ROWS), first_row = block_row + warp * ROWS;
  load_rows(rows, width, kWarps * ROWS, in.q, block_row, in);
  load_rows(dout_rows, width, kWarps * ROWS, dout, block_row, in);
  __syncthreads();

  float row_lse[ROWS], row_delta[ROWS], sum[ROWS][C];
  int first_seen[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    int row = first_row + i;
    bool inside = row < in.n_rows;
    float dot = 0.0f;
    for (int col = lane; col < d && inside; col += 32)
      dot = fmaf(dout_rows[(warp * ROWS + i) * width + col],
                 to_float(*o.at(in.token(row), in.column(row) + col)), dot);
    row_delta[i] = warp_sum(dot);
    row_lse[i] = inside ? lse[in.statistic(row)] : 0.0f;
    first_seen[i] = in.first_seen(row);
    if (inside && lane == 0) delta[in.statistic(row)] = row_delta[i];
#pragma unroll
    for (int c = 0; c < C; ++c) sum[i][c] = 0.0f;
  }
  if (!dq.data) return;
  for (int key0 = 0; key0 < in.n_keys; key0 += kKeys) {
    __syncthreads();
    load_keys(keys, width, in.k, key0, in);
    load_keys(values, width, in.v, key0, in);
    __syncthreads();
    float s[ROWS], dp[ROWS], ds[ROWS];
    dot_rows<ROWS>(s, rows + warp * ROWS * width, keys + lane * (width + 1), width);
    dot_rows<ROWS>(dp, dout_rows + warp * ROWS * width, values + lane * (width + 1), width);
    int key = key0 + lane;
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      bool visible = key < in.n_keys && key >= first_seen[i];
      float p = visible ? expf(s[i] * in.scale - row_lse[i]) : 0.0f;
      ds[i] = in.scale * p * (dp[i] - row_delta[i]);
    }
    add_keys<ROWS, C>(sum, ds, keys, width, d);
  }
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    int row = first_row + i;
    if (row >= in.n_rows) continue;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      int col = lane + 32 * c;
      if (col >= d) continue;
      T* to = dq.at(in.token(row), in.column(row) + col);
      *to = from_float<T>(add ? to_float(*to) + sum[i][c] : sum[i][c]);
    }
  }
}

// partial (2 chunks, n * G*D): dk of the block's keys from its chunk's rows, and dv below it. Warp w
// sums the keys 8 w .. 8 w + 7.
template <class T, int C, int ROWS>
__global__ void __launch_bounds__(kThreads)
    shared_keys_backward_kv_kernel(const __grid_constant__ SharedKeyInputs<T> in,
                                   Matrix<const T> dout, const float* lse, const float* delta,
                                   Matrix<float> partial, int chunk_rows) {
  constexpr int kRows = kWarps * ROWS;
  extern __shared__ __align__(16) float shared_keys_memory[];
  __shared__ __align__(16) float p_tile[kRows][kKeys], ds_tile[kRows][kKeys];
  int d = in.head_dim, width = whole_quads(d), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float *rows = shared_keys_memory, *dout_rows = rows + kRows * width,
        *keys = dout_rows + kRows * width, *values = keys + kKeys * (width + 1);
  int key0 = blockIdx.x * kKeys, key = key0 + lane;
  load_keys(keys, width, in.k, key0, in);
  load_keys(values, width, in.v, key0, in);

  float dk[kKeysPerWarp][C], dv[kKeysPerWarp][C];
#pragma unroll
  for (int j = 0; j < kKeysPerWarp; ++j)
#pragma unroll
    for (int c = 0; c < C; ++c) dk[j][c] = dv[j][c] = 0.0f;
  i64 begin = static_cast<i64>(blockIdx.y) * chunk_rows;
  int end = static_cast<int>(min(begin + chunk_rows, static_cast<i64>(in.n_rows)));
  for (i64 first = begin; first < end; first += kRows) {
    int row0 = static_cast<int>(first);
    __syncthreads();
    load_rows(rows, width, kRows, in.q, row0, in);
    load_rows(dout_rows, width, kRows, dout, row0, in);
    __syncthreads();
    float s[ROWS], dp[ROWS];
    dot_rows<ROWS>(s, rows + warp * ROWS * width, keys + lane * (width + 1), width);
    dot_rows<ROWS>(dp, dout_rows + warp * ROWS * width, values + lane * (width + 1), width);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      int row = row0 + warp * ROWS + i;
      bool visible = row < end && key < in.n_keys && key >= in.first_seen(row);
      float p = visible ? expf(s[i] * in.scale - lse[in.statistic(row)]) : 0.0f;
      float of_row = visible ? delta[in.statistic(row)] : 0.0f;
      p_tile[warp * ROWS + i][lane] = p;
      ds_tile[warp * ROWS + i][lane] = in.scale * p * (dp[i] - of_row);
    }
    __syncthreads();
    for (int r = 0; r < kRows; ++r) {
      float x[C], dy[C];
#pragma unroll
      for (int c = 0; c < C; ++c) {
        int col = lane + 32 * c;
        x[c] = col < d ? rows[r * width + col] : 0.0f;
        dy[c] = col < d ? dout_rows[r * width + col] : 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kKeysPerWarp; ++j) {
        float p = p_tile[r][warp * kKeysPerWarp + j], ds = ds_tile[r][warp * kKeysPerWarp + j];
#pragma unroll
        for (int c = 0; c < C; ++c) {
          dk[j][c] = fmaf(ds, x[c], dk[j][c]);
          dv[j][c] = fmaf(p, dy[c], dv[j][c]);
        }
      }
    }
  }
  i64 row_width = static_cast<i64>(gridDim.z) * d;
#pragma unroll
  for (int j = 0; j < kKeysPerWarp; ++j) {
    int of = key0 + warp * kKeysPerWarp + j;
    if (of >= in.n_keys) continue;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      int col = lane + 32 * c;
      if (col >= d) continue;
      i64 at = of * row_width + static_cast<i64>(blockIdx.z) * d + col;
      *partial.at(2 * blockIdx.y, at) = dk[j][c];
      *partial.at(2 * blockIdx.y + 1, at) = dv[j][c];
    }
  }
}

// dk, dv (n, width) = the sums over chunks, in order.
template <class T>
__global__ void __launch_bounds__(256)
    shared_keys_sum_kernel(Matrix<T> dk, Matrix<T> dv, Matrix<const float> partial, int chunks,
                           i64 n, i64 width) {
  i64 at = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= n * width) return;
  float k = 0.0f, v = 0.0f;
  for (int c = 0; c < chunks; ++c) k += *partial.at(2 * c, at), v += *partial.at(2 * c + 1, at);
  *dk.at(at / width, at % width) = from_float<T>(k);
  *dv.at(at / width, at % width) = from_float<T>(v);
}

template <class T>
SharedKeyInputs<device_t<T>> inputs_of(const Tensor& q, const SharedKeys& keys,
                                       const AttentionShape& shape) {
  const i64 group = shape.n_heads / shape.n_kv_heads;
  check(shape.head_dim <= kMaxHeadDim, "cuda shared keys: head size ", shape.head_dim, " > ",
        kMaxHeadDim);
  check(q.rows() * group <= INT32_MAX - 64 && keys.k.rows() <= INT32_MAX - kKeys,
        "cuda shared keys: ", q.rows(), " tokens, ", keys.k.rows(), " keys");
  return {.q = const_matrix<T>(q),
          .k = const_matrix<T>(keys.k),
          .v = const_matrix<T>(keys.v),
          .positions = shape.window > 0 ? keys.positions.data<std::int32_t>() : nullptr,
          .first_token = static_cast<int>(keys.first_token),
          .window = shape.window,
          .n_rows = static_cast<int>(q.rows() * group),
          .n_keys = static_cast<int>(keys.k.rows()),
          .tokens = q.rows(),
          .group = static_cast<int>(group),
          .head_dim = shape.head_dim,
          .scale = shape.scale};
}

// Calls f<columns of a lane, rows of a warp>. Two rows for head sizes above 128, so that a block's
// tiles fit into the shared memory of small GPUs.
template <class F>
void dispatch_width(int head_dim, F&& f) {
  if (head_dim <= 32)
    f.template operator()<1, 4>();
  else if (head_dim <= 64)
    f.template operator()<2, 4>();
  else if (head_dim <= 128)
    f.template operator()<4, 4>();
  else
    f.template operator()<8, 2>();
}

// Bytes of `row_tiles` tiles of rows, and of a tile of keys and one of values.
template <int ROWS>
std::size_t tile_bytes(int head_dim, int row_tiles) {
  const int width = whole_quads(head_dim);
  return sizeof(float) *
         static_cast<std::size_t>(row_tiles * kWarps * ROWS * width + 2 * kKeys * (width + 1));
}

}  // namespace

void CudaSharedKeyKernels::shared_keys_forward(const Tensor& o, const Tensor& lse, GradMode mode,
                                               const Tensor& q, const SharedKeys& keys,
                                               const AttentionShape& shape) {
  dispatch_device(q.dtype(), [&]<class T>() {
    const auto in = inputs_of<T>(q, keys, shape);
    dispatch_width(shape.head_dim, [&]<int C, int ROWS>() {
      launch("shared_keys_forward", shared_keys_forward_kernel<device_t<T>, C, ROWS>,
             grid_of(ceil_div(in.n_rows, kWarps * ROWS), 1, shape.n_kv_heads), dim3(kThreads),
             tile_bytes<ROWS>(shape.head_dim, 1), backend_.stream(), in, matrix<T>(o),
             lse.data<float>(), mode == GradMode::Add);
    });
  });
}

void CudaSharedKeyKernels::shared_keys_backward(const Tensor& dq, GradMode mode, const Tensor& dk,
                                                const Tensor& dv, const Tensor& delta,
                                                const Tensor& dout, const Tensor& q,
                                                const SharedKeys& keys, const Tensor& o,
                                                const Tensor& lse, const AttentionShape& shape) {
  dispatch_device(q.dtype(), [&]<class T>() {
    using D = device_t<T>;
    const auto in = inputs_of<T>(q, keys, shape);
    const i64 G = shape.n_kv_heads, width = G * shape.head_dim;
    dispatch_width(shape.head_dim, [&]<int C, int ROWS>() {
      const std::size_t bytes = tile_bytes<ROWS>(shape.head_dim, 2);
      launch("shared_keys_backward_q", shared_keys_backward_q_kernel<D, C, ROWS>,
             grid_of(ceil_div(in.n_rows, kWarps * ROWS), 1, G), dim3(kThreads), bytes,
             backend_.stream(), in, const_matrix<T>(dout), const_matrix<T>(o), lse.data<float>(),
             delta.data<float>(), dq ? matrix<T>(dq) : Matrix<D>{}, mode == GradMode::Add);
      if (!dk) return;
      const SharedKeyChunks cut = shared_key_chunks(in.n_rows, in.n_keys, width);
      const Tensor partial =
          backend_.empty(Tag::Workspace, DType::F32, {2 * cut.count, in.n_keys * width});
      launch("shared_keys_backward_kv", shared_keys_backward_kv_kernel<D, C, ROWS>,
             grid_of(ceil_div(in.n_keys, kKeys), cut.count, G), dim3(kThreads), bytes,
             backend_.stream(), in, const_matrix<T>(dout), lse.data<float>(), delta.data<float>(),
             matrix<float>(partial), static_cast<int>(cut.rows));
      launch("shared_keys_sum", shared_keys_sum_kernel<D>,
             grid_of(ceil_div(in.n_keys * width, 256)), dim3(256), 0, backend_.stream(),
             matrix<T>(dk), matrix<T>(dv), const_matrix<float>(partial),
             static_cast<int>(cut.count), static_cast<i64>(in.n_keys), width);
    });
  });
}

}  // namespace lk
