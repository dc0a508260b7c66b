#include "tensor/tensor.h"

#include "tensor/backend.h"

namespace lk {

Storage::~Storage() { backend_.deallocate(data_, bytes_, tag_); }

Tensor::Tensor(std::shared_ptr<Storage> storage, DType dtype, Shape shape, std::size_t begin)
    : storage_(std::move(storage)),
      data_(static_cast<std::byte*>(storage_->data()) + begin),
      shape_(shape),
      ld_(shape.cols()),
      dtype_(dtype) {
  check(begin + bytes() <= storage_->bytes(), "tensor: storage too small for ", shape);
}

Tensor Tensor::slice_rows(std::int64_t begin, std::int64_t end) const {
  check(shape_.rank() == 2 || contiguous(), "slice_rows: needs a matrix or contiguous memory");
  check(shape_.rank() >= 1 && 0 <= begin && begin <= end && end <= shape_[0], "slice_rows: [",
        begin, ", ", end, ") of ", shape_);
  Tensor t = *this;
  std::int64_t row = shape_.rank() == 1   ? 1
                     : shape_.rank() == 2 ? ld_
                                          : (shape_[0] ? numel() / shape_[0] : 0);
  t.data_ += begin * row * static_cast<std::int64_t>(dtype_size(dtype_));
  switch (shape_.rank()) {
    case 1:
      t.shape_ = {end - begin};
      t.ld_ = end - begin;
      break;
    case 2:
      t.shape_ = {end - begin, shape_[1]};
      break;
    case 3:
      t.shape_ = {end - begin, shape_[1], shape_[2]};
      break;
    default:
      t.shape_ = {end - begin, shape_[1], shape_[2], shape_[3]};
      break;
  }
  return t;
}

Tensor Tensor::slice_cols(std::int64_t begin, std::int64_t end) const {
  check(shape_.rank() == 2 && 0 <= begin && begin <= end && end <= shape_[1], "slice_cols: [",
        begin, ", ", end, ") of ", shape_);
  Tensor t = *this;
  t.data_ += begin * static_cast<std::int64_t>(dtype_size(dtype_));
  t.shape_ = {shape_[0], end - begin};
  return t;
}

Tensor Tensor::widened(std::int64_t cols) const {
  const auto size = static_cast<std::int64_t>(dtype_size(dtype_));
  const std::int64_t begin = data_ - static_cast<std::byte*>(storage_->data());
  check(shape_.rank() == 2 && cols <= ld_ &&
            begin + ((rows() - 1) * ld_ + cols) * size <=
                static_cast<std::int64_t>(storage_->bytes()),
        "widened: ", cols, " columns of ", shape_, " with a stride of ", ld_);
  Tensor t = *this;
  t.shape_ = {shape_[0], cols};
  return t;
}

Tensor Tensor::reshape(Shape shape) const {
  check(contiguous(), "reshape: tensor is not contiguous");
  check(shape.numel() == numel(), "reshape: ", shape_, " to ", shape);
  Tensor t = *this;
  t.shape_ = shape;
  t.ld_ = shape.cols();
  return t;
}

}  // namespace lk
