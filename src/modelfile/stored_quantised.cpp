// How each matrix of a quantised folder is stored.
#include "modelfile/stored_quantised.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "io/json.h"

namespace lk {
namespace {

using Method = QuantisationConfig::Method;
using Layout = StoredMatrix::Layout;

constexpr std::string_view kWeight = ".weight";

bool has_value(const Json& json, const char* key) {
  return json.contains(key) && !json.at(key).is_null();
}

// The companions of one matrix, checked.
class Companions {
 public:
  Companions(const TensorReader& reader, StoredMatrix& stored) : reader_(reader), stored_(stored) {}

  [[noreturn]] void refuse(const std::string& name, const std::string& rule) const {
    throw InputError(concat(reader_.path_of(name), ": tensor ", name, ": ", rule));
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
  // Companions that scale what flows through, not the weight: nobody reads them.
  void accept_scales_of_activations() {
    for (const char* end : {"input_scale", "activation_scale", "output_scale", "input_zero_point",
                            "output_zero_point", "k_scale", "v_scale"})
      if (const std::string name = concat(stored_.base, ".", end); has(name))
        stored_.names.push_back(name);
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
  Shape shape(const std::string& name) const { return reader_.shape(name); }
  // Config names one of `methods`, or none.
  void expect_method(const std::string& name, const QuantisationConfig& config,
                     std::initializer_list<Method> methods) const {
    if (config.method == Method::None ||
        std::find(methods.begin(), methods.end(), config.method) != methods.end())
      return;
    refuse(name, concat("is quantised as ", method_name(*methods.begin()), " does it, but ",
                        config.file, "'s quant_method is ", method_name(config.method)));
  }

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
                       const Shape& shape, const std::string& state,
                       const QuantisationConfig& config, StoredMatrix& stored) {
  c.expect_method(weight, config, {Method::Bitsandbytes});
  static const std::vector<std::string> kKeys = {"quant_type",   "blocksize",        "dtype",
                                                 "shape",        "nested_blocksize", "nested_dtype",
                                                 "nested_offset"};
  const std::string where = concat(reader.path_of(state), ": tensor ", state);
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

// ---- scales -----------------------------------------------------------------------------------

// How many scales a matrix has, down and across.
Shape scale_grid(const SharedScale& share, const Shape& shape) {
  return {blocks_in(shape[0], share.rows == 0 ? shape[0] : share.rows),
          blocks_in(shape[1], share.cols == 0 ? shape[1] : share.cols)};
}

// A matrix has one scale, one for each row, or one for each 128 x 128: what config says, or else what
// the grid of scales fits.
SharedScale fp8_share(Companions& c, const std::string& scale, const Shape& shape,
                      const QuantisationConfig& config) {
  const Shape have = c.shape(scale);
  std::string expected;
  for (const SharedScale& share : {SharedScale{0, 0}, SharedScale{1, 0}, SharedScale{128, 128}}) {
    const bool said =
        std::find(config.scales.begin(), config.scales.end(), share) != config.scales.end();
    if (!said && !config.scales.empty()) continue;
    const Shape grid = scale_grid(share, shape);
    const bool flat = grid[1] == 1 && (have.rank() == 1 || grid[0] == 1);
    if (have == grid || (flat && have.numel() == grid[0])) return share;
    expected += concat(expected.empty() ? "" : " or ", grid, " for ", share.text());
  }
  c.refuse(scale,
           concat("has shape ", have, ", ", expected.empty() ? "none" : expected, " is expected"));
}

// The columns of a group, of which a row of K has `groups`: what config says, or else equal ones.
std::int64_t columns_of_group(Companions& c, const std::string& scale, std::int64_t K,
                              std::int64_t groups, const QuantisationConfig& config) {
  if (groups < 1 || (config.scales.empty() && K % groups != 0))
    c.refuse(scale, concat(groups, " groups do not divide ", K, " columns"));
  std::int64_t cols = config.scales.empty() ? K / groups : 0;
  std::string expected;
  for (const SharedScale& share : config.scales) {
    if (share.rows != 1) continue;
    const std::int64_t said = share.cols == 0 ? K : share.cols;
    if (blocks_in(K, said) == groups) cols = said;
    expected += concat(expected.empty() ? "" : " or ", said);
  }
  if (cols == 0)
    c.refuse(scale,
             concat("has ", groups, " groups for ", K, " columns, ", config.file,
                    " says groups of ", expected.empty() ? "no" : expected,
                    " columns; if the weights are right, write their group_size there, and "
                    "those of single modules as GPTQ's dynamic (a config that was saved again "
                    "may have lost them)"));
  if (K % cols != 0 || cols % 8 != 0)
    c.refuse(scale, concat("groups of ", cols, " columns do not divide ", K,
                           " columns into multiples of 8: ", kLoadInstead));
  return cols;
}

// ---- fp8 --------------------------------------------------------------------------------------

void find_fp8(Companions& c, const TensorReader& reader, const std::string& weight,
              const Shape& shape, const QuantisationConfig& config, StoredMatrix& stored) {
  c.expect_method(weight, config, {Method::Fp8, Method::CompressedTensors});
  stored.layout = Layout::Fp8;
  stored.names = {weight};
  if (!(reader.shape(weight) == shape))
    c.refuse(weight, concat("has shape ", reader.shape(weight), ", ", shape, " is asked for"));
  const bool inverse = reader.has(weight + "_scale_inv");
  const std::string scale = weight + (inverse ? "_scale_inv" : "_scale");
  if (inverse && reader.has(weight + "_scale")) c.refuse(scale, "stands beside another scale");
  if (!reader.has(scale))
    c.refuse(weight, concat("is FP8 without ", weight, "_scale_inv or _scale: ", kLoadInstead));
  const std::string type = reader.stored_type(scale);
  if (type == "U8" && !config.exponents)
    c.refuse(scale, "is stored as U8, but config.json's scale_fmt is not ue8m0");
  const SharedScale share = fp8_share(c, scale, shape, config);
  QuantisedFormat& f = stored.format;
  f.encoding = Encoding::Fp8;
  const bool one = reader.shape(scale).numel() == 1;
  f.scale_rows = one || share.rows == 0 ? shape[0] : share.rows;
  f.block = one || share.cols == 0 ? shape[1] : share.cols;
  c.expect(scale, {"F32", "BF16", "F16", "F8_E8M0", "U8"}, reader.shape(scale));
  // transformers multiplies in F32; compressed-tensors in the scale's own type.
  if (!inverse && type != "F32") f.rounded = rounding_of(type, concat(reader.path(), ": ", scale));
}

// ---- 4-bit integers ---------------------------------------------------------------------------

// compressed-tensors writes the matrix's sides beside its codes.
void check_sides(Companions& c, const TensorReader& reader, const std::string& name,
                 const Shape& shape) {
  c.expect(name, {"I64", "I32"}, {2});
  std::int64_t sides[2] = {};
  std::int32_t narrow[2] = {};
  const bool wide = reader.stored_type(name) == "I64";
  reader.read_stored(name, 0, 1,
                     reinterpret_cast<std::uint8_t*>(wide ? static_cast<void*>(sides) : narrow));
  if (!wide) std::copy(narrow, narrow + 2, sides);
  if (sides[0] != shape[0] || sides[1] != shape[1])
    c.refuse(name, concat("is ", sides[0], " x ", sides[1], ", ", shape, " is asked for"));
}

void find_pack_quantized(Companions& c, const TensorReader& reader, const Shape& shape,
                         const QuantisationConfig& config, StoredMatrix& stored) {
  const std::string& x = stored.base;
  const std::int64_t N = shape[0], K = shape[1];
  if (reader.stored_type(x + ".weight_packed") == "U8")
    c.refuse(x + ".weight_packed", concat("NVFP4 and MXFP4 are not read: ", kLoadInstead));
  c.expect_method(x + ".weight_packed", config, {Method::CompressedTensors});
  stored.layout = Layout::PackQuantized;
  if (K % 8 != 0) c.refuse(x + ".weight_packed", concat(K, " columns are no multiple of 8"));
  c.expect(x + ".weight_packed", {"I32"}, {N, K / 8});
  if (!c.has(x + ".weight_scale")) c.refuse(x + ".weight_scale", "is missing");
  const Shape scales = reader.shape(x + ".weight_scale");
  stored.format.block = columns_of_group(c, x + ".weight_scale", K, scales.cols(), config);
  c.expect(x + ".weight_scale", {"BF16", "F16", "F32"}, {N, K / stored.format.block});
  check_sides(c, reader, x + ".weight_shape", shape);
  if (c.has(x + ".weight_g_idx"))
    c.refuse(x + ".weight_g_idx", concat("columns in another order are not read: ", kLoadInstead));
  const std::optional<bool> zeros = config.has_zero_points(x);
  if (c.has(x + ".weight_zero_point")) {
    if (N % 8 != 0) c.refuse(x + ".weight_zero_point", concat(N, " rows are no multiple of 8"));
    c.expect(x + ".weight_zero_point", {"I32"}, {N / 8, scales.cols()});
    if (!zeros.value_or(true))
      c.refuse(x + ".weight_zero_point", "stands there, but config.json says symmetric: true");
  } else if (zeros.value_or(false)) {
    c.refuse(x + ".weight_zero_point", "is missing: config.json says symmetric: false");
  }
  stored.format.rounded = rounding_of(reader.stored_type(x + ".weight_scale"), reader.path());
}

// Where config says that codes are symmetric, all zeros are 8. Else one of the two is wrong: read as
// version 1 of GPTQ, the zeros of a file of version 2 are 9.
void check_symmetric(Companions& c, const TensorReader& reader, const QuantisationConfig& config,
                     const StoredMatrix& stored) {
  const std::string name = stored.base + ".qzeros";
  const Shape shape = reader.shape(name);
  std::vector<std::int32_t> words(static_cast<std::size_t>(shape.numel()));
  reader.read_stored(name, 0, shape.rows(), reinterpret_cast<std::uint8_t*>(words.data()));
  for (const std::int32_t word : words)
    for (int p = 0; p < 8; ++p)
      if (const std::uint32_t zero = stored.zeros(word) >> 4 * p & 15; zero != 8)
        c.refuse(name,
                 concat("has a zero point of ", zero, ", but ", config.where, ": ",
                        config.symmetric, ", which makes all of them 8",
                        stored.layout != Layout::Gptq ? ""
                        : config.gptq_zero_shift == 1 ? " (read as checkpoint_format gptq)"
                                                      : " (read as checkpoint_format gptq_v2)"));
}

void find_awq_or_gptq(Companions& c, const TensorReader& reader, const Shape& shape,
                      const QuantisationConfig& config, StoredMatrix& stored) {
  const std::string& x = stored.base;
  const std::int64_t N = shape[0], K = shape[1];
  const bool awq = config.method == Method::Awq;
  if (!awq && config.method != Method::Gptq)
    c.refuse(x + ".qweight", concat("is AWQ's or GPTQ's, but ", config.file, "'s quant_method is ",
                                    method_name(config.method)));
  stored.layout = awq ? Layout::Awq : Layout::Gptq;
  if (N % 8 != 0 || K % 8 != 0)
    c.refuse(x + ".qweight", concat(shape, " is no multiple of 8 each way"));
  if (awq)
    c.expect(x + ".qweight", {"I32"}, {K, N / 8});
  else
    c.expect(x + ".qweight", {"I32"}, {K / 8, N});
  if (!c.has(x + ".scales")) c.refuse(x + ".scales", "is missing");
  const std::int64_t groups = reader.shape(x + ".scales").rows();
  stored.format.block = columns_of_group(c, x + ".scales", K, groups, config);
  c.expect(x + ".scales", {"F16", "BF16", "F32"}, {groups, N});
  c.expect(x + ".qzeros", {"I32"}, {groups, N / 8});
  stored.format.rounded = rounding_of(reader.stored_type(x + ".scales"), reader.path());
  stored.zero_shift = awq ? 0 : config.gptq_zero_shift;
  if (!config.symmetric.empty()) check_symmetric(c, reader, config, stored);
  if (!c.has(x + ".g_idx")) {
    if (config.reordered)
      c.refuse(x + ".g_idx", concat("is missing: ", config.file, " says desc_act"));
    return;
  }
  c.expect(x + ".g_idx", {"I32"}, {K});
  std::vector<std::int32_t> order(static_cast<std::size_t>(K));
  reader.read_stored(x + ".g_idx", 0, 1, reinterpret_cast<std::uint8_t*>(order.data()));
  for (std::int64_t k = 0; k < K; ++k)
    if (order[static_cast<std::size_t>(k)] != k / stored.format.block)
      c.refuse(x + ".g_idx",
               concat("columns in another order (desc_act) are not read: ", kLoadInstead));
}

}  // namespace

std::optional<StoredMatrix> find_stored_matrix(const TensorReader& reader,
                                               const std::vector<std::string>& sorted_names,
                                               const std::string& weight, const Shape& shape,
                                               const QuantisationConfig& config) {
  if (shape.rank() != 2 || !weight.ends_with(kWeight)) return std::nullopt;
  StoredMatrix stored;
  stored.base = weight.substr(0, weight.size() - kWeight.size());
  Companions c(reader, stored);
  const std::string prefix = weight + ".quant_state.";
  auto state = std::lower_bound(sorted_names.begin(), sorted_names.end(), prefix);
  const bool has_state = state != sorted_names.end() && state->starts_with(prefix);
  const bool packed = reader.has(stored.base + ".weight_packed"),
             groups = reader.has(stored.base + ".qweight"), plain = reader.has(weight);
  if (reader.has(stored.base + ".SCB"))
    c.refuse(stored.base + ".SCB",
             concat("8-bit weights of LLM.int8 are not read: ", kLoadInstead));
  if (has_state + packed + groups > 1) c.refuse(weight, "has companions of two ways of quantising");
  if ((packed || groups) && plain) c.refuse(weight, "is there both dense and quantised");
  const std::string type = plain ? reader.stored_type(weight) : "";
  if (packed) {
    stored.format.encoding = Encoding::Int4;
    find_pack_quantized(c, reader, shape, config, stored);
  } else if (groups) {
    stored.format.encoding = Encoding::Int4;
    find_awq_or_gptq(c, reader, shape, config, stored);
  } else if (plain && has_state) {
    if (auto next = std::next(state); next != sorted_names.end() && next->starts_with(prefix))
      c.refuse(*next, concat("stands beside ", *state, ": two quant_states for one weight"));
    find_bitsandbytes(c, reader, weight, shape, *state, config, stored);
  } else if (type == "F8_E4M3") {
    find_fp8(c, reader, weight, shape, config, stored);
  } else if (type == "F8_E5M2") {
    c.refuse(weight, concat("F8_E5M2 is not read: ", kLoadInstead));
  }
  if (!stored.names.empty()) c.accept_scales_of_activations();
  if (stored.names.empty()) return std::nullopt;  // dense, or missing: whoever asks says so
  return stored;
}

void check_companions(const TensorReader& reader, const std::vector<std::string>& sorted_names,
                      const std::string& weight, const StoredMatrix* stored) {
  if (!weight.ends_with(kWeight)) return;
  const std::string x = weight.substr(0, weight.size() - kWeight.size() + 1);  // "X."
  for (auto at = std::lower_bound(sorted_names.begin(), sorted_names.end(), x);
       at != sorted_names.end() && at->starts_with(x); ++at) {
    if (*at == weight || *at == x + "bias") continue;
    if (stored && std::find(stored->names.begin(), stored->names.end(), *at) != stored->names.end())
      continue;
    throw InputError(
        concat(reader.path(), ": tensor ", *at,
               stored ? concat(": is unknown beside ", stored->names[0])
                      : ": is of no way of quantising that is read here for such a weight",
               ": ", kLoadInstead));
  }
}

}  // namespace lk
