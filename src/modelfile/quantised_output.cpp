#include "modelfile/quantised_output.h"

#include "io/json.h"

namespace lk {
namespace {

constexpr std::size_t kLongestNumber = 24;  // of an F64 in JSON

std::string state_text(const QuantisedFormat& f, const Shape& shape, float offset) {
  return OrderedJson{{"quant_type", f.name()},
                     {"blocksize", f.block},
                     {"dtype", "float32"},
                     {"shape", {shape[0], shape[1]}},
                     {"nested_blocksize", kNestedBlock},
                     {"nested_dtype", "float32"},
                     {"nested_offset", static_cast<double>(offset)}}
      .dump();
}

// The file's header, which comes first, says how long the state is, while the offset that stands in
// it is known last: there is room for any offset, and for making the matrix's bytes a multiple of 8.
std::size_t state_bytes(const QuantisedFormat& f, const Shape& shape) {
  const auto others = static_cast<std::size_t>(f.plane(Plane::Codes, shape).bytes() +
                                               f.plane(Plane::Scales, shape).bytes());
  const std::size_t least = state_text(f, shape, 0).size() + kLongestNumber;
  return least + (8 - (others + least) % 8) % 8;
}

std::int64_t count(const QuantisedFormat& f, Plane plane, const Shape& shape) {
  const PlaneShape p = f.plane(plane, shape);
  return p.rows * p.cols;
}

OrderedJson bitsandbytes_config(const std::string& type, const std::string& dtype) {
  return {{"_load_in_4bit", true},
          {"_load_in_8bit", false},
          {"bnb_4bit_compute_dtype", dtype},
          {"bnb_4bit_quant_storage", "uint8"},
          {"bnb_4bit_quant_type", type},
          {"bnb_4bit_use_double_quant", true},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_has_fp16_weight", false},
          {"llm_int8_skip_modules", nullptr},
          {"llm_int8_threshold", 6.0},
          {"load_in_4bit", true},
          {"load_in_8bit", false},
          {"quant_method", "bitsandbytes"}};
}

// Weights alone are quantised: activations stay as they are.
OrderedJson compressed_tensors_config() {
  const OrderedJson weights = {{"num_bits", 8},
                               {"type", "float"},
                               {"symmetric", true},
                               {"strategy", "channel"},
                               {"dynamic", false}};
  const OrderedJson group = {{"targets", {"Linear"}},
                             {"weights", weights},
                             {"input_activations", nullptr},
                             {"output_activations", nullptr}};
  return {{"config_groups", {{"group_0", group}}},
          {"format", "float-quantized"},
          {"ignore", {"lm_head"}},
          {"kv_cache_scheme", nullptr},
          {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"}};
}

}  // namespace

TensorGroup quantised_tensors(const std::string& weight, const QuantisedFormat& f,
                              const Shape& shape) {
  const StorageType* f32 = find_ggml_encoder("F32");
  if (f.encoding == Encoding::Fp8)
    return {{weight + "_scale", {shape[0], 1}, f32}, {weight, shape, &kStoredE4m3}};
  const auto state = static_cast<std::int64_t>(state_bytes(f, shape));
  return {{weight + ".nested_absmax", {count(f, Plane::Outer, shape)}, f32},
          {weight + ".nested_quant_map", {count(f, Plane::Map, shape)}, f32},
          {weight + ".quant_map", {16}, f32},
          {weight, {count(f, Plane::Codes, shape), 1}, &kStoredBytes},
          {weight + ".absmax", {count(f, Plane::Scales, shape)}, &kStoredBytes},
          {weight + ".quant_state.bitsandbytes__" + f.name(), {state}, &kStoredBytes}};
}

void append_quantised(TensorWriter& file, const HostPlanes& planes) {
  const QuantisedFormat& f = planes.format;
  auto append = [&](Plane plane) {
    const auto& bytes = planes.planes[static_cast<std::size_t>(plane)];
    file.append(bytes.data(), bytes.size());
  };
  if (f.encoding == Encoding::Fp8) {
    append(Plane::Scales), append(Plane::Codes);
    return;
  }
  const std::array<float, 16>& book = codebook(f.encoding);
  std::string state = state_text(f, planes.shape, planes.offset);
  state.resize(state_bytes(f, planes.shape), ' ');
  append(Plane::Outer), append(Plane::Map);
  file.append(book.data(), sizeof book);
  append(Plane::Codes), append(Plane::Scales);
  file.append(state.data(), state.size());
}

OrderedJson quantisation_config(Encoding encoding, const std::string& dtype) {
  if (encoding == Encoding::Fp8) return compressed_tensors_config();
  return bitsandbytes_config(encoding == Encoding::Nf4 ? "nf4" : "fp4", dtype);
}

}  // namespace lk
