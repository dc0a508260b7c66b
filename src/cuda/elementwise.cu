// Elementwise ops: fill, uniform, copy, add, scale, add_bias, dropout.
//
// Shapes     any matrix (rows, cols), each tensor with its own row stride
// Plan       one pack of 16 bytes (or one element) per thread and tensor: rowwise.cuh
// Bytes      each input once, each output once; all of these are bound by memory bandwidth
// Numbers    computed in F32, rounded once
#include <cmath>

#include "cuda/cuda_backend.h"
#include "cuda/lora/dropout_mask.cuh"
#include "cuda/rowwise.cuh"

namespace lk {
namespace {

template <class T, int N>
struct FillOp {
  static constexpr int kWidth = N;
  using WritesWeights = void;
  Matrix<T> y;
  float value;
  __device__ void operator()(i64 row, i64 col) const {
    float x[N];
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = value;
    store_pack<N>(y.at(row, col), x);
  }
};

// bound (2 u - 1): 2 u - 1 is exact, so the product is the only rounding, whether fused or not.
template <class T, int N>
struct UniformOp {
  static constexpr int kWidth = N;
  using WritesWeights = void;
  Matrix<T> x;
  i64 cols;
  RandomKey key;
  float bound;
  __device__ void operator()(i64 row, i64 col) const {
    float v[N];
    std::uint64_t element = static_cast<std::uint64_t>(row * cols + col);
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      Philox4 draw = philox_at(key, (element + i) / 4);
      if constexpr (N == 1) {
        v[0] = bound * (2 * philox_uniform(draw.v[element % 4]) - 1);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) v[i + j] = bound * (2 * philox_uniform(draw.v[j]) - 1);
      }
    }
    store_pack<N>(x.at(row, col), v);
  }
};

template <class TY, class TX, int N>
struct CopyOp {
  static constexpr int kWidth = N;
  using WritesWeights = void;
  Matrix<TY> y;
  Matrix<const TX> x;
  __device__ void operator()(i64 row, i64 col) const {
    float v[N];
    load_pack<N>(x.at(row, col), v);
    store_pack<N>(y.at(row, col), v);
  }
};

template <class T, int N>
struct AddOp {
  static constexpr int kWidth = N;
  Matrix<T> y;
  Matrix<const T> a, b;
  __device__ void operator()(i64 row, i64 col) const {
    float u[N], v[N];
    load_pack<N>(a.at(row, col), u);
    load_pack<N>(b.at(row, col), v);
#pragma unroll
    for (int i = 0; i < N; ++i) u[i] += v[i];
    store_pack<N>(y.at(row, col), u);
  }
};

// y (+)= alpha * scalar * x
template <class TY, class TX, int N>
struct ScaleOp {
  static constexpr int kWidth = N;
  Matrix<TY> y;
  Matrix<const TX> x;
  const float* scalar;
  float alpha;
  bool accumulate;
  __device__ void operator()(i64 row, i64 col) const {
    float factor = scalar ? alpha * *scalar : alpha, v[N];
    load_pack<N>(x.at(row, col), v);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] *= factor;
    write_pack<N>(y.at(row, col), v, accumulate);
  }
};

template <class T, int N>
struct AddBiasOp {
  static constexpr int kWidth = N;
  Matrix<T> y;
  const T* bias;
  __device__ void operator()(i64 row, i64 col) const {
    float v[N];
    load_pack<N>(bias + col, v);
    write_pack<N>(y.at(row, col), v, true);
  }
};

// Dropout by the mask of philox.h. A pack lies in one octet, as N divides 8 and rows are whole
// packs.
template <class T, int N>
struct DropoutOp {
  static constexpr int kWidth = N;
  Matrix<T> y;
  Matrix<const T> x;
  i64 cols;
  RandomKey key;
  std::uint32_t threshold;
  float keep_scale;
  bool accumulate;
  __device__ void operator()(i64 row, i64 col) const {
    float v[N];
    load_pack<N>(x.at(row, col), v);
    const auto element = static_cast<std::uint64_t>(row * cols + col);
    const RandomKey now = key.resolved();
    const std::uint32_t keep = keep_bits(now, element / 8, threshold) >> element % 8;
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = keep >> i & 1 ? v[i] * keep_scale : 0.0f;
    write_pack<N>(y.at(row, col), v, accumulate);
  }
};

template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));  // elements in 16 bytes

}  // namespace

void CudaBackend::fill(const Tensor& x, double value) {
  Walk walk(x);
  bool all_zero = value == 0.0 && !std::signbit(value);
  if (all_zero && walk.rows == 1) {  // any dtype: zero is all zero bytes
    cuda_check(cudaMemsetAsync(x.raw(), 0, x.bytes(), stream()), "fill");
    return;
  }
  if (x.dtype() == DType::I32 || x.dtype() == DType::U8) {
    check(all_zero, "cuda fill: integers can only be filled with 0");
    cuda_check(cudaMemset2DAsync(x.raw(), x.ld() * dtype_size(x.dtype()), 0,
                                 x.cols() * dtype_size(x.dtype()), x.rows(), stream()),
               "fill");
    return;
  }
  dispatch_device(x.dtype(), [&]<class T>() {
    using D = device_t<T>;
    auto go = [&]<int N>() {
      launch_rowwise("fill", walk.rows, walk.cols, stream(),
                     FillOp<D, N>{matrix<T>(x), static_cast<float>(value)});
    };
    packable(kPack<T>, walk.cols, x) ? go.template operator()<kPack<T>>()
                                     : go.template operator()<1>();
  });
}

void CudaBackend::uniform(const Tensor& x, float bound, const RandomKey& key) {
  Walk walk(x);
  dispatch_device(x.dtype(), [&]<class T>() {
    using D = device_t<T>;
    auto go = [&]<int N>() {
      launch_rowwise("uniform", walk.rows, walk.cols, stream(),
                     UniformOp<D, N>{matrix<T>(x), walk.cols, key, bound});
    };
    packable(kPack<T>, walk.cols, x) ? go.template operator()<kPack<T>>()
                                     : go.template operator()<1>();
  });
}

void CudaBackend::copy(const Tensor& y, const Tensor& x) {
  check(x.rows() == y.rows() && x.cols() == y.cols(), "copy: x: ", x.shape(), " for ", y.shape());
  if (y.numel() == 0) return;
  if (y.dtype() == x.dtype() && (!is_float(y.dtype()) || (y.contiguous() && x.contiguous()))) {
    std::size_t size = dtype_size(y.dtype());
    if (y.contiguous() && x.contiguous())
      cuda_check(cudaMemcpyAsync(y.raw(), x.raw(), y.bytes(), cudaMemcpyDeviceToDevice, stream()),
                 "copy");
    else
      cuda_check(cudaMemcpy2DAsync(y.raw(), y.ld() * size, x.raw(), x.ld() * size, x.cols() * size,
                                   x.rows(), cudaMemcpyDeviceToDevice, stream()),
                 "copy");
    return;
  }
  Walk walk(y, x);
  dispatch_device(y.dtype(), [&]<class TY>() {
    dispatch_device(x.dtype(), [&]<class TX>() {
      using DY = device_t<TY>;
      using DX = device_t<TX>;
      constexpr int kN = std::min(kPack<TY>, kPack<TX>);
      auto go = [&]<int N>() {
        launch_rowwise("copy", walk.rows, walk.cols, stream(),
                       CopyOp<DY, DX, N>{matrix<TY>(y), const_matrix<TX>(x)});
      };
      packable(kN, walk.cols, y, x) ? go.template operator()<kN>() : go.template operator()<1>();
    });
  });
}

void CudaBackend::add(const Tensor& y, const Tensor& a, const Tensor& b) {
  Walk walk(y, a, b);
  dispatch_device(y.dtype(), [&]<class T>() {
    using D = device_t<T>;
    auto go = [&]<int N>() {
      launch_rowwise("add", walk.rows, walk.cols, stream(),
                     AddOp<D, N>{matrix<T>(y), const_matrix<T>(a), const_matrix<T>(b)});
    };
    packable(kPack<T>, walk.cols, y, a, b) ? go.template operator()<kPack<T>>()
                                           : go.template operator()<1>();
  });
}

void CudaBackend::scale(const Tensor& y, GradMode mode, double alpha, const Tensor& scalar,
                        const Tensor& x) {
  Walk walk(y, x);
  const float* factor = scalar ? scalar.data<float>() : nullptr;
  dispatch_device(y.dtype(), [&]<class TY>() {
    dispatch_device(x.dtype(), [&]<class TX>() {
      using DY = device_t<TY>;
      using DX = device_t<TX>;
      constexpr int kN = std::min(kPack<TY>, kPack<TX>);
      auto go = [&]<int N>() {
        launch_rowwise("scale", walk.rows, walk.cols, stream(),
                       ScaleOp<DY, DX, N>{matrix<TY>(y), const_matrix<TX>(x), factor,
                                          static_cast<float>(alpha), mode == GradMode::Add});
      };
      packable(kN, walk.cols, y, x) ? go.template operator()<kN>() : go.template operator()<1>();
    });
  });
}

void CudaBackend::add_bias(const Tensor& y, const Weight& bias) {
  dispatch_device(y.dtype(), [&]<class T>() {
    using D = device_t<T>;
    auto go = [&]<int N>() {
      launch_rowwise("add_bias", y.rows(), y.cols(), stream(),
                     AddBiasOp<D, N>{matrix<T>(y), pointer<T>(bias.values())});
    };
    packable(kPack<T>, y.cols(), y, bias.values()) ? go.template operator()<kPack<T>>()
                                                   : go.template operator()<1>();
  });
}

void CudaBackend::dropout(const Tensor& y, GradMode mode, const Tensor& x, float p,
                          const RandomKey& key) {
  Walk walk(y, x);
  dispatch_device(y.dtype(), [&]<class T>() {
    using D = device_t<T>;
    auto go = [&]<int N>() {
      launch_rowwise(
          "dropout", walk.rows, walk.cols, stream(),
          DropoutOp<D, N>{matrix<T>(y), const_matrix<T>(x), walk.cols, key, dropout_threshold(p),
                          1.0f / (1.0f - p), mode == GradMode::Add});
    };
    packable(kPack<T>, walk.cols, y, x) ? go.template operator()<kPack<T>>()
                                        : go.template operator()<1>();
  });
}

}  // namespace lk
