#include "timing_backend.h"

#include <algorithm>
#include <cstdio>

namespace lk::bench {
namespace {

double size(const Tensor& t) { return t.defined() ? static_cast<double>(t.bytes()) : 0; }
template <class... Tensors>
double sizes(const Tensors&... t) {
  return (size(t) + ...);
}
double numel(const Tensor& t) { return static_cast<double>(t.numel()); }
// An output: written, and read before if it is added to.
double written(const Tensor& t, GradMode mode) { return size(t) * (mode == GradMode::Add ? 2 : 1); }

// c (M,N) from a contraction of length K.
OpWork product(const Tensor& c, GradMode mode, const Tensor& a, const Tensor& b, std::int64_t K) {
  return {2 * numel(c) * static_cast<double>(K), sizes(a, b) + written(c, mode)};
}

// Multiply-adds of one product of attention, as FLOPs: each query with every key up to itself.
double attention_product(const AttentionShape& shape, const Segments& q, const KeyRows& k) {
  double pairs = 0;
  for (std::size_t i = 0; i + 1 < q.host.size(); ++i) {
    const double queries = q.host[i + 1] - q.host[i], keys = k.ends[i] - k.begins[i];
    // Query j of the document sees keys - queries + j + 1 keys, at most the window.
    const double all = queries * (keys - queries) + queries * (queries + 1) / 2;
    pairs += shape.window > 0 ? std::min(all, queries * shape.window) : all;
  }
  return 2 * pairs * shape.n_heads * shape.head_dim;
}

}  // namespace

const char* family_name(OpFamily family) {
  static constexpr const char* kNames[kFamilyCount] = {
      "base linear", "head",   "LoRA products", "attention forward", "attention backward", "norm",
      "rope",        "swiglu", "loss",          "embedding",         "optimizer",          "copies",
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
    : inner_(inner), roofs_(roofs), head_(head.values().raw()), clock_(inner.make_clock()) {
  auto allocate = [this](std::size_t bytes) -> void* {
    try {
      Tensor block = inner_.empty(Tag::Workspace, DType::U8, {static_cast<std::int64_t>(bytes)});
      return blocks_.emplace(block.raw(), block).first->first;
    } catch (const OutOfMemoryError&) {
      return nullptr;  // the caller's error carries this backend's books
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
    const auto& [family, work] = calls_[i];
    FamilyTime& f = profile.families[static_cast<std::size_t>(family)];
    const double seconds = at[2 * i + 2] - at[2 * i + 1];
    ++f.calls;
    f.seconds += seconds;
    f.work.flops += work.flops;
    f.work.bytes += work.bytes;
    f.roof_seconds +=
        std::max(work.flops / roofs_.flops_per_second, work.bytes / roofs_.bytes_per_second);
    profile.busy_seconds += seconds;
  }
  return profile;
}

template <class Op>
void TimingBackend::timed(OpFamily family, OpWork work, Op&& op) {
  const bool note = recording_ && depth_ == 0;
  if (note) {
    calls_.push_back({family, work});
    clock_->mark();
  }
  ++depth_;
  op();
  --depth_;
  if (note) clock_->mark();
}

OpFamily TimingBackend::linear_family(const Weight& w) const {
  return w.values().raw() == head_ ? OpFamily::Head : OpFamily::BaseLinear;
}

void TimingBackend::upload(const Tensor& dst, const void* src, std::size_t bytes) {
  timed(OpFamily::Transfer, {}, [&] { inner_.upload(dst, src, bytes); });
}

void TimingBackend::download(void* dst, const Tensor& src, std::size_t bytes) {
  timed(OpFamily::Transfer, {}, [&] { inner_.download(dst, src, bytes); });
}

void TimingBackend::fill(const Tensor& x, double value) {
  timed(OpFamily::Other, {0, size(x)}, [&] { inner_.fill(x, value); });
}

void TimingBackend::uniform(const Tensor& x, float bound, const RandomKey& key) {
  timed(OpFamily::Other, {0, size(x)}, [&] { inner_.uniform(x, bound, key); });
}

void TimingBackend::copy(const Tensor& y, const Tensor& x) {
  timed(OpFamily::Other, {0, sizes(x, y)}, [&] { inner_.copy(y, x); });
}

void TimingBackend::add(const Tensor& y, const Tensor& a, const Tensor& b) {
  timed(OpFamily::Other, {0, sizes(y, a, b)}, [&] { inner_.add(y, a, b); });
}

void TimingBackend::scale(const Tensor& y, GradMode mode, double alpha, const Tensor& scalar,
                          const Tensor& x) {
  timed(OpFamily::Other, {0, size(x) + written(y, mode)},
        [&] { inner_.scale(y, mode, alpha, scalar, x); });
}

void TimingBackend::add_bias(const Tensor& y, const Weight& bias) {
  timed(OpFamily::Other, {0, 2 * size(y)}, [&] { inner_.add_bias(y, bias); });
}

void TimingBackend::dropout(const Tensor& y, GradMode mode, const Tensor& x, float p,
                            const RandomKey& key) {
  timed(OpFamily::Other, {0, size(x) + written(y, mode)},
        [&] { inner_.dropout(y, mode, x, p, key); });
}

void TimingBackend::linear_forward(const Tensor& y, const Tensor& x, const Weight& w) {
  timed(linear_family(w), product(y, GradMode::Write, x, w.values(), w.shape()[1]),
        [&] { inner_.linear_forward(y, x, w); });
}

void TimingBackend::linear_forward_parts(const Tensor& x, const InputNorm* norm,
                                         std::span<const LinearPart> parts) {
  if (parts.empty()) return inner_.linear_forward_parts(x, norm, parts);
  OpWork work{0, norm ? 2 * size(x) : 0};
  for (const LinearPart& part : parts) {
    const OpWork one = product(part.y, GradMode::Write, x, part.w->values(), part.w->shape()[1]);
    work.flops += one.flops;
    work.bytes += one.bytes + (part.addend ? size(part.addend) : 0);
  }
  timed(linear_family(*parts[0].w), work, [&] { inner_.linear_forward_parts(x, norm, parts); });
}

void TimingBackend::linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy,
                                      const Weight& w) {
  timed(linear_family(w), product(dx, mode, dy, w.values(), w.shape()[0]),
        [&] { inner_.linear_backward_x(dx, mode, dy, w); });
}

namespace {
// A frozen matrix with LoRA's factors beside it (autograd/fused_linear.h) is known by its size.
OpFamily family_of(const Tensor& c, const Tensor& b) {
  return std::min({c.cols(), b.rows(), b.cols()}) > 128 ? OpFamily::BaseLinear : OpFamily::Lora;
}
}  // namespace

void TimingBackend::matmul_nt(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                              const Tensor& b, const Tensor& addend) {
  OpWork work = product(c, mode, a, b, a.cols());
  work.bytes += size(addend);
  timed(family_of(c, b), work, [&] { inner_.matmul_nt(c, mode, alpha, a, b, addend); });
}

void TimingBackend::matmul_nn(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                              const Tensor& b) {
  timed(family_of(c, b), product(c, mode, a, b, a.cols()),
        [&] { inner_.matmul_nn(c, mode, alpha, a, b); });
}

void TimingBackend::matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                              const Tensor& b) {
  timed(OpFamily::Lora, product(dw, mode, a, b, a.rows()),
        [&] { inner_.weight_gradient(dw, mode, alpha, a, b); });
}

namespace {
// Every part of a wide matrix (T,.) with its thin columns; the wide one is read once.
OpWork strips_work(const Tensor& wide, const Tensor& thin, std::span<const StripPart> parts) {
  OpWork work{0, sizes(wide, thin)};
  for (const StripPart& p : parts) {
    work.flops += 2 * static_cast<double>(wide.rows()) * numel(p.dw);
    work.bytes += written(p.dw, p.mode);
  }
  return work;
}
}  // namespace

void TimingBackend::run_strips_backward_b(const Tensor& ds, double scale, const Tensor& dy,
                                          const Tensor& b, const Tensor& s,
                                          std::span<const StripPart> parts) {
  OpWork work = strips_work(dy, s, parts);
  work.flops *= 2;
  work.bytes += sizes(ds, b);
  timed(OpFamily::Lora, work, [&] { inner_.strips_backward_b(ds, scale, dy, b, s, parts); });
}

void TimingBackend::run_strips_backward_a(const Tensor& ds, const Tensor& x,
                                          const NormedInput* norm, std::span<const StripPart> parts,
                                          const InputDropout& drop) {
  timed(OpFamily::Lora, strips_work(x, ds, parts),
        [&] { inner_.strips_backward_a(ds, x, norm, parts, drop); });
}

void TimingBackend::strips_forward(const Tensor& s, double scale, const Tensor& x, const Tensor& a,
                                   std::span<const StripPart> parts, const InputDropout& drop) {
  const OpWork work{2 * static_cast<double>(x.rows()) * numel(a), sizes(s, x, a)};
  timed(OpFamily::Lora, work, [&] { inner_.strips_forward(s, scale, x, a, parts, drop); });
}

void TimingBackend::strips_into_x(const Tensor& dx, const Tensor& ds, const Tensor& a,
                                  std::span<const StripPart> parts, const InputDropout& drop) {
  const OpWork work{2 * static_cast<double>(dx.rows()) * numel(a),
                    sizes(ds, a) + written(dx, GradMode::Add)};
  timed(OpFamily::Lora, work, [&] { inner_.strips_into_x(dx, ds, a, parts, drop); });
}

void TimingBackend::lora_segments(const Tensor& y, const Tensor& x, const LoraTable& table,
                                  const Segments& documents, const RowVariants& variants) {
  OpWork work{0, sizes(x) + 2 * size(y)};
  for (std::size_t i = 0; i < variants.host.size(); ++i) {
    if (variants.host[i] < 0) continue;
    const LoraFactors& f = table.host[static_cast<std::size_t>(variants.host[i])];
    if (!f.a.defined()) continue;
    const double rows = documents.host[i + 1] - documents.host[i];
    work.flops += 2 * rows * (numel(f.a) + numel(f.b_t));
    work.bytes += sizes(f.a, f.b_t);
  }
  timed(OpFamily::Lora, work, [&] { inner_.lora_segments(y, x, table, documents, variants); });
}

void TimingBackend::rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x,
                                    const Weight& gain, double eps) {
  timed(OpFamily::Norm, {0, sizes(y, rstd, x)},
        [&] { inner_.rmsnorm_forward(y, rstd, x, gain, eps); });
}

void TimingBackend::rmsnorm_backward(const Tensor& dx, GradMode mode, const Tensor& dy,
                                     const Tensor& x, const Weight& gain, const Tensor& rstd) {
  timed(OpFamily::Norm, {0, sizes(dy, x, rstd) + written(dx, mode)},
        [&] { inner_.rmsnorm_backward(dx, mode, dy, x, gain, rstd); });
}

void TimingBackend::layernorm_forward(const Tensor& y, const Tensor& mean, const Tensor& rstd,
                                      const Tensor& x, const Weight& gain, const Weight& bias,
                                      double eps) {
  timed(OpFamily::Norm, {0, sizes(y, mean, rstd, x)},
        [&] { inner_.layernorm_forward(y, mean, rstd, x, gain, bias, eps); });
}

void TimingBackend::layernorm_backward(const Tensor& dx, GradMode mode, const Tensor& dy,
                                       const Tensor& x, const Weight& gain, const Tensor& mean,
                                       const Tensor& rstd) {
  timed(OpFamily::Norm, {0, sizes(dy, x, mean, rstd) + written(dx, mode)},
        [&] { inner_.layernorm_backward(dx, mode, dy, x, gain, mean, rstd); });
}

void TimingBackend::rope(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& table,
                         const Tensor& positions, int head_dim, bool inverse) {
  timed(OpFamily::Rope, {0, size(x) + written(y, mode)},
        [&] { inner_.rope(y, mode, x, table, positions, head_dim, inverse); });
}

void TimingBackend::rope_into_cache(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const CacheRows& cache, const Tensor& table,
                                    const Tensor& positions, int head_dim) {
  timed(OpFamily::Rope, {0, 2 * sizes(q, k, v)},
        [&] { inner_.rope_into_cache(q, k, v, cache, table, positions, head_dim); });
}

void TimingBackend::attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q,
                                      const Tensor& k, const Tensor& v, const AttentionShape& shape,
                                      const Segments& q_seg, const KeyRows& k_rows) {
  timed(OpFamily::AttentionForward,
        {2 * attention_product(shape, q_seg, k_rows), sizes(o, lse, q, k, v)},
        [&] { inner_.attention_forward(o, lse, q, k, v, shape, q_seg, k_rows); });
}

void TimingBackend::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                       const Tensor& dout, const Tensor& q, const Tensor& k,
                                       const Tensor& v, const Tensor& o, const Tensor& lse,
                                       const AttentionShape& shape, const Segments& seg,
                                       const Rotation* rotation) {
  timed(OpFamily::AttentionBackward,
        {5 * attention_product(shape, seg, seg), sizes(dq, dk, dv, dout, q, k, v, o, lse)}, [&] {
          inner_.attention_backward(dq, dk, dv, dout, q, k, v, o, lse, shape, seg, rotation);
        });
}

void TimingBackend::gated_forward(Activation act, const Tensor& y, const Tensor& gate,
                                  const Tensor& up) {
  timed(OpFamily::Gated, {0, sizes(y, gate, up)}, [&] { inner_.gated_forward(act, y, gate, up); });
}

void TimingBackend::gated_backward(Activation act, const Tensor& y, const Tensor& dgate,
                                   GradMode mode, const Tensor& dup, const Tensor& dy,
                                   const Tensor& gate, const Tensor& up) {
  timed(OpFamily::Gated, {0, sizes(y, dup, dy, gate, up) + written(dgate, mode)},
        [&] { inner_.gated_backward(act, y, dgate, mode, dup, dy, gate, up); });
}

void TimingBackend::run_swiglu_strips_backward(const Tensor& dgate, const Tensor& dup,
                                               const Tensor& dy, const Tensor& gate,
                                               const Tensor& up, const Tensor& ds,
                                               std::span<const StripPart> parts,
                                               const InputDropout& drop) {
  OpWork work = strips_work(dy, ds, parts);
  work.bytes += sizes(dgate, dup, gate, up);
  timed(OpFamily::Gated, work,
        [&] { inner_.swiglu_strips_backward(dgate, dup, dy, gate, up, ds, parts, drop); });
}

void TimingBackend::embedding_forward(const Tensor& y, const Weight& table, const Tensor& ids) {
  timed(OpFamily::Embedding, {0, 2 * size(y)}, [&] { inner_.embedding_forward(y, table, ids); });
}

void TimingBackend::gather_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
  timed(OpFamily::Embedding, {0, 2 * size(y)}, [&] { inner_.gather_rows(y, x, rows); });
}

void TimingBackend::put_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
  timed(OpFamily::Other, {0, 2 * size(x)}, [&] { inner_.put_rows(y, x, rows); });
}

void TimingBackend::scatter_rows(const Tensor& dx, GradMode mode, const Tensor& dy,
                                 const Tensor& rows) {
  const double out = mode == GradMode::Add ? 2 * size(dy) : size(dx);
  timed(OpFamily::Embedding, {0, size(dy) + out}, [&] { inner_.scatter_rows(dx, mode, dy, rows); });
}

void TimingBackend::cross_entropy(const Tensor& losses, const Tensor& logits, const Tensor& targets,
                                  bool gradient, double scale, const Tensor& factor) {
  timed(OpFamily::Loss, {0, size(logits) * (gradient ? 2 : 1)},
        [&] { inner_.cross_entropy(losses, logits, targets, gradient, scale, factor); });
}

void TimingBackend::sum(const Tensor& out, GradMode mode, double alpha, const Tensor& x) {
  timed(OpFamily::Loss, {0, size(x)}, [&] { inner_.sum(out, mode, alpha, x); });
}

void TimingBackend::sum_squares(const Tensor& out, std::span<const Tensor> tensors) {
  double bytes = 0;
  for (const Tensor& t : tensors) bytes += size(t);
  timed(OpFamily::Optimizer, {0, bytes}, [&] { inner_.sum_squares(out, tensors); });
}

void TimingBackend::adamw(std::span<const AdamWSlot> slots, const AdamWStep& step,
                          const Tensor& norm_sq) {
  double bytes = 0;  // value and moments are read and written
  for (const AdamWSlot& s : slots) bytes += 2 * sizes(s.value, s.m, s.v) + sizes(s.grad, s.compute);
  timed(OpFamily::Optimizer, {0, bytes}, [&] { inner_.adamw(slots, step, norm_sq); });
}

}  // namespace lk::bench
