// What config.json says of a folder's quantisation. How a matrix is stored follows from its tensors
// (modelfile/stored_quantised.h); config says what they do not, and may not contradict them.
//
// As in Note [Obey or refuse] of lora/peft_config.h, a key that could change what the codes stand for
// is obeyed or refused by name. Keys that transformers, compressed-tensors, AutoAWQ, AutoGPTQ,
// GPTQModel and AutoRound write and that change no weight form closed lists; any other must be off.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/json_fwd.h"
#include "modelfile/path_pattern.h"
#include "tensor/quantised.h"

namespace lk {

// How many rows and columns of a matrix share a scale, 0: all of them.
struct SharedScale {
  std::int64_t rows = 0, cols = 0;
  bool operator==(const SharedScale&) const = default;
  std::string text() const;  // "1 row x 128 columns"
};

// A module that config says stays dense.
struct DenseModule {
  std::string key;  // of config
  std::string name;
  bool whole_path = false;
  std::optional<PathPattern> pattern = {};  // of a name that is an expression
  // Whether it names the module at `path`: by an expression that the path begins with, by its path or,
  // unless that must be whole, by one above it or by its last name. transformers 4 and 5 agree on
  // these and on no other parts of a path.
  bool names(const std::string& path) const;
};

// A target of one of compressed-tensors' groups: the path of a module, an expression that paths begin
// with ("re:..."), or a class of modules.
struct GroupTarget {
  std::string text;
  bool zero_points = false;  // whether the matrices that it names have some
  std::optional<PathPattern> pattern = {};
};

struct QuantisationConfig {
  enum class Method : std::uint8_t { None, Bitsandbytes, Fp8, CompressedTensors, Awq, Gptq };
  Method method = Method::None;
  int gptq_zero_shift = 1;  // what zeros are stored less by: 1 in version 1, 0 in version 2
  // AWQ and GPTQ: what config says if it makes all zero points 8, "sym is true"; else empty.
  std::string symmetric = {};
  bool reordered = false;  // GPTQ: g_idx alone tells which columns share a scale (desc_act)
  // compressed-tensors: whether each matrix of integers has zero points. Where the groups differ in
  // it, their targets tell, the most specific ones first.
  std::optional<bool> zero_points = {};
  std::vector<GroupTarget> targets = {};
  bool exponents = false;                // FP8 scales in U8 are powers of two
  std::vector<SharedScale> scales = {};  // one of these; empty: config does not say
  // What changes no number, but may not contradict the tensors (check_claims() in modelfile/model_file.cpp).
  std::vector<Encoding> encodings = {};  // one of these; empty: config does not say
  std::optional<bool> nested = {};       // bitsandbytes' scales are quantised too
  std::vector<DenseModule> dense = {};
  bool may_be_dense = true;          // as a whole
  std::string where = {};            // where all this is said, for messages
  std::string file = "config.json";  // its name

  // Whether the integers of this module have zero points: nothing if config does not say. Throws
  // InputError where groups differ and none names it.
  std::optional<bool> has_zero_points(const std::string& module) const;
};

const char* method_name(QuantisationConfig::Method method);

// What to do with a folder that is not read, for the end of a message.
inline constexpr const char* kLoadInstead =
    "load the model that it was made from (and let --base-precision nf4 quantise it)";
// The same for what MLX quantised.
inline constexpr const char* kNotMlx =
    "a model that MLX quantised, which is not read. Use the model that it was made from, or "
    "write it in full by mlx_lm.convert --dequantize";

// Reads `quantization_config`, refusing methods that are not read with what to load instead. Throws
// InputError.
QuantisationConfig parse_quantisation(const Json& config, const std::string& where);
// What AutoGPTQ or AutoAWQ wrote beside config.json, in quantize_config.json or quant_config.json: it counts where
// config.json says nothing and there are codes of theirs. Says nothing if there is neither; both are an InputError.
QuantisationConfig read_own_quantisation(const std::string& folder);

}  // namespace lk
