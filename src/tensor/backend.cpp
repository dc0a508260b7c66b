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

Backend::Backend(const DeviceTraits& traits) : traits_(traits) {}
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
  check(shape.numel() <= INT64_MAX / size, "allocation overflows: ", shape);
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
                                  tag_name(tag), " ", dtype_name(dtype), shape, ") with ",
                                  live >> 20, " MiB live: ", table));
  }
  ledger_.allocated(tag, bytes);
  return Tensor(std::make_shared<Storage>(*this, data, bytes, tag), dtype, shape);
}

void Backend::deallocate(void* data, std::size_t bytes, Tag tag) noexcept {
  if (cache_->release(data)) ledger_.freed(tag, bytes);
}

// The default suits devices whose calls return with their work done.
std::unique_ptr<Readback> Backend::read_later(const Tensor& x) {
  struct Ready final : Readback {
    explicit Ready(std::vector<double> v) : v_(std::move(v)) {}
    bool done() const override { return true; }
    double value(std::size_t i) override { return v_.at(i); }
    std::vector<double> v_;
  };
  return std::make_unique<Ready>(to_host_f64(x));
}

Tensor dense(const Tensor& x) {
  check(x.defined(), "dense: the tensor has no value");
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
  check(x.defined(), "to_host_f64: the tensor has no value");
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
  check(x.contiguous() && unit_bytes > 0 && x.bytes() % unit_bytes == 0, who, ": ", x.shape(),
        " in units of ", unit_bytes, " bytes");
  return static_cast<std::int64_t>(x.bytes() / unit_bytes);
}

}  // namespace lk
