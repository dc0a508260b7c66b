// GPU against CPU: quantised matrices come out the same, bit for bit, and so do products with them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "io/ggml_blocks.h"
#include "io/safetensors.h"
#include "modelfile/quantise.h"
#include "parity.h"
#include "quantised_golden.h"
#include "tensor/cache_kernels.h"
#include "tensor/quantised_kernels.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kFormats = std::string(LK_TEST_DATA) + "/golden/quantised/formats.safetensors";

// ggml's types that training keeps in blocks, and where their halves lie.
struct Type {
  std::uint32_t id;
  std::vector<int> halves;
};
const std::vector<Type>& types() {
  static const std::vector<Type> all = {
      {2, {0}},     {3, {0, 2}},  {6, {0}},    {7, {0, 2}}, {8, {0}},  {10, {80, 82}}, {11, {108}},
      {12, {0, 2}}, {13, {0, 2}}, {14, {208}}, {20, {0}},   {23, {0}}, {39, {}}};
  return all;
}

std::vector<std::uint8_t> random_blocks(const Type& t, std::int64_t N, std::int64_t K,
                                        unsigned seed) {
  const GgmlType& type = *find_ggml_type(t.id);
  std::mt19937 rng(seed);
  std::vector<std::uint8_t> blocks(static_cast<std::size_t>(N * type.row_bytes(K)));
  for (std::uint8_t& b : blocks) b = static_cast<std::uint8_t>(rng());
  for (std::size_t at = 0; at < blocks.size(); at += type.block_bytes) {
    if (t.halves.empty()) blocks[at] = static_cast<std::uint8_t>(rng() % 200);  // an exponent
    for (int half : t.halves) {
      const auto bits = static_cast<std::uint16_t>((rng() % 0x3000) | (rng() % 2) << 15);
      std::memcpy(blocks.data() + at + static_cast<std::size_t>(half), &bits, sizeof bits);
    }
  }
  return blocks;
}

QuantisedMatrix upload(Backend& backend, const HostPlanes& planes) {
  return planes.upload(backend);
}

// Both devices' dense form of a matrix, in windows of several layouts; and looked up as a table.
void check_same(const std::string& what, const HostPlanes& planes) {
  const std::int64_t N = planes.shape[0], K = planes.shape[1];
  for (DType dtype : kDTypes) {
    const Weight there("w", upload(gpu(), planes), planes.shape, dtype),
        here("w", upload(oracle(), planes), planes.shape, dtype);
    for (Layout layout : {kContiguous, kStrided, kOdd}) {
      const std::vector<double> before(static_cast<std::size_t>(N * K), 3);
      Guarded a(gpu(), dtype, N, K, layout, before), b(oracle(), dtype, N, K, layout, before);
      gpu().quantised_kernels()->dequantise(a.matrix(), there);
      oracle().quantised_kernels()->dequantise(b.matrix(), here);
      a.values(what);  // looks at the guards
      CHECK_MESSAGE(a.bytes() == b.bytes(), what, " ", dtype_name(dtype), " pad ", layout.pad);
    }
    std::vector<std::int32_t> index = {static_cast<std::int32_t>(N - 1), 0,
                                       static_cast<std::int32_t>(N / 2), 0};
    Tensor y = gpu().empty(Tag::Workspace, dtype, {4, K}),
           want = oracle().empty(Tag::Workspace, dtype, {4, K});
    gpu().embedding_forward(y, there, to_device(gpu(), Tag::Workspace, index));
    oracle().embedding_forward(want, here, to_device(oracle(), Tag::Workspace, index));
    CHECK_MESSAGE(to_host_f64(y) == to_host_f64(want), what, ": as a table");
  }
}

HostPlanes blocks_of(const Type& t, std::int64_t N, std::int64_t K, unsigned seed) {
  HostPlanes planes(block_format(*find_ggml_type(t.id)), {N, K});
  const std::vector<std::uint8_t> raw = random_blocks(t, N, K, seed);
  std::memcpy(planes.data<std::uint8_t>(Plane::Codes), raw.data(), raw.size());
  return planes;
}

// The matrices of kFormats, by name.
std::vector<std::pair<std::string, HostPlanes>> pre_quantised() {
  std::vector<std::pair<std::string, HostPlanes>> all;
  const SafetensorsFile file(kFormats);
  const std::vector<std::string> names = file.names();
  for (const std::string& name : names) {
    if (!name.ends_with(".expected")) continue;
    const std::string base = name.substr(0, name.rfind('.'));
    const Shape shape = file.shape(name);
    const auto stored = find_stored_matrix(file, names, base + ".weight", shape, config_for(base));
    REQUIRE(stored.has_value());
    all.emplace_back(base, read_stored_matrix(file, *stored, shape));
  }
  return all;
}

}  // namespace

TEST_CASE("cuda: ggml's blocks are dequantised as on the CPU, bit for bit") {
  LK_NEEDS_GPU();
  for (const Type& t : types())
    for (auto [N, K] : {std::pair<std::int64_t, std::int64_t>{1, 256}, {7, 512}, {65, 2304}})
      check_same(concat(find_ggml_type(t.id)->name, " (", N, ",", K, ")"), blocks_of(t, N, K, 5));
  check_same("Q4_0 of 96 columns", blocks_of(types()[0], 5, 96, 2));
}

TEST_CASE("cuda: pre-quantised formats are dequantised as on the CPU, bit for bit") {
  LK_NEEDS_GPU();
  for (const auto& [what, planes] : pre_quantised()) check_same(what, planes);
}

TEST_CASE("cuda: products with a quantised weight are those with its dense values, bit for bit") {
  LK_NEEDS_GPU();
  const std::int64_t N = 320, K = 512;
  for (const Type& t : types()) {
    const HostPlanes planes = blocks_of(t, N, K, 8);
    for (DType dtype : kDTypes) {
      const Weight w("w", upload(gpu(), planes), {N, K}, dtype);
      Tensor values = gpu().empty(Tag::Workspace, dtype, {N, K});
      gpu().quantised_kernels()->dequantise(values, w);
      const Weight dense("w", values);
      for (std::int64_t T : {1, 5, 17, 32, 64, 200}) {
        Tensor x = random_tensor(gpu(), dtype, {T, K}, 1),
               dy = random_tensor(gpu(), dtype, {T, N}, 2);
        Tensor y = gpu().empty(Tag::Workspace, dtype, {T, N}),
               want = gpu().empty(Tag::Workspace, dtype, {T, N});
        gpu().linear_forward(y, x, w);
        gpu().linear_forward(want, x, dense);
        CHECK_MESSAGE(to_host_f64(y) == to_host_f64(want), find_ggml_type(t.id)->name, " T ", T);
        Tensor dx = random_tensor(gpu(), dtype, {T, K}, 3),
               want_dx = random_tensor(gpu(), dtype, {T, K}, 3);
        gpu().linear_backward_x(dx, GradMode::Add, dy, w);
        gpu().linear_backward_x(want_dx, GradMode::Add, dy, dense);
        CHECK_MESSAGE(to_host_f64(dx) == to_host_f64(want_dx), find_ggml_type(t.id)->name);
      }
    }
  }
}

// Parts of one format or of several, normed and added to, against the same parts with dense values: the
// same bits up to 512 columns, of which every warp has one turn; the F32 sums of more are grouped
// otherwise.
TEST_CASE("cuda: a few rows multiply codes as they lie as they do dense values") {
  LK_NEEDS_GPU();
  std::vector<std::pair<std::string, HostPlanes>> all = pre_quantised();
  for (const Type& t : types())
    all.emplace_back(find_ggml_type(t.id)->name, blocks_of(t, 37, 768, 8));
  int with_kernel = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto& [what, planes] = all[i];
    const std::int64_t K = planes.shape[1];
    // The same format again, and the next one where it is as wide.
    const HostPlanes* other = &all[(i + 1) % all.size()].second;
    if (other->shape[1] != K) other = &planes;
    auto weight = [&](const HostPlanes& p) {
      return Weight("w", upload(gpu(), p), p.shape, DType::BF16);
    };
    const std::vector<Weight> codes{weight(planes), weight(*other), weight(planes)};
    std::vector<Weight> dense;
    for (const Weight& w : codes) {
      Tensor values = gpu().empty(Tag::Workspace, DType::BF16, w.shape());
      gpu().quantised_kernels()->dequantise(values, w);
      dense.emplace_back("w", values);
    }
    const Weight gain("gain", random_tensor(gpu(), DType::BF16, {K}, 4));
    for (std::int64_t T : {1, 3, 9, 32})
      for (bool normed : {false, true}) {
        Tensor x = random_tensor(gpu(), DType::BF16, {T, K}, 1);
        auto products = [&](const std::vector<Weight>& weights) {
          MadeInput norm{&gain, 1e-5, gpu().empty(Tag::Workspace, DType::BF16, {T, K})};
          std::vector<LinearPart> parts;
          for (const Weight& w : weights)
            parts.push_back({gpu().empty(Tag::Workspace, DType::BF16, {T, w.shape()[0]}), &w});
          parts[1].addend = random_tensor(gpu(), DType::BF16, parts[1].y.shape(), 7);
          const bool done = gpu().cache_kernels()->linear_parts(x, normed ? &norm : nullptr, parts);
          with_kernel += done && weights[0].quantised();
          std::vector<std::vector<double>> y;
          for (const LinearPart& part : parts) y.push_back(to_host_f64(part.y));
          return done ? y : std::vector<std::vector<double>>();
        };
        const auto have = products(codes), want = products(dense);
        for (std::size_t part = 0; part < have.size(); ++part)
          for (std::size_t j = 0; j < have[part].size(); ++j)
            if (std::abs(have[part][j] - want[part][j]) >
                (K <= 512 ? 0 : 0x1p-7 * std::abs(want[part][j]) + 0x1p-14 * std::sqrt(K)))
              FAIL_CHECK(what, " T ", T, normed ? " normed" : "", " part ", part, " at ", j, ": ",
                         have[part][j], " instead of ", want[part][j]);
      }
  }
  CHECK(with_kernel >= 8 * 13);  // ggml's types at least
}

// One to four long rows against F64 sums of the dequantised values. Let S be the sum of |w x| of an element. A
// codebook's values are rounded to BF16 before they are scaled, at most 2^-9 S. Blocks are multiplied by x
// rounded to 2^-16 of the largest of 32: that is 4.5 deviations at most, or 5.6 times the mean of |x|, so at most
// 2^-16 * 5.6 S < 2^-13 S. All other operands are exact. An F32 sum of int4 codes carries the 128 that are
// added to each and taken off again, for codes of 1.5 on average: 85 times what counts, in 40 additions that
// are rounded, on half of the sum on average: 2^-24 * 85 * 40 / 2 S < 2^-13 S. The result is rounded to BF16 once.
// Where blocks meet a norm, x times the gain is rounded: the largest of those is 4.5 * 4.5 deviations, 32 times the
// mean, so 2^-11 S.
TEST_CASE("cuda: one to four rows multiply codes run by run as F64 does") {
  LK_NEEDS_GPU();
  struct Case {
    std::string what;
    HostPlanes planes;
  };
  std::vector<Case> all;
  for (const Type& t : types())
    for (std::int64_t K : {1024, 2304})
      all.push_back({concat(find_ggml_type(t.id)->name, " x ", K), blocks_of(t, 37, K, 8)});
  all.push_back({"MXFP4, its last chunk short", blocks_of(types().back(), 21, 1120, 8)});
  const auto random_codes = [&](const std::string& what, const QuantisedFormat& f, std::int64_t N,
                                std::int64_t K) {
    HostPlanes planes(f, {N, K});
    std::mt19937 rng(11);
    auto* codes = planes.data<std::uint8_t>(Plane::Codes);
    for (std::size_t i = 0; i < planes.bytes(Plane::Codes); ++i) {
      codes[i] = static_cast<std::uint8_t>(rng());
      if (f.encoding == Encoding::Fp8 && (codes[i] & 0x7f) == 0x7f) codes[i] ^= 1;
    }
    auto* scales = planes.data<float>(Plane::Scales);
    for (std::size_t i = 0; i < planes.bytes(Plane::Scales) / 4; ++i)
      scales[i] = 0.01f + 1e-4f * static_cast<float>(rng() % 100);
    auto* zeros = planes.data<std::uint8_t>(Plane::Zeros);
    for (std::size_t i = 0; i < planes.bytes(Plane::Zeros); ++i)
      zeros[i] = static_cast<std::uint8_t>(rng() % 16);
    all.push_back({concat(what, " x ", K), std::move(planes)});
  };
  for (std::int64_t K : {1024, 2304, 1120}) {
    std::mt19937 rng(3);
    std::normal_distribution<float> normal;
    for (Encoding e : {Encoding::Nf4, Encoding::Fp4, Encoding::Fp8})
      if (K % 64 == 0 || e == Encoding::Fp8)
        all.push_back({concat(own_format(e, {37, K}).name(), " quantised x ", K),
                       quantise(e, {37, K}, 8, [&](std::int64_t b, std::int64_t end, float* dst) {
                         for (std::int64_t i = 0; i < (end - b) * K; ++i) dst[i] = normal(rng);
                       })});
    random_codes("nf4 of 64", {.encoding = Encoding::Nf4, .block = 64}, 37, K);
    random_codes("fp8 of 128 x 128", {.encoding = Encoding::Fp8, .block = 128, .scale_rows = 128},
                 150, K);
    for (std::int64_t block : {32, 128})
      random_codes(concat("int4 of ", block), {.encoding = Encoding::Int4, .block = block}, 37, K);
  }
  // Several tiles and rounds for each of a GPU's blocks; and last chunks that are short.
  const auto blocks = [&](std::uint32_t id, std::int64_t N, std::int64_t K) {
    for (const Type& t : types())
      if (t.id == id)
        all.push_back({concat(find_ggml_type(id)->name, " ", N, " x ", K), blocks_of(t, N, K, 8)});
  };
  for (std::uint32_t id : {8u, 12u, 14u}) blocks(id, 18'000, 1024);
  blocks(12, 5'000, 4352);
  blocks(3, 37, 1152);
  blocks(7, 37, 1088);
  std::map<std::int64_t, Weight> gains;
  const auto gain = [&](std::int64_t K) -> const Weight& {
    const auto [at, added] = gains.try_emplace(K);
    if (added) at->second = Weight("gain", random_tensor(gpu(), DType::BF16, {K}, 4));
    return at->second;
  };
  for (const Case& c : all) {
    const std::int64_t N = c.planes.shape[0], K = c.planes.shape[1];
    const Encoding encoding = c.planes.format.encoding;
    const bool rounded = encoding == Encoding::Nf4 || encoding == Encoding::Fp4;
    std::vector<float> w(static_cast<std::size_t>(N * K));
    dequantise_rows(c.planes.view(), 0, N, w.data());
    const Weight codes("w", upload(gpu(), c.planes), c.planes.shape, DType::BF16);
    std::vector<double> first;
    for (std::int64_t T : {1, 2, 3, 4}) {
      Tensor x = random_tensor(gpu(), DType::BF16, {4, K}, 1).slice_rows(0, T);
      Tensor addend = random_tensor(gpu(), DType::BF16, {4, N}, 7).slice_rows(0, T);
      std::vector<LinearPart> parts{
          {gpu().empty(Tag::Workspace, DType::BF16, {T, N}), &codes, addend},
          {gpu().empty(Tag::Workspace, DType::BF16, {T, N}), &codes, {}}};
      REQUIRE(gpu().cache_kernels()->linear_parts(x, nullptr, parts));
      const std::vector<double> have = to_host_f64(parts[0].y), plain = to_host_f64(parts[1].y);
      // A row is normed or gated on the way: the bits are those of the row that it leaves, except
      // where blocks are normed.
      const auto make = [&](const MadeInput& input) {
        REQUIRE(gpu().cache_kernels()->linear_parts(x, &input, parts));
        std::vector<double> of_x = to_host_f64(parts[0].y);
        REQUIRE(gpu().cache_kernels()->linear_parts(input.made, nullptr, parts));
        if (encoding != Encoding::Blocks || input.gate)
          CHECK_MESSAGE(of_x == to_host_f64(parts[0].y), c.what, " T ", T,
                        input.gate ? " gated" : " normed");
        return of_x;
      };
      const MadeInput norm{&gain(K), 1e-5, gpu().empty(Tag::Workspace, DType::BF16, {T, K})};
      const std::vector<double> normed = make(norm);
      const Tensor gate = random_tensor(gpu(), DType::BF16, {4, K}, 5).slice_rows(0, T);
      const std::vector<double> gates = to_host_f64(gate), values = to_host_f64(x),
                                added = to_host_f64(addend),
                                gain_values = to_host_f64(norm.gain->values());
      for (Activation act : {Activation::Silu, Activation::Gelu}) {
        const MadeInput gated{nullptr, 0, gpu().empty(Tag::Workspace, DType::BF16, {T, K}), gate,
                              act};
        make(gated);
        const std::vector<double> made = to_host_f64(gated.made);
        for (std::size_t i = 0; i < made.size(); ++i) {
          const double g = gates[i],
                       z = act == Activation::Silu
                               ? g
                               : 2 * std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g),
                       exact = values[i] * g / (1 + std::exp(-z));
          if (!(std::abs(made[i] - exact) <= 0x1.02p-8 * std::abs(exact)))
            FAIL_CHECK(c.what, " gated, T ", T, ": ", made[i], " instead of ", exact);
        }
      }
      if (T == 1) first = have;
      for (std::size_t i = 0; i < first.size(); ++i)
        if (first[i] != have[i]) FAIL_CHECK(c.what, ": other bits in a row of ", T, " at ", i);
      for (std::int64_t m = 0; m < T; ++m) {
        double squares = 0;
        for (std::int64_t i = 0; i < K; ++i)
          squares += std::pow(values[static_cast<std::size_t>(m * K + i)], 2);
        const double factor = 1 / std::sqrt(squares / static_cast<double>(K) + norm.eps);
        for (std::int64_t r = 0; r < N; ++r) {
          double want = 0, size = 0, of_norm = 0, norm_size = 0;
          for (std::int64_t i = 0; i < K; ++i) {
            const double product = static_cast<double>(w[static_cast<std::size_t>(r * K + i)]) *
                                   values[static_cast<std::size_t>(m * K + i)],
                         scaled = product * factor * gain_values[static_cast<std::size_t>(i)];
            want += product, size += std::abs(product);
            of_norm += scaled, norm_size += std::abs(scaled);
          }
          const auto at = static_cast<std::size_t>(m * N + r);
          const auto near = [&](double y, double exact, double slack) {
            if (!(std::abs(y - exact) <= 0x1p-8 * std::abs(exact) + slack))
              FAIL_CHECK(c.what, " T ", T, " row ", r, ": ", y, " instead of ", exact);
          };
          const double slack = (rounded ? 0x1p-9 : 0x1p-13) * size;
          near(plain[at], want, slack);
          near(have[at], want + added[at], slack);
          if (encoding == Encoding::Blocks)
            near(normed[at], of_norm + added[at], 0x1p-11 * norm_size);
        }
      }
    }
  }
}

TEST_CASE("cuda: rows that are zero, tiny or not finite come out of blocks as such") {
  LK_NEEDS_GPU();
  constexpr std::int64_t N = 48, K = 2048;
  for (const Type& t : types()) {
    const char* name = find_ggml_type(t.id)->name;
    const HostPlanes planes = blocks_of(t, N, K, 8);
    const Weight codes("w", upload(gpu(), planes), planes.shape, DType::BF16);
    const Tensor addend = random_tensor(gpu(), DType::BF16, {1, N}, 7);
    const std::vector<double> added = to_host_f64(addend);
    const auto product = [&](const std::vector<float>& x) {
      const std::vector<bf16> rounded(x.begin(), x.end());
      const Tensor row = gpu().empty(Tag::Workspace, DType::BF16, {1, K});
      gpu().upload(row, rounded.data(), rounded.size() * sizeof(bf16));
      const std::vector<LinearPart> parts{
          {gpu().empty(Tag::Workspace, DType::BF16, {1, N}), &codes, addend}};
      REQUIRE(gpu().cache_kernels()->linear_parts(row, nullptr, parts));
      return to_host_f64(parts[0].y);
    };
    std::vector<float> x(K, 0.0f);
    CHECK_MESSAGE(product(x) == added, name, ": a row of zeros");
    for (std::int64_t i = 0; i < K; ++i) x[static_cast<std::size_t>(i)] = i % 2 ? 1e-35f : -1e-35f;
    CHECK_MESSAGE(product(x) == added, name, ": a tiny row");
    for (float bad : {INFINITY, -INFINITY, NAN}) {
      x[777] = bad;
      for (double y : product(x))
        if (std::isfinite(y)) FAIL_CHECK(name, ": ", y, " of ", bad);
    }
  }
}

TEST_CASE("cuda: parts of other types and heights share a norm") {
  LK_NEEDS_GPU();
  constexpr std::int64_t K = 1024;
  const auto type = [](std::uint32_t id) {
    const std::vector<Type>& all = types();
    return *std::find_if(all.begin(), all.end(), [&](const Type& t) { return t.id == id; });
  };
  const HostPlanes blocks[] = {blocks_of(type(12), 48, K, 8), blocks_of(type(12), 150, K, 9),
                               blocks_of(type(14), 37, K, 8)};
  const HostPlanes codes =
      quantise(Encoding::Nf4, {64, K}, 8, [&](auto begin, auto end, float* to) {
        for (std::int64_t i = 0; i < (end - begin) * K; ++i) to[i] = static_cast<float>(i % 7) - 3;
      });
  const auto weight = [](const HostPlanes& p) {
    return Weight("w", upload(gpu(), p), p.shape, DType::BF16);
  };
  const Weight a = weight(blocks[0]), b = weight(blocks[1]), c = weight(blocks[2]),
               d = weight(codes);
  const Weight gain("gain", random_tensor(gpu(), DType::BF16, {K}, 4));
  using Order = std::vector<const Weight*>;
  for (const Order& order : {Order{&a, &b}, {&a, &b, &c}, {&c, &d, &a}, {&d, &a, &b}})
    for (std::int64_t T : {1, 3}) {
      const Tensor x = random_tensor(gpu(), DType::BF16, {T, K}, 1);
      std::vector<LinearPart> parts;
      for (const Weight* w : order)
        parts.push_back({gpu().empty(Tag::Workspace, DType::BF16, {T, w->shape()[0]}), w});
      const MadeInput norm{&gain, 1e-5, gpu().empty(Tag::Workspace, DType::BF16, {T, K})};
      REQUIRE(gpu().cache_kernels()->linear_parts(x, &norm, parts));
      std::vector<std::vector<double>> have;
      for (const LinearPart& part : parts) have.push_back(to_host_f64(part.y));
      REQUIRE(gpu().cache_kernels()->linear_parts(norm.made, nullptr, parts));
      // Blocks that begin have multiplied the norm before it was rounded.
      bool begins = order[0] != &d;
      for (std::size_t i = 0; i < parts.size(); ++i) {
        begins =
            begins && order[i]->quantised()->format.blocks == order[0]->quantised()->format.blocks;
        const std::vector<double> of_made = to_host_f64(parts[i].y);
        if (!begins) {
          CHECK_MESSAGE(have[i] == of_made, "T ", T, " part ", i, " of ", order.size());
          continue;
        }
        // Rounding the norm changes each addend by up to 2^-8, by 2^-8.8 in the mean square: four deviations of
        // their sum. Both results are rounded.
        const Tensor dense = gpu().empty(Tag::Workspace, DType::BF16, order[i]->shape());
        gpu().quantised_kernels()->dequantise(dense, *order[i]);
        const std::vector<double> w = to_host_f64(dense), n = to_host_f64(norm.made);
        const std::int64_t N = order[i]->shape()[0];
        for (std::int64_t m = 0; m < T; ++m)
          for (std::int64_t r = 0; r < N; ++r) {
            double squares = 0;
            for (std::int64_t k = 0; k < K; ++k)
              squares += std::pow(
                  w[static_cast<std::size_t>(r * K + k)] * n[static_cast<std::size_t>(m * K + k)],
                  2);
            const auto at = static_cast<std::size_t>(m * N + r);
            const double bound =
                0x1p-7 * std::abs(of_made[at]) + 4 * 0x1.26p-9 * std::sqrt(squares);
            if (!(std::abs(have[i][at] - of_made[at]) <= bound))
              FAIL_CHECK("T ", T, " part ", i, ": ", have[i][at], " beside ", of_made[at]);
          }
      }
    }
}
