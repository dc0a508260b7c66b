// Backend: one device and one ordered stream of work. This header is the engine's table of
// contents: every numeric entry point with its maths and its shapes.
//
// Letters: T tokens of a batch (all rows of all documents), C model width, H query heads, G
// key/value heads, D head size, F feed-forward width, V vocabulary; in a matmul M x K times K x N.
// Unless said otherwise x, y and their gradients have one floating dtype ("compute dtype": F32,
// BF16; F64 on the CPU) and sums are accumulated in F32 (F64 for F64).
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
#include "tensor/ledger.h"
#include "tensor/pass_key.h"
#include "tensor/philox.h"
#include "tensor/readback.h"
#include "tensor/recording.h"
#include "tensor/segments.h"
#include "tensor/stored_copy.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace lk {

class Parameter;
class AdamW;
class LoraKernels;
class CacheKernels;
class AdapterKernels;
class DoraKernels;
class SharedKeyKernels;
class QuantisedKernels;
class SliceKernels;

// The target of a row that does not count for the loss: Note [Padded batches] in nn/batch.h.
inline constexpr std::int32_t kNoTarget = INT32_MIN;

// What to do with a gradient: overwrite the buffer, or add to it.
enum class GradMode : std::uint8_t { Write, Add };

// silu(x) = x / (1 + exp(-x));  gelu(x) = x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2;
// relu(x) = max(x, 0), with derivative 0 at 0
enum class Activation : std::uint8_t { Silu, Gelu, Relu };

class Backend {
 public:
  virtual ~Backend();
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  virtual std::string name() const = 0;         // "cpu", "cuda:0"
  virtual std::string description() const = 0;  // for run.json: processor, threads, driver, ...
  // What the device does well. No layer above asks which device it is.
  const DeviceTraits& traits() const { return traits_; }
  // Kernels for more than the core's ops, null where the device has none; callers then compose the
  // core's ops. See tensor/lora_kernels.h, tensor/cache_kernels.h, tensor/adapter_kernels.h,
  // tensor/dora_kernels.h, tensor/quantised_kernels.h, tensor/shared_keys.h, tensor/slice_kernels.h.
  virtual LoraKernels* lora_kernels() { return nullptr; }
  virtual CacheKernels* cache_kernels() { return nullptr; }
  virtual AdapterKernels* adapter_kernels() { return nullptr; }
  virtual DoraKernels* dora_kernels() { return nullptr; }
  virtual SharedKeyKernels* shared_key_kernels() { return nullptr; }
  virtual QuantisedKernels* quantised_kernels() { return nullptr; }
  virtual SliceKernels* slice_kernels() { return nullptr; }
  // Whether prepare_linear() packs blocks of this type for fast inference.
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
  // Live bytes may not exceed `bytes`: a request that would is out of memory. 0: no limit.
  void set_memory_limit(std::int64_t bytes) { memory_limit_ = bytes; }
  // Bytes of device memory (host RAM for the CPU) that could still be allocated.
  virtual std::int64_t free_memory() const = 0;

  // Copies between host and device. The host sees finished results. `bytes` must equal the tensor's
  // size, and the tensor must be contiguous.
  virtual void upload(const Tensor& dst, const void* src, std::size_t bytes) = 0;
  virtual void download(void* dst, const Tensor& src, std::size_t bytes) = 0;
  // Copies a large tensor in units of `unit_bytes` that lie one after the other, on several threads
  // and without a second copy on the host. `make` writes the bytes of units [first, last) to `to`;
  // `look` reads them. Each call covers up to units_per_part() units (tensor/parts.h). The first
  // exception of either is rethrown.
  using MakeUnits = std::function<void(std::int64_t first, std::int64_t last, std::byte* to)>;
  using LookAtUnits =
      std::function<void(std::int64_t first, std::int64_t last, const std::byte* from)>;
  virtual void upload_made(const Tensor& dst, std::size_t unit_bytes, const MakeUnits& make) = 0;
  virtual void look_at(const Tensor& src, std::size_t unit_bytes, const LookAtUnits& look) = 0;
  virtual void synchronize() = 0;
  // The few values that x (n) F32|F64 has after the work submitted so far, without waiting for them:
  // the host goes on meanwhile. x may be changed and freed at once. The Backend outlives the result.
  virtual std::unique_ptr<Readback> read_later(const Tensor& x);
  // Calls `work` and records what it submits instead of running it. Returns null, without calling
  // `work`, where work can't be recorded. `work` may submit anything but copies from and to the
  // host, and the same work must have run before, so that all it needs is allocated. Memory that
  // `work` allocates and frees stays set apart for the recording; whatever else it reads and writes
  // must stay where it is. With `beside`, the recording takes that memory from an earlier
  // recording, which stays usable: neither may leave anything there when it ends.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& work,
                                            const Recording* beside = nullptr) {
    static_cast<void>(work), static_cast<void>(beside);
    return nullptr;
  }
  // Starts to copy x, a vector or a matrix, to pinned host memory, after the work submitted so far
  // and concurrently with later work. May be recorded. Throws UsageError unless
  // traits().can_offload.
  virtual std::unique_ptr<StoredCopy> offload(const Tensor& x);
  // Starts to copy the part of x, contiguous, that process `rank` of `size` keeps: Tag::Weights of this
  // device. Throws UsageError unless traits().can_offload.
  virtual std::unique_ptr<ShardedCopy> shard(const Tensor& x, int rank, int size);
  // Host memory held by copies that offload() made.
  const Ledger& offloaded() const { return offloaded_; }
  void reset_peaks() { ledger_.reset_peaks(), offloaded_.reset_peaks(); }  // of both ledgers
  // Times the work of this device, which must outlive the clock. The default is the host's clock,
  // which is right wherever a call returns with its work done.
  virtual std::unique_ptr<DeviceClock> make_clock();
  // Packs a weight for both directions; called once per weight at load. A quantised weight is
  // packed for inference alone, if at all: its packed form takes the place of its codes.
  virtual void prepare_linear(Weight& w) = 0;

  // ---- elementwise ------------------------------------------------------------------------------
  virtual void fill(const Tensor& x, double value) = 0;  // x = value
  // x_i = bound (2 uniform(key, i) - 1), rounded, where i is the row-major element index: the same
  // numbers on every device. Computed in F32, also for F64.
  virtual void uniform(const Tensor& x, float bound, const RandomKey& key) = 0;
  virtual void copy(const Tensor& y, const Tensor& x) = 0;  // y = x, converting dtype
  virtual void add(const Tensor& y, const Tensor& a, const Tensor& b) = 0;  // y = a + b; y may be a
  // y (+)= alpha * scalar * x; scalar is a (1)-tensor of F32 (F64 for F64) on the device, or
  // undefined for 1.
  virtual void scale(const Tensor& y, GradMode mode, double alpha, const Tensor& scalar,
                     const Tensor& x) = 0;
  virtual void add_bias(const Tensor& y, const Weight& bias) = 0;  // y (T,N) += bias (N)
  // y (+)= x * keep / (1 - p), keep_i = bits_i >= round(65536 p), where i is the row-major element
  // index in x and bits_i is the i-th 16-bit number from Philox with seven rounds, eight to a draw
  // (philox.h). Dropout is its own backward: the mask is drawn again.
  virtual void dropout(const Tensor& y, GradMode mode, const Tensor& x, float p,
                       const RandomKey& key) = 0;

  // ---- linear -----------------------------------------------------------------------------------
  // y (T,N) = x (T,K) wᵀ, w (N,K) frozen. If w is packed blocks, x may be rounded to 8 bits.
  virtual void linear_forward(const Tensor& y, const Tensor& x, const Weight& w) = 0;
  // dx (T,K) (+)= dy (T,N) w. There is no dw: w is frozen.
  virtual void linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy,
                                 const Weight& w) = 0;
  // Products with trainable matrices. a and b share a dtype; c has the same one or is F32.
  // c (M,N) (+)= alpha a (M,K) b (N,K)ᵀ. With `addend` (M,N), which must not be c's memory, mode is
  // Write and c = addend + alpha a bᵀ.
  virtual void matmul_nt(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                         const Tensor& b, const Tensor& addend = {}) = 0;
  // c (M,N) (+)= alpha a (M,K) b (K,N)
  virtual void matmul_nn(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                         const Tensor& b) = 0;
  // dw (P,Q) (+)= alpha a (T,P)ᵀ b (T,Q), dw F32 (F64 for F64). Together with vector_gradient and
  // table_gradient the only functions that contract over tokens, hence the only ways to a weight
  // gradient. Counted in weight_gradient_matmuls().
  void weight_gradient(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                       const Tensor& b) {
    ++weight_gradient_matmuls_;
    matmul_tn(dw, mode, alpha, a, b);
  }
  std::int64_t weight_gradient_matmuls() const { return weight_gradient_matmuls_; }

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
  //   (a, b) -> (a cos - b sin, b cos + a sin)
  // `inverse` rotates back, which is the backward. x, y (T, heads*D), y may be x; table (P, D)
  // F32|F64 holds cos in columns [0, D/2) and sin in [D/2, D); positions (T) I32 < P.
  virtual void rope(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& table,
                    const Tensor& positions, int head_dim, bool inverse) = 0;

  // ---- attention --------------------------------------------------------------------------------
  // Causal attention inside each document; T x T is never stored. q, o (Tq, H*D), k, v (Tk, G*D).
  // Document i has its queries in q_seg and its keys in k_rows, and its queries are aligned with
  // the LAST keys (with a KV cache there are more keys). lse (H, Tq) F32|F64: log-sum-exp of the
  // scaled scores.
  virtual void attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q,
                                 const Tensor& k, const Tensor& v, const AttentionShape& shape,
                                 const Segments& q_seg, const KeyRows& k_rows) = 0;
  // Always writes dq, dk, dv. Keys and queries are the same rows: training has no cache. With
  // `rotation`, q and k are outputs of rope(): dq and dk are then rotated back, so that they are
  // the gradients of rope()'s inputs.
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
  // If `y` is defined it gets the forward's result again, and it may be dy's memory. Without `up`:
  // dgate (+)= dy * act'(gate), and y and dup are undefined too.
  virtual void gated_backward(Activation act, const Tensor& y, const Tensor& dgate, GradMode mode,
                              const Tensor& dup, const Tensor& dy, const Tensor& gate,
                              const Tensor& up) = 0;

  // ---- embedding --------------------------------------------------------------------------------
  // y (T,C) = table[ids]; table (V,C) dense or quantised, ids (T) I32 in [0, V)
  virtual void embedding_forward(const Tensor& y, const Weight& table, const Tensor& ids) = 0;
  // y (n,C) = x[rows]; rows (n) I32, distinct
  virtual void gather_rows(const Tensor& y, const Tensor& x, const Tensor& rows) = 0;
  // y[rows] = x (n,C); all other rows of y stay as they are; rows (n) I32, distinct
  virtual void put_rows(const Tensor& y, const Tensor& x, const Tensor& rows) = 0;
  // dx[rows] (+)= dy. Write also zeroes all other rows of dx.
  virtual void scatter_rows(const Tensor& dx, GradMode mode, const Tensor& dy,
                            const Tensor& rows) = 0;

  // ---- trained ----------------------------------------------------------------------------------
  // Vectors and tables that train. Gradients are F32 (F64 for F64), their sums in a fixed order.
  // y (+)= x * l in every row; x, y (T,N), l (N) in the compute dtype
  virtual void scale_columns(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& l) = 0;
  // dl (N) (+)= sum over t of a_t * (b_t - mean_t) * rstd_t; a, b (T,N), mean, rstd (T) F32|F64. An
  // undefined b is 1 (and mean is undefined too), an undefined mean 0, an undefined rstd 1.
  void vector_gradient(const Tensor& dl, GradMode mode, const Tensor& a, const Tensor& b = {},
                       const Tensor& mean = {}, const Tensor& rstd = {}) {
    ++weight_gradient_matmuls_;
    column_sums(dl, mode, a, b, mean, rstd);
  }
  // dtable (V,C): each row v (+)= the sum of dy_i over the tokens i with ids_i = v; dy (T,C), ids
  // (T) I32 in [0, V)
  void table_gradient(const Tensor& dtable, GradMode mode, const Tensor& dy, const Tensor& ids) {
    ++weight_gradient_matmuls_;
    sum_rows_by_id(dtable, mode, dy, ids);
  }

  // ---- loss -------------------------------------------------------------------------------------
  // For each row i of logits (n,V): losses[i] = log sum exp(logits[i]) - q·logits[i], F32|F64, with
  // q = (1 - smoothing) onehot(target[i]) + smoothing / V. If `gradient`, logits[i] is then
  // overwritten with
  //   scale * factor * (softmax(logits[i]) - q)
  // where factor is (1) F32|F64 on the device, 1 if undefined. A row whose target is kNoTarget has
  // loss and gradient 0. smoothing in [0, 1), as torch's label_smoothing.
  virtual void cross_entropy(const Tensor& losses, const Tensor& logits, const Tensor& targets,
                             bool gradient, double scale, const Tensor& factor = {},
                             double smoothing = 0) = 0;
  // out (1) (+)= alpha * sum(x), in a fixed order. out and x F32|F64.
  virtual void sum(const Tensor& out, GradMode mode, double alpha, const Tensor& x) = 0;

  // ---- optim ------------------------------------------------------------------------------------
  // out (1) F32|F64 = sum over tensors of sum(x^2), in a fixed order.
  virtual void sum_squares(const Tensor& out, std::span<const Tensor> tensors) = 0;
  // AdamW with decoupled decay over all slots (Loshchilov & Hutter 2019, as torch.optim.AdamW).
  // norm_sq (1) is the gradients' squared norm, for clipping; if it is not finite nothing is
  // changed.
  virtual void adamw(std::span<const AdamWSlot> slots, const AdamWStep& step,
                     const Tensor& norm_sq) = 0;

 protected:
  explicit Backend(const DeviceTraits& traits);
  BlockCache& block_cache() { return *cache_; }
  // The count behind weight_gradient_matmuls(), for recorded work that contains such products and
  // for kernels that compute several at once.
  std::int64_t& weight_gradient_count() { return weight_gradient_matmuls_; }
  Ledger& offload_ledger() { return offloaded_; }
  // Installs the allocator; called by the constructor of a concrete backend.
  void set_cache(std::unique_ptr<BlockCache> cache) { cache_ = std::move(cache); }
  // Drops the allocator; called by a concrete backend's destructor while its device exists.
  void release_cache() { cache_.reset(); }
  // The number of units in a contiguous tensor, for upload_made() and look_at(). Throws Error
  // naming `who` if it is not a whole number.
  static std::int64_t check_units(const char* who, const Tensor& x, std::size_t unit_bytes);
  virtual void matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                         const Tensor& b) = 0;
  virtual void column_sums(const Tensor& dl, GradMode mode, const Tensor& a, const Tensor& b,
                           const Tensor& mean, const Tensor& rstd) = 0;
  virtual void sum_rows_by_id(const Tensor& dtable, GradMode mode, const Tensor& dy,
                              const Tensor& ids) = 0;

 private:
  Tensor allocate(Tag tag, DType dtype, Shape shape);

  DeviceTraits traits_;
  Ledger ledger_, offloaded_;
  std::unique_ptr<BlockCache> cache_;
  std::int64_t memory_limit_ = 0;
  std::int64_t weight_gradient_matmuls_ = 0;
};

// The dtype of statistics (rstd, lse, losses, sums) that go with values of dtype t.
inline DType stat_dtype(DType t) { return t == DType::F64 ? DType::F64 : DType::F32; }

// Checks what gated_backward's callers promise: a plain activation has neither y nor dup, and a
// gated one only writes.
inline void check_gated_backward(const Tensor& y, GradMode mode, const Tensor& dup,
                                 const Tensor& up) {
  check(up ? mode == GradMode::Write : !y && !dup,
        "gated_backward: y and dup are of gated units, which always write");
}

// x itself if its rows are adjacent, else a contiguous copy.
Tensor dense(const Tensor& x);
// Host vector -> device tensor (n) and back.
Tensor to_device(Backend& backend, Tag tag, std::span<const std::int32_t> values);
template <class T>
std::vector<T> to_host(const Tensor& x) {
  std::vector<T> v(static_cast<std::size_t>(x.numel()));
  require(x.dtype() == dtype_of<T>(), "to_host: wrong dtype ", dtype_name(x.dtype()));
  x.backend().download(v.data(), dense(x), x.bytes());
  return v;
}
// Any floating tensor as doubles.
std::vector<double> to_host_f64(const Tensor& x);

}  // namespace lk
