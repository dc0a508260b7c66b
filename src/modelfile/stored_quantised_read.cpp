// Reads what find_stored_matrix() found, checks the values, and repacks it into our planes.
#include "modelfile/stored_quantised.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "io/json.h"

namespace lk {
namespace {

using Layout = StoredMatrix::Layout;

constexpr float kFarthest = 15;  // of a 4-bit code from its zero point

class Reading {
 public:
  Reading(const TensorReader& reader, const StoredMatrix& stored, const Shape& shape)
      : reader_(reader), stored_(stored), out_(stored.format, shape), N_(shape[0]), K_(shape[1]) {
    out_.offset = stored.offset;
  }

  HostPlanes go() {
    switch (stored_.layout) {
      case Layout::Bitsandbytes:
        bitsandbytes();
        break;
      case Layout::Fp8:
        fp8();
        break;
      case Layout::PackQuantized:
        pack_quantized();
        break;
      case Layout::Awq:
        awq();
        break;
      case Layout::Gptq:
        gptq();
        break;
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& name, const std::string& rule) const {
    throw InputError(concat(reader_.path_of(name), ": tensor ", name, ": ", rule));
  }
  void raw(const std::string& name, void* to) const {
    reader_.read_stored(name, 0, reader_.shape(name).rows(), static_cast<std::uint8_t*>(to));
  }
  std::vector<std::int32_t> words(const std::string& name) const {
    std::vector<std::int32_t> w(static_cast<std::size_t>(reader_.shape(name).numel()));
    raw(name, w.data());
    return w;
  }
  // Scales as F32: finite, not negative unless they may be, and times the largest code within what the
  // numbers are rounded to.
  void check_scales(const std::string& name, const float* s, std::int64_t n, bool negative,
                    float largest_code, float offset = 0) const {
    for (std::int64_t i = 0; i < n; ++i) {
      if (!std::isfinite(s[i]) || (!negative && s[i] < 0))
        refuse(name, concat("value ", i, " is ", s[i], ", no scale"));
      if (float most = std::fabs(s[i]) * largest_code + std::fabs(offset);
          !std::isfinite(rounded(most)))
        refuse(name, concat("value ", i, " is ", s[i], ", too large"));
    }
  }
  float rounded(float x) const {
    if (out_.format.rounded == RoundedTo::F16) return round_to_half(x);
    return out_.format.rounded == RoundedTo::BF16 ? static_cast<float>(bf16(x)) : x;
  }

  void bitsandbytes() {
    const std::string weight = stored_.names[0];
    raw(weight, out_.data<void>(Plane::Codes));
    raw(weight + ".absmax", out_.data<void>(Plane::Scales));
    const std::int64_t n = out_.format.plane(Plane::Scales, out_.shape).rows *
                           out_.format.plane(Plane::Scales, out_.shape).cols;
    if (!out_.format.nested)
      return check_scales(weight + ".absmax", out_.data<float>(Plane::Scales), n, false, 1);
    raw(weight + ".nested_absmax", out_.data<void>(Plane::Outer));
    raw(weight + ".nested_quant_map", out_.data<void>(Plane::Map));
    const float* map = out_.data<float>(Plane::Map);
    check_scales(weight + ".nested_quant_map", map, 256, true, 1);
    const auto [low, high] = std::minmax_element(map, map + 256);
    check_scales(weight + ".nested_absmax", out_.data<float>(Plane::Outer),
                 blocks_in(n, kNestedBlock), false, std::max(-*low, *high), stored_.offset);
  }

  void fp8() {
    const std::string weight = stored_.names[0], scale = stored_.names[1];
    auto* codes = out_.data<std::uint8_t>(Plane::Codes);
    raw(weight, codes);
    for (std::int64_t i = 0; i < N_ * K_; ++i)
      if ((codes[i] & 0x7f) == 0x7f)
        refuse(weight, concat("value ", i, " is not a number (code ", int{codes[i]}, ")"));
    float* scales = out_.data<float>(Plane::Scales);
    const std::int64_t n = reader_.shape(scale).numel();
    const std::string type = reader_.stored_type(scale);
    if (type == "U8" || type == "F8_E8M0") {  // powers of two; 255 is NaN
      std::vector<std::uint8_t> exponents(static_cast<std::size_t>(n));
      raw(scale, exponents.data());
      for (std::int64_t i = 0; i < n; ++i) {
        const int e = exponents[static_cast<std::size_t>(i)];
        scales[i] = e == 255 ? NAN : std::ldexp(1.0f, e - 127);
      }
    } else {
      reader_.read_rows(scale, 0, reader_.shape(scale).rows(), scales);
    }
    check_scales(scale, scales, n, false, 448);
  }

  void put_code(std::int64_t n, std::int64_t k, unsigned code) {
    std::uint8_t& byte = out_.data<std::uint8_t>(Plane::Codes)[n * (K_ / 2) + k / 2];
    byte = static_cast<std::uint8_t>(byte | (code & 15) << (k % 2 * 4));
  }

  void pack_quantized() {
    const std::string& x = stored_.base;
    const std::int64_t groups = K_ / out_.format.block;
    raw(x + ".weight_packed", out_.data<void>(Plane::Codes));  // lowest bits first: as ours
    read_scales(x + ".weight_scale");
    auto* zeros = out_.data<std::uint8_t>(Plane::Zeros);
    std::fill_n(zeros, N_ * groups, std::uint8_t{8});  // codes are stored + 8
    if (!reader_.has(x + ".weight_zero_point")) return;
    const std::vector<std::int32_t> packed = words(x + ".weight_zero_point");
    for (std::int64_t n = 0; n < N_; ++n)
      for (std::int64_t g = 0; g < groups; ++g) {
        const auto word =
            static_cast<std::uint32_t>(packed[static_cast<std::size_t>(n / 8 * groups + g)]);
        zeros[n * groups + g] = static_cast<std::uint8_t>(word >> n % 8 * 4 & 15);
      }
  }

  void read_scales(const std::string& name) {
    float* scales = out_.data<float>(Plane::Scales);
    reader_.read_rows(name, 0, reader_.shape(name).rows(), scales);
    check_scales(name, scales, reader_.shape(name).numel(), true, kFarthest);
  }

  // Scales (groups, N) and zeros of AWQ and GPTQ, transposed. order[p] is the column of nibble p.
  void transposed_groups(const int* order) {
    const std::string& x = stored_.base;
    const std::int64_t groups = K_ / out_.format.block;
    const std::vector<std::int32_t> packed = words(x + ".qzeros");
    std::vector<float> scales(static_cast<std::size_t>(groups * N_));
    reader_.read_rows(x + ".scales", 0, groups, scales.data());
    check_scales(x + ".scales", scales.data(), groups * N_, true, kFarthest);
    for (std::int64_t g = 0; g < groups; ++g)
      for (std::int64_t n = 0; n < N_; ++n) {
        const std::uint32_t word =
            stored_.zeros(packed[static_cast<std::size_t>(g * (N_ / 8) + n / 8)]);
        int p = 0;
        while (order[p] != n % 8) ++p;
        out_.data<std::uint8_t>(Plane::Zeros)[n * groups + g] =
            static_cast<std::uint8_t>(word >> 4 * p & 15);
        out_.data<float>(Plane::Scales)[n * groups + g] =
            scales[static_cast<std::size_t>(g * N_ + n)];
      }
  }

  void awq() {
    static constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    const std::vector<std::int32_t> packed = words(stored_.base + ".qweight");
    for (std::int64_t k = 0; k < K_; ++k)
      for (std::int64_t j = 0; j < N_ / 8; ++j) {
        const auto word =
            static_cast<std::uint32_t>(packed[static_cast<std::size_t>(k * (N_ / 8) + j)]);
        for (int p = 0; p < 8; ++p) put_code(8 * j + kOrder[p], k, word >> 4 * p);
      }
    transposed_groups(kOrder);
  }

  void gptq() {
    static constexpr int kOrder[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    const std::vector<std::int32_t> packed = words(stored_.base + ".qweight");
    for (std::int64_t j = 0; j < K_ / 8; ++j)
      for (std::int64_t n = 0; n < N_; ++n) {
        const auto word = static_cast<std::uint32_t>(packed[static_cast<std::size_t>(j * N_ + n)]);
        for (int p = 0; p < 8; ++p) put_code(n, 8 * j + p, word >> 4 * p);
      }
    transposed_groups(kOrder);
  }

  const TensorReader& reader_;
  const StoredMatrix& stored_;
  HostPlanes out_;
  std::int64_t N_, K_;
};

}  // namespace

HostPlanes read_stored_matrix(const TensorReader& reader, const StoredMatrix& stored,
                              const Shape& shape) {
  return Reading(reader, stored, shape).go();
}

}  // namespace lk
