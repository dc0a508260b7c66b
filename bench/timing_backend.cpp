#include "timing_backend.h"

#include <algorithm>
#include <cstdio>

#include "autograd/thin.h"
#include "nn/cached_ops.h"
#include "tensor/adapter_kernels.h"
#include "tensor/dora_kernels.h"
#include "tensor/fp8_kernels.h"
#include "tensor/quantised_kernels.h"
#include "tensor/shared_keys.h"
#include "tensor/slice_kernels.h"

namespace lk::bench {

const char* family_name(OpFamily family) {
  static constexpr const char* kNames[kFamilyCount] = {
      "base linear", "head",  "LoRA products", "attention forward", "attention backward", "norm",
      "rope",        "gated", "loss",          "embedding",         "optimizer",          "copies",
      "other"};
  return kNames[static_cast<int>(family)];
}

std::string profile_table(const Profile& profile) {
  char text[160];
  std::string out = "time by op family         ms   % of step   % of roof   calls\n";
  auto line = [&](const char* name, double seconds, const char* roof, const char* calls) {
    std::snprintf(text, sizeof text, "  %-18s %8.3f %11.1f %11s %7s\n", name, seconds * 1e3,
                  100 * seconds / profile.seconds, roof, calls);
    out += text;
  };
  for (int i = 0; i < kFamilyCount; ++i) {
    const FamilyTime& f = profile.families[static_cast<std::size_t>(i)];
    if (f.calls == 0) continue;
    char roof[32] = "-";
    if (f.roof_seconds > 0)
      std::snprintf(roof, sizeof roof, "%.1f", 100 * f.roof_seconds / f.seconds);
    line(family_name(static_cast<OpFamily>(i)), f.seconds, roof, std::to_string(f.calls).c_str());
  }
  line("gaps", profile.seconds - profile.busy_seconds, "", "");
  line("profiled step", profile.seconds, "", "");
  return out;
}

TimingBackend::TimingBackend(Backend& inner, const Roofs& roofs, const Weight& head)
    : Backend(inner.traits()),
      inner_(inner),
      roofs_(roofs),
      head_(memory_of(head)),
      clock_(inner.make_clock()) {
  auto allocate = [this](std::size_t bytes) -> void* {
    try {
      Tensor block = inner_.empty(Tag::Workspace, DType::U8, {static_cast<std::int64_t>(bytes)});
      return blocks_.emplace(block.raw(), block).first->first;
    } catch (const OutOfMemoryError&) {
      return nullptr;  // the caller's error carries this backend's ledger
    }
  };
  set_cache(std::make_unique<BlockCache>(
      allocate, [this](void* block, std::size_t) { blocks_.erase(block); }));
}

TimingBackend::~TimingBackend() { release_cache(); }

std::int64_t TimingBackend::free_memory() const {
  return inner_.free_memory() + cache().reserved_bytes() - ledger().total().live_bytes;
}

void TimingBackend::start() {
  inner_.synchronize();
  clock_->read();
  calls_.clear();
  recording_ = true;
  clock_->mark();
}

Profile TimingBackend::finish() {
  clock_->mark();
  recording_ = false;
  const std::vector<double> at = clock_->read();
  check(at.size() == 2 * calls_.size() + 2, "profile: ", at.size(), " marks of ", calls_.size(),
        " calls");
  Profile profile;
  profile.seconds = at.back();
  for (std::size_t i = 0; i < calls_.size(); ++i) {
    const Work& work = calls_[i];
    FamilyTime& f = profile.families[static_cast<std::size_t>(work.family)];
    const double seconds = at[2 * i + 2] - at[2 * i + 1];
    ++f.calls;
    f.seconds += seconds;
    f.flops += work.flops;
    f.bytes += work.bytes;
    f.roof_seconds +=
        std::max(work.flops / roofs_.flops_per_second, work.bytes / roofs_.bytes_per_second);
    profile.busy_seconds += seconds;
  }
  return profile;
}

void TimingBackend::upload(const Tensor& dst, const void* src, std::size_t bytes) {
  timed({OpFamily::Transfer}, false, [&] { inner_.upload(dst, src, bytes); });
}

void TimingBackend::download(void* dst, const Tensor& src, std::size_t bytes) {
  timed({OpFamily::Transfer}, false, [&] { inner_.download(dst, src, bytes); });
}

void TimingBackend::matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                              const Tensor& b) {
  timed(work::weight_gradient(dw, mode, alpha, a, b), false,
        [&] { inner_.weight_gradient(dw, mode, alpha, a, b); });
}

void TimingBackend::column_sums(const Tensor& dl, GradMode mode, const Tensor& a, const Tensor& b,
                                const Tensor& mean, const Tensor& rstd) {
  timed(work::vector_gradient(dl, mode, a, b, mean, rstd), false,
        [&] { inner_.vector_gradient(dl, mode, a, b, mean, rstd); });
}

void TimingBackend::sum_rows_by_id(const Tensor& dtable, GradMode mode, const Tensor& dy,
                                   const Tensor& ids) {
  timed(work::table_gradient(dtable, mode, dy, ids), false,
        [&] { inner_.table_gradient(dtable, mode, dy, ids); });
}

// Times the thin products through joined projections.
class TimingBackend::Lora final : public LoraKernels {
 public:
  explicit Lora(TimingBackend& owner) : LoraKernels(owner.weight_gradient_count()), owner_(owner) {}
  void forward(const ThinPlan& plan, const Tensor& s, double scale, const Tensor& x,
               const Tensor& a, std::span<const ThinPart> parts,
               const InputDropout& drop) override {
    const Work work{OpFamily::Lora, 2 * static_cast<double>(x.rows()) * work::numel(a),
                    work::sizes(s, x, a, drop.bits)};
    owner_.timed(work, false,
                 [&] { thin::forward(owner_.inner_, plan, s, scale, x, a, parts, drop); });
  }
  void into_x(const ThinPlan& plan, const Tensor& dx, const Tensor& ds, const Tensor& a,
              std::span<const ThinPart> parts, const InputDropout& drop) override {
    const Work work{OpFamily::Lora, 2 * static_cast<double>(dx.rows()) * work::numel(a),
                    work::sizes(ds, a, drop.bits) + work::written(dx, GradMode::Add)};
    owner_.timed(work, false, [&] { thin::into_x(owner_.inner_, plan, dx, ds, a, parts, drop); });
  }

 private:
  // The work of every part of a wide matrix (T,.) with its thin columns; the wide matrix is read
  // once.
  static Work work_of(OpFamily family, const Tensor& wide, const Tensor& thin,
                      std::span<const ThinPart> parts) {
    Work work{family, 0, work::sizes(wide, thin)};
    for (const ThinPart& p : parts) {
      work.flops += 2 * static_cast<double>(wide.rows()) * work::numel(p.dw);
      work.bytes += work::written(p.dw, p.mode);
    }
    return work;
  }
  void run_backward_b(const ThinPlan& plan, const Tensor& ds, double scale, const Tensor& dy,
                      const Tensor& b, const Tensor& s, std::span<const ThinPart> parts) override {
    Work work = work_of(OpFamily::Lora, dy, s, parts);
    work.flops *= 2;
    work.bytes += work::sizes(ds, b);
    owner_.timed(work, false,
                 [&] { thin::backward_b(owner_.inner_, plan, ds, scale, dy, b, s, parts); });
  }
  void run_backward_a(const ThinPlan& plan, const Tensor& ds, const Tensor& x,
                      const NormedInput* norm, std::span<const ThinPart> parts,
                      const InputDropout& drop) override {
    Work work = work_of(OpFamily::Lora, x, ds, parts);
    work.bytes += work::size(drop.bits);
    owner_.timed(work, false,
                 [&] { thin::backward_a(owner_.inner_, plan, ds, x, norm, parts, drop); });
  }
  void run_swiglu_backward(const ThinPlan& plan, const Tensor& dgate, const Tensor& dup,
                           const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& ds,
                           std::span<const ThinPart> parts, const InputDropout& drop) override {
    Work work = work_of(OpFamily::Gated, dy, ds, parts);
    work.bytes += work::sizes(dgate, dup, gate, up, drop.bits);
    owner_.timed(work, false, [&] {
      thin::swiglu_backward(owner_.inner_, plan, dgate, dup, dy, gate, up, ds, parts, drop);
    });
  }
  TimingBackend& owner_;
};

// Times the operations of a step of generation.
class TimingBackend::Cache final : public CacheKernels {
 public:
  explicit Cache(TimingBackend& owner) : owner_(owner) {}
  bool linear_parts(const Tensor& x, const MadeInput* input,
                    std::span<const LinearPart> parts) override {
    if (parts.empty()) return false;
    Work all{OpFamily::BaseLinear, 0, input ? 2 * work::size(x) + work::size(input->gate) : 0};
    for (const LinearPart& part : parts) {
      const Work one = work::linear_forward(part.y, x, *part.w);
      all.flops += one.flops;
      all.bytes += one.bytes + work::size(part.addend);
    }
    owner_.timed(all, owner_.reads_head(*parts[0].w),
                 [&] { cached::linear_parts(owner_.inner_, x, input, parts); });
    return true;
  }
  bool rope_into_cache(const Tensor& q, const Tensor& k, const Tensor& v, const CacheRows& cache,
                       const Tensor& table, const Tensor& positions, int head_dim) override {
    owner_.timed({OpFamily::Rope, 0, 2 * work::sizes(q, k, v)}, false, [&] {
      cached::rope_into_cache(owner_.inner_, q, k, v, cache, table, positions, head_dim);
    });
    return true;
  }
  bool attend(const CachedAttention& a) override {
    Work all = work::attention_forward(a.o, a.lse, a.q, a.cache.keys, a.cache.values, a.shape,
                                       a.q_seg, a.k_rows);
    all.bytes += 2 * work::sizes(a.k, a.v);
    owner_.timed(all, false, [&] { cached::attend(owner_.inner_, a); });
    return true;
  }
  bool choose_next(const NextInputs& next, const Tensor& logits) override {
    owner_.timed({OpFamily::Other, 0, work::size(logits)}, false,
                 [&] { cached::choose_next(owner_.inner_, next, logits); });
    return true;
  }

 private:
  TimingBackend& owner_;
};

// Times the products of many adapters on one model.
class TimingBackend::Adapters final : public AdapterKernels {
 public:
  explicit Adapters(TimingBackend& owner) : owner_(owner) {}
  void lora_segments(const Tensor& y, const Tensor& x, const LoraTable& table,
                     const Segments& documents, const RowVariants& variants) override {
    Work work{OpFamily::Lora, 0, work::size(x) + 2 * work::size(y)};
    for (std::size_t i = 0; i < variants.host.size(); ++i) {
      if (variants.host[i] < 0) continue;
      const LoraFactors& f = table.host[static_cast<std::size_t>(variants.host[i])];
      if (!f.a.defined()) continue;
      const double rows = documents.host[i + 1] - documents.host[i];
      work.flops += 2 * rows * (work::numel(f.a) + work::numel(f.b_t));
      work.bytes += work::sizes(f.a, f.b_t);
    }
    owner_.timed(work, false, [&] {
      owner_.inner_.adapter_kernels()->lora_segments(y, x, table, documents, variants);
    });
  }

 private:
  TimingBackend& owner_;
};

// Times attention to keys that all tokens share. Every token sees all of them, if there is no window.
class TimingBackend::SharedKeyTimes final : public SharedKeyKernels {
 public:
  explicit SharedKeyTimes(TimingBackend& owner) : owner_(owner) {}
  void shared_keys_forward(const Tensor& o, const Tensor& lse, GradMode mode, const Tensor& q,
                           const SharedKeys& keys, const AttentionShape& shape) override {
    const Work work{OpFamily::AttentionForward, 2 * product(q, keys),
                    work::sizes(q, keys.k, keys.v) + work::written(o, mode)};
    owner_.timed(work, false, [&] {
      owner_.inner_.shared_key_kernels()->shared_keys_forward(o, lse, mode, q, keys, shape);
    });
  }
  void shared_keys_backward(const Tensor& dq, GradMode mode, const Tensor& dk, const Tensor& dv,
                            const Tensor& delta, const Tensor& dout, const Tensor& q,
                            const SharedKeys& keys, const Tensor& o, const Tensor& lse,
                            const AttentionShape& shape) override {
    const double products = 2 + (dq ? 1 : 0) + (dk ? 2 : 0);
    const Work work{
        OpFamily::AttentionBackward, products * product(q, keys),
        work::sizes(dk, dv, delta, dout, q, keys.k, keys.v, o, lse) + work::written(dq, mode)};
    owner_.timed(work, false, [&] {
      owner_.inner_.shared_key_kernels()->shared_keys_backward(dq, mode, dk, dv, delta, dout, q,
                                                               keys, o, lse, shape);
    });
  }

 private:
  // FLOPs of one product of all queries with all keys.
  static double product(const Tensor& q, const SharedKeys& keys) {
    return 2 * work::numel(q) * static_cast<double>(keys.k.rows());
  }
  TimingBackend& owner_;
};

// Times what DoRA does besides LoRA's products.
class TimingBackend::DoraTimes final : public DoraKernels {
 public:
  explicit DoraTimes(TimingBackend& owner)
      : DoraKernels(owner.weight_gradient_count()), owner_(owner) {}
  void inverse_norms(std::span<const DoraNorms> all) override {
    Work work{OpFamily::Lora, 0, 0};
    for (const DoraNorms& n : all) {
      work.flops += work::numel(n.wa) * (2 * static_cast<double>(n.gram.rows()) + 4);
      work.bytes += work::sizes(n.inverse, n.w_sq, n.wa, n.gram, n.b);
    }
    owner_.timed(work, false, [&] { inner().inverse_norms(all); });
  }
  void scale_columns(const Tensor& y, const Tensor& x, const Tensor& addend,
                     std::span<const DoraPart> parts, const Weight* shift) override {
    Work work{OpFamily::Lora, 2 * work::numel(x), work::sizes(y, x)};
    if (addend) work.bytes += work::sizes(addend);
    for (const DoraPart& p : parts) work.bytes += work::sizes(p.m, p.inverse);
    owner_.timed(work, false, [&] { inner().scale_columns(y, x, addend, parts, shift); });
  }

 private:
  void run_scale_columns_backward(const Tensor& dv, const Tensor& dy, const Tensor& v,
                                  std::span<const DoraPart> parts) override {
    Work work{OpFamily::Lora, 3 * work::numel(dy), work::sizes(dv, dy, v)};
    for (const DoraPart& p : parts)
      work.bytes += work::sizes(p.m, p.inverse) + work::written(p.dm, p.mode);
    owner_.timed(work, false, [&] { inner().scale_columns_backward(dv, dy, v, parts); });
  }
  DoraKernels& inner() { return *owner_.inner_.dora_kernels(); }
  TimingBackend& owner_;
};

class TimingBackend::SliceTimes final : public SliceKernels {
 public:
  explicit SliceTimes(TimingBackend& owner)
      : SliceKernels(owner.inner_.slice_kernels()->piece(),
                     owner.inner_.slice_kernels()->sum_dtype()),
        owner_(owner) {}
  void square_sums(const Tensor& sums, std::span<const Tensor> tensors) override {
    owner_.timed(work::sum_squares(sums, tensors), false,
                 [&] { inner().square_sums(sums, tensors); });
  }
  void add_square_sums(const Tensor& out, const Tensor& sums) override {
    owner_.timed({OpFamily::Optimizer, 0, work::sizes(out, sums)}, false,
                 [&] { inner().add_square_sums(out, sums); });
  }
  void copy_many(std::span<const Copy> copies) override {
    Work work{OpFamily::Other, 0, 0};
    for (const Copy& copy : copies) work.bytes += work::sizes(copy.to, copy.from);
    owner_.timed(work, false, [&] { inner().copy_many(copies); });
  }

 private:
  SliceKernels& inner() { return *owner_.inner_.slice_kernels(); }
  TimingBackend& owner_;
};

LoraKernels* TimingBackend::lora_kernels() {
  if (!inner_.lora_kernels()) return nullptr;
  if (!lora_) lora_ = std::make_unique<Lora>(*this);
  return lora_.get();
}

CacheKernels* TimingBackend::cache_kernels() {
  if (!cache_) cache_ = std::make_unique<Cache>(*this);
  return cache_.get();
}

AdapterKernels* TimingBackend::adapter_kernels() {
  if (!inner_.adapter_kernels()) return nullptr;
  if (!adapters_) adapters_ = std::make_unique<Adapters>(*this);
  return adapters_.get();
}

DoraKernels* TimingBackend::dora_kernels() {
  if (!inner_.dora_kernels()) return nullptr;
  if (!dora_) dora_ = std::make_unique<DoraTimes>(*this);
  return dora_.get();
}

SliceKernels* TimingBackend::slice_kernels() {
  if (!slices_) slices_ = std::make_unique<SliceTimes>(*this);
  return slices_.get();
}

// Making a dense matrix for a product counts as part of the products with frozen matrices.
class TimingBackend::QuantisedTimes final : public QuantisedKernels, private Fp8Kernels {
 public:
  explicit QuantisedTimes(TimingBackend& owner) : owner_(owner) {}
  Fp8Kernels* fp8_kernels() override { return inner() ? this : nullptr; }
  void dequantise(const Tensor& to, const Weight& w) override {
    double bytes = work::size(to);
    for (const Tensor& plane : w.quantised()->planes) bytes += work::size(plane);
    owner_.timed({OpFamily::BaseLinear, 0, bytes}, false,
                 [&] { owner_.inner_.quantised_kernels()->dequantise(to, w); });
  }

 private:
  bool in_hardware() const override { return inner()->in_hardware(); }
  bool takes(DType dtype) const override { return inner()->takes(dtype); }
  void quantise_rows(const Fp8Rows& to, const Tensor& x, std::span<const Tensor> columns,
                     const Fp8Thin& beside) override {
    owner_.timed({OpFamily::BaseLinear, 0, work::sizes(to.codes, to.scales, x)}, false,
                 [&] { inner()->quantise_rows(to, x, columns, beside); });
  }
  void transpose(const Fp8Rows& to, const Tensor& codes) override {
    owner_.timed({OpFamily::BaseLinear, 0, work::sizes(to.codes, codes)}, false,
                 [&] { inner()->transpose(to, codes); });
  }
  void put(const Fp8Rows& to, const Fp8Rows& from) override {
    owner_.timed({OpFamily::Lora, 0, 2 * work::sizes(from.codes, from.scales)}, false,
                 [&] { inner()->put(to, from); });
  }
  void quantise_factor(const Tensor& to, const Fp8Thin& f, bool turned,
                       const Tensor& scales) override {
    owner_.timed({OpFamily::Lora, 0, work::sizes(to, f.values, f.values, scales)}, false,
                 [&] { inner()->quantise_factor(to, f, turned, scales); });
  }
  bool multiply(const Tensor& y, GradMode mode, const Fp8Rows& a, const Fp8Rows& b,
                const Tensor& addend) override {
    const Work work{OpFamily::BaseLinear, 2 * work::numel(y) * static_cast<double>(a.codes.cols()),
                    work::sizes(a.codes, a.scales, b.codes, b.scales) + work::written(y, mode) +
                        work::size(addend)};
    bool done = false;
    owner_.timed(work, false, [&] { done = inner()->multiply(y, mode, a, b, addend); });
    return done;
  }
  Fp8Kernels* inner() const { return owner_.inner_.quantised_kernels()->fp8_kernels(); }
  TimingBackend& owner_;
};

QuantisedKernels* TimingBackend::quantised_kernels() {
  if (!quantised_) quantised_ = std::make_unique<QuantisedTimes>(*this);
  return quantised_.get();
}

SharedKeyKernels* TimingBackend::shared_key_kernels() {
  if (!inner_.shared_key_kernels()) return nullptr;
  if (!shared_keys_) shared_keys_ = std::make_unique<SharedKeyTimes>(*this);
  return shared_keys_.get();
}

}  // namespace lk::bench
