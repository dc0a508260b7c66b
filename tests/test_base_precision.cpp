// Bases in fewer bits: pre-quantised folders against what their own packages make of them
// (golden/make_quantised_golden.py), our own quantising, and how matrices are chosen.
#include <filesystem>

#include <limits>
#include <map>

#include "cpu_ops.h"
#include "io/input_file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "modelfile/load.h"
#include "modelfile/quantise.h"
#include "modelfile/weight_hash.h"
#include "quantised_golden.h"
#include "scratch_folder.h"
#include "tensor/dense_scratch.h"
#include "tensor/quantised_kernels.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kGolden = std::string(LK_TEST_DATA) + "/golden/";
const std::string kQuantised = kGolden + "quantised/";

std::vector<float> all_of(const TensorReader& reader, const std::string& name) {
  const Shape shape = reader.shape(name);
  std::vector<float> values(static_cast<std::size_t>(shape.numel()));
  reader.read_rows(name, 0, shape.rows(), values.data());
  return values;
}

// What a device makes of a quantised weight, F32.
std::vector<float> dequantised(Backend& backend, const Weight& w) {
  Tensor to = backend.empty(Tag::Workspace, DType::F32, w.shape());
  backend.quantised_kernels()->dequantise(to, w);
  return to_host<float>(to);
}

std::int64_t differing(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  std::int64_t n = 0;
  for (std::size_t i = 0; i < a.size(); ++i) n += a[i] != b[i];
  return n;
}

}  // namespace

TEST_CASE("matrices of pre-quantised folders are what their packages dequantise, bit for bit") {
  const SafetensorsFile file(kQuantised + "formats.safetensors");
  const std::vector<std::string> names = file.names();
  int found = 0;
  for (const std::string& name : names) {
    if (!name.ends_with(".expected")) continue;
    const std::string base = name.substr(0, name.rfind('.'));
    CAPTURE(base);
    const Shape shape = file.shape(name);
    const auto stored = find_stored_matrix(file, names, base + ".weight", shape, config_for(base));
    REQUIRE(stored.has_value());
    const HostPlanes planes = read_stored_matrix(file, *stored, shape);
    std::vector<float> values(static_cast<std::size_t>(shape.numel()));
    dequantise_rows(planes.view(), 0, shape[0], values.data());
    CHECK(differing(values, all_of(file, name)) == 0);
    const Weight w("w", planes.upload(fast()), shape, DType::F32);
    CHECK(differing(dequantised(fast(), w), values) == 0);
    ++found;
  }
  CHECK(found == 40);
}

TEST_CASE("zeros of GPTQ's version 1 are put right by words, with the borrow of a zero of 0") {
  StoredMatrix stored;
  stored.zero_shift = 1;
  CHECK(stored.zeros(0x77777777) == 0x88888888u);
  CHECK(stored.zeros(0x7777776f) == 0x88888880u);
  CHECK(stored.zeros(static_cast<std::int32_t>(0xeeeeeeefu)) == 0);
}

TEST_CASE("a folder quantised by bitsandbytes loads tensor by tensor") {
  const ModelFile file(kQuantised + "bnb");
  const SafetensorsFile expected(kQuantised + "bnb.expected.safetensors");
  const LoadedModel held =
      load_weights(fast(), file, DType::F32, {.storage = {BasePrecision::Stored}, .hash = true});
  CHECK(held.sha256 == weights_sha256(held.weights));
  const LoadedModel dense = load_weights(fast(), file, DType::F32);
  int quantised = 0;
  std::map<std::string, const Weight*> all;
  visit_weights(dense.weights, [&](const Weight& w) { all[w.name()] = &w; });
  visit_weights(held.weights, [&](const Weight& w) {
    CAPTURE(w.name());
    const std::vector<float> want = to_host<float>(all.at(w.name())->values());
    CHECK((w.quantised() != nullptr) == expected.has(w.name()));
    if (!w.quantised()) {
      CHECK(to_host<float>(w.values()) == want);
      return;
    }
    ++quantised;
    CHECK(differing(want, all_of(expected, w.name())) == 0);
    CHECK(differing(dequantised(fast(), w), want) == 0);
  });
  CHECK(quantised == 12);
}

TEST_CASE("products with a quantised weight are those with its dense values") {
  const SafetensorsFile file(kQuantised + "formats.safetensors");
  const std::vector<std::string> names = file.names();
  for (const char* base : {"nf4_bfloat16_nested_192", "fp4_float32_plain_77", "fp8_bf16", "awq"}) {
    CAPTURE(base);
    const Shape shape = file.shape(std::string(base) + ".expected");
    const auto stored =
        find_stored_matrix(file, names, std::string(base) + ".weight", shape, config_for(base));
    REQUIRE(stored.has_value());
    const HostPlanes planes = read_stored_matrix(file, *stored, shape);
    for (const Subject& s : subjects()) {
      const Weight w("w", planes.upload(s.backend), shape, s.dtype);
      Tensor values = s.backend.empty(Tag::Workspace, s.dtype, shape);
      s.backend.quantised_kernels()->dequantise(values, w);
      Weight dense("w", values);
      const std::int64_t N = shape[0], K = shape[1];
      for (std::int64_t T : {70, 3}) {
        if (T == 3) s.backend.prepare_linear(dense);  // few rows have kernels of their own
        Tensor x = random_tensor(s.backend, s.dtype, {T, K}, 1),
               dy = random_tensor(s.backend, s.dtype, {T, N}, 2);
        Tensor y = s.backend.empty(Tag::Workspace, s.dtype, {T, N}),
               want_y = random_tensor(s.backend, s.dtype, {T, N}, 3);
        s.backend.linear_forward(y, x, w);
        s.backend.linear_forward(want_y, x, dense);
        CHECK(test::values(y) == test::values(want_y));
        Tensor dx = random_tensor(s.backend, s.dtype, {T, K}, 4),
               want_dx = random_tensor(s.backend, s.dtype, {T, K}, 4);
        s.backend.linear_backward_x(dx, GradMode::Add, dy, w);
        s.backend.linear_backward_x(want_dx, GradMode::Add, dy, dense);
        CHECK(test::values(dx) == test::values(want_dx));
        s.backend.matmul_nt(want_y, GradMode::Write, 1.0, x, values);
        const double u = unit_roundoff(s.dtype), sums = 0x1p-22 * static_cast<double>(K);
        check_close(test::values(y), test::values(want_y), 2 * u, {sums}, "the plain product");
      }
    }
  }
}

TEST_CASE("quantising by ourselves: bitsandbytes' map, and errors of at most half a step") {
  const SafetensorsFile file(kQuantised + "formats.safetensors");
  const std::vector<float> map = all_of(file, "many_scales.weight.nested_quant_map");
  const std::array<float, 256> own = dynamic_map();
  for (std::size_t i = 0; i < 256; ++i) CHECK(own[i] == map[i]);
  for (Encoding encoding : {Encoding::Nf4, Encoding::Fp4, Encoding::Fp8})
    for (const Shape& shape : {Shape{96, 192}, Shape{5, 77}, Shape{33, 200}}) {
      const std::vector<double> w = random_values(shape.numel(), 7, 0.02);
      const std::int64_t K = shape[1];
      const HostPlanes planes =
          quantise(encoding, shape, 4, [&](std::int64_t begin, std::int64_t end, float* dst) {
            for (std::int64_t i = begin * K; i < end * K; ++i)
              *dst++ = static_cast<float>(w[static_cast<std::size_t>(i)]);
          });
      std::vector<float> got(w.size());
      dequantise_rows(planes.view(), 0, shape[0], got.data());
      double error = 0, size = 0;
      for (std::size_t i = 0; i < w.size(); ++i) {
        error += (got[i] - w[i]) * (got[i] - w[i]), size += w[i] * w[i];
        if (encoding == Encoding::Fp8) {  // half a unit of three bits, or of the smallest code
          const double scale =
              planes.view().data<float>(Plane::Scales)[i / static_cast<std::size_t>(K)];
          CHECK(std::abs(got[i] - w[i]) <= std::abs(w[i]) / 16 * 1.001 + scale * 0x1p-10);
        }
      }
      const double relative = std::sqrt(error / size);
      CAPTURE(relative);
      CHECK(relative < (encoding == Encoding::Nf4   ? 0.1
                        : encoding == Encoding::Fp4 ? 0.135
                                                    : 0.03));
    }
}

TEST_CASE("numbers too small for a scale are quantised to finite ones as small") {
  for (Encoding encoding : {Encoding::Nf4, Encoding::Fp4, Encoding::Fp8}) {
    const HostPlanes planes =
        quantise(encoding, {1, 64}, 1, [](std::int64_t, std::int64_t, float* dst) {
          for (int i = 0; i < 64; ++i) dst[i] = i % 2 ? 0.0f : 1e-45f;
        });
    std::vector<float> got(64);
    dequantise_rows(planes.view(), 0, 1, got.data());
    for (float x : got) CHECK(std::abs(x) <= 1e-44f);
  }
}

TEST_CASE("a dense base is quantised as it is loaded, but for what is to stay dense") {
  const ModelFile file(kGolden + "peft/tiny");
  const LoadedModel model =
      load_weights(fast(), file, DType::F32,
                   {.storage = {BasePrecision::Nf4, {"down_proj", "layers.1.self_attn"}}});
  int quantised = 0;
  visit_weights(model.weights, [&](const Weight& w) {
    const bool wanted = w.shape().rank() == 2 && w.name().find("_proj") != std::string::npos &&
                        w.name().find("down_proj") == std::string::npos &&
                        w.name().find("layers.1.self_attn") == std::string::npos;
    CHECK((w.quantised() != nullptr) == wanted);
    quantised += wanted;
  });
  CHECK(quantised == 8);
  CHECK_THROWS_WITH_AS(held_formats(file, {BasePrecision::Stored}),
                       doctest::Contains("nothing quantised"), UsageError);
  CHECK_THROWS_WITH_AS(held_formats(file, {BasePrecision::Nf4, {"nowhere"}}),
                       doctest::Contains("no module"), UsageError);
  for (BasePrecision precision : {BasePrecision::Auto, BasePrecision::Dense})
    CHECK_THROWS_WITH_AS(held_formats(file, {precision, {"down_proj"}}),
                         doctest::Contains("`keep_dense` down_proj: without it nothing"),
                         UsageError);
  for (const char* name : {"norm", "embed_tokens"})  // stays dense anyhow, beside what doesn't too
    CHECK_THROWS_WITH_AS(held_formats(file, {BasePrecision::Nf4, {"down_proj", name}}),
                         doctest::Contains(name), UsageError);
  BaseStorage recorded{BasePrecision::Nf4, {"down_proj", "norm"}};  // by an adapter, in the past
  recorded.recorded = true;
  CHECK_NOTHROW(held_formats(file, recorded));
  CHECK_THROWS_WITH_AS(held_formats(file, {BasePrecision::Nf4, {"layers"}}),
                       doctest::Contains("leaves nothing"), UsageError);
  CHECK_THROWS_WITH_AS(held_formats(ModelFile(kQuantised + "bnb"), {BasePrecision::Nf4}),
                       doctest::Contains("already"), UsageError);
  CHECK_THROWS_WITH_AS(parse_base_precision("int8"), doctest::Contains("auto, dense"), UsageError);
}

namespace {

// A safetensors file of one matrix (2,64) that bitsandbytes quantised, with one thing changed.
struct Tampered {
  std::string state =
      R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [2, 64], )"
      R"("nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05})";
  std::string state_name = "quant_state.bitsandbytes__nf4";
  std::size_t codes = 64;
  float map_shift = 0, outer = 0.5f;
  std::map<std::string, std::string> more = {};  // name -> bytes, U8

  std::string write(const ScratchFolder& folder) const {
    struct Entry {
      std::string dtype, bytes;
    };
    auto floats = [](const std::vector<float>& v) {
      return std::string(reinterpret_cast<const char*>(v.data()), v.size() * 4);
    };
    std::vector<float> map(codebook(Encoding::Nf4).begin(), codebook(Encoding::Nf4).end());
    map[5] += map_shift;
    const std::array<float, 256> nested = dynamic_map();
    std::map<std::string, Entry> all = {
        {"x.weight", {"U8", std::string(codes, '\x5a')}},
        {"x.weight.absmax", {"U8", std::string(2, '\x80')}},
        {"x.weight.quant_map", {"F32", floats(map)}},
        {"x.weight.nested_absmax", {"F32", floats({outer})}},
        {"x.weight.nested_quant_map", {"F32", floats({nested.begin(), nested.end()})}},
        {"x.weight." + state_name, {"U8", state}}};
    for (const auto& [name, bytes] : more) all[name] = {"U8", bytes};
    std::string header = "{", data;
    for (const auto& [name, e] : all) {
      const std::size_t n = e.bytes.size() / (e.dtype == "F32" ? 4 : 1);
      header += concat(header.size() > 1 ? "," : "", "\"", name, "\":{\"dtype\":\"", e.dtype,
                       "\",\"shape\":[", n, name == "x.weight" ? ",1" : "", "],\"data_offsets\":[",
                       data.size(), ",", data.size() + e.bytes.size(), "]}");
      data += e.bytes;
    }
    header += "}";
    std::uint64_t length = header.size();
    return folder.write("x.safetensors",
                        std::string(reinterpret_cast<const char*>(&length), 8) + header + data);
  }
};

void check_refused(const char* what, const Tampered& t, const std::string& part) {
  ScratchFolder folder;
  const SafetensorsFile file(t.write(folder));
  CHECK_THROWS_WITH_AS(
      [&] {
        const auto stored = find_stored_matrix(file, file.names(), "x.weight", {2, 64},
                                               {QuantisationConfig::Method::Bitsandbytes});
        REQUIRE_MESSAGE(stored.has_value(), what);
        read_stored_matrix(file, *stored, {2, 64});
      }(),
      doctest::Contains(part.c_str()), InputError);
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  REQUIRE(text.find(from) != std::string::npos);
  return text.replace(text.find(from), from.size(), to);
}

}  // namespace

TEST_CASE("what does not fit in a quantised folder is refused, naming the tensor") {
  const Tampered good;
  {
    ScratchFolder folder;
    const SafetensorsFile file(good.write(folder));
    const auto stored = find_stored_matrix(file, file.names(), "x.weight", {2, 64}, {});
    REQUIRE(stored.has_value());
    CHECK_NOTHROW(read_stored_matrix(file, *stored, {2, 64}));
    CHECK(!find_stored_matrix(file, file.names(), "y.weight", {2, 64}, {}));
  }
  auto with_state = [&](const std::string& from, const std::string& to) {
    Tampered t;
    t.state = replaced(t.state, from, to);
    return t;
  };
  check_refused("shape", with_state("[2, 64]", "[64, 2]"), "quant_state.bitsandbytes__nf4: shape");
  check_refused("type", with_state("nf4", "nf3"), "quant_type: nf3");
  check_refused("name", with_state("nf4", "fp4"), "is not the name's");
  check_refused("block", with_state(": 64,", ": 96,"), "no power of two");
  check_refused("dtype", with_state("bfloat16", "int8"), "dtype int8");
  check_refused("key", with_state("\"blocksize\"", "\"zero\": 1, \"blocksize\""),
                "zero: is unknown");
  check_refused("json", with_state("}", ""), "quant_state");
  check_refused("nested", with_state(": 256", ": 128"), "nested_blocksize");
  check_refused("offset", with_state("0.05", "1e300"), "nested_offset");
  Tampered t;
  t.codes = 63;
  check_refused("bytes", t, "x.weight: holds 63 bytes");
  t = good, t.map_shift = 0.25f;
  check_refused("map", t, "x.weight.quant_map: value 5");
  t = good, t.outer = -1;
  check_refused("negative", t, "x.weight.nested_absmax: value 0 is -1");
  t = good, t.outer = std::numeric_limits<float>::infinity();
  check_refused("infinite", t, "x.weight.nested_absmax");
  t = with_state("bfloat16", "float16"), t.outer = 70000;
  check_refused("more than a half holds", t, "x.weight.nested_absmax: value 0 is 70000, too large");
  t = good, t.more["x.weight.quant_state.bitsandbytes__fp4"] = t.state;
  check_refused("two", t, "two quant_states");
  t = good, t.more["x.SCB"] = "1234";
  check_refused("int8", t, "x.SCB: 8-bit weights");
  t = good, t.more["x.qweight"] = "1234";
  check_refused("two ways", t, "two ways of quantising");
}

TEST_CASE("a folder is refused before a number is read: for a type, and a tensor of nobody") {
  const std::string tiny = kGolden + "peft/tiny/";
  auto refused = [](const std::string& config, const std::string& weights, const char* part) {
    const ScratchFolder folder;
    folder.write("config.json", config);
    folder.write("model.safetensors", weights);
    const ModelFile file(folder.path());
    CHECK_THROWS_WITH_AS(file.reader(), doctest::Contains(part), InputError);
  };
  const std::string config = read_file(tiny + "config.json", 1 << 20),
                    weights = read_file(tiny + "model.safetensors", 1 << 24);
  std::string integers = weights;
  const std::size_t at = integers.find("\"BF16\"", integers.find("layers.1.mlp.up_proj.weight"));
  refused(config, integers.replace(at, 6, "\"I16\" "), "up_proj.weight\": stored as I16");
  refused(replaced(config, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"), weights,
          "tensor model.layers.1.input_layernorm.weight is unknown");
}
