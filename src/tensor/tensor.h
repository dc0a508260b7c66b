// Tensor: a typed, shaped view of a Storage.
//
// Always row-major. A view may change the offset, the shape (reshape of a contiguous tensor) and
// the row stride, so q, k, v can be column slices of one projection. There are no general strides
// and no broadcasting.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "tensor/dtype.h"
#include "tensor/ledger.h"
#include "tensor/shape.h"

namespace lk {

class Backend;

// Owned memory on one device. It returns to its Backend, which outlives it, when destroyed.
class Storage {
 public:
  Storage(Backend& backend, void* data, std::size_t bytes, Tag tag)
      : backend_(backend), data_(data), bytes_(bytes), tag_(tag) {}
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  Backend& backend() const { return backend_; }
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Tag tag() const { return tag_; }

 private:
  Backend& backend_;
  void* data_;
  std::size_t bytes_;
  Tag tag_;
};

class Tensor {
 public:
  Tensor() = default;  // empty: defined() is false
  Tensor(std::shared_ptr<Storage> storage, DType dtype, Shape shape, std::size_t begin = 0);

  bool defined() const { return storage_ != nullptr; }
  explicit operator bool() const { return defined(); }
  Backend& backend() const { return storage_->backend(); }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::int64_t numel() const { return shape_.numel(); }
  std::size_t bytes() const { return static_cast<std::size_t>(numel()) * dtype_size(dtype_); }
  // rows() x cols(): the last dimension against all others. ld() is the distance between rows.
  std::int64_t rows() const { return shape_.rows(); }
  std::int64_t cols() const { return shape_.cols(); }
  std::int64_t ld() const { return ld_; }
  // Unused columns behind each row of a matrix (Backend::empty_with_margin); else 0.
  std::int64_t margin() const { return shape_.rank() == 2 ? ld_ - cols() : 0; }
  bool contiguous() const { return ld_ == cols() || rows() <= 1; }
  const Storage& storage() const { return *storage_; }
  // How many Tensors share this memory: 1 means that nobody else sees an in-place change.
  long use_count() const { return storage_.use_count(); }

  // Views: rows [begin, end) of the first dimension, and columns [begin, end) of the last.
  Tensor slice_rows(std::int64_t begin, std::int64_t end) const;
  Tensor slice_cols(std::int64_t begin, std::int64_t end) const;
  Tensor reshape(Shape shape) const;
  // Another tensor in the same Storage, `begin` bytes from its start.
  Tensor at(std::size_t begin, DType t, Shape s) const { return {storage_, t, s, begin}; }
  // The same rows, `cols` columns wide, reaching into the margin behind each row (see
  // Backend::empty_with_margin). Throws if the rows lie closer together than that.
  Tensor widened(std::int64_t cols) const;

  // The dimensions as an array for structured bindings: auto [T, C] = x.dims<2>("op: x (T,C)").
  template <int N>
  std::array<std::int64_t, N> dims(const char* what) const {
    if (!defined() || shape_.rank() != N)
      throw Error(concat(what, ": got ", defined() ? shape_.str() : "nothing"));
    std::array<std::int64_t, N> d;
    for (int i = 0; i < N; ++i) d[i] = shape_[i];
    return d;
  }
  // Throws unless the shape is exactly `shape`.
  const Tensor& expect(const Shape& shape, const char* what) const {
    if (defined() && shape_ == shape) return *this;  // no text is made unless it is needed
    throw Error(concat(what, ": expected ", shape, ", got ", defined() ? shape_.str() : "nothing"));
  }

  // Device pointer. Throws on the wrong dtype. Dereference it only on the CPU backend.
  template <class T>
  T* data() const {
    check(dtype_ == dtype_of<T>(), "tensor is ", dtype_name(dtype_), ", asked for ",
          dtype_name(dtype_of<T>()));
    return reinterpret_cast<T*>(data_);
  }
  void* raw() const { return data_; }

 private:
  std::shared_ptr<Storage> storage_;
  std::byte* data_ = nullptr;
  Shape shape_;
  std::int64_t ld_ = 0;
  DType dtype_ = DType::F32;
};

}  // namespace lk
