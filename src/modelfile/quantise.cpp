#include "modelfile/quantise.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace lk {
namespace {

constexpr std::int64_t kBlock = 64;
constexpr float kLargestE4m3 = 448;

// The index of the value nearest to x; `sorted` ascending. Midway goes to the lower one.
template <std::size_t N>
std::size_t nearest(const std::array<float, N>& sorted, float x) {
  const auto above = std::lower_bound(sorted.begin(), sorted.end(), x);
  if (above == sorted.begin()) return 0;
  if (above == sorted.end()) return N - 1;
  const auto i = static_cast<std::size_t>(above - sorted.begin());
  return x - sorted[i - 1] <= sorted[i] - x ? i - 1 : i;
}

// A codebook in ascending order, with the code of each value.
struct SortedBook {
  std::array<float, 15> midpoints;
  std::array<std::uint8_t, 16> codes;
  explicit SortedBook(const std::array<float, 16>& book) {
    std::iota(codes.begin(), codes.end(), std::uint8_t{0});
    std::stable_sort(codes.begin(), codes.end(), [&](auto a, auto b) { return book[a] < book[b]; });
    for (std::size_t i = 0; i < 15; ++i) midpoints[i] = (book[codes[i]] + book[codes[i + 1]]) / 2;
  }
  // The code nearest to x; midway the lower value's.
  std::uint8_t code(float x) const {
    int above = 0;
    for (float m : midpoints) above += x > m;
    return codes[static_cast<std::size_t>(above)];
  }
};

// Scales as codes of the dynamic map: see tensor/quantised.h.
void nest_scales(const std::vector<float>& scales, HostPlanes& out) {
  const std::array<float, 256> map = dynamic_map();
  std::memcpy(out.data<float>(Plane::Map), map.data(), sizeof map);
  double sum = 0;
  for (float s : scales) sum += static_cast<double>(s);
  out.offset =
      static_cast<float>(sum / static_cast<double>(std::max<std::size_t>(scales.size(), 1)));
  auto* codes = out.data<std::uint8_t>(Plane::Scales);
  const std::int64_t n = std::ssize(scales);
  for (std::int64_t first = 0; first < n; first += kNestedBlock) {
    const std::int64_t last = std::min(first + kNestedBlock, n);
    float most = 0;
    for (std::int64_t i = first; i < last; ++i)
      most = std::max(most, std::abs(scales[static_cast<std::size_t>(i)] - out.offset));
    out.data<float>(Plane::Outer)[first / kNestedBlock] = most;
    for (std::int64_t i = first; i < last; ++i) {
      const float centred = scales[static_cast<std::size_t>(i)] - out.offset;
      codes[i] = static_cast<std::uint8_t>(nearest(map, most > 0 ? centred * (1 / most) : 0.0f));
    }
  }
}

// Blocks [first, last) of the flattened matrix, whose values start at `values`.
void quantise_blocks(const SortedBook& book, const float* values, std::int64_t n,
                     std::int64_t first, std::vector<float>& scales, std::uint8_t* codes) {
  const std::int64_t n_blocks = blocks_in(n, kBlock);
#pragma omp parallel for schedule(static) if (n > 1 << 14)
  for (std::int64_t b = 0; b < n_blocks; ++b) {
    const std::int64_t begin = b * kBlock, end = std::min(begin + kBlock, n);
    float most = 0;
    for (std::int64_t i = begin; i < end; ++i) most = std::max(most, std::abs(values[i]));
    scales[static_cast<std::size_t>(first / kBlock + b)] = most;
    const float inverse = most > 0 ? 1 / most : 0;
    for (std::int64_t i = begin; i < end; ++i) {
      const unsigned code = book.code(values[i] * inverse);
      std::uint8_t& byte = codes[(first + i) / 2];  // blocks are whole bytes
      byte = static_cast<std::uint8_t>((first + i) % 2 ? byte | code : code << 4);
    }
  }
}

// Rows come in parts that need not be whole blocks: what is left of one part begins the next.
HostPlanes quantise_codebook(const QuantisedFormat& format, const Shape& shape, std::int64_t step,
                             const ReadRows& read) {
  HostPlanes out(format, shape);
  const SortedBook book(codebook(format.encoding));
  const std::int64_t N = shape[0], K = shape[1];
  std::vector<float> scales(static_cast<std::size_t>(blocks_in(N * K, kBlock))), values;
  std::int64_t done = 0;  // elements quantised so far
  for (std::int64_t begin = 0; begin < N; begin += step) {
    const std::int64_t end = std::min(begin + step, N), kept = std::ssize(values);
    values.resize(static_cast<std::size_t>(kept + (end - begin) * K));
    read(begin, end, values.data() + kept);
    const std::int64_t have = std::ssize(values);
    const std::int64_t use = end == N ? have : have / kBlock * kBlock;
    quantise_blocks(book, values.data(), use, done, scales, out.data<std::uint8_t>(Plane::Codes));
    values.erase(values.begin(), values.begin() + use);
    done += use;
  }
  nest_scales(scales, out);
  return out;
}

HostPlanes quantise_fp8(const QuantisedFormat& format, const Shape& shape, std::int64_t step,
                        const ReadRows& read) {
  HostPlanes out(format, shape);
  const std::int64_t N = shape[0], K = shape[1];
  std::vector<float> values;
  for (std::int64_t begin = 0; begin < N; begin += step) {
    const std::int64_t end = std::min(begin + step, N);
    values.resize(static_cast<std::size_t>((end - begin) * K));
    read(begin, end, values.data());
#pragma omp parallel for schedule(static) if ((end - begin) * K > 1 << 14)
    for (std::int64_t n = begin; n < end; ++n) {
      const float* row = values.data() + (n - begin) * K;
      float most = 0;
      for (std::int64_t k = 0; k < K; ++k) most = std::max(most, std::abs(row[k]));
      float scale = most / kLargestE4m3;
      if (scale == 0) scale = 1;  // a row of zeros, or of numbers so small that the scale is none
      out.data<float>(Plane::Scales)[n] = scale;
      for (std::int64_t k = 0; k < K; ++k)
        out.data<std::uint8_t>(Plane::Codes)[n * K + k] = float_to_e4m3(row[k] / scale);
    }
  }
  return out;
}

}  // namespace

HostPlanes::HostPlanes(const QuantisedFormat& f, const Shape& s) : format(f), shape(s) {
  for (std::size_t p = 0; p < kPlanes; ++p)
    planes[p].resize(static_cast<std::size_t>(f.plane(static_cast<Plane>(p), s).bytes()));
}

HostQuantised HostPlanes::view() const {
  HostQuantised view{format, shape, offset, {}};
  for (std::size_t p = 0; p < kPlanes; ++p) view.planes[p] = planes[p].data();
  return view;
}

QuantisedMatrix HostPlanes::upload(Backend& backend, const QuantisedFormat* held) const {
  QuantisedMatrix q{held ? *held : format, offset, {}};
  for (std::size_t p = 0; p < kPlanes; ++p) {
    if (planes[p].empty()) continue;
    const PlaneShape want = q.format.plane(static_cast<Plane>(p), shape);
    q.planes[p] = backend.empty(Tag::Weights, want.dtype, {want.rows, want.cols});
    std::vector<std::byte> repeated;  // the one scale, for each row
    while (std::ssize(repeated) < want.bytes() && std::ssize(planes[p]) < want.bytes())
      repeated.insert(repeated.end(), planes[p].begin(), planes[p].end());
    const std::vector<std::byte>& bytes = repeated.empty() ? planes[p] : repeated;
    backend.upload(q.planes[p], bytes.data(), bytes.size());
  }
  return q;
}

QuantisedFormat own_format(Encoding encoding, const Shape& shape) {
  if (encoding == Encoding::Fp8) return {Encoding::Fp8, nullptr, shape[1], 1};
  check(encoding == Encoding::Nf4 || encoding == Encoding::Fp4, "own_format: not an own encoding");
  return {encoding, nullptr, kBlock, 1, true};
}

HostPlanes quantise(Encoding encoding, const Shape& shape, std::int64_t step,
                    const ReadRows& read) {
  const QuantisedFormat format = own_format(encoding, shape);
  return encoding == Encoding::Fp8 ? quantise_fp8(format, shape, step, read)
                                   : quantise_codebook(format, shape, step, read);
}

// For each power of ten from 1e-6 to 1: the midpoints of 2^i equal intervals of [0.1, 1], with both
// signs; and 0 and 1.
std::array<float, 256> dynamic_map() {
  std::vector<float> all = {0.0f, 1.0f};
  for (int i = 0; i < 7; ++i) {
    const int n = 1 << i;
    const double power = std::pow(10.0, i - 6);
    auto boundary = [n](int j) {  // as torch.linspace: from the nearer end, rounded once
      const float step = (1.0f - 0.1f) / static_cast<float>(n);
      return j < (n + 1) / 2 ? std::fma(step, static_cast<float>(j), 0.1f)
                             : std::fma(-step, static_cast<float>(n - j), 1.0f);
    };
    for (int j = 0; j < n; ++j) {
      const float mean = (boundary(j) + boundary(j + 1)) / 2.0f;
      const auto value = static_cast<float>(power) * mean;
      all.push_back(value), all.push_back(-value);
    }
  }
  std::sort(all.begin(), all.end());
  std::array<float, 256> map{};
  std::copy(all.begin(), all.end(), map.begin());
  return map;
}

}  // namespace lk
