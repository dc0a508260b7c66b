// Reads a ModelConfig from GGUF metadata. Keys: the ggml project's docs/gguf.md.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numbers>
#include <set>
#include <span>

#include "io/gguf.h"
#include "io/gguf_parse.h"
#include "modelfile/config.h"
#include "modelfile/family_files.h"
#include "nn/field_error.h"

namespace lk {
namespace {

// A file's metadata. Keeps which of its keys were asked for: whatever the others say is not known here.
class Metadata {
 public:
  explicit Metadata(const GgufFile& file) : file_(file) {}
  const GgufFile& file() const { return file_; }
  bool has_key(const std::string& key) const { return file_.has_key(asked(key)); }
  std::int64_t get_int(const std::string& key, std::int64_t min, std::int64_t max) const {
    return file_.get_int(asked(key), min, max);
  }
  std::int64_t get_int_or(const std::string& key, std::int64_t otherwise, std::int64_t min,
                          std::int64_t max) const {
    return file_.get_int_or(asked(key), otherwise, min, max);
  }
  double get_float(const std::string& key) const { return file_.get_float(asked(key)); }
  double get_float_or(const std::string& key, double otherwise) const {
    return file_.get_float_or(asked(key), otherwise);
  }
  bool get_bool_or(const std::string& key, bool otherwise) const {
    return file_.get_bool_or(asked(key), otherwise);
  }
  std::string get_string(const std::string& key) const { return file_.get_string(asked(key)); }
  std::string get_string_or(const std::string& key, const std::string& otherwise) const {
    return file_.get_string_or(asked(key), otherwise);
  }
  // Refuses keys of the architecture that nobody asked for, unless they begin like one of `inert`.
  void refuse_unknown(const std::string& prefix, std::span<const char* const> inert) const;

 private:
  const std::string& asked(const std::string& key) const { return *asked_.insert(key).first; }
  const GgufFile& file_;
  mutable std::set<std::string> asked_;
};

constexpr std::int64_t kAnyGgufInt = std::int64_t{1} << 40;  // validate() has the real bounds

template <class... Args>
[[noreturn]] void refuse(const GgufFile& file, const Args&... message) {
  throw InputError(concat(file.path(), ": ", message...));
}

template <class... Args>
[[noreturn]] void refuse(const Metadata& metadata, const Args&... message) {
  refuse(metadata.file(), message...);
}

void Metadata::refuse_unknown(const std::string& prefix, std::span<const char* const> inert) const {
  for (const auto& [key, _] : file_.metadata()) {
    if (!key.starts_with(prefix) || asked_.count(key)) continue;
    const std::string_view name = std::string_view(key).substr(prefix.size());
    if (std::none_of(inert.begin(), inert.end(),
                     [&](const char* i) { return name.starts_with(i); }))
      refuse(*this, key, ": unknown, and may change what the model computes");
  }
}

// What a file calls the fields of a ModelConfig, by Hugging Face's keys for them: a key of its metadata
// without the architecture, or a tensor that says it.
constexpr std::pair<std::string_view, const char*> kKeys[] = {
    {"hidden_size", "embedding_length"},
    {"intermediate_size", "feed_forward_length"},
    {"num_hidden_layers (layers)", "block_count"},
    {"num_attention_heads (query heads)", "attention.head_count"},
    {"num_key_value_heads (key/value heads)", "attention.head_count_kv"},
    {"head_dim", "attention.key_length"},
    {"max_position_embeddings (context)", "context_length"},
    {"layer_norm_epsilon", "attention.layer_norm_epsilon"},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon"},
    {"rope_theta", "rope.freq_base"},
    {"rope_local_base_freq", "rope.freq_base_swa"},
    {"rope_scaling", "rope.scaling.factor"},
    {"rope_scaling: factor", "rope.scaling.factor"},
    {"query_pre_attn_scalar", "embedding_length"},
    {"sliding_window", "attention.sliding_window"},
};
constexpr std::pair<std::string_view, const char*> kWholeNames[] = {
    {"vocab_size", "token_embd.weight (rows)"},
    {"rope factors", "rope_freqs.weight"},
    {"bos_token_id", "tokenizer.ggml.bos_token_id"},
    {"eos_token_id", "tokenizer.ggml.eos_token_id"},
};
constexpr const char* kOldRopeFactor = "rope.scale_linear";  // its name before it had a type

std::string key_in(const GgufFile& file, const std::string& prefix, const std::string& field) {
  for (const auto& [own, name] : kWholeNames)
    if (own == field) return name;
  // What follows from others, where the file has no key of its own for it.
  const std::string heads = "attention.head_count", width = "embedding_length";
  if (field == "head_dim" && !file.has_key(prefix + "attention.key_length"))
    return concat(prefix, width, " / ", prefix, heads);
  if (field == "q_proj rows (heads * head_dim)") return concat(prefix, heads, " * the head size");
  for (const auto& [own, name] : kKeys)
    if (own == field) {
      const bool old = !file.has_key(prefix + name) && file.has_key(prefix + kOldRopeFactor);
      return prefix +
             (old && std::string_view(name) == "rope.scaling.factor" ? kOldRopeFactor : name);
    }
  return field;
}

// validate(), whose errors then name the file's own keys.
void validate_as_stored(const ModelConfig& c, const GgufFile& file) {
  try {
    validate(c, file.path());
  } catch (const FieldError& e) {
    const std::string prefix = file.get_string("general.architecture") + ".";
    refuse(file, key_in(file, prefix, e.field), ": ", e.why);
  }
}

// GGUF stores reals as float32: 1e-5 comes back as 9.99999974e-06. Returns the shortest decimal
// number that rounds to that float32, which is what the author wrote.
double as_written(double stored) {
  float single = static_cast<float>(stored);
  if (!std::isfinite(single)) return stored;
  char text[64];
  auto end = std::to_chars(text, text + sizeof(text), single).ptr;
  double value = stored;
  std::from_chars(text, end, value);
  return value;
}

// Keys that change the maths of llama.cpp's graph and that this engine does not implement, each
// with the value that switches it off. See Note [Refuse, never default].
void refuse_unsupported(const Metadata& file, const std::string& prefix, const ModelConfig& c) {
  auto refuse_key = [&](const std::string& key) { refuse(file, key, ": not supported"); };
  struct Neutral {
    const char* key;
    double value;
  };
  static constexpr Neutral kReals[] = {
      {"logit_scale", 1},
      {"embedding_scale", 1},
      {"residual_scale", 1},
      {"attention.clamp_kqv", 0},
      {"attention.max_alibi_bias", 0},
      {"attn_logit_softcapping", 0},
      {"final_logit_softcapping", 0},
      {"rope.scaling.attn_factor", 1},
      {"rope.scaling.yarn_log_multiplier", 0},
      {"attention.temperature_scale", 0},
  };
  for (const Neutral& n : kReals)
    if (file.get_float_or(prefix + n.key, n.value) != n.value) refuse_key(prefix + n.key);
  // 0 (absent) means the family's own.
  double usual = 1 / std::sqrt(c.query_scale > 0 ? c.query_scale : static_cast<double>(c.head_dim));
  double scale = file.get_float_or(prefix + "attention.scale", 0);
  if (scale != 0 && std::abs(scale - usual) > 1e-6 * usual) refuse_key(prefix + "attention.scale");
  for (const char* key : {"expert_count", "expert_used_count", "pooling_type",
                          "interleave_moe_layer_step", "no_rope_layer_step", "nextn_predict_layers",
                          "attention.shared_kv_layers", "rescale_every_n_layers"})
    if (file.get_int_or(prefix + key, 0, 0, kAnyGgufInt) != 0) refuse_key(prefix + key);
  for (const char* key :
       {"rope.dimension_sections", "rope.scaling.alpha", "attention.output_scale"})
    if (file.has_key(prefix + key)) refuse_key(prefix + key);
  if (!file.get_bool_or(prefix + "attention.causal", true)) refuse_key(prefix + "attention.causal");
  if (file.get_bool_or(prefix + "use_parallel_residual", false))
    refuse_key(prefix + "use_parallel_residual");
  if (file.get_string_or(prefix + "tensor_data_layout", "").find("Meta") != std::string::npos)
    refuse_key(prefix + "tensor_data_layout");
}

// Reads which layers see a window of the last tokens only: all in LLaMA's architecture, which is
// Mistral's too; five of six in Gemma's; elsewhere no writer says which.
void read_window(const Metadata& file, const std::string& prefix, ModelConfig& c) {
  const std::string key = prefix + "attention.sliding_window";
  const bool gemma = c.architecture == "gemma3_text";
  std::int64_t window =
      gemma ? file.get_int(key, 1, kAnyGgufInt) : file.get_int_or(key, 0, 0, kAnyGgufInt);
  const std::string pattern_key = key + "_pattern";
  if (gemma) {
    const std::int64_t pattern = file.get_int_or(pattern_key, kGemmaPattern, 1, kAnyGgufInt);
    c.local_rope_theta =
        as_written(file.get_float_or(prefix + "rope.freq_base_swa", kGemmaLocalTheta));
    for (std::int64_t i = 0; i < c.n_layers; ++i) c.local.push_back((i + 1) % pattern != 0);
    c.window = window;
    return;
  }
  if (file.has_key(pattern_key)) refuse(file, pattern_key, ": not supported");
  if (window == 0) return;
  if (c.architecture == "llama") {
    apply_family(c, *find_family("mistral"));  // as Hugging Face names a LLaMA with a window
    c.window = window;
    c.local.assign(static_cast<std::size_t>(c.n_layers), 1);
  } else if (window < c.max_position) {
    refuse(file, key, ": ", window, " (context ", c.max_position, ") is not supported");
  }
}

RopeScaling read_scaling(const Metadata& file, const std::string& prefix) {
  RopeScaling s;
  const std::string key = prefix + "rope.scaling.type", factor = prefix + "rope.scaling.factor",
                    old = prefix + kOldRopeFactor;
  const std::string type = file.get_string_or(key, "linear");
  if (type != "linear" && type != "none")
    refuse(file, key, ": '", type, "' is not supported (none, linear are)");
  if (file.has_key(factor) && file.has_key(old)) refuse(file, old, ": beside ", factor);
  const bool has_factor = file.has_key(factor) || file.has_key(old);
  // As llama.cpp has it: a factor without a type is linear, and "none" never scales.
  if (type == "none" || !(has_factor || file.has_key(key))) return s;
  s.factor = as_written(file.get_float(file.has_key(old) ? old : factor));
  if (s.factor != 1) s.kind = RopeScaling::Kind::Linear;
  return s;
}

// The divisors that Llama 3.1's rule amounts to; see llama3_frequency in rope_table.cpp.
double llama3_factor(double frequency, const RopeScaling& s) {
  const double context = static_cast<double>(s.original_max_position);
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength > context / s.low_freq_factor) return s.factor;
  if (wavelength < context / s.high_freq_factor) return 1;
  double smooth =
      (context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return 1 / ((1 - smooth) / s.factor + smooth);
}

// Llama 3.1 and 3.2 publish the rule, their GGUF files only its factors. With the rule back,
// frequencies are the original's to the last bit and config.json can be written.
void recognise_llama3(ModelConfig& c) {
  for (double factor : {8.0, 32.0}) {
    RopeScaling rule{RopeScaling::Kind::Llama3, factor, 1, 4, 8192, {}};
    bool same = true;
    for (std::size_t i = 0; i < c.rope_scaling.factors.size(); ++i) {
      double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(c.head_dim);
      double expected = llama3_factor(std::pow(c.rope_theta, exponent), rule);
      same &= std::abs(c.rope_scaling.factors[i] - expected) <= 1e-5 * expected;
    }
    if (same) {
      c.rope_scaling = rule;
      return;
    }
  }
}

void read_rope_factors(const GgufFile& file, ModelConfig& c) {
  static const char* kName = "rope_freqs.weight";
  if (!file.has(kName)) return;
  if (c.rope_scaling.kind != RopeScaling::Kind::None)
    refuse(file, kName, ": beside another rope scaling");
  Shape shape = file.shape(kName);
  if (!(shape == Shape{c.head_dim / 2}))
    refuse(file, kName, ": shape ", shape.str(), ", expected (", c.head_dim / 2,
           "), half the head size");
  c.rope_scaling.kind = RopeScaling::Kind::Factors;
  c.rope_scaling.factors.resize(static_cast<std::size_t>(c.head_dim / 2));
  file.read_rows(kName, 0, 1, c.rope_scaling.factors.data());
  validate_as_stored(c, file);
  recognise_llama3(c);
}

// The size of the vocabulary: the embedding's number of rows, with which all other counts must
// agree.
std::int64_t read_vocab_size(const Metadata& metadata, const std::string& prefix) {
  const GgufFile& file = metadata.file();
  if (!file.has("token_embd.weight")) refuse(file, "tensor token_embd.weight is missing");
  Shape shape = file.shape("token_embd.weight");
  if (shape.rank() != 2) refuse(file, "token_embd.weight: shape ", shape.str(), " is not a matrix");
  std::int64_t rows = shape[0];
  std::int64_t declared = metadata.get_int_or(prefix + "vocab_size", rows, 1, kAnyGgufInt);
  if (declared != rows)
    refuse(file, prefix, "vocab_size: ", declared, ", but token_embd.weight has ", rows, " rows");
  if (file.has_key("tokenizer.ggml.tokens")) {
    std::size_t tokens = file.get_strings("tokenizer.ggml.tokens").size();
    if (static_cast<std::int64_t>(tokens) != rows)
      refuse(file, "tokenizer.ggml.tokens: ", tokens, " tokens, but token_embd.weight has ", rows,
             " rows");
  }
  return rows;
}

}  // namespace

double gguf_query_scale(const ModelConfig& c) {
  if (c.n_layers == 62) return static_cast<double>(c.hidden_size) / static_cast<double>(c.n_heads);
  return static_cast<double>(c.head_dim);
}

ModelConfig config_from_gguf(const GgufFile& gguf) {
  const Metadata file(gguf);
  std::string type = file.get_string_or("general.type", "model");
  if (type != "model") refuse(file, "general.type: '", type, "' is not a model");
  ModelConfig c;
  const std::string architecture = file.get_string("general.architecture");
  const Family* family = find_gguf_family(architecture);
  if (!family)
    refuse(file, "general.architecture: '", architecture, "' is not supported (",
           known_gguf_families(), " are)");
  apply_family(c, *family);
  const std::string prefix = architecture + ".";
  auto size = [&](const char* key) { return file.get_int(prefix + key, 1, kAnyGgufInt); };
  c.vocab_size = read_vocab_size(file, prefix);
  c.hidden_size = size("embedding_length");
  c.intermediate_size = size("feed_forward_length");
  c.n_layers = size("block_count");
  c.n_heads = size("attention.head_count");
  c.n_kv_heads = file.get_int_or(prefix + "attention.head_count_kv", c.n_heads, 1, kAnyGgufInt);
  if (file.has_key(prefix + "attention.key_length")) {
    c.head_dim = size("attention.key_length");
  } else {
    if (c.hidden_size % c.n_heads != 0)
      refuse(file, prefix, "attention.head_count: ", c.n_heads,
             " does not divide embedding_length ", c.hidden_size);
    c.head_dim = c.hidden_size / c.n_heads;
  }
  auto same_as_head = [&](const char* key, const char* why) {
    std::int64_t n = file.get_int_or(prefix + key, c.head_dim, 1, kAnyGgufInt);
    if (n != c.head_dim)
      refuse(file, prefix, key, ": ", n, " differs from the head size ", c.head_dim, ": ", why,
             " is not supported");
  };
  for (const char* key : {"attention.value_length", "attention.value_length_swa"})
    same_as_head(key, "another size of values");
  same_as_head("attention.key_length_swa", "another size in local layers");
  if (!c.learned_positions)
    for (const char* key : {"rope.dimension_count", "rope.dimension_count_swa"})
      same_as_head(key, "partial rotary embedding");
  c.rms_eps = as_written(
      file.get_float(prefix + (c.norm == NormKind::Layer ? "attention.layer_norm_epsilon"
                                                         : "attention.layer_norm_rms_epsilon")));
  c.rope_theta =
      as_written(file.get_float_or(prefix + "rope.freq_base", files_of(*family).default_theta));
  c.max_position = size("context_length");
  c.rope_scaling = read_scaling(file, prefix);
  c.tie_embeddings = !gguf.has("output.weight");
  // Biases have no key: they are there or not. ModelFile wants them in every layer or in none.
  c.attention_bias = gguf.has(c.joined_qkv ? "blk.0.attn_qkv.bias" : "blk.0.attn_q.bias");
  c.attention_output_bias = gguf.has("blk.0.attn_output.bias");
  c.mlp_bias = gguf.has("blk.0.ffn_up.bias");
  if (c.architecture == "gemma3_text") c.query_scale = gguf_query_scale(c);
  validate_as_stored(c, gguf);
  read_window(file, prefix, c);
  read_rope_factors(gguf, c);
  refuse_unsupported(file, prefix, c);
  file.has_key(prefix + "attention.layer_norm_epsilon");  // the family has one of the two norms
  file.has_key(prefix + "attention.layer_norm_rms_epsilon");
  // Of experts and of YaRN, which are refused above, and of how a model came to its context.
  static constexpr const char* kInert[] = {"expert_", "rope.scaling.yarn_",
                                           "rope.scaling.finetuned",
                                           "rope.scaling.original_context_length"};
  file.refuse_unknown(prefix, kInert);
  constexpr std::int64_t max_id = std::numeric_limits<std::int32_t>::max();
  auto id = [&](const char* key) {
    return file.has_key(key) ? static_cast<std::int32_t>(file.get_int(key, 0, max_id)) : -1;
  };
  c.bos_id = id("tokenizer.ggml.bos_token_id");
  if (std::int32_t eos = id("tokenizer.ggml.eos_token_id"); eos >= 0) c.eos_ids = {eos};
  const char* projection = c.joined_qkv ? "blk.0.attn_qkv.weight" : "blk.0.attn_q.weight";
  c.stored_dtype = gguf.has(projection) ? gguf.stored_type(projection) : "";
  validate_as_stored(c, gguf);
  return c;
}

}  // namespace lk
