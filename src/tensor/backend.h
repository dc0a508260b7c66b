// Backend: one device and one ordered stream of work. This header is the engine's table of
// contents: every numeric entry point with its maths and its shapes.
//
// Letters: T tokens of a batch (all rows of all documents), C model width, H query heads, G
// key/value heads, D head size, F feed-forward width, V vocabulary, R LoRA rank; in a matmul M x K
// times K x N. Unless said otherwise x, y and their gradients have one floating dtype ("compute
// dtype": F32, BF16; F64 on the CPU) and sums are accumulated in F32 (F64 for F64).
//
// Shapes and dtypes were checked by the op layer; a Backend checks only what it alone requires.
// Matrices may have a row stride (Tensor::ld()). Backends allocate nothing but Tag::Workspace.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tensor/adamw_slot.h"
#include "tensor/attention_shape.h"
#include "tensor/block_cache.h"
#include "tensor/device_clock.h"
#include "tensor/device_traits.h"
#include "tensor/host_copy.h"
#include "tensor/ledger.h"
#include "tensor/pass_key.h"
#include "tensor/philox.h"
#include "tensor/readback.h"
#include "tensor/recording.h"
#include "tensor/segments.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace lk {

class Parameter;
class AdamW;

// The target of a row that counts for nothing (nn/batch.h, Note [Padded batches]).
inline constexpr std::int32_t kNoTarget = INT32_MIN;

// What to do with a gradient: overwrite the buffer, or add to it.
enum class GradMode : std::uint8_t { Write, Add };

// silu(x) = x / (1 + exp(-x));  gelu(x) = x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2
enum class Activation : std::uint8_t { Silu, Gelu };

// Which variant of a model each document of a batch goes through, where several live side by side
// (lora/adapter_set.h); -1 is the model itself.
struct RowVariants {
  std::vector<std::int32_t> host;  // one a document
  Tensor device;                   // the same on the device, I32 (n)
};

// The LoRA factors of one variant on one projection: a (R,K), b_t (R,N) is B transposed, both
// contiguous and of the compute dtype; undefined if the variant leaves the projection alone.
struct LoraFactors {
  Tensor a, b_t;
  float scale = 0;
};
// The same as kernels read it.
struct LoraEntry {
  const void *a, *b_t;
  std::int32_t rank;  // 0: nothing to add
  float scale;
};
// All variants' factors on one projection.
struct LoraTable {
  std::vector<LoraFactors> host;
  Tensor device;  // U8: a LoraEntry each
  std::int64_t max_rank = 0;
};

// Where a step's keys and values go: rows (T) I32, distinct, of keys and values (P, G*D).
struct CacheRows {
  Tensor keys, values, rows;
};
// One of several frozen products of one input: y (T,N) = addend (T,N) + x wᵀ; no addend is zero.
struct LinearPart {
  Tensor y;
  const Weight* w;
  Tensor addend = {};  // not y's memory
};
// RMSNorm of a product's input, made where the product reads it.
struct InputNorm {
  const Weight* gain;  // (K)
  double eps;
  Tensor normed;  // (T,K): the normed input is left here
};

// One projection among those that share an input (autograd/fused_linear.h): columns [begin, end) of
// the wide matrix, columns [column, column + rank) of the thin one, and the factor's gradient.
struct StripPart {
  std::int64_t begin = 0, end = 0;
  std::int64_t column = 0, rank = 0;
  Tensor dw;  // F32 (F64 for F64)
  GradMode mode = GradMode::Write;
  std::uint32_t site = 0;  // of its input's dropout mask
};

// Dropout of such an input: every projection has a mask of its own.
struct InputDropout {
  float p = 0;
  RandomKey key;  // but for the site

  RandomKey key_of(const StripPart& part) const {
    RandomKey of_part = key;
    of_part.site = part.site;
    return of_part;
  }
};

// x = rmsnorm(h), not stored: what makes it of h again.
struct NormedInput {
  Tensor rstd;  // (T) F32|F64
  Weight gain;  // (C)
  double eps = 0;
};

class Backend {
 public:
  virtual ~Backend();
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  virtual std::string name() const = 0;         // "cpu", "cuda:0"
  virtual std::string description() const = 0;  // for run.json: processor, threads, driver, ...
  // What the device does well: no layer above asks which device it is.
  const DeviceTraits& traits() const { return traits_; }
  // Can a Weight stay in blocks of this type, for linear_forward and embedding_forward?
  virtual bool keeps_quantised(const GgmlType& type) const {
    static_cast<void>(type);
    return false;
  }

  // ---- memory -----------------------------------------------------------------------------------
  // Uninitialised memory with a purpose. Throws OutOfMemoryError with the ledger's table, and Error
  // for the two tags that need a PassKey.
  Tensor empty(Tag tag, DType dtype, Shape shape);
  // A matrix whose rows are followed by `margin` unused columns: Tensor::widened() reaches them.
  Tensor empty_with_margin(Tag tag, DType dtype, Shape shape, std::int64_t margin) {
    if (margin == 0) return empty(tag, dtype, shape);
    return empty(tag, dtype, {shape[0], shape[1] + margin}).slice_cols(0, shape[1]);
  }
  Tensor empty_gradient(PassKey<Parameter>, DType dtype, Shape shape);
  Tensor empty_moment(PassKey<AdamW>, DType dtype, Shape shape);
  void deallocate(void* data, std::size_t bytes, Tag tag) noexcept;
  Ledger& ledger() { return ledger_; }
  const Ledger& ledger() const { return ledger_; }
  const BlockCache& cache() const { return *cache_; }
  void trim() { cache_->trim(); }
  // 0 = no limit. A request that would lift live bytes above the limit is out of memory.
  void set_memory_limit(std::int64_t bytes) { memory_limit_ = bytes; }
  // Bytes of device memory (host RAM for the CPU) that could still be allocated.
  virtual std::int64_t free_memory() const = 0;

  // Copies between host and device; the host sees finished results. `bytes` must equal the
  // tensor's, which must be contiguous.
  virtual void upload(const Tensor& dst, const void* src, std::size_t bytes) = 0;
  virtual void download(void* dst, const Tensor& src, std::size_t bytes) = 0;
  // The same for a tensor's bytes in units that lie one behind another, without a copy in between
  // and on several threads at once: for what is too large for one. `make` writes the bytes of units
  // [first, last) to `to`; `look` reads them; they are called for units_per_part() units at a time
  // (tensor/parts.h). Their first exception is thrown here.
  using MakeUnits = std::function<void(std::int64_t first, std::int64_t last, std::byte* to)>;
  using LookAtUnits =
      std::function<void(std::int64_t first, std::int64_t last, const std::byte* from)>;
  virtual void upload_made(const Tensor& dst, std::size_t unit_bytes, const MakeUnits& make) = 0;
  virtual void look_at(const Tensor& src, std::size_t unit_bytes, const LookAtUnits& look) = 0;
  virtual void synchronize() = 0;
  // The value that x (1) F32|F64 has after the work submitted so far; x may be changed and freed at
  // once. Lets the host go on while the device works. The Backend outlives what it returns.
  virtual std::unique_ptr<Readback> read_later(const Tensor& x);
  // Calls `work`, which may submit anything but copies from and to the host, and records instead of
  // running it; null, with nothing called, where work can't be recorded. The same work must have
  // run before, so that all it needs is allocated. What the work allocates and frees stays set
  // apart for the recording; what it reads and writes else must stay where it is. With `beside` it
  // takes that memory from an earlier recording, which may be used on: both must leave nothing
  // there when they end.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& work,
                                            const Recording* beside = nullptr) {
    static_cast<void>(work), static_cast<void>(beside);
    return nullptr;
  }
  // Starts to copy x, a vector or a matrix, to pinned host memory, after the work submitted so far
  // and beside what comes next. May be recorded. A UsageError unless traits().can_offload.
  virtual std::unique_ptr<HostCopy> offload(const Tensor& x);
  // Host memory that holds such copies.
  const Ledger::Entry& offloaded() const { return offloaded_.total(); }
  // Times the work of this device, which must outlive it. Here the host's clock: right wherever a
  // call returns with its work done.
  virtual std::unique_ptr<DeviceClock> make_clock();
  // Called once per weight at load, so that the backend can pack it for both directions (a
  // quantised one: for linear_forward alone, and in its own memory's place).
  virtual void prepare_linear(Weight& w) = 0;

  // ---- elementwise ------------------------------------------------------------------------------
  virtual void fill(const Tensor& x, double value) = 0;  // x = value
  // x_i = bound (2 uniform(key, i) - 1), i the row-major element index, rounded: the same numbers
  // on every device. F32 arithmetic, also for F64.
  virtual void uniform(const Tensor& x, float bound, const RandomKey& key) = 0;
  virtual void copy(const Tensor& y, const Tensor& x) = 0;  // y = x, converting dtype
  virtual void add(const Tensor& y, const Tensor& a, const Tensor& b) = 0;  // y = a + b; y may be a
  // y (+)= alpha * scalar * x, scalar a (1)-tensor of F32 (F64 for F64) on the device or undefined
  // (that is 1).
  virtual void scale(const Tensor& y, GradMode mode, double alpha, const Tensor& scalar,
                     const Tensor& x) = 0;
  virtual void add_bias(const Tensor& y, const Weight& bias) = 0;  // y (T,N) += bias (N)
  // y (+)= x * keep / (1 - p), keep_i = bits_i >= round(65536 p), i the row-major element index in
  // x: bits_i is the i-th number of 16 bits from Philox with seven rounds, eight to a draw
  // (philox.h). Its own backward: the mask is drawn again.
  virtual void dropout(const Tensor& y, GradMode mode, const Tensor& x, float p,
                       const RandomKey& key) = 0;

  // ---- linear -----------------------------------------------------------------------------------
  // y (T,N) = x (T,K) wᵀ, w (N,K) frozen. If w is quantised, x may be rounded to 8 bits.
  virtual void linear_forward(const Tensor& y, const Tensor& x, const Weight& w) = 0;
  // The same for several weights of x, or of its norm if `norm` is not null, in one launch where
  // the device can: for a step of generation, whose launches cost as much as its products.
  virtual void linear_forward_parts(const Tensor& x, const InputNorm* norm,
                                    std::span<const LinearPart> parts);
  // dx (T,K) (+)= dy (T,N) w. There is no dw: w is frozen.
  virtual void linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy,
                                 const Weight& w) = 0;
  // Products with trainable matrices. a, b share a dtype; c has it too, or is F32.
  // c (M,N) (+)= alpha a (M,K) b (N,K)ᵀ; with `addend` (M,N), which is not c's memory, mode is Write
  // and c = addend + alpha a bᵀ.
  virtual void matmul_nt(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                         const Tensor& b, const Tensor& addend = {}) = 0;
  // c (M,N) (+)= alpha a (M,K) b (K,N)
  virtual void matmul_nn(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                         const Tensor& b) = 0;
  // Rows of document i of y (T,N) += scale (x A^T) B^T, with the factors of variant
  // variants[i] in `table`; x (T,K). Inference only: there is no backward. x A^T may be
  // rounded to the compute dtype. Sums of a row do not depend on the other documents.
  virtual void lora_segments(const Tensor& y, const Tensor& x, const LoraTable& table,
                             const Segments& documents, const RowVariants& variants) = 0;
  // The only function that contracts over tokens, so the only way to a weight gradient:
  // dw (P,Q) (+)= alpha a (T,P)ᵀ b (T,Q), dw F32 (F64 for F64). Counted in
  // weight_gradient_matmuls().
  void weight_gradient(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                       const Tensor& b) {
    ++weight_gradient_matmuls_;
    matmul_tn(dw, mode, alpha, a, b);
  }
  std::int64_t weight_gradient_matmuls() const { return weight_gradient_matmuls_; }
  // LoRA's thin products in backward through projections that lie below each other, where the
  // device can with one read of the wide matrix. Each part counts as one weight gradient.
  // ds (T,S) = scale dy (T,N) b (N,S); dw_p (end - begin, rank) (+)= dy[:, begin:end]ᵀ s[:, p].
  // b is zero outside of the parts' blocks; s (T,S).
  void strips_backward_b(const Tensor& ds, double scale, const Tensor& dy, const Tensor& b,
                         const Tensor& s, std::span<const StripPart> parts) {
    weight_gradient_matmuls_ += std::ssize(parts);
    run_strips_backward_b(ds, scale, dy, b, s, parts);
  }
  // dw_p (rank, K) (+)= ds[:, p]ᵀ x; x (T,K), or what `norm` makes of it. Parts' begin and end are
  // 0 and K.
  void strips_backward_a(const Tensor& ds, const Tensor& x, const NormedInput* norm,
                         std::span<const StripPart> parts, const InputDropout& drop = {}) {
    weight_gradient_matmuls_ += std::ssize(parts);
    run_strips_backward_a(ds, x, norm, parts, drop);
  }
  // With dropout drop_p(x) = dropout(x) of part p's key, as strips_backward_a has it too:
  // s (T,S) = scale drop_p(x) a_pᵀ in each part's columns, zero in others; x (T,K), a (S,K)
  virtual void strips_forward(const Tensor& s, double scale, const Tensor& x, const Tensor& a,
                              std::span<const StripPart> parts, const InputDropout& drop);
  // dx (T,K) += sum over p of dropout(ds_p a_p), the masks being those of x
  virtual void strips_into_x(const Tensor& dx, const Tensor& ds, const Tensor& a,
                             std::span<const StripPart> parts, const InputDropout& drop);

  // ---- norm -------------------------------------------------------------------------------------
  // y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + eps).  x, y (T,C), gain (C), rstd (T) F32|F64
  virtual void rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x,
                               const Weight& gain, double eps) = 0;
  // dx (+)= rstd * (g - xhat * mean(g * xhat)), g = dy * gain, xhat = x * rstd
  virtual void rmsnorm_backward(const Tensor& dx, GradMode mode, const Tensor& dy, const Tensor& x,
                                const Weight& gain, const Tensor& rstd) = 0;

  // xhat = (x - mean) * rstd, rstd = 1 / sqrt(mean((x - mean)^2) + eps); y = xhat * gain + bias.
  // x, y (T,C), gain, bias (C), mean, rstd (T) F32|F64
  virtual void layernorm_forward(const Tensor& y, const Tensor& mean, const Tensor& rstd,
                                 const Tensor& x, const Weight& gain, const Weight& bias,
                                 double eps) = 0;
  // dx (+)= rstd * (g - mean(g) - xhat * mean(g * xhat)), g = dy * gain
  virtual void layernorm_backward(const Tensor& dx, GradMode mode, const Tensor& dy,
                                  const Tensor& x, const Weight& gain, const Tensor& mean,
                                  const Tensor& rstd) = 0;

  // ---- rope -------------------------------------------------------------------------------------
  // Rotates each head's pairs (i, i + D/2) by the angle of its position:
  // (a, b) -> (a cos - b sin, b cos + a sin); `inverse` rotates back (that is the backward).
  // x, y (T, heads*D), y may be x; table (P, D) F32|F64 holds cos in columns [0, D/2) and sin in
  // [D/2, D); positions (T) I32 < P.
  virtual void rope(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& table,
                    const Tensor& positions, int head_dim, bool inverse) = 0;
  // A step of generation: q (T,H*D) and k (T,G*D) are rotated in place, unless `table` is
  // undefined; then rows (T) of the caches are k's and v's rows. May leave k as it was.
  virtual void rope_into_cache(const Tensor& q, const Tensor& k, const Tensor& v,
                               const CacheRows& cache, const Tensor& table, const Tensor& positions,
                               int head_dim);

  // ---- attention --------------------------------------------------------------------------------
  // Causal attention inside each document; T x T is never stored. q, o (Tq, H*D), k, v (Tk, G*D);
  // document i has its queries in q_seg and its keys in k_rows, queries aligned with the LAST keys
  // (with a KV cache there are more keys). lse (H, Tq) F32|F64: log-sum-exp of the scaled scores.
  virtual void attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q,
                                 const Tensor& k, const Tensor& v, const AttentionShape& shape,
                                 const Segments& q_seg, const KeyRows& k_rows) = 0;
  // Always writes dq, dk, dv (keys and queries are the same rows: training has no cache). With
  // `rotation` q and k are what rope() made by it: dq and dk are turned back, so they are the
  // gradients of what q and k were before.
  virtual void attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                  const Tensor& dout, const Tensor& q, const Tensor& k,
                                  const Tensor& v, const Tensor& o, const Tensor& lse,
                                  const AttentionShape& shape, const Segments& seg,
                                  const Rotation* rotation = nullptr) = 0;

  // ---- gated units ------------------------------------------------------------------------------
  // y = act(gate) * up, or y = act(gate) where `up` is undefined.  all (T,F)
  virtual void gated_forward(Activation act, const Tensor& y, const Tensor& gate,
                             const Tensor& up) = 0;
  // With `up`: writes dgate and dup (mode is Write); dgate may be gate's memory, dup may be up's.
  // If `y` is defined it gets the forward's result again, and may be dy's memory.
  // Without `up`: dgate (+)= dy * act'(gate); y and dup are undefined too.
  virtual void gated_backward(Activation act, const Tensor& y, const Tensor& dgate, GradMode mode,
                              const Tensor& dup, const Tensor& dy, const Tensor& gate,
                              const Tensor& up) = 0;

  // Both of gated_backward, whose y isn't stored but meets ds (T,S) at once, as in
  // strips_backward_a: dw_p (rank, F) (+)= ds[:, p]ᵀ drop_p(y). dy's values are lost.
  void swiglu_strips_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy,
                              const Tensor& gate, const Tensor& up, const Tensor& ds,
                              std::span<const StripPart> parts, const InputDropout& drop = {}) {
    weight_gradient_matmuls_ += std::ssize(parts);
    run_swiglu_strips_backward(dgate, dup, dy, gate, up, ds, parts, drop);
  }

  // ---- embedding --------------------------------------------------------------------------------
  // y (T,C) = table[ids]; table (V,C) dense or quantised, ids (T) I32 in [0, V)
  virtual void embedding_forward(const Tensor& y, const Weight& table, const Tensor& ids) = 0;
  // y (n,C) = x[rows]; rows (n) I32, distinct
  virtual void gather_rows(const Tensor& y, const Tensor& x, const Tensor& rows) = 0;
  // y[rows] = x (n,C), all other rows of y stay; rows (n) I32, distinct
  virtual void put_rows(const Tensor& y, const Tensor& x, const Tensor& rows) = 0;
  // dx[rows] (+)= dy; Write also zeroes all other rows of dx.
  virtual void scatter_rows(const Tensor& dx, GradMode mode, const Tensor& dy,
                            const Tensor& rows) = 0;

  // ---- loss -------------------------------------------------------------------------------------
  // For each row i of logits (n,V): losses[i] = log sum exp(logits[i]) - logits[i][target[i]],
  // F32|F64; then, if `gradient`, logits[i] is overwritten with
  // scale * factor * (softmax(logits[i]) - onehot(target[i])); factor (1) F32|F64 on the device, 1
  // if undefined. A row whose target is kNoTarget has loss and gradient 0.
  virtual void cross_entropy(const Tensor& losses, const Tensor& logits, const Tensor& targets,
                             bool gradient, double scale, const Tensor& factor = {}) = 0;
  // out (1) (+)= alpha * sum(x), fixed order. out and x F32|F64.
  virtual void sum(const Tensor& out, GradMode mode, double alpha, const Tensor& x) = 0;

  // ---- optim ------------------------------------------------------------------------------------
  // out (1) F32|F64 = sum over tensors of sum(x^2), fixed order.
  virtual void sum_squares(const Tensor& out, std::span<const Tensor> tensors) = 0;
  // AdamW with decoupled decay over all slots (Loshchilov & Hutter 2019, as torch.optim.AdamW).
  // norm_sq (1): the gradients' squared norm, for clipping; if it is not finite nothing is changed.
  virtual void adamw(std::span<const AdamWSlot> slots, const AdamWStep& step,
                     const Tensor& norm_sq) = 0;

 protected:
  explicit Backend(const DeviceTraits& traits);
  BlockCache& block_cache() { return *cache_; }
  // For recorded work that contains them.
  void count_weight_gradients(std::int64_t n) { weight_gradient_matmuls_ += n; }
  Ledger& offload_ledger() { return offloaded_; }
  // Installs the cache; called by the constructor of a concrete backend.
  void set_cache(std::unique_ptr<BlockCache> cache) { cache_ = std::move(cache); }
  // Called by the destructor of a concrete backend while its device is still there.
  void release_cache() { cache_.reset(); }
  // The number of units in a contiguous tensor, for upload_made() and look_at().
  static std::int64_t check_units(const char* who, const Tensor& x, std::size_t unit_bytes);
  virtual void matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                         const Tensor& b) = 0;
  // Here as a product for each: for devices without a better way, and shapes without one.
  virtual void run_strips_backward_b(const Tensor& ds, double scale, const Tensor& dy,
                                     const Tensor& b, const Tensor& s,
                                     std::span<const StripPart> parts);
  virtual void run_strips_backward_a(const Tensor& ds, const Tensor& x, const NormedInput* norm,
                                     std::span<const StripPart> parts, const InputDropout& drop);
  virtual void run_swiglu_strips_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy,
                                          const Tensor& gate, const Tensor& up, const Tensor& ds,
                                          std::span<const StripPart> parts,
                                          const InputDropout& drop);

 private:
  Tensor allocate(Tag tag, DType dtype, Shape shape);

  DeviceTraits traits_;
  Ledger ledger_, offloaded_;
  std::unique_ptr<BlockCache> cache_;
  std::int64_t memory_limit_ = 0;
  std::int64_t weight_gradient_matmuls_ = 0;
};

// The dtype of statistics (rstd, lse, losses, sums) beside values of dtype t.
inline DType stat_dtype(DType t) { return t == DType::F64 ? DType::F64 : DType::F32; }

// What gated_backward's callers promise: a plain activation has neither y nor dup, a gated one only
// writes.
inline void check_gated_backward(const Tensor& y, GradMode mode, const Tensor& dup,
                                 const Tensor& up) {
  check(up ? mode == GradMode::Write : !y && !dup,
        "gated_backward: y and dup are of gated units, which always write");
}

// x itself if its rows are adjacent, else a copy.
Tensor dense(const Tensor& x);
// Host vector -> device tensor (n) and back.
Tensor to_device(Backend& backend, Tag tag, std::span<const std::int32_t> values);
template <class T>
std::vector<T> to_host(const Tensor& x) {
  std::vector<T> v(static_cast<std::size_t>(x.numel()));
  check(x.dtype() == dtype_of<T>(), "to_host: wrong dtype ", dtype_name(x.dtype()));
  x.backend().download(v.data(), dense(x), x.bytes());
  return v;
}
// Any floating tensor as doubles.
std::vector<double> to_host_f64(const Tensor& x);
LoraTable make_lora_table(Backend& backend, std::vector<LoraFactors> variants);

}  // namespace lk
