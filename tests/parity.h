// For tests that compare the GPU with the F64 twin: a case is written once, as a function of a
// Side, and run three times from the same numbers: twice on the GPU (the bits must agree) and once
// on the reference.
//
// Every matrix on the GPU is a window of a larger one whose other elements hold a known number, so
// a write outside the window is detected, and rows can start at odd addresses.
#pragma once

#include <cstdlib>
#include <cstring>
#include <functional>

#include "cpu/cpu_backend.h"
#include "cuda/open_device.h"
#include "harness.h"

#define LK_NEEDS_GPU() \
  if (n_gpus() == 0) LK_SKIP("no GPU")

namespace lk::test {

// With LORIKEET_SMALL_SHAPES set, shapes of more than 2^24 multiplications are left out:
// compute-sanitizer slows kernels down a hundredfold.
inline bool left_out(std::int64_t multiplications) {
  static const bool small = std::getenv("LORIKEET_SMALL_SHAPES") != nullptr;
  return small && multiplications > std::int64_t{1} << 24;
}

// Columns between rows, and how far the window is moved to the right of an aligned address.
struct Layout {
  int pad = 0, offset = 0;
};
inline constexpr Layout kContiguous{0, 0}, kStrided{16, 0}, kOdd{5, 1};

struct Side {
  Backend& backend;
  DType dtype;    // the computation's dtype: F32 or BF16; F64 on the reference
  DType rounded;  // the dtype that inputs were rounded to for both sides
  Layout layout;
  DType stat() const { return stat_dtype(dtype); }
};

inline Backend& gpu() {
  static std::unique_ptr<Backend> backend = open_device("auto");
  return *backend;
}
inline Backend& oracle() {
  static std::unique_ptr<Backend> backend = make_cpu_backend(CpuMode::Reference);
  return *backend;
}

inline double round_to(DType t, double x) {
  if (t == DType::F64) return x;
  if (t == DType::F32) return static_cast<float>(x);
  return static_cast<float>(bf16(static_cast<float>(x)));
}
inline std::vector<double> rounded(std::vector<double> v, DType t) {
  for (double& x : v) x = round_to(t, x);
  return v;
}

inline constexpr double kGuard = 77;  // exact in every dtype

// A matrix between guards: one row before and one after, and layout.pad columns.
class Guarded {
 public:
  Guarded(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols, Layout layout,
          const std::vector<double>& values)
      : rows_(rows), cols_(cols), pitch_(cols + layout.pad), offset_(layout.offset) {
    std::vector<double> all(static_cast<std::size_t>((rows + 2) * pitch_), kGuard);
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < cols; ++j)
        all[at(i, j)] = values[static_cast<std::size_t>(i * cols + j)];
    whole_ = tensor_from(backend, dtype, {rows + 2, pitch_}, all);
  }
  // The window as a matrix; vector() is the window as a one-dimensional tensor (needs a contiguous
  // layout).
  Tensor matrix() const {
    return whole_.slice_rows(1, rows_ + 1).slice_cols(offset_, offset_ + cols_);
  }
  Tensor vector() const { return whole_.slice_rows(1, rows_ + 1).reshape({rows_ * cols_}); }
  operator Tensor() const { return matrix(); }

  std::vector<std::byte> bytes() const {
    std::vector<std::byte> raw(whole_.bytes());
    whole_.backend().download(raw.data(), whole_, raw.size());
    return raw;
  }
  // The matrix's values; fails if a guard was written.
  std::vector<double> values(const std::string& what) const {
    std::vector<double> all = to_host_f64(whole_), out;
    std::int64_t broken = 0;
    for (std::int64_t i = -1; i <= rows_; ++i)
      for (std::int64_t j = -offset_; j < pitch_ - offset_; ++j) {
        bool inside = 0 <= i && i < rows_ && 0 <= j && j < cols_;
        if (inside)
          out.push_back(all[at(i, j)]);
        else
          broken += all[at(i, j)] != kGuard;
      }
    CHECK_MESSAGE(broken == 0, what, ": elements written outside of the output: ", broken);
    return out;
  }

 private:
  std::size_t at(std::int64_t i, std::int64_t j) const {
    return static_cast<std::size_t>((i + 1) * pitch_ + offset_ + j);
  }
  std::int64_t rows_, cols_, pitch_, offset_;
  Tensor whole_;
};

// An input, or an output with its previous contents: normal numbers, rounded the same way on both
// sides.
inline Guarded numbers(const Side& s, std::int64_t rows, std::int64_t cols, unsigned seed,
                       double scale = 1.0) {
  return Guarded(s.backend, s.dtype, rows, cols, s.layout,
                 rounded(random_values(rows * cols, seed, scale), s.rounded));
}
// numbers() in the dtype of statistics (F32), always contiguous: rstd, losses, weight gradients.
inline Guarded statistics(const Side& s, std::int64_t rows, std::int64_t cols, unsigned seed,
                          double scale = 1.0) {
  return Guarded(s.backend, s.stat(), rows, cols, kContiguous,
                 rounded(random_values(rows * cols, seed, scale), DType::F32));
}
inline Weight frozen(const Side& s, Shape shape, unsigned seed, double scale = 1.0) {
  Weight w("w", tensor_from(s.backend, s.dtype, shape,
                            rounded(random_values(shape.numel(), seed, scale), s.rounded)));
  s.backend.prepare_linear(w);
  return w;
}
inline Tensor indices(const Side& s, const std::vector<std::int32_t>& v) {
  return to_device(s.backend, Tag::Workspace, v);
}

// Angles for 50 positions, equal on both sides, and one of these positions for each of T tokens.
inline Rotation rotation(const Side& s, std::int64_t T, int head_dim) {
  std::vector<double> angles(static_cast<std::size_t>(50 * head_dim));
  for (int p = 0; p < 50; ++p)
    for (int i = 0; i < head_dim / 2; ++i) {
      const auto at = static_cast<std::size_t>(p * head_dim + i);
      const double a = p * std::pow(10000.0, -2.0 * i / head_dim);
      angles[at] = round_to(DType::F32, std::cos(a));
      angles[at + static_cast<std::size_t>(head_dim / 2)] = round_to(DType::F32, std::sin(a));
    }
  std::vector<std::int32_t> at;
  for (std::int64_t i = 0; i < T; ++i) at.push_back(static_cast<std::int32_t>(i * 7 % 50));
  return {tensor_from(s.backend, s.stat(), {50, head_dim}, angles), indices(s, at)};
}

// The absolute values of what numbers() returns, for bounds.
inline std::vector<double> magnitudes(DType t, std::int64_t n, unsigned seed, double scale = 1.0) {
  std::vector<double> v = rounded(random_values(n, seed, scale), t);
  for (double& x : v) x = std::abs(x);
  return v;
}

using Case = std::function<std::vector<Guarded>(const Side&)>;
struct Results {
  std::vector<std::vector<double>> got, want;
};

// Runs a case twice on the GPU and once on the reference. Returns the outputs in order.
inline Results compare(const std::string& what, DType dtype, Layout layout, const Case& run) {
  Results r;
  std::vector<Guarded> first = run({gpu(), dtype, dtype, layout});
  std::vector<Guarded> second = run({gpu(), dtype, dtype, layout});
  std::vector<Guarded> want = run({oracle(), DType::F64, dtype, kContiguous});
  for (std::size_t i = 0; i < first.size(); ++i) {
    CHECK_MESSAGE(first[i].bytes() == second[i].bytes(), what, ": two runs differ");
    r.got.push_back(first[i].values(what));
    r.want.push_back(want[i].values(what));
  }
  return r;
}

// Slack for a result of F32 arithmetic: c * 2^-24 * magnitude, and room for F32 results below the
// normal range.
inline std::vector<double> f32_slack(double c, const std::vector<double>& magnitude) {
  std::vector<double> slack(magnitude);
  for (double& x : slack) x = c * 0x1p-24 * std::abs(x) + 1e-38;
  return slack;
}

inline constexpr DType kDTypes[] = {DType::F32, DType::BF16};
inline constexpr Layout kLayouts[] = {kContiguous, kStrided, kOdd};
// Rows x columns: one row, one column, primes, multiples of the vector width, more than one block,
// nothing.
inline constexpr std::int64_t kShapes[][2] = {{1, 1},   {1, 64},   {3, 7},    {31, 8},   {5, 131},
                                              {64, 96}, {7, 4104}, {2, 9001}, {300, 40}, {0, 16}};
inline constexpr GradMode kModes[] = {GradMode::Write, GradMode::Add};

inline std::string label(const char* op, DType t, std::int64_t rows, std::int64_t cols, Layout l) {
  return concat(op, " ", dtype_name(t), " (", rows, ",", cols, ") pad ", l.pad);
}
// |a| + |b| element by element, optionally scaled.
inline std::vector<double> sum_of(const std::vector<double>& a, const std::vector<double>& b,
                                  double fb = 1) {
  std::vector<double> s(a);
  for (std::size_t i = 0; i < s.size(); ++i) s[i] = std::abs(a[i]) + fb * std::abs(b[i]);
  return s;
}

// Calls f(dtype, layout, rows, cols) for all combinations.
inline void everywhere(const std::function<void(DType, Layout, std::int64_t, std::int64_t)>& f) {
  for (DType t : kDTypes)
    for (Layout l : kLayouts)
      for (auto [rows, cols] : kShapes) f(t, l, rows, cols);
}

}  // namespace lk::test
