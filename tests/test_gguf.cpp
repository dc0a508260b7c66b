// GGUF: hostile files (the cases G), metadata of every type, and dequantisation equal to ggml's.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>

#include "harness.h"
#include "hostile.h"
#include "io/ggml_blocks.h"
#include "io/gguf.h"
#include "io/safetensors.h"
#include "tensor_file.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kGolden = std::string(LK_TEST_DATA) + "/golden/";

void refuses(const std::string& what, const std::string& bytes,
             std::initializer_list<std::string> parts) {
  refuses_file<GgufFile>(what, bytes, parts);
}
void refuses(const std::string& what, const GgufBuilder& b,
             std::initializer_list<std::string> parts) {
  refuses(what, b.bytes(), parts);
}
void accepts(const std::string& what, const GgufBuilder& b) {
  accepts_file<GgufFile>(what, b.bytes());
}
std::string text(const std::string& s) { return GgufBuilder::text(s); }

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;  // a NaN's payload is nobody's
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("gguf: a good file") {
  ScratchFolder folder;
  GgufFile f(folder.write("m.gguf", good_gguf().bytes()));
  CHECK(f.names() == std::vector<std::string>{"embd", "norm"});
  CHECK(f.shape("embd") == Shape{3, 2});
  CHECK(f.shape("norm") == Shape{4});
  CHECK(f.stored_type("norm") == "F32");
  CHECK(read_all(f, "embd") == std::vector<float>{1, 2, 3, 4, 5, 6});
  float row[2];
  f.read_rows("embd", 1, 2, row);
  CHECK(row[0] == 3);
  CHECK_THROWS_AS(f.read_rows("embd", 2, 4, row), Error);
  check_throws<InputError>("absent", {"m.gguf", "\"x\"", "missing"}, [&] { f.shape("x"); });
  CHECK(f.get_string("general.architecture") == "llama");
  CHECK(f.get_int("llama.block_count", 1, 100) == 2);
  CHECK(f.get_strings("tokenizer.ggml.tokens") == std::vector<std::string>{"a", "bc"});
  accepts("no tensors", GgufBuilder().u32("a", 1));
  accepts("nothing", GgufBuilder());
  GgufBuilder two = good_gguf();
  two.version = 2;
  accepts("version 2", two);
  accepts("another alignment", [] {
    GgufBuilder b;
    b.alignment = 8;
    b.u32("general.alignment", 8);
    b.tensor("a", {1}, 0, raw(1.f));
    return b.tensor("b", {1}, 0, raw(1.f));
  }());
}

TEST_CASE(
    "gguf: a model split over several files is read by its first, and a part that does not fit is "
    "named") {
  auto part = [](std::uint16_t no, std::uint16_t count, std::int32_t tensors) {
    GgufBuilder b;
    b.value("split.no", 2, raw(no)).value("split.count", 2, raw(count));
    return b.value("split.tensors.count", 5, raw(tensors));
  };
  const auto first =
      part(0, 3, 2).u32("llama.block_count", 2);  // no tensors: an option of the splitter
  const auto second = part(1, 3, 2).tensor("norm", {4}, 0, raw_floats({1, 2, 3, 4}));
  const auto third = part(2, 3, 2).tensor("embd", {2, 3}, 0, raw_floats({1, 2, 3, 4, 5, 6}));
  auto write = [&](const ScratchFolder& folder, const GgufBuilder& two) {
    folder.write("m-00003-of-00003.gguf", third.bytes());
    folder.write("m-00002-of-00003.gguf", two.bytes());
    return folder.write("m-00001-of-00003.gguf", first.bytes());
  };
  ScratchFolder folder;
  GgufFile f(write(folder, second));
  CHECK(f.names() == std::vector<std::string>{"embd", "norm"});
  CHECK(f.files().size() == 3);
  CHECK(f.shape("norm") == Shape{4});
  CHECK(read_all(f, "norm") == std::vector<float>{1, 2, 3, 4});
  CHECK(read_all(f, "embd") == std::vector<float>{1, 2, 3, 4, 5, 6});
  CHECK(f.has("embd"));
  CHECK_FALSE(f.has("x"));
  CHECK(f.get_int("llama.block_count", 1, 100) == 2);

  auto wrong = [](const std::string& path, std::initializer_list<std::string> says) {
    check_throws<InputError>(path, says, [&] { GgufFile opened(path); });
  };
  wrong(folder.file("m-00002-of-00003.gguf"), {"part 2 of 3", "-00001-of-00003.gguf"});
  wrong(folder.write("other.gguf", first.bytes()),
        {"other.gguf", "must end in -00001-of-00003.gguf"});
  ScratchFolder bad;
  wrong(write(bad, third), {"m-00002-of-00003.gguf", "part 3 of 3", "part 2 of 3 is expected"});
  wrong(write(bad, part(1, 3, 2)), {"split.tensors.count: 2", "hold 1"});
  wrong(write(bad, GgufBuilder()), {"m-00002-of-00003.gguf", "split.count: missing"});
  wrong(write(bad, part(1, 3, 2).tensor("embd", {1}, 0, raw(1.f))),
        {"m-00003-of-00003.gguf", "\"embd\"", "also in", "m-00002-of-00003.gguf"});
  std::filesystem::remove(bad.file("m-00002-of-00003.gguf"));
  wrong(bad.file("m-00001-of-00003.gguf"), {"m-00002-of-00003.gguf is missing"});
}

TEST_CASE("gguf: metadata of every type, as the gguf package writes it") {
  GgufFile f(kGolden + "io_blocks.gguf");
  const std::int64_t lo = INT64_MIN, hi = INT64_MAX;
  CHECK(f.get_int("golden.u8", lo, hi) == 255);
  CHECK(f.get_int("golden.i8", lo, hi) == -128);
  CHECK(f.get_int("golden.u16", lo, hi) == 65535);
  CHECK(f.get_int("golden.i16", lo, hi) == -32768);
  CHECK(f.get_int("golden.u32", lo, hi) == 4294967295);
  CHECK(f.get_int("golden.i32", lo, hi) == -2147483648LL);
  CHECK(f.get_int("golden.i64", lo, hi) == INT64_MIN);
  CHECK(f.get_float("golden.f32") == 0.1f);
  CHECK(f.get_float("golden.f64") == 0.1);
  CHECK(f.get_bool_or("golden.bool", false));
  CHECK(f.get_string("golden.string") == "grüße");
  CHECK(f.get_strings("golden.strings") == std::vector<std::string>{"", "a", "Ġthe", "日本"});
  CHECK(f.get_ints("golden.ints") == std::vector<std::int32_t>{1, -2, 3});
  CHECK(f.get_int_or("absent", -7, 0, 1) == -7);
  CHECK(f.get_float_or("absent", 0.25) == 0.25);
  CHECK(f.get_bool_or("absent", true));
  CHECK(f.get_string_or("absent", "d") == "d");
  CHECK(!f.has_key("absent"));
  auto refused = [&](std::initializer_list<std::string> parts, const std::function<void()>& g) {
    check_throws<InputError>("getter", parts, g);
  };
  const std::string file = "io_blocks.gguf: ";
  refused({file + "absent: missing"}, [&] { f.get_int("absent", 0, 1); });
  refused({file + "golden.u8: ", "between 0 and 254", "255"},
          [&] { f.get_int("golden.u8", 0, 254); });
  refused({file + "golden.u64: "}, [&] { f.get_int("golden.u64", 0, hi - 1); });
  refused({file + "golden.f32: ", "integer", "f32"}, [&] { f.get_int("golden.f32", lo, hi); });
  refused({file + "golden.string: ", "string"}, [&] { f.get_int("golden.string", lo, hi); });
  refused({file + "golden.bool: ", "bool"}, [&] { f.get_int_or("golden.bool", 0, lo, hi); });
  refused({file + "golden.ints: ", "array of i32"}, [&] { f.get_int("golden.ints", lo, hi); });
  refused({file + "golden.u8: ", "u8"}, [&] { f.get_float("golden.u8"); });
  refused({file + "golden.floats: ", "array of f32"}, [&] { f.get_float_or("golden.floats", 0); });
  refused({file + "golden.u8: "}, [&] { f.get_bool_or("golden.u8", true); });
  refused({file + "golden.u8: "}, [&] { f.get_string("golden.u8"); });
  refused({file + "golden.strings: "}, [&] { f.get_string_or("golden.strings", ""); });
  refused({file + "golden.string: ", "array of strings"}, [&] { f.get_strings("golden.string"); });
  refused({file + "golden.ints: "}, [&] { f.get_strings("golden.ints"); });
  refused({file + "golden.floats: "}, [&] { f.get_ints("golden.floats"); });
  refused({file + "golden.ints: "}, [&] { f.get_floats("golden.ints"); });
  refused({file + "golden.strings: "}, [&] { f.get_ints("golden.strings"); });
}

TEST_CASE("gguf: dequantised values are ggml's, bit for bit") {
  GgufFile f(kGolden + "io_blocks.gguf");
  SafetensorsFile expected(kGolden + "io_blocks.safetensors");
  REQUIRE(f.names() == expected.names());
  for (const std::string& name : f.names()) {
    INFO(name);
    REQUIRE(f.shape(name) == expected.shape(name));
    const std::vector<float> got = read_all(f, name), want = read_all(expected, name);
    CHECK(same_bits(got, want));
    // Row by row gives the same.
    const std::int64_t cols = f.shape(name).cols(), rows = f.shape(name).rows();
    std::vector<float> by_row(got.size());
    for (std::int64_t r = 0; r < rows; ++r) f.read_rows(name, r, r + 1, by_row.data() + r * cols);
    CHECK(same_bits(by_row, got));
  }
  CHECK(f.stored_type("q4_1.random") == "Q4_1");
  CHECK(f.stored_type("f16.every") == "F16");
  CHECK(f.stored_type("bf16.bits") == "BF16");
}

TEST_CASE("half to single: every half") {
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  std::vector<float> got(65536);
  decode_f16(reinterpret_cast<const std::uint8_t*>(halves.data()), 65536, got.data());
  for (int h = 0; h < 65536;
       ++h) {  // from the definition: sign, 5 bits of exponent, 10 of fraction
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    double want = exponent == 0    ? std::ldexp(fraction, -24)
                  : exponent != 31 ? std::ldexp(1024 + fraction, exponent - 25)
                  : fraction == 0  ? INFINITY
                                   : NAN;
    if (h & 0x8000) want = -want;
    const float value = got[static_cast<std::size_t>(h)];
    REQUIRE((std::isnan(want) ? std::isnan(value)
                              : value == want && std::signbit(value) == std::signbit(want)));
  }
}

TEST_CASE("G1-G4: the frame, counts and keys") {
  auto spoil = [](auto f) {
    GgufBuilder b = good_gguf();
    f(b);
    return b;
  };
  refuses("G1 empty", std::string(), {"not a GGUF file"});
  refuses("G1", spoil([](auto& b) { b.magic = "GGUG"; }), {"byte 0", "not a GGUF file"});
  refuses("G1 safetensors", good_safetensors(), {"not a GGUF file"});
  refuses("a pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
          {"git lfs pull"});
  for (std::uint32_t v : {0u, 1u, 4u, UINT32_MAX})
    refuses("G2", spoil([v](auto& b) { b.version = v; }),
            {"byte 4", "version " + std::to_string(v)});
  refuses("G2 swapped", spoil([](auto& b) { b.version = 0x03000000; }), {"byte 4", "big-endian"});
  for (std::uint64_t n :
       {UINT64_MAX, std::uint64_t{1} << 63, std::uint64_t{1} << 40, std::uint64_t{1} << 20}) {
    refuses("G3", spoil([n](auto& b) { b.n_tensors = n; }),
            {"byte 8", std::to_string(n), "tensors"});
    refuses("G3", spoil([n](auto& b) { b.n_values = n; }),
            {"byte 16", std::to_string(n), "values"});
  }
  refuses("one tensor too many", spoil([](auto& b) { ++b.n_tensors; }), {"byte"});
  refuses("one value too many", spoil([](auto& b) { ++b.n_values; }), {"byte"});
  GgufBuilder key;
  key.n_values = 1;
  for (std::uint64_t n : {UINT64_MAX, UINT64_MAX - 7, std::uint64_t{1000}}) {
    key.values = raw(n) + std::string(100, 'k');
    refuses("G4", key, {"byte 24", std::to_string(n)});
  }
  key.values = raw(std::uint64_t{0}) + raw(std::uint32_t{4}) + raw(1u) + std::string(32, '\0');
  refuses("G4 empty", key, {"byte 24", "empty key"});
  refuses("key over 64 KiB", GgufBuilder().u32(std::string(65536, 'k'), 1), {"byte 24", "65536"});
  refuses("key with a NUL", GgufBuilder().u32(std::string("a\0b", 3), 1), {"a\\x00b", "ASCII"});
  refuses("key with an escape sequence", GgufBuilder().u32("\x1b[2J", 1), {"\\x1b[2J", "ASCII"});
}

TEST_CASE("G5-G9: values") {
  refuses("G5 key", good_gguf().u32("llama.block_count", 3), {"llama.block_count", "twice"});
  refuses("G6", GgufBuilder().array("k", 9, 1, raw(4u) + raw(std::uint64_t{1}) + raw(1u)),
          {"\"k\"", "array of arrays"});
  for (std::uint64_t n :
       {std::uint64_t{1} << 62, UINT64_MAX, std::uint64_t{1} << 61, std::uint64_t{1} << 21})
    refuses("G7 strings", GgufBuilder().array("k", 8, n, std::string(64, '\0')),
            {"\"k\"", std::to_string(n)});
  for (std::uint64_t n : {std::uint64_t{1} << 62, UINT64_MAX, std::uint64_t{100}})
    for (std::uint32_t type : {0u, 1u, 2u, 3u, 4u, 5u, 6u, 7u, 10u, 11u, 12u})
      refuses("G7 numbers", GgufBuilder().array("k", type, n, std::string(64, '\0')),
              {"\"k\"", std::to_string(n)});
  refuses("string to the end of the file", GgufBuilder().value("k", 8, raw(std::uint64_t{1} << 30)),
          {"1073741824"});
  refuses("string in an array", GgufBuilder().array("k", 8, 2, text("a") + raw(UINT64_MAX)),
          {std::to_string(UINT64_MAX)});
  refuses("G8", GgufBuilder().value("k", 7, std::string(1, '\7')), {"\"k\"", "bool"});
  refuses("G8 array", GgufBuilder().array("k", 7, 3, std::string("\1\0\2", 3)), {"\"k\"", "bool"});
  for (std::uint32_t a : {0u, 13u, 1u << 31, 3u, UINT32_MAX})
    refuses("G9", good_gguf().u32("general.alignment", a),
            {"general.alignment", "power of two", std::to_string(a)});
  refuses("G9 type", good_gguf().value("general.alignment", 10, raw(std::uint64_t{32})),
          {"general.alignment", "u32"});
  refuses("G9 type", good_gguf().string("general.alignment", "32"), {"general.alignment", "u32"});
  refuses("G9 array", good_gguf().array("general.alignment", 4, 1, raw(32u)),
          {"general.alignment", "u32"});
  for (std::uint32_t type : {13u, 99u, UINT32_MAX})
    refuses("unknown type", GgufBuilder().value("k", type, std::string(64, '\0')),
            {"\"k\"", "type " + std::to_string(type)});
  refuses("unknown item type", GgufBuilder().array("k", 13, 1, std::string(64, '\0')),
          {"\"k\"", "type 13"});
  refuses("split", good_gguf().value("split.count", 2, raw(std::uint16_t{3})),
          {"split.no", "missing"});
}

TEST_CASE("G5, G10-G18: tensors") {
  auto one = [](const std::string& name, std::uint32_t n_dims, const std::vector<std::uint64_t>& ne,
                std::uint32_t type, std::uint64_t offset = 0, std::size_t data = 64) {
    GgufBuilder b;
    b.info(name, n_dims, ne, type, offset);
    b.data = std::string(data, '\0');
    return b;
  };
  accepts("good", one("w", 1, {16}, 0));
  refuses("G5 name", good_gguf().tensor("norm", {1}, 0, raw(1.f)), {"\"norm\"", "twice"});
  refuses("G10 64 bytes", one(std::string(64, 'n'), 1, {16}, 0), {"64 bytes", "63 allowed"});
  accepts("63 bytes", one(std::string(63, 'n'), 1, {16}, 0));
  refuses("G10 NUL", one(std::string("a\0b", 3), 1, {16}, 0), {"NUL"});
  refuses("G11", one("w", 0, {}, 0), {"\"w\"", "0 dimensions"});
  refuses("G11", one("w", 5, {1, 1, 1, 1, 1}, 0), {"\"w\"", "5 dimensions"});
  refuses("G11", one("w", UINT32_MAX, {1}, 0), {"\"w\"", "4294967295 dimensions"});
  for (std::uint64_t d :
       {std::uint64_t{0}, UINT64_MAX, std::uint64_t{INT64_MAX}, std::uint64_t{1} << 41}) {
    refuses("G12", one("w", 1, {d}, 0), {"\"w\"", "dimension 0 is " + std::to_string(d)});
    refuses("G12", one("w", 2, {16, d}, 0), {"\"w\"", "dimension 1 is " + std::to_string(d)});
  }
  const std::uint64_t k32 = std::uint64_t{1} << 32, k40 = std::uint64_t{1} << 40;
  refuses("G12", one("w", 2, {k32, k32}, 0), {"\"w\"", "not in the file"});
  refuses("G12", one("w", 2, {k32, k32}, 0, 0, 0), {"\"w\"", "not in the file"});
  refuses("G12", one("w", 4, {k40, k40, k40, k40}, 3), {"\"w\"", "not in the file"});
  refuses("G12", one("w", 2, {k40, k40 / 65536}, 0),
          {"\"w\"", "not in the file"});  // 2^64 values: 0 if it wrapped
  for (std::uint32_t type : {4u, 5u, 31u, 36u, 99u, UINT32_MAX})
    refuses("G13", one("w", 1, {32}, type), {"\"w\"", "unknown type " + std::to_string(type)});
  refuses("G14", one("w", 1, {31}, 3), {"\"w\"", "31 values", "blocks of 32", "Q4_1"});
  refuses("G14", one("w", 2, {16, 2}, 8), {"\"w\"", "16 values", "Q8_0"});
  refuses("G15 unaligned", one("w", 1, {8}, 0, 8), {"\"w\"", "starts at 8"});
  refuses("G15 gap", one("w", 1, {8}, 0, 32), {"\"w\"", "starts at 32"});
  refuses("G15 past the end", one("w", 1, {8}, 0, 1 << 20), {"\"w\"", "starts at 1048576"});
  refuses("G15 wraps", one("w", 1, {8}, 0, UINT64_MAX - 31),
          {"\"w\"", "starts at 1844674407370955"});
  GgufBuilder overlap = good_gguf();
  overlap.info("late", 1, {4}, 0, 0);
  refuses("G15 overlap", overlap, {"\"late\"", "starts at 0"});
  refuses("G16 padded size wraps", one("w", 1, {k40}, 0), {"\"w\"", "not in the file"});
  GgufBuilder sum;
  for (int i = 0; i < 8; ++i)
    sum.info("w" + std::to_string(i), 2, {k40, std::uint64_t{1} << 21}, 0, 0);
  refuses("G17 the sum wraps", sum, {"\"w0\"", "not in the file"});
  const std::string good = good_gguf().bytes();
  refuses("G18", good.substr(0, good.size() - 1), {"cut short"});
  refuses("tail", good + "x", {"something follows"});
}

TEST_CASE("gguf: types whose size we know but do not read") {
  ScratchFolder folder;
  GgufBuilder b;
  b.tensor("q", {256}, 16, std::string(66, '\1'));
  GgufFile f(folder.write("k.gguf", b.bytes()));
  CHECK(f.stored_type("q") == "IQ2_XXS");
  float v[256];
  check_throws<InputError>("IQ2_XXS", {"k.gguf", "\"q\"", "IQ2_XXS"},
                           [&] { f.read_rows("q", 0, 1, v); });
  check_throws<InputError>("IQ2_XXS", {"\"q\"", "IQ2_XXS", "Q4_K_M"},
                           [&] { f.check_readable("q"); });
}

TEST_CASE("I2: cut at every byte, grown by one") {
  ScratchFolder folder;
  const std::string good = good_gguf().bytes();
  REQUIRE_NOTHROW(GgufFile(folder.write("good", good)));
  for (std::size_t n = 0; n < good.size(); ++n) {
    INFO(n);
    const std::string path = folder.write("cut", good.substr(0, n));
    CHECK_THROWS_AS(GgufFile{path}, InputError);
  }
  const std::string path = folder.write("grown", good + std::string(1, '\0'));
  CHECK_THROWS_AS(GgufFile{path}, InputError);
}

TEST_CASE(
    "every byte of a small file set to every hostile value: an error or a file, never worse") {
  ScratchFolder folder;
  const std::string good = good_gguf().bytes();
  int accepted = 0;
  for (std::size_t i = 0; i < good.size(); ++i)
    for (int v : {0x00, 0x01, 0x7f, 0x80, 0xff}) {
      std::string bad = good;
      bad[i] = static_cast<char>(v);
      try {
        GgufFile f(folder.write("x", bad));
        for (const std::string& name : f.names())
          if (f.stored_type(name) == "F32") read_all(f, name);
        ++accepted;
      } catch (const InputError& e) {
        REQUIRE(std::string(e.what()).find(folder.path()) == 0);
      }
    }
  CHECK(accepted > 0);
}

TEST_CASE("I3: changed while it is read") {
  ScratchFolder folder;
  const std::string path = folder.write("m", good_gguf().bytes());
  GgufFile f(path);
  float v[6];
  std::filesystem::resize_file(path, good_gguf().bytes().size() - 32);
  check_throws<InputError>("cut", {path, "\"embd\""}, [&] { f.read_rows("embd", 0, 3, v); });
}

TEST_CASE("G7: a million strings, and no more, in time") {
  ScratchFolder folder;
  std::string items(std::size_t{8} << 20, '\0');
  const CpuClock clock;
  GgufFile f(folder.write("m", GgufBuilder().array("k", 8, std::uint64_t{1} << 20, items).bytes()));
  CHECK(f.get_strings("k").size() == std::size_t{1} << 20);
  CHECK(clock.within(4));
  refuses("in two arrays",
          GgufBuilder().array("k", 8, std::uint64_t{1} << 20, items).array("l", 8, 1, text("")),
          {"\"l\"", "at most 0"});
}
