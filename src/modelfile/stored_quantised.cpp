// What a folder says of its quantisation, and how each of its matrices is stored.
#include "modelfile/stored_quantised.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "io/json.h"

namespace lk {
namespace {

using Method = QuantisationConfig::Method;
using Layout = StoredMatrix::Layout;

constexpr const char* kLoadInstead =
    "load the model that it was made from (and let --base-precision nf4 quantise it)";

bool has_value(const Json& json, const char* key) {
  return json.contains(key) && !json.at(key).is_null();
}

// The companions of one matrix, checked.
class Companions {
 public:
  Companions(const TensorReader& reader, StoredMatrix& stored) : reader_(reader), stored_(stored) {}

  [[noreturn]] void refuse(const std::string& name, const std::string& rule) const {
    throw InputError(concat(reader_.path(), ": tensor ", name, ": ", rule));
  }
  bool has(const std::string& name) const { return reader_.has(name); }

  // A tensor of one of `types` with exactly `shape`.
  void expect(const std::string& name, std::initializer_list<const char*> types,
              const Shape& shape) {
    if (!has(name)) refuse(name, concat("is missing: ", stored_.base, " is quantised"));
    const std::string type = reader_.stored_type(name);
    if (std::none_of(types.begin(), types.end(), [&](const char* t) { return type == t; }))
      refuse(name, concat("is stored as ", type, ", ", *types.begin(), " is expected"));
    if (const Shape have = reader_.shape(name); !(have == shape))
      refuse(name, concat("has shape ", have, ", ", shape, " is expected"));
    stored_.names.push_back(name);
  }
  // A companion that is read by nobody: it scales activations.
  void accept(const std::string& name) {
    if (has(name)) stored_.names.push_back(name);
  }
  std::vector<float> floats(const std::string& name) const {
    const Shape shape = reader_.shape(name);
    std::vector<float> values(static_cast<std::size_t>(shape.numel()));
    reader_.read_rows(name, 0, shape.rows(), values.data());
    return values;
  }
  std::string text(const std::string& name) const {
    const Shape shape = reader_.shape(name);
    std::string text(static_cast<std::size_t>(shape.numel()), '\0');
    reader_.read_stored(name, 0, shape.rows(), reinterpret_cast<std::uint8_t*>(text.data()));
    return text;
  }
  const std::string& path() const { return reader_.path(); }

 private:
  const TensorReader& reader_;
  StoredMatrix& stored_;
};

std::int64_t element_bytes(const std::string& type) {
  if (type == "U8" || type == "I8") return 1;
  if (type == "BF16" || type == "F16") return 2;
  if (type == "F32") return 4;
  if (type == "F64") return 8;
  return 0;
}

RoundedTo rounding_of(const std::string& dtype, const std::string& where) {
  if (dtype == "bfloat16" || dtype == "BF16") return RoundedTo::BF16;
  if (dtype == "float16" || dtype == "F16") return RoundedTo::F16;
  if (dtype == "float32" || dtype == "F32") return RoundedTo::F32;
  throw InputError(concat(where, ": dtype ", dtype, " is not float32, float16 or bfloat16"));
}

// ---- bitsandbytes -----------------------------------------------------------------------------

// Checks codes of any storage type: bnb_4bit_quant_storage only names how bytes are counted.
void check_codes(Companions& c, const TensorReader& reader, const std::string& weight,
                 const Shape& shape) {
  const std::string type = reader.stored_type(weight);
  const Shape have = reader.shape(weight);
  const std::int64_t size = element_bytes(type), want = blocks_in(shape.numel(), 2);
  if (size == 0) c.refuse(weight, concat("is stored as ", type, ", no type of 4-bit codes"));
  if (have.numel() * size != want)
    c.refuse(weight, concat("holds ", have.numel() * size, " bytes of 4-bit codes, ", shape,
                            " takes ", want));
  if (have.rank() == 2 && have[0] == 1 && have[1] != 1)
    c.refuse(weight, concat("is stored as one row, an old form whose matrix is transposed: ",
                            kLoadInstead));
}

void find_bitsandbytes(Companions& c, const TensorReader& reader, const std::string& weight,
                       const Shape& shape, const std::string& state, StoredMatrix& stored) {
  static const std::vector<std::string> kKeys = {"quant_type",   "blocksize",        "dtype",
                                                 "shape",        "nested_blocksize", "nested_dtype",
                                                 "nested_offset"};
  const std::string where = concat(reader.path(), ": tensor ", state);
  if (reader.stored_type(state) != "U8") c.refuse(state, "is no text of bytes");
  if (reader.shape(state).numel() > 4096) c.refuse(state, "is longer than any quant_state");
  stored.names = {weight, state};
  const Json json = parse_json(c.text(state), where);
  if (!json.is_object()) c.refuse(state, "is no JSON object");
  for (const auto& [key, value] : json.items())
    if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end())
      c.refuse(state, concat(key, ": is unknown"));
  const std::string type = json_string(json, "quant_type", where);
  if (type != "nf4" && type != "fp4") c.refuse(state, concat("quant_type: ", type, " is not read"));
  if (!state.ends_with("bitsandbytes__" + type))
    c.refuse(state, concat("quant_type: ", type, " is not the name's"));
  QuantisedFormat& f = stored.format;
  f.encoding = type == "nf4" ? Encoding::Nf4 : Encoding::Fp4;
  f.block = json_int(json, "blocksize", 32, 4096, where);
  if ((f.block & (f.block - 1)) != 0)
    c.refuse(state, concat("blocksize: ", f.block, " is no power of two"));
  f.rounded = rounding_of(json_string(json, "dtype", where), where);
  const Json& dims = json_at(json, "shape", where);
  if (!(dims.is_array() && dims.size() == 2 && dims[0] == shape[0] && dims[1] == shape[1]))
    c.refuse(state, concat("shape: ", dims.dump().substr(0, 100), ", ", shape, " is asked for"));
  check_codes(c, reader, weight, shape);

  const std::int64_t n = blocks_in(shape.numel(), f.block);
  f.nested = reader.has(weight + ".nested_absmax") || has_value(json, "nested_blocksize") ||
             has_value(json, "nested_offset");
  c.expect(weight + ".absmax", {f.nested ? "U8" : "F32"}, {n});
  c.expect(weight + ".quant_map", {"F32"}, {16});
  const std::vector<float> map = c.floats(weight + ".quant_map");
  const std::array<float, 16>& own = codebook(f.encoding);
  for (std::size_t i = 0; i < 16; ++i)
    if (!(std::abs(map[i] - own[i]) <= 1e-7f))
      c.refuse(weight + ".quant_map", concat("value ", i, " is ", map[i], ", ", type, " has ",
                                             own[i], ": other code values are not read"));
  if (!f.nested) return;
  if (json_int(json, "nested_blocksize", 1, 4096, where) != kNestedBlock)
    c.refuse(state, "nested_blocksize: only 256 is read");
  if (json_string(json, "nested_dtype", where) != "float32")
    c.refuse(state, "nested_dtype: only float32 is read");
  stored.offset = static_cast<float>(json_number(json, "nested_offset", where));
  if (!std::isfinite(stored.offset)) c.refuse(state, "nested_offset: not a finite F32 number");
  c.expect(weight + ".nested_absmax", {"F32"}, {blocks_in(n, kNestedBlock)});
  c.expect(weight + ".nested_quant_map", {"F32"}, {256});
}

// ---- fp8 --------------------------------------------------------------------------------------

// Blocks follow from the grid of scales: one scale, one for each row, or one for each 128 x 128.
void find_fp8(Companions& c, const TensorReader& reader, const std::string& weight,
              const Shape& shape, StoredMatrix& stored) {
  stored.layout = Layout::Fp8;
  stored.names = {weight};
  if (!(reader.shape(weight) == shape))
    c.refuse(weight, concat("has shape ", reader.shape(weight), ", ", shape, " is asked for"));
  const bool inverse = reader.has(weight + "_scale_inv");
  const std::string scale = weight + (inverse ? "_scale_inv" : "_scale");
  if (inverse && reader.has(weight + "_scale")) c.refuse(scale, "stands beside another scale");
  if (!reader.has(scale))
    c.refuse(weight, concat("is FP8 without ", weight, "_scale_inv or _scale: ", kLoadInstead));
  const Shape grid = reader.shape(scale);
  QuantisedFormat& f = stored.format;
  f.encoding = Encoding::Fp8;
  if (grid.numel() == 1)
    f.scale_rows = shape[0], f.block = shape[1];
  else if (grid.numel() == shape[0] && (grid.rank() == 1 || grid == Shape{shape[0], 1}))
    f.scale_rows = 1, f.block = shape[1];
  else
    f.scale_rows = f.block = 128;
  const Shape blocks{blocks_in(shape[0], f.scale_rows), blocks_in(shape[1], f.block)};
  c.expect(scale, {"F32", "BF16", "F16", "F8_E8M0", "U8"}, f.block == 128 ? blocks : grid);
  // transformers multiplies in F32; compressed-tensors in the scale's own type.
  const std::string type = reader.stored_type(scale);
  if (!inverse && type != "F32") f.rounded = rounding_of(type, concat(reader.path(), ": ", scale));
  c.accept(stored.base + ".activation_scale"), c.accept(stored.base + ".input_scale");
}

// ---- 4-bit integers ---------------------------------------------------------------------------

std::int64_t group_of(Companions& c, const std::string& name, std::int64_t K, std::int64_t groups) {
  if (groups < 1 || K % groups != 0 || K / groups % 8 != 0)
    c.refuse(name, concat(groups, " groups do not divide ", K, " columns into multiples of 8"));
  return K / groups;
}

void find_pack_quantized(Companions& c, const TensorReader& reader, const Shape& shape,
                         StoredMatrix& stored) {
  const std::string& x = stored.base;
  const std::int64_t N = shape[0], K = shape[1];
  if (reader.stored_type(x + ".weight_packed") == "U8")
    c.refuse(x + ".weight_packed", concat("NVFP4 and MXFP4 are not read: ", kLoadInstead));
  stored.layout = Layout::PackQuantized;
  if (K % 8 != 0) c.refuse(x + ".weight_packed", concat(K, " columns are no multiple of 8"));
  c.expect(x + ".weight_packed", {"I32"}, {N, K / 8});
  if (!c.has(x + ".weight_scale")) c.refuse(x + ".weight_scale", "is missing");
  const Shape scales = reader.shape(x + ".weight_scale");
  stored.format.block = group_of(c, x + ".weight_scale", K, scales.cols());
  c.expect(x + ".weight_scale", {"BF16", "F16", "F32"}, {N, K / stored.format.block});
  c.expect(x + ".weight_shape", {"I64", "I32"}, {2});
  if (c.has(x + ".weight_g_idx"))
    c.refuse(x + ".weight_g_idx", concat("columns in another order are not read: ", kLoadInstead));
  if (c.has(x + ".weight_zero_point")) {
    if (N % 8 != 0) c.refuse(x + ".weight_zero_point", concat(N, " rows are no multiple of 8"));
    c.expect(x + ".weight_zero_point", {"I32"}, {N / 8, scales.cols()});
  }
  stored.format.rounded = rounding_of(reader.stored_type(x + ".weight_scale"), reader.path());
  c.accept(x + ".input_scale");
}

void find_awq_or_gptq(Companions& c, const TensorReader& reader, const Shape& shape,
                      const QuantisationConfig& config, StoredMatrix& stored) {
  const std::string& x = stored.base;
  const std::int64_t N = shape[0], K = shape[1];
  const bool awq = config.method == Method::Awq;
  if (!awq && config.method != Method::Gptq)
    c.refuse(x + ".qweight", "config.json does not say whether this is AWQ or GPTQ");
  stored.layout = awq ? Layout::Awq : Layout::Gptq;
  if (N % 8 != 0 || K % 8 != 0)
    c.refuse(x + ".qweight", concat(shape, " is no multiple of 8 each way"));
  if (awq)
    c.expect(x + ".qweight", {"I32"}, {K, N / 8});
  else
    c.expect(x + ".qweight", {"I32"}, {K / 8, N});
  if (!c.has(x + ".scales")) c.refuse(x + ".scales", "is missing");
  const std::int64_t groups = reader.shape(x + ".scales").rows();
  stored.format.block = group_of(c, x + ".scales", K, groups);
  c.expect(x + ".scales", {"F16", "BF16", "F32"}, {groups, N});
  c.expect(x + ".qzeros", {"I32"}, {groups, N / 8});
  stored.format.rounded = rounding_of(reader.stored_type(x + ".scales"), reader.path());
  stored.zero_shift = awq ? 0 : config.gptq_zero_shift;
  if (!c.has(x + ".g_idx")) return;
  c.expect(x + ".g_idx", {"I32"}, {K});
  std::vector<std::int32_t> order(static_cast<std::size_t>(K));
  reader.read_stored(x + ".g_idx", 0, 1, reinterpret_cast<std::uint8_t*>(order.data()));
  for (std::int64_t k = 0; k < K; ++k)
    if (order[static_cast<std::size_t>(k)] != k / stored.format.block)
      c.refuse(x + ".g_idx",
               concat("columns in another order (desc_act) are not read: ", kLoadInstead));
}

}  // namespace

QuantisationConfig parse_quantisation(const Json& config, const std::string& outer) {
  if (!has_value(config, "quantization_config")) return {};
  const Json& q = config.at("quantization_config");
  const std::string where = outer + ": quantization_config";
  if (!q.is_object()) throw InputError(where + ": not an object");
  auto refuse = [&](const std::string& what) {
    throw InputError(concat(where, ": ", what, ": ", kLoadInstead));
  };
  QuantisationConfig out;
  const bool four_bits = json_bool_or(q, "load_in_4bit", false, where) ||
                         json_bool_or(q, "_load_in_4bit", false, where);
  const std::string method =
      json_string_or(q, "quant_method", four_bits ? "bitsandbytes" : "", where);
  if (method == "bitsandbytes") {
    if (json_bool_or(q, "load_in_8bit", false, where) ||
        json_bool_or(q, "_load_in_8bit", false, where) || !four_bits)
      refuse("bitsandbytes in 8 bits (LLM.int8) is not read");
    out.method = Method::Bitsandbytes;
  } else if (method == "fp8") {
    if (const std::string fmt = json_string_or(q, "fmt", "e4m3", where); fmt != "e4m3")
      refuse(concat("fmt ", fmt, " is not read, only e4m3 is"));
    if (has_value(q, "weight_block_size") && q["weight_block_size"] != Json({128, 128}))
      refuse("weight_block_size: only [128, 128] is read");
    out.method = Method::Fp8;
  } else if (method == "compressed-tensors") {
    const std::string format = json_string_or(q, "format", "", where);
    if (format != "float-quantized" && format != "pack-quantized")
      refuse(concat("format '", format, "' is not read (float-quantized and pack-quantized are)"));
    const Json groups = q.value("config_groups", Json::object());
    for (const auto& [name, group] : groups.items()) {
      const Json weights = group.value("weights", Json::object());
      const std::int64_t bits = json_int_or(weights, "num_bits", 0, 0, 64, where);
      if (bits != (format == "float-quantized" ? 8 : 4))
        refuse(concat("config_groups.", name, ": weights of ", bits, " bits are not read"));
    }
    out.method = Method::CompressedTensors;
  } else if (method == "awq") {
    if (json_int_or(q, "bits", 4, 0, 64, where) != 4)
      refuse("AWQ of other than 4 bits is not read");
    const std::string version = json_string_or(q, "version", "gemm", where);
    if (version != "gemm" && version != "GEMM")
      refuse(concat("AWQ version ", version, " is not read, only gemm is"));
    out.method = Method::Awq;
  } else if (method == "gptq") {
    if (json_int_or(q, "bits", 4, 0, 64, where) != 4)
      refuse("GPTQ of other than 4 bits is not read");
    const std::string format = json_string_or(q, "checkpoint_format", "gptq", where);
    if (format != "gptq" && format != "gptq_v2")
      refuse(concat("checkpoint_format ", format, " is not read"));
    out.gptq_zero_shift = format == "gptq" ? 1 : 0;
    out.method = Method::Gptq;
  } else {
    refuse(concat("quant_method '", method,
                  "' is not read (bitsandbytes, fp8, compressed-tensors, "
                  "awq and gptq are)"));
  }
  return out;
}

std::optional<StoredMatrix> find_stored_matrix(const TensorReader& reader,
                                               const std::vector<std::string>& sorted_names,
                                               const std::string& weight, const Shape& shape,
                                               const QuantisationConfig& config) {
  constexpr std::string_view kWeight = ".weight";
  if (shape.rank() != 2 || !weight.ends_with(kWeight)) return std::nullopt;
  StoredMatrix stored;
  stored.base = weight.substr(0, weight.size() - kWeight.size());
  Companions c(reader, stored);
  const std::string prefix = weight + ".quant_state.";
  auto state = std::lower_bound(sorted_names.begin(), sorted_names.end(), prefix);
  const bool has_state = state != sorted_names.end() && state->starts_with(prefix);
  const bool packed = reader.has(stored.base + ".weight_packed"),
             groups = reader.has(stored.base + ".qweight");
  if (reader.has(stored.base + ".SCB"))
    c.refuse(stored.base + ".SCB",
             concat("8-bit weights of LLM.int8 are not read: ", kLoadInstead));
  if (has_state + packed + groups > 1) c.refuse(weight, "has companions of two ways of quantising");
  if (packed || groups) {
    if (reader.has(weight)) c.refuse(weight, "is there both dense and quantised");
    stored.format.encoding = Encoding::Int4;
    if (packed)
      find_pack_quantized(c, reader, shape, stored);
    else
      find_awq_or_gptq(c, reader, shape, config, stored);
    return stored;
  }
  if (!reader.has(weight)) return std::nullopt;  // missing: whoever asks says so
  if (has_state) {
    if (auto next = std::next(state); next != sorted_names.end() && next->starts_with(prefix))
      c.refuse(*next, concat("stands beside ", *state, ": two quant_states for one weight"));
    find_bitsandbytes(c, reader, weight, shape, *state, stored);
    return stored;
  }
  const std::string type = reader.stored_type(weight);
  if (type == "F8_E5M2") c.refuse(weight, concat("F8_E5M2 is not read: ", kLoadInstead));
  if (type != "F8_E4M3") return std::nullopt;
  find_fp8(c, reader, weight, shape, stored);
  return stored;
}

}  // namespace lk
