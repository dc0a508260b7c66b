// Quantised weights on the CPU: packing loses nothing, and products are off by no more than the
// rounding of activations to int8 allows.
#include <cstring>
#include <limits>

#include "cpu/fast/quantised_linear.h"
#include "cpu_ops.h"
#include "io/ggml_blocks.h"

using namespace lk;
using namespace lk::test;

namespace {

// A type that has kernels, where its halves lie in a block, and what bounds one value: at most
// |scale q| + |minimum| with halves of at most kLargest.
struct Type {
  std::uint32_t id;
  std::vector<int> halves;
  double scaled, minimum;
};
constexpr double kLargest = 0.125;
const std::vector<Type>& types() {
  static const std::vector<Type> all = {{2, {0}, 8, 0},
                                        {3, {0, 2}, 15, 1},
                                        {6, {0}, 16, 0},
                                        {7, {0, 2}, 31, 1},
                                        {8, {0}, 128, 0},
                                        {12, {0, 2}, 63 * 15, 63},
                                        {13, {0, 2}, 63 * 31, 63},
                                        {14, {208}, 128 * 32, 0}};
  return all;
}
// Larger than any value's |scale q| + |minimum|.
double largest_value(const Type& t) { return kLargest * (t.scaled + t.minimum); }

const GgmlType& ggml(const Type& t) { return *find_ggml_type(t.id); }

// Any bytes are quanta; halves are small numbers, subnormal ones among them.
std::vector<std::uint8_t> random_blocks(const Type& t, std::int64_t N, std::int64_t K,
                                        unsigned seed) {
  const GgmlType& type = ggml(t);
  std::mt19937 rng(seed);
  std::vector<std::uint8_t> blocks(static_cast<std::size_t>(N * type.row_bytes(K)));
  for (std::uint8_t& b : blocks) b = static_cast<std::uint8_t>(rng());
  for (std::size_t at = 0; at < blocks.size(); at += type.block_bytes)
    for (int half : t.halves) {
      // Exponents below that of 2^-3 = kLargest: bits 0x3000.
      const auto bits = static_cast<std::uint16_t>((rng() % 0x3000) | (rng() % 2) << 15);
      std::memcpy(blocks.data() + at + static_cast<std::size_t>(half), &bits, sizeof bits);
    }
  return blocks;
}

Weight quantised(Backend& backend, const Type& t, std::int64_t N, std::int64_t K, DType dtype,
                 const std::vector<std::uint8_t>& blocks) {
  Tensor tensor = backend.empty(Tag::Weights, DType::U8, {N, ggml(t).row_bytes(K)});
  backend.upload(tensor, blocks.data(), blocks.size());
  return Weight("w", of_blocks(tensor, ggml(t)), {N, K}, dtype);
}

std::vector<float> dequantised(const Type& t, std::int64_t N, std::int64_t K,
                               const std::vector<std::uint8_t>& blocks) {
  std::vector<float> w(static_cast<std::size_t>(N * K));
  ggml(t).decode(blocks.data(), N * K / ggml(t).block_values, w.data());
  return w;
}

// Multiples of a power of two with 127 times it in each block of 32: rounding to int8 changes none.
std::vector<double> round_values(std::int64_t M, std::int64_t K, unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<double> x(static_cast<std::size_t>(M * K));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double unit = std::ldexp(1.0, static_cast<int>(i / 32 * 7 % 5) - 8);
    x[i] = unit * (i % 32 == 5 ? 127 : static_cast<int>(rng() % 255) - 127);
  }
  return x;
}

// Sum over k of |w| times half a step of x's block, and of |x|, for each row of x and w.
struct Sizes {
  std::vector<double> half_steps, x;
};
Sizes sizes(const std::vector<float>& w, const std::vector<double>& x, std::int64_t M,
            std::int64_t N, std::int64_t K) {
  Sizes s;
  for (std::int64_t m = 0; m < M; ++m)
    for (std::int64_t n = 0; n < N; ++n) {
      double steps = 0, total = 0;
      for (std::int64_t b = 0; b < K; b += 32) {
        double top = 0, weights = 0;
        for (std::int64_t k = b; k < b + 32; ++k) {
          const double value = std::abs(x[static_cast<std::size_t>(m * K + k)]);
          top = std::max(top, value), total += value;
          weights += std::abs(w[static_cast<std::size_t>(n * K + k)]);
        }
        steps += weights * top / 254 * (1 + 1e-5);  // the scale and x / scale are rounded too
      }
      s.half_steps.push_back(steps), s.x.push_back(total);
    }
  return s;
}

// y = x wᵀ by one tile, against doubles. A float sum of n blocks with two terms each is off by at
// most (2 n + 4) * 2^-24 times the sum of the terms' sizes.
void check_product(const cpu::QuantisedTile& tile, const Type& t, std::int64_t M, std::int64_t N,
                   std::int64_t K, DType dtype, bool exact) {
  const auto blocks = random_blocks(t, N, K, 11 * t.id + static_cast<unsigned>(N));
  const std::vector<float> w = dequantised(t, N, K, blocks);
  Weight weight = quantised(fast(), t, N, K, dtype, blocks);
  cpu::QuantisedLinear linear(fast(), weight, &tile);
  Tensor x =
      padded(fast(), dtype, M, K, 3, exact ? round_values(M, K, 5) : random_values(M * K, 5, 2.0));
  Tensor y = padded(fast(), dtype, M, N, 5, 6);
  linear.forward(y, x);
  const std::vector<double> in = values(x);
  const Sizes size = sizes(w, in, M, N, K);
  std::vector<double> want, slack;
  for (std::int64_t m = 0; m < M; ++m)
    for (std::int64_t n = 0; n < N; ++n) {
      double dot = 0;
      for (std::int64_t k = 0; k < K; ++k)
        dot += in[static_cast<std::size_t>(m * K + k)] * w[static_cast<std::size_t>(n * K + k)];
      const std::size_t i = want.size();
      want.push_back(dot);
      slack.push_back((exact ? 0 : size.half_steps[i]) + (2.0 * static_cast<double>(K) / 32 + 4) *
                                                             0x1p-24 * largest_value(t) *
                                                             (exact ? 1 : 1.01) * size.x[i]);
    }
  check_close(values(y), want, unit_roundoff(dtype), slack,
              concat(tile.name, " ", ggml(t).name, " M ", M, " N ", N, " K ", K, " ",
                     dtype_name(dtype), exact ? " exact" : ""));
  CHECK(padding_intact(y));
}

bool no_tiles() { return cpu::quantised_tiles().empty(); }

}  // namespace

TEST_CASE("packed weights are what ggml dequantises, bit for bit") {
  if (no_tiles()) LK_SKIP("this processor has no kernels for quantised weights");
  for (const Type& t : types())
    for (std::int64_t N : {1, 16, 37}) {
      const std::int64_t K = 512;
      const auto blocks = random_blocks(t, N, K, t.id);
      const std::vector<float> want = dequantised(t, N, K, blocks);
      Weight raw = quantised(fast(), t, N, K, DType::F32, blocks), packed = raw;
      fast().prepare_linear(packed);
      REQUIRE(packed.packed() != nullptr);
      CHECK(!packed.has_values());
      std::vector<float> row(static_cast<std::size_t>(K));
      for (const Weight* w : {&raw, &packed})
        for (std::int64_t n = 0; n < N; ++n) {
          cpu::quantised_row(*w, n, row.data());
          CHECK_MESSAGE(std::memcmp(row.data(), want.data() + n * K, row.size() * 4) == 0,
                        ggml(t).name, " row ", n);
        }
    }
}

TEST_CASE("packing takes at most 3 % more memory where quanta keep their width") {
  if (no_tiles()) LK_SKIP("this processor has no kernels for quantised weights");
  for (const Type& t : types()) {
    if (t.id == 6 || t.id == 7 || t.id == 13 || t.id == 14) continue;  // 5 or 6 bits become 8
    const std::int64_t N = 64, K = 512;
    const auto before = fast().ledger()[Tag::Weights].live_bytes;
    Weight w = quantised(fast(), t, N, K, DType::F32, random_blocks(t, N, K, 1));
    const auto stored = fast().ledger()[Tag::Weights].live_bytes - before;
    fast().prepare_linear(w);
    CHECK(fast().ledger()[Tag::Weights].live_bytes - before <= stored * 1.03);
  }
}

TEST_CASE("products with activations of 8 bits are off by float rounding alone") {
  if (no_tiles()) LK_SKIP("this processor has no kernels for quantised weights");
  for (const cpu::QuantisedTile* tile : cpu::quantised_tiles())
    for (const Type& t : types()) {
      for (std::int64_t M : {1, 2, 3, 7, 8, 13})
        check_product(*tile, t, M, 37, 512, DType::F32, true);
      check_product(*tile, t, 300, 16, 768, DType::F32, true);
      check_product(*tile, t, 5, 300, 256, DType::BF16, true);
    }
}

TEST_CASE("products with any activations are off by half a step of their rounding") {
  if (no_tiles()) LK_SKIP("this processor has no kernels for quantised weights");
  for (const cpu::QuantisedTile* tile : cpu::quantised_tiles())
    for (const Type& t : types())
      for (DType dtype : {DType::F32, DType::BF16}) {
        check_product(*tile, t, 1, 70, 256, dtype, false);
        check_product(*tile, t, 9, 1, 1024, dtype, false);
      }
  const Type q4{2, {0}, 8, 0};
  check_product(*cpu::quantised_tiles().back(), q4, 3, 50, 96, DType::F32, false);
}

TEST_CASE("a token's product depends neither on its company nor on the instruction set") {
  if (no_tiles()) LK_SKIP("this processor has no kernels for quantised weights");
  const std::int64_t M = 23, N = 40, K = 256;
  for (const Type& t : types()) {
    Weight w = quantised(fast(), t, N, K, DType::F32, random_blocks(t, N, K, 3));
    Tensor x = random_tensor(fast(), DType::F32, {M, K}, 8);
    std::vector<std::vector<double>> results;
    for (const cpu::QuantisedTile* tile : cpu::quantised_tiles()) {
      cpu::QuantisedLinear linear(fast(), w, tile);
      Tensor together = fast().empty(Tag::Workspace, DType::F32, {M, N});
      Tensor alone = fast().empty(Tag::Workspace, DType::F32, {M, N});
      linear.forward(together, x);
      for (std::int64_t m = 0; m < M; ++m)
        linear.forward(alone.slice_rows(m, m + 1), x.slice_rows(m, m + 1));
      CHECK(values(alone) == values(together));
      results.push_back(values(together));
    }
    for (const auto& r : results) CHECK(r == results[0]);
  }
}

TEST_CASE("activations that are not finite stay so, zeros stay zero") {
  if (no_tiles()) LK_SKIP("this processor has no kernels for quantised weights");
  const std::int64_t N = 16, K = 256;
  for (const Type& t : types()) {
    Weight w = quantised(fast(), t, N, K, DType::F32, random_blocks(t, N, K, 4));
    fast().prepare_linear(w);
    std::vector<double> in(static_cast<std::size_t>(4 * K), 0.0);
    in[static_cast<std::size_t>(K + 3)] = std::numeric_limits<double>::quiet_NaN();
    in[static_cast<std::size_t>(2 * K + 200)] = -std::numeric_limits<double>::infinity();
    in[static_cast<std::size_t>(3 * K + 7)] = 1e-42;
    Tensor x = tensor_from(fast(), DType::F32, {4, K}, in);
    Tensor y = random_tensor(fast(), DType::F32, {4, N}, 1);
    fast().linear_forward(y, x, w);
    const std::vector<double> out = values(y);
    for (std::int64_t i = 0; i < 4 * N; ++i) {
      const double v = out[static_cast<std::size_t>(i)];
      if (i / N == 0 || i / N == 3) CHECK(v == 0);
      if (i / N == 1 || i / N == 2) CHECK(std::isnan(v));
    }
  }
}

TEST_CASE("the plain twin multiplies what ggml dequantises, in F64 without rounding") {
  const std::int64_t M = 3, N = 5, K = 256;
  for (const Type& t : types()) {
    const auto blocks = random_blocks(t, N, K, 6);
    const std::vector<float> w = dequantised(t, N, K, blocks);
    Weight weight = quantised(reference(), t, N, K, DType::F64, blocks);
    Weight dense("w", tensor_from(reference(), DType::F64, {N, K}, {w.begin(), w.end()}));
    reference().prepare_linear(weight);
    Tensor x = random_tensor(reference(), DType::F64, {M, K}, 9);
    Tensor y = reference().empty(Tag::Workspace, DType::F64, {M, N});
    Tensor want = reference().empty(Tag::Workspace, DType::F64, {M, N});
    reference().linear_forward(y, x, weight);
    reference().linear_forward(want, x, dense);
    CHECK(values(y) == values(want));
  }
}

TEST_CASE("embeddings are looked up exactly in quantised tables") {
  const std::int64_t V = 40, C = 256;
  for (const Type& t : types()) {
    const auto blocks = random_blocks(t, V, C, 7);
    const std::vector<float> w = dequantised(t, V, C, blocks);
    for (const Subject& s : subjects()) {
      Weight table = quantised(s.backend, t, V, C, s.dtype, blocks), packed = table;
      s.backend.prepare_linear(packed);
      const std::vector<std::int32_t> index = {39, 0, 17, 16, 39};
      Tensor ids = to_device(s.backend, Tag::Workspace, index);
      for (const Weight* each : {&table, &packed}) {
        Tensor y = padded(s.backend, s.dtype, 5, C, 2, 1);
        s.backend.embedding_forward(y, *each, ids);
        std::vector<double> want;
        for (std::int32_t id : index)
          for (std::int64_t c = 0; c < C; ++c) {
            const float v = w[static_cast<std::size_t>(id * C + c)];
            want.push_back(s.dtype == DType::BF16 ? static_cast<float>(bf16(v)) : v);
          }
        CHECK(values(y) == want);
        CHECK(padding_intact(y));
      }
    }
  }
}

TEST_CASE("rows outside and matrices of the wrong size are refused") {
  const Type q8{8, {0}, 128, 0};
  Weight w = quantised(fast(), q8, 16, 64, DType::F32, random_blocks(q8, 16, 64, 1));
  const std::vector<std::int32_t> outside = {16};
  Tensor y = fast().empty(Tag::Workspace, DType::F32, {1, 64});
  CHECK_THROWS_AS(fast().embedding_forward(y, w, to_device(fast(), Tag::Workspace, outside)),
                  Error);
  // A row is whole blocks.
  Tensor bytes = fast().empty(Tag::Workspace, DType::U8, {2, 34});
  CHECK_THROWS_AS(Weight("w", of_blocks(bytes, ggml(q8)), {2, 40}, DType::F32), Error);
  CHECK_THROWS_AS(Weight("w", of_blocks(bytes, ggml(q8)), {2, 64}, DType::F32), Error);
}
