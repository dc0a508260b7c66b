// What all attention kernels share: their arguments, and which rows a block works on.
#pragma once

#include "cuda/pack.cuh"
#include "tensor/backend.h"

namespace lk {

class CudaBackend;

// Note [Tiles of packed documents]. Documents lie end to end, so tiles of R rows must not cross
// their ends. No list of tiles is made or uploaded: the tile slots of document i begin at
// offsets[i] / R + i. That start grows by at least ceil(length / R) from one document to the next,
// because floor(a + b) - floor(a) + 1 >= ceil(b), so slots never collide. A block finds its
// document by binary search over the offsets on the device, and the few surplus slots return at
// once. There are always enough slots: total / R + n.
inline i64 tile_slots(i64 total, i64 n_documents, int tile_rows) {
  return total / tile_rows + n_documents;
}

struct DocumentTile {
  int document;
  int begin;   // first row of the tile, counted within the document
  int length;  // rows of the document
};

// Returns false for a surplus slot, which has nothing to do.
__device__ __forceinline__ bool find_tile(const int* offsets, int n_documents, int tile_rows,
                                          int slot, DocumentTile& tile) {
  int low = 0, high = n_documents - 1;
  while (low < high) {
    int middle = (low + high + 1) / 2;
    if (offsets[middle] / tile_rows + middle <= slot)
      low = middle;
    else
      high = middle - 1;
  }
  tile.document = low;
  tile.begin = (slot - (offsets[low] / tile_rows + low)) * tile_rows;
  tile.length = offsets[low + 1] - offsets[low];
  return tile.begin < tile.length;
}

// Note [Order of blocks]. Blocks begin in the order of their index, x first. If x were the head, the
// tiles of all heads would be worked on at once, and at long documents their keys and values don't
// fit in L2: each block would read them from memory again. So the heads are taken in groups whose
// rows, of the longest document, fill at most half of L2; inside a group the head runs first, then
// the tile. Results don't depend on the order.
struct BlockPlace {
  int head, slot;
};
__device__ __forceinline__ BlockPlace place_of(int index, int heads_together, int n_heads,
                                               int slots) {
  int group = index / (heads_together * slots), first = group * heads_together;
  int in_group = index - first * slots, heads = min(heads_together, n_heads - first);
  return {first + in_group % heads, in_group / heads};
}
// The grid is heads * shares x slots: blocks that share a tile lie beside each other.
__device__ __forceinline__ BlockPlace place_of_block(int heads_together, int shares = 1) {
  int n_heads = static_cast<int>(gridDim.x) / shares;
  int index = blockIdx.y * n_heads + static_cast<int>(blockIdx.x) / shares;
  return place_of(index, heads_together, n_heads, gridDim.y);
}
// How many heads that read `bytes` of rows each fill half of the current GPU's L2; at least one.
inline int heads_in_l2(i64 bytes, int n_heads) {
  int device = 0, l2 = 0;
  cuda_check(cudaGetDevice(&device), "asking for the current GPU");
  cuda_check(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, device), "reading the size of L2");
  return static_cast<int>(std::clamp<i64>(l2 / 2 / std::max<i64>(bytes, 1), 1, n_heads));
}

// Of the current GPU.
inline int multiprocessors() {
  int device = 0, count = 0;
  cuda_check(cudaGetDevice(&device), "asking for the current GPU");
  cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
             "counting multiprocessors");
  return count;
}

// The inputs of every kernel. With shift = keys - queries, query i of a document sees key j if
// j <= i + shift and, with a window, j > i + shift - window.
template <class T>
struct AttentionInputs {
  Matrix<const T> q, k, v;
  const int *q_offsets, *k_begins, *k_ends;  // per document; see Segments, KeyRows
  int n_documents;
  int group;  // query heads per key/value head
  int head_dim, window;
  float scale;
  i64 total_q;
  int heads_together;  // query heads; Note [Order of blocks]
};

__device__ __forceinline__ bool sees(int query, int key, int shift, int window) {
  return key <= query + shift && (window <= 0 || key > query + shift - window);
}

// The keys [begin, end) that some query in [first, last] may see.
struct KeyRange {
  int begin, end;
};
__device__ __forceinline__ KeyRange keys_seen(int first, int last, int shift, int window,
                                              int n_keys) {
  return {window > 0 ? max(0, first + shift - window + 1) : 0, min(n_keys, last + shift + 1)};
}
// The queries [begin, end) that may see some key in [first, last]. There is no shift: backward has
// no cache.
__device__ __forceinline__ KeyRange queries_seeing(int first, int last, int window, int n_queries) {
  return {first, window > 0 ? static_cast<int>(
                                  min(static_cast<i64>(n_queries), static_cast<i64>(last) + window))
                            : n_queries};
}

template <class T>
AttentionInputs<device_t<T>> attention_inputs(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const AttentionShape& shape, const Segments& q_seg,
                                              const KeyRows& k_rows) {
  return {.q = const_matrix<T>(q),
          .k = const_matrix<T>(k),
          .v = const_matrix<T>(v),
          .q_offsets = q_seg.offsets.data<std::int32_t>(),
          .k_begins = k_rows.device_begins.data<std::int32_t>(),
          .k_ends = k_rows.device_ends.data<std::int32_t>(),
          .n_documents = static_cast<int>(q_seg.count()),
          .group = shape.n_heads / shape.n_kv_heads,
          .head_dim = shape.head_dim,
          .window = shape.window,
          .scale = shape.scale,
          .total_q = q_seg.total(),
          .heads_together = shape.n_heads / shape.n_kv_heads *
                            heads_in_l2(2 * k_rows.most * shape.head_dim * dtype_size(k.dtype()),
                                        shape.n_kv_heads)};
}

// Calls go.operator()<D, PADDED>() for the kernels of a head size from 64 to 128: those of 64 and 128
// columns, and those of 128 that pad what is between.
template <class Go>
void with_head_size(int head_dim, const Go& go) {
  if (head_dim == 64)
    go.template operator()<64, false>();
  else if (head_dim == 128)
    go.template operator()<128, false>();
  else
    go.template operator()<128, true>();
}

// The implementations behind CudaBackend::attention_*, chosen in attention.cu.
struct AttentionForward {
  const Tensor &o, &lse, &q, &k, &v;
  const AttentionShape& shape;
  const Segments& q_seg;
  const KeyRows& k_rows;
  Tensor tickets = {};  // (1) I32, of wgmma: by which blocks take tiles
};
struct AttentionBackward {
  const Tensor &dq, &dk, &dv, &dout, &q, &k, &v, &lse, &delta;
  const AttentionShape& shape;
  const Segments& seg;
  const Rotation* rotation;  // where wgmma_rotates(): dq and dk are rotated back by it, unless null
  Tensor sums = {}, turns = {};  // of backward_sums(), where it gives any
};
// The head sizes whose wgmma kernels hold the pairs of a rotation in one thread.
inline bool wgmma_rotates(int head_dim) {
  return head_dim == 64 || head_dim == 128 || head_dim == 256;
}
// The key/value heads that run together where blocks own keys: what they read are q and dout.
inline int kv_heads_together(const AttentionBackward& a) {
  const AttentionShape& s = a.shape;
  return heads_in_l2(
      2 * a.seg.longest() * (s.n_heads / s.n_kv_heads) * s.head_dim * dtype_size(a.q.dtype()),
      s.n_kv_heads);
}
// For one query per document, where every document has keys; otherwise returns false, with nothing
// done.
bool attention_decode(const AttentionForward& a, CudaBackend& backend);
void attention_forward_wgmma(const AttentionForward& a, cudaStream_t stream);
void attention_backward_wgmma(const AttentionBackward& a, cudaStream_t stream);
void attention_backward_wgmma_wide(const AttentionBackward& a, cudaStream_t stream);
void attention_backward_one_pass(const AttentionBackward& a, cudaStream_t stream);
void attention_forward_mma(const AttentionForward& a, cudaStream_t stream);
void attention_backward_mma(const AttentionBackward& a, cudaStream_t stream);
void attention_forward_plain(const AttentionForward& a, cudaStream_t stream);
void attention_backward_plain(const AttentionBackward& a, cudaStream_t stream);

}  // namespace lk
