// Attention with plain FP32 arithmetic: F32 tensors of any head size up to 256, and the BF16
// tensors that the tensor-core kernels don't take (rows that are not 16-byte aligned, or a head
// size that is not a multiple of 8).
//
// Maths      as attention/forward.cu and attention/backward.cu
// Plan       a block owns R rows (queries, or keys for dk and dv) and walks over the other side in
//            tiles of R rows, all in shared memory as F32. 128 threads = 8 groups (ty) of 16 (tx):
//            group ty holds rows ty * R/8 .. of the block, thread tx their score columns tx + 16 j
//            and output columns 4 tx + 64 j. Scores go through shared memory between the two
//            products. R = 32 for F32 and head sizes up to 128, else 16.
// Bytes      as the tensor-core kernels, with tiles of 16 or 32 rows instead of 64 to 128
// Limits     bound by shared memory: 4 to 8 TFLOP/s on an H100
#include "cuda/attention/tiles.cuh"

namespace lk {
namespace {

constexpr int kThreads = 128, kMaxHeadDim = 256, kDG = kMaxHeadDim / 64;  // groups of 64 columns

// Rows in shared memory are padded with zeros to whole quads, for any head size.
__host__ __device__ __forceinline__ int whole_quads(int head_dim) { return (head_dim + 3) / 4 * 4; }

// R x head_dim in shared memory; rows are padded by four floats to avoid bank conflicts.
template <int R>
struct PlainTile {
  float* data;
  int pitch;
  __device__ __forceinline__ float4 quad(int row, int col) const {
    return *reinterpret_cast<const float4*>(data + row * pitch + col);
  }
  template <class T>
  __device__ void load(Matrix<const T> from, i64 row0, i64 col0, int valid_rows,
                       int head_dim) const {
    int width = whole_quads(head_dim);
    for (int i = threadIdx.x; i < R * width; i += kThreads) {
      int row = i / width, col = i % width;
      bool inside = row < valid_rows && col < head_dim;
      data[row * pitch + col] = inside ? to_float(*from.at(row0 + row, col0 + col)) : 0.0f;
    }
  }
};

__device__ __forceinline__ int pitch_of(int head_dim) { return whole_quads(head_dim) + 4; }
template <int R>
std::size_t shared_bytes(int head_dim, int n_tiles, int n_scores) {
  return sizeof(float) * R *
         (static_cast<std::size_t>(n_tiles) * (whole_quads(head_dim) + 4) + n_scores * (R + 1));
}

// s[i][j] = a[ty R/8 + i] . b[tx + 16 j]
template <int R>
__device__ __forceinline__ void dot_rows(float (&s)[R / 8][R / 16], PlainTile<R> a, PlainTile<R> b,
                                         int head_dim) {
  int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < R / 8; ++i)
#pragma unroll
    for (int j = 0; j < R / 16; ++j) s[i][j] = 0.0f;
  for (int d = 0; d < head_dim; d += 4) {
    float4 u[R / 8], v[R / 16];
#pragma unroll
    for (int i = 0; i < R / 8; ++i) u[i] = a.quad(ty * (R / 8) + i, d);
#pragma unroll
    for (int j = 0; j < R / 16; ++j) v[j] = b.quad(tx + 16 * j, d);
#pragma unroll
    for (int i = 0; i < R / 8; ++i)
#pragma unroll
      for (int j = 0; j < R / 16; ++j)
        s[i][j] = fmaf(u[i].w, v[j].w,
                       fmaf(u[i].z, v[j].z, fmaf(u[i].y, v[j].y, fmaf(u[i].x, v[j].x, s[i][j]))));
  }
}

// sum[i] += p[ty R/8 + i][r] * b[r] over the rows r of b, for this thread's output columns.
template <int R>
__device__ __forceinline__ void add_products(float4 (&sum)[R / 8][kDG], const float (*p)[R + 1],
                                             PlainTile<R> b, int head_dim) {
  int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  for (int r = 0; r < R; ++r) {
    float w[R / 8];
#pragma unroll
    for (int i = 0; i < R / 8; ++i) w[i] = p[ty * (R / 8) + i][r];
#pragma unroll
    for (int j = 0; j < kDG; ++j) {
      if (4 * tx + 64 * j >= head_dim) break;
      float4 v = b.quad(r, 4 * tx + 64 * j);
#pragma unroll
      for (int i = 0; i < R / 8; ++i) {
        sum[i][j].x = fmaf(w[i], v.x, sum[i][j].x);
        sum[i][j].y = fmaf(w[i], v.y, sum[i][j].y);
        sum[i][j].z = fmaf(w[i], v.z, sum[i][j].z);
        sum[i][j].w = fmaf(w[i], v.w, sum[i][j].w);
      }
    }
  }
}

template <int R, class T>
__device__ __forceinline__ void store_products(const float4 (&sum)[R / 8][kDG], Matrix<T> to,
                                               i64 row0, i64 col0, int n_rows, int head_dim,
                                               const float (&factor)[R / 8]) {
  int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < R / 8; ++i) {
    int row = ty * (R / 8) + i;
    if (row >= n_rows) continue;
#pragma unroll
    for (int j = 0; j < kDG; ++j) {
      int col = 4 * tx + 64 * j;
      if (col >= head_dim) break;
      T* p = to.at(row0 + row, col0 + col);
      p[0] = from_float<T>(factor[i] * sum[i][j].x);
      if (col + 1 < head_dim) p[1] = from_float<T>(factor[i] * sum[i][j].y);
      if (col + 2 < head_dim) p[2] = from_float<T>(factor[i] * sum[i][j].z);
      if (col + 3 < head_dim) p[3] = from_float<T>(factor[i] * sum[i][j].w);
    }
  }
}

// Reduces over the 16 threads (tx) that share rows.
template <class Op>
__device__ __forceinline__ float reduce_16(float x, Op op) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

template <class T, int R>
__global__ void __launch_bounds__(kThreads)
    plain_forward_kernel(const __grid_constant__ AttentionInputs<T> in, Matrix<T> o, float* lse) {
  extern __shared__ __align__(16) float plain_shared[];
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, R, gridDim.y - 1 - blockIdx.y, tile)) return;
  int d = in.head_dim, pitch = pitch_of(d), tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  PlainTile<R> q_tile{plain_shared, pitch}, k_tile{q_tile.data + R * pitch, pitch};
  PlainTile<R> v_tile{k_tile.data + R * pitch, pitch};
  auto p = reinterpret_cast<float(*)[R + 1]>(v_tile.data + R * pitch);

  int head = blockIdx.x, n_rows = min(R, tile.length - tile.begin);
  i64 k_row = in.k_begins[tile.document];
  int n_keys = in.k_ends[tile.document] - static_cast<int>(k_row);
  int shift = n_keys - tile.length;
  i64 q_row = static_cast<i64>(in.q_offsets[tile.document]) + tile.begin;
  i64 q_col = static_cast<i64>(head) * d, kv_col = static_cast<i64>(head / in.group) * d;
  q_tile.load(in.q, q_row, q_col, n_rows, d);

  KeyRange range = keys_seen(tile.begin, tile.begin + n_rows - 1, shift, in.window, n_keys);
  float4 out[R / 8][kDG] = {};
  float m[R / 8], l[R / 8] = {};
#pragma unroll
  for (int i = 0; i < R / 8; ++i) m[i] = -INFINITY;
  for (int key0 = range.begin / R * R; key0 < range.end; key0 += R) {
    __syncthreads();
    k_tile.load(in.k, k_row + key0, kv_col, n_keys - key0, d);
    v_tile.load(in.v, k_row + key0, kv_col, n_keys - key0, d);
    __syncthreads();
    float s[R / 8][R / 16];
    dot_rows<R>(s, q_tile, k_tile, d);
#pragma unroll
    for (int i = 0; i < R / 8; ++i) {
      int row = ty * (R / 8) + i;
      float max = m[i];
#pragma unroll
      for (int j = 0; j < R / 16; ++j) {
        bool visible = sees(tile.begin + row, key0 + tx + 16 * j, shift, in.window);
        s[i][j] = visible ? s[i][j] * in.scale : -INFINITY;
        max = fmaxf(max, s[i][j]);
      }
      max = reduce_16(max, [](float a, float b) { return fmaxf(a, b); });
      float offset = max == -INFINITY ? 0.0f : max, correction = expf(m[i] - offset), sum = 0.0f;
      m[i] = max;
#pragma unroll
      for (int j = 0; j < R / 16; ++j) {
        float e = expf(s[i][j] - offset);
        p[row][tx + 16 * j] = e;
        sum += e;
      }
      l[i] = l[i] * correction + reduce_16(sum, [](float a, float b) { return a + b; });
#pragma unroll
      for (int j = 0; j < kDG; ++j) {
        out[i][j].x *= correction, out[i][j].y *= correction;
        out[i][j].z *= correction, out[i][j].w *= correction;
      }
    }
    __syncthreads();
    add_products<R>(out, p, v_tile, d);
  }
  float factor[R / 8];
#pragma unroll
  for (int i = 0; i < R / 8; ++i) {
    int row = ty * (R / 8) + i;
    factor[i] = l[i] == 0.0f ? 0.0f : 1.0f / l[i];
    if (tx == 0 && row < n_rows)
      lse[head * in.total_q + q_row + row] = l[i] == 0.0f ? -INFINITY : m[i] + logf(l[i]);
  }
  store_products<R>(out, o, q_row, q_col, n_rows, d, factor);
}

// The block's R keys against all queries of their group; the scores' rows are keys.
template <class T, int R>
__global__ void __launch_bounds__(kThreads)
    plain_backward_kv_kernel(const __grid_constant__ AttentionInputs<T> in, Matrix<const T> dout,
                             const float* lse, const float* delta, Matrix<T> dk, Matrix<T> dv) {
  extern __shared__ __align__(16) float plain_shared[];
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, R, blockIdx.y, tile)) return;
  int d = in.head_dim, pitch = pitch_of(d), tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  PlainTile<R> k_tile{plain_shared, pitch}, v_tile{k_tile.data + R * pitch, pitch};
  PlainTile<R> q_tile{v_tile.data + R * pitch, pitch}, dout_tile{q_tile.data + R * pitch, pitch};
  auto p = reinterpret_cast<float(*)[R + 1]>(dout_tile.data + R * pitch);
  auto ds = p + R;

  int kv_head = blockIdx.x, n_rows = min(R, tile.length - tile.begin);
  i64 row0 = in.q_offsets[tile.document], kv_col = static_cast<i64>(kv_head) * d;
  k_tile.load(in.k, row0 + tile.begin, kv_col, n_rows, d);
  v_tile.load(in.v, row0 + tile.begin, kv_col, n_rows, d);
  KeyRange range = queries_seeing(tile.begin, tile.begin + n_rows - 1, in.window, tile.length);
  float4 dk_sum[R / 8][kDG] = {}, dv_sum[R / 8][kDG] = {};
  for (int head = kv_head * in.group; head < (kv_head + 1) * in.group; ++head)
    for (int query0 = range.begin / R * R; query0 < range.end; query0 += R) {
      __syncthreads();
      q_tile.load(in.q, row0 + query0, static_cast<i64>(head) * d, tile.length - query0, d);
      dout_tile.load(dout, row0 + query0, static_cast<i64>(head) * d, tile.length - query0, d);
      __syncthreads();
      float s[R / 8][R / 16], dp[R / 8][R / 16];
      dot_rows<R>(s, k_tile, q_tile, d);
      dot_rows<R>(dp, v_tile, dout_tile, d);
#pragma unroll
      for (int j = 0; j < R / 16; ++j) {
        int query = query0 + tx + 16 * j;
        bool inside = query < tile.length;
        i64 at = head * in.total_q + row0 + query;
        float row_lse = inside ? lse[at] : 0.0f, row_delta = inside ? delta[at] : 0.0f;
#pragma unroll
        for (int i = 0; i < R / 8; ++i) {
          int row = ty * (R / 8) + i;
          bool visible = inside && sees(query, tile.begin + row, 0, in.window);
          float e = visible ? expf(s[i][j] * in.scale - row_lse) : 0.0f;
          p[row][tx + 16 * j] = e;
          ds[row][tx + 16 * j] = e * (dp[i][j] - row_delta);
        }
      }
      __syncthreads();
      add_products<R>(dv_sum, p, dout_tile, d);
      add_products<R>(dk_sum, ds, q_tile, d);
    }
  float one[R / 8], scale[R / 8];
#pragma unroll
  for (int i = 0; i < R / 8; ++i) one[i] = 1.0f, scale[i] = in.scale;
  store_products<R>(dk_sum, dk, row0 + tile.begin, kv_col, n_rows, d, scale);
  store_products<R>(dv_sum, dv, row0 + tile.begin, kv_col, n_rows, d, one);
}

template <class T, int R>
__global__ void __launch_bounds__(kThreads)
    plain_backward_q_kernel(const __grid_constant__ AttentionInputs<T> in, Matrix<const T> dout,
                            const float* lse, const float* delta, Matrix<T> dq) {
  extern __shared__ __align__(16) float plain_shared[];
  DocumentTile tile;
  if (!find_tile(in.q_offsets, in.n_documents, R, gridDim.y - 1 - blockIdx.y, tile)) return;
  int d = in.head_dim, pitch = pitch_of(d), tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  PlainTile<R> q_tile{plain_shared, pitch}, dout_tile{q_tile.data + R * pitch, pitch};
  PlainTile<R> k_tile{dout_tile.data + R * pitch, pitch}, v_tile{k_tile.data + R * pitch, pitch};
  auto ds = reinterpret_cast<float(*)[R + 1]>(v_tile.data + R * pitch);

  int head = blockIdx.x, n_rows = min(R, tile.length - tile.begin);
  i64 row0 = in.q_offsets[tile.document], col = static_cast<i64>(head) * d;
  i64 kv_col = static_cast<i64>(head / in.group) * d;
  q_tile.load(in.q, row0 + tile.begin, col, n_rows, d);
  dout_tile.load(dout, row0 + tile.begin, col, n_rows, d);
  float row_lse[R / 8] = {}, row_delta[R / 8] = {}, scale[R / 8];
#pragma unroll
  for (int i = 0; i < R / 8; ++i) {
    int row = ty * (R / 8) + i;
    i64 at = head * in.total_q + row0 + tile.begin + row;
    if (row < n_rows) row_lse[i] = lse[at], row_delta[i] = delta[at];
    scale[i] = in.scale;
  }
  KeyRange range = keys_seen(tile.begin, tile.begin + n_rows - 1, 0, in.window, tile.length);
  float4 dq_sum[R / 8][kDG] = {};
  for (int key0 = range.begin / R * R; key0 < range.end; key0 += R) {
    __syncthreads();
    k_tile.load(in.k, row0 + key0, kv_col, tile.length - key0, d);
    v_tile.load(in.v, row0 + key0, kv_col, tile.length - key0, d);
    __syncthreads();
    float s[R / 8][R / 16], dp[R / 8][R / 16];
    dot_rows<R>(s, q_tile, k_tile, d);
    dot_rows<R>(dp, dout_tile, v_tile, d);
#pragma unroll
    for (int i = 0; i < R / 8; ++i)
#pragma unroll
      for (int j = 0; j < R / 16; ++j) {
        int row = ty * (R / 8) + i;
        bool visible = row < n_rows && sees(tile.begin + row, key0 + tx + 16 * j, 0, in.window);
        float e = visible ? expf(s[i][j] * in.scale - row_lse[i]) : 0.0f;
        ds[row][tx + 16 * j] = e * (dp[i][j] - row_delta[i]);
      }
    __syncthreads();
    add_products<R>(dq_sum, ds, k_tile, d);
  }
  store_products<R>(dq_sum, dq, row0 + tile.begin, col, n_rows, d, scale);
}

// Calls f for the kernel that is compiled: F32 with 32 or 16 rows, BF16 with 16.
template <class F>
void dispatch_plain(DType t, int head_dim, F&& f) {
  check(head_dim <= kMaxHeadDim, "cuda attention: head size ", head_dim, " > ", kMaxHeadDim);
  if (t == DType::BF16)
    f.template operator()<bf16, 16>();
  else if (head_dim <= 128)
    f.template operator()<float, 32>();
  else
    f.template operator()<float, 16>();
}

}  // namespace

void attention_forward_plain(const AttentionForward& a, cudaStream_t stream) {
  int d = a.shape.head_dim;
  dispatch_plain(a.q.dtype(), d, [&]<class T, int R>() {
    launch("attention_forward_plain", plain_forward_kernel<device_t<T>, R>,
           grid_of(a.shape.n_heads, tile_slots(a.q_seg.total(), a.q_seg.count(), R)),
           dim3(kThreads), shared_bytes<R>(d, 3, 1), stream,
           attention_inputs<T>(a.q, a.k, a.v, a.shape, a.q_seg, a.k_rows), matrix<T>(a.o),
           a.lse.data<float>());
  });
}

void attention_backward_plain(const AttentionBackward& a, cudaStream_t stream) {
  int d = a.shape.head_dim;
  dispatch_plain(a.q.dtype(), d, [&]<class T, int R>() {
    auto in = attention_inputs<T>(a.q, a.k, a.v, a.shape, a.seg, a.seg);
    i64 slots = tile_slots(a.seg.total(), a.seg.count(), R);
    launch("attention_backward_kv_plain", plain_backward_kv_kernel<device_t<T>, R>,
           grid_of(a.shape.n_kv_heads, slots), dim3(kThreads), shared_bytes<R>(d, 4, 2), stream, in,
           const_matrix<T>(a.dout), a.lse.data<float>(), a.delta.data<float>(), matrix<T>(a.dk),
           matrix<T>(a.dv));
    launch("attention_backward_q_plain", plain_backward_q_kernel<device_t<T>, R>,
           grid_of(a.shape.n_heads, slots), dim3(kThreads), shared_bytes<R>(d, 4, 1), stream, in,
           const_matrix<T>(a.dout), a.lse.data<float>(), a.delta.data<float>(), matrix<T>(a.dq));
  });
}

}  // namespace lk
