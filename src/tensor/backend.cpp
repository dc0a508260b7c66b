#include "tensor/backend.h"

#include <algorithm>
#include <chrono>

namespace lk {
namespace {

class HostClock final : public DeviceClock {
 public:
  void mark() override { marks_.push_back(std::chrono::steady_clock::now()); }
  std::vector<double> read() override {
    std::vector<double> seconds;
    for (const auto& mark : marks_)
      seconds.push_back(std::chrono::duration<double>(mark - marks_.front()).count());
    marks_.clear();
    return seconds;
  }

 private:
  std::vector<std::chrono::steady_clock::time_point> marks_;
};

}  // namespace

Backend::Backend() = default;
Backend::~Backend() = default;

std::unique_ptr<DeviceClock> Backend::make_clock() { return std::make_unique<HostClock>(); }

Tensor Backend::empty(Tag tag, DType dtype, Shape shape) {
  check(tag != Tag::Gradients, "only a Parameter may allocate gradients");
  check(tag != Tag::Optimizer, "only the optimizer may allocate moments");
  return allocate(tag, dtype, shape);
}

Tensor Backend::empty_gradient(PassKey<Parameter>, DType dtype, Shape shape) {
  return allocate(Tag::Gradients, dtype, shape);
}

Tensor Backend::empty_moment(PassKey<AdamW>, DType dtype, Shape shape) {
  return allocate(Tag::Optimizer, dtype, shape);
}

Tensor Backend::allocate(Tag tag, DType dtype, Shape shape) {
  std::int64_t size = static_cast<std::int64_t>(dtype_size(dtype));
  check(shape.numel() <= INT64_MAX / size, "allocation overflows: ", shape.str());
  std::size_t bytes = static_cast<std::size_t>(shape.numel() * size);
  std::int64_t live = ledger_.total().live_bytes;
  bool over = memory_limit_ > 0 && live + static_cast<std::int64_t>(bytes) > memory_limit_;
  void* data = over ? nullptr : cache_->allocate(bytes);
  if (!data) {
    std::string table;
    for (int i = 0; i < kTagCount; ++i) {
      const auto& e = ledger_[static_cast<Tag>(i)];
      if (e.live_bytes)
        table +=
            concat(i ? ", " : "", tag_name(static_cast<Tag>(i)), " ", e.live_bytes >> 20, " MiB");
    }
    throw OutOfMemoryError(concat(name(), " is out of memory: asked for ", bytes, " bytes (",
                                  tag_name(tag), " ", dtype_name(dtype), shape.str(), ") with ",
                                  live >> 20, " MiB live: ", table));
  }
  ledger_.allocated(tag, bytes);
  return Tensor(std::make_shared<Storage>(*this, data, bytes, tag), dtype, shape);
}

void Backend::deallocate(void* data, std::size_t bytes, Tag tag) noexcept {
  ledger_.freed(tag, bytes);
  cache_->release(data);
}

// For devices whose calls return with their work done.
std::unique_ptr<Readback> Backend::read_later(const Tensor& x) {
  struct Ready final : Readback {
    explicit Ready(double v) : v_(v) {}
    bool done() const override { return true; }
    double value() override { return v_; }
    double v_;
  };
  x.expect({1}, "read_later: x (1)");
  return std::make_unique<Ready>(to_host_f64(x)[0]);
}

void Backend::matmul_nt_onto(const Tensor& c, const Tensor& addend, const Tensor& a,
                             const Tensor& b) {
  matmul_nt(c, GradMode::Write, 1.0, a, b);
  add(c, addend, c);
}

void Backend::attention_rope_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                      const Tensor& dout, const Tensor& q, const Tensor& k,
                                      const Tensor& v, const Tensor& o, const Tensor& lse,
                                      const AttentionShape& shape, const Segments& seg,
                                      const Rotation& rotation) {
  attention_backward(dq, dk, dv, dout, q, k, v, o, lse, shape, seg);
  for (const Tensor& d : {dq, dk})
    rope(d, GradMode::Write, d, rotation.table, rotation.positions, shape.head_dim, true);
}

std::unique_ptr<HostCopy> Backend::offload(const Tensor&) {
  throw UsageError(concat(name(),
                          " has no memory apart from the host's to which anything could be "
                          "offloaded"));
}

std::int64_t Segments::longest() const {
  std::int64_t longest = 0;
  for (std::size_t i = 1; i < host.size(); ++i)
    longest = std::max<std::int64_t>(longest, host[i] - host[i - 1]);
  return longest;
}

KeyRows::KeyRows(const Segments& documents) : most(documents.longest()) {
  if (documents.count() <= 0) return;
  begins.assign(documents.host.begin(), documents.host.end() - 1);
  ends.assign(documents.host.begin() + 1, documents.host.end());
  device_begins = documents.offsets.slice_rows(0, documents.count());
  device_ends = documents.offsets.slice_rows(1, documents.count() + 1);
}

Tensor dense(const Tensor& x) {
  if (x.contiguous()) return x;
  Tensor copy = x.backend().empty(Tag::Workspace, x.dtype(), x.shape());
  x.backend().copy(copy, x);
  return copy;
}

Tensor to_device(Backend& backend, Tag tag, std::span<const std::int32_t> values) {
  Tensor t = backend.empty(tag, DType::I32, {static_cast<std::int64_t>(values.size())});
  backend.upload(t, values.data(), values.size_bytes());
  return t;
}

std::vector<double> to_host_f64(const Tensor& x) {
  return dispatch_float(x.dtype(), [&]<class T>() {
    std::vector<T> raw = to_host<T>(x);
    std::vector<double> out(raw.size());
    for (std::size_t i = 0; i < raw.size(); ++i) {
      if constexpr (std::is_same_v<T, bf16>)
        out[i] = static_cast<float>(raw[i]);
      else
        out[i] = raw[i];
    }
    return out;
  });
}

std::int64_t Backend::check_units(const char* who, const Tensor& x, std::size_t unit_bytes) {
  check(x.contiguous() && unit_bytes > 0 && x.bytes() % unit_bytes == 0, who, ": ", x.shape().str(),
        " in units of ", unit_bytes, " bytes");
  return static_cast<std::int64_t>(x.bytes() / unit_bytes);
}

Segments make_segments(Backend& backend, std::vector<std::int32_t> offsets) {
  check(!offsets.empty() && offsets[0] == 0, "segments: offsets must start at 0");
  check(std::is_sorted(offsets.begin(), offsets.end()), "segments: offsets must not decrease");
  Segments s;
  s.host = std::move(offsets);
  s.offsets = to_device(backend, Tag::Workspace, s.host);
  return s;
}

}  // namespace lk
