// Writing GGUF: bytes equal to the gguf package's, for the container and for every type's blocks.
#include <cmath>
#include <random>

#include "harness.h"
#include "hostile.h"
#include "io/ggml_blocks.h"
#include "io/gguf.h"
#include "io/gguf_write.h"
#include "io/safetensors.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kGolden = std::string(LK_TEST_DATA) + "/golden/io_written.gguf";

std::vector<std::uint8_t> encode(const GgmlEncoder& type, const std::vector<float>& x) {
  const auto n = std::ssize(x) / type.block_values;
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(n) * type.block_bytes);
  type.encode(x.data(), n, bytes.data());
  return bytes;
}

std::vector<float> counting(std::int64_t n) {
  std::vector<float> x(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  return x;
}

}  // namespace

TEST_CASE("the whole file is the gguf package's, byte for byte, in every type that we write") {
  GgufFile golden(kGolden);
  const Shape shape = golden.shape("x");
  std::vector<float> x(static_cast<std::size_t>(shape.numel()));
  golden.read_rows("x", 0, shape[0], x.data());

  const GgufWriter::Metadata metadata = {
      {"general.architecture", gguf_string("golden")},
      {"golden.u32", gguf_u32(7)},
      {"golden.f32", gguf_f32(0.1f)},
      {"golden.bool", gguf_bool(true)},
      {"golden.string", gguf_string("grüße")},
      {"golden.strings", gguf_strings({"", "a", "Ġthe", "日本"})},
      {"golden.ints", gguf_ints({1, -2, 3})},
  };
  std::vector<EncodedTensor> tensors = {{"x", shape, find_ggml_encoder("F32")}};
  for (const char* name : {"F16", "BF16", "Q8_0", "Q4_0", "Q4_1"}) {
    std::string lower(name);
    for (char& c : lower) c = static_cast<char>(std::tolower(c));
    tensors.push_back({"x." + lower, shape, find_ggml_encoder(name)});
  }
  const GgmlEncoder* f32 = find_ggml_encoder("F32");
  ScratchFolder folder;
  std::vector<EncodedTensor> all = tensors;
  all.push_back({"vector", Shape{5}, f32});
  all.push_back({"rank3", Shape{2, 3, 4}, f32});
  GgufWriter file(folder.file("f.gguf"), metadata, all);
  for (const EncodedTensor& t : tensors) {
    const std::vector<std::uint8_t> bytes = encode(*find_ggml_encoder(t.type->name), x);
    const std::size_t half = bytes.size() / 2 + 1;  // pieces need not be whole blocks
    file.append(bytes.data(), half);
    file.append(bytes.data() + half, bytes.size() - half);
  }
  file.append(counting(5).data(), 20);
  file.append(counting(24).data(), 96);
  file.commit();
  const std::string ours = slurp(folder.file("f.gguf")), theirs = slurp(kGolden);
  CHECK(ours.size() == GgufWriter::file_bytes(metadata, all));
  REQUIRE(ours.size() == theirs.size());
  const auto [a, b] = std::mismatch(ours.begin(), ours.end(), theirs.begin());
  CHECK_MESSAGE(a == ours.end(), "first difference at byte ", a - ours.begin());

  // And what was written can be read: the metadata too, to be written again.
  GgufFile back(folder.file("f.gguf"));
  CHECK(back.get_float("golden.f32") == doctest::Approx(0.1f));
  CHECK(back.metadata().size() == metadata.size());
  GgufWriter copy(folder.file("g.gguf"), back.metadata(), {});
  copy.commit();
  CHECK(GgufFile(folder.file("g.gguf")).get_strings("golden.strings").back() == "日本");
}

TEST_CASE(
    "every half survives the round trip, and what lies between goes to the nearest, ties to even") {
  for (std::uint32_t h = 0; h < 65536; ++h) {
    const auto half = static_cast<std::uint16_t>(h);
    float x = 0;
    decode_f16(reinterpret_cast<const std::uint8_t*>(&half), 1, &x);
    if (std::isnan(x)) {
      CHECK((float_to_half(x) & 0x7c00) == 0x7c00);
      CHECK((float_to_half(x) & 0x03ff) != 0);
      continue;
    }
    if (float_to_half(x) != half) FAIL_CHECK("half ", h, " came back as ", float_to_half(x));
    if ((h & 0x7fff) >= 0x7bff) continue;  // the next one would be infinity
    const auto next = static_cast<std::uint16_t>(half + 1);
    float y = 0;
    decode_f16(reinterpret_cast<const std::uint8_t*>(&next), 1, &y);
    const float middle = x / 2 + y / 2;
    const std::uint16_t even = h % 2 == 0 ? half : next;
    if (float_to_half(middle) != even) FAIL_CHECK("between ", h, " and the next");
    if (float_to_half(std::nextafter(middle, x)) != half) FAIL_CHECK("below the middle after ", h);
    if (float_to_half(std::nextafter(middle, y)) != next) FAIL_CHECK("above the middle after ", h);
  }
  CHECK(float_to_half(65519.0f) == 0x7bff);
  CHECK(float_to_half(65520.0f) == 0x7c00);
  CHECK(float_to_half(-1e30f) == 0xfc00);
}

TEST_CASE("blocks of any values keep within half a step of each, and constants are exact") {
  for (const char* name : {"Q8_0", "Q4_0", "Q4_1"}) {
    CAPTURE(name);
    const GgmlEncoder& type = *find_ggml_encoder(name);
    const GgmlType& reader = *find_ggml_type(type.id);
    CHECK(std::string(reader.name) == type.name);
    CHECK(reader.block_bytes == type.block_bytes);
    CHECK(reader.block_values == type.block_values);
    for (double scale : {1e-7, 1e-3, 1.0, 1000.0}) {
      std::vector<float> x;
      for (double v : random_values(32 * 50, 9, scale)) x.push_back(static_cast<float>(v));
      std::vector<float> back(x.size());
      reader.decode(encode(type, x).data(), 50, back.data());
      for (std::size_t b = 0; b < 50; ++b) {
        float low = 0, high = 0;
        for (std::size_t i = 32 * b; i < 32 * b + 32; ++i)
          low = std::min(low, x[i]), high = std::max(high, x[i]);
        const double largest = std::max(-low, high);
        // Steps: Q8_0 max/127; Q4_0 max/8, where the other sign ends one step early; Q4_1
        // range/15. The scale is rounded to a half: 2^-11 of it or, below 2^-14, 2^-25.
        const double step = std::string(name) == "Q8_0"   ? largest / 127
                            : std::string(name) == "Q4_0" ? largest / 8
                                                          : (high - low + 1e-30) / 15;
        const double steps = std::string(name) == "Q8_0" ? 127 : 16;
        const double bound =
            (std::string(name) == "Q4_0" ? 1.0 : 0.5) * step * 1.001 +
            steps * std::max(step * 0x1p-11, 0x1p-25) +
            (std::string(name) == "Q4_1" ? std::max(largest * 0x1p-11, 0x1p-25) : 0);
        for (std::size_t i = 32 * b; i < 32 * b + 32; ++i)
          if (std::abs(back[i] - x[i]) > bound)
            FAIL_CHECK("value ", x[i], " came back as ", back[i], ", bound ", bound);
      }
    }
    std::vector<float> zero(32, 0.0f), back(32, 1.0f);
    reader.decode(encode(type, zero).data(), 1, back.data());
    CHECK(back == zero);
  }
  CHECK(find_ggml_encoder("Q8_K") == nullptr);
}

TEST_CASE("bytes that do not add up, and names that occur twice, are refused and leave nothing") {
  ScratchFolder folder;
  const GgmlEncoder* f32 = find_ggml_encoder("F32");
  const std::vector<float> x = counting(4);
  {
    GgufWriter file(folder.file("f"), {}, {{"a", Shape{2}, f32}});
    CHECK_THROWS_AS(file.append(x.data(), 12), Error);
    file.append(x.data(), 4);
    CHECK_THROWS_WITH_AS(file.commit(), doctest::Contains("a is not complete"), Error);
  }
  CHECK_THROWS_AS(GgufWriter(folder.file("f"), {}, {{"a", Shape{2}, f32}, {"a", Shape{2}, f32}}),
                  Error);
  CHECK_THROWS_AS(GgufWriter(folder.file("f"), {{"k", gguf_u32(1)}, {"k", gguf_u32(1)}}, {}),
                  Error);
  CHECK_THROWS_AS(
      GgufWriter(folder.file("f"), {}, {{"a", Shape{2, 33}, find_ggml_encoder("Q4_0")}}), Error);
  {
    SafetensorsWriter file(folder.file("s"), {}, {{"a", Shape{2}, f32}});
    CHECK_THROWS_AS(file.append(x.data(), 12), Error);
    CHECK_THROWS_AS(file.commit(), Error);
  }
  CHECK_THROWS_AS(
      SafetensorsWriter(folder.file("s"), {}, {{"a", Shape{32}, find_ggml_encoder("Q4_0")}}),
      Error);
  CHECK(folder.names().empty());
}

namespace {

// The root of the mean squared error of `x` as `name` holds it, over the root of the mean square of x.
double relative_error(const char* name, const std::vector<float>& x) {
  const GgmlEncoder& type = *find_ggml_encoder(name);
  const GgmlType& reader = *find_ggml_type(type.id);
  REQUIRE(std::string(reader.name) == type.name);
  REQUIRE(reader.block_bytes == type.block_bytes);
  REQUIRE(reader.block_values == type.block_values);
  std::vector<float> back(x.size());
  reader.decode(encode(type, x).data(), std::ssize(x) / type.block_values, back.data());
  double error = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i)
    error += std::pow(double{back[i]} - x[i], 2), size += std::pow(double{x[i]}, 2);
  return std::sqrt(error / size);
}

}  // namespace

// Normal numbers, as weights are. A uniform quantiser of b bits over their range of about 5 sigma in a
// group of 32 has steps of 5 / 2^b sigma, and an error of step / sqrt(12).
TEST_CASE("more bits lose less, and K types less than plain ones of as many bits") {
  std::mt19937_64 rng(3);
  std::normal_distribution<float> normal;
  for (float size : {1e-3f, 1.0f, 300.0f}) {
    std::vector<float> x(256 * 64);
    for (float& v : x) v = size * normal(rng);
    auto error = [&](const char* name) { return relative_error(name, x); };
    CHECK(error("Q4_K") < 0.95 * error("Q4_0"));
    CHECK(error("Q4_K") < error("Q4_1"));
    CHECK(error("Q5_K") < 0.6 * error("Q4_K"));
    CHECK(error("Q5_0") < 0.6 * error("Q4_0"));
    CHECK(error("Q5_1") < 0.6 * error("Q4_1"));
    CHECK(error("Q6_K") < 0.6 * error("Q5_K"));
    CHECK(error("Q8_0") < 0.6 * error("Q6_K"));
    CHECK(error("Q3_K") < 0.22);
    CHECK(error("Q2_K") < 0.35);
    CHECK(error("Q4_K") < 0.09);
    CHECK(error("Q6_K") < 0.025);
  }
}

TEST_CASE("K types hold what lies on their grid, and odd groups do them no harm") {
  for (const char* name : {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}) {
    CAPTURE(name);
    const GgmlEncoder& type = *find_ggml_encoder(name);
    const GgmlType& reader = *find_ggml_type(type.id);
    auto round_trip = [&](const std::vector<float>& x) {
      std::vector<float> back(x.size(), 9);
      reader.decode(encode(type, x).data(), std::ssize(x) / 256, back.data());
      return back;
    };
    const std::vector<float> zero(256, 0.0f);
    CHECK(round_trip(zero) == zero);
    for (float same : {1.0f, -1.0f, 0.03f, -6e4f}) {
      const std::vector<float> back = round_trip(std::vector<float>(256, same));
      for (float v : back) CHECK(std::abs(v - same) < 0.002f * std::abs(same));
    }
    // One large value in a block of small ones, groups of zeros, only negative ones, tiny ones.
    std::vector<float> odd(1024);
    for (std::size_t i = 0; i < odd.size(); ++i) odd[i] = static_cast<float>(i % 7) * 1e-3f;
    odd[100] = 50;
    std::fill(odd.begin() + 256, odd.begin() + 300, 0.0f);
    for (std::size_t i = 512; i < 768; ++i) odd[i] = -0.1f - static_cast<float>(i % 5);
    for (std::size_t i = 768; i < 1024; ++i) odd[i] = 1e-9f * static_cast<float>(i % 3);
    for (float v : round_trip(odd)) CHECK(std::isfinite(v));
    const std::vector<float> back = round_trip(odd);
    CHECK(std::abs(back[100] - 50) < 2.0f);
    // What was encoded once is on the grid, nearly: a second round loses far less than the first.
    std::vector<float> x;
    for (double v : random_values(256 * 8, 4)) x.push_back(static_cast<float>(v));
    const std::vector<float> once = round_trip(x);
    CHECK(relative_error(name, once) < 0.35 * relative_error(name, x));
  }
}
