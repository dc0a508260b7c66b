#include "modelfile/config_gguf_write.h"

#include <cmath>

#include "modelfile/config.h"
#include "modelfile/family_files.h"

namespace lk {
namespace {

template <class... Args>
[[noreturn]] void refuse_to_write(const Args&... message) {
  throw UsageError(concat(message..., "; write a folder instead"));
}

// Every `pattern`th layer sees everything, the others are local. Throws UsageError if the model's
// local layers follow no such rule.
std::int64_t window_pattern(const ModelConfig& c) {
  for (std::int64_t pattern = 1; pattern <= c.n_layers + 1; ++pattern) {
    bool same = true;
    for (std::int64_t i = 0; i < c.n_layers; ++i)
      same = same && c.is_local(static_cast<std::size_t>(i)) == ((i + 1) % pattern != 0);
    if (same) return pattern;
  }
  refuse_to_write(
      "layer_types: GGUF has no words for these local layers (every n-th layer sees all)");
}

void add_window(const ModelConfig& c, const FamilyFiles& files, GgufWriter::Metadata& m) {
  const std::string prefix = std::string(files.gguf) + ".";
  if (!files.gemma_keys) {
    if (c.window > 0 && c.window < c.max_position)
      refuse_to_write("sliding_window: ", c.window, " (context ", c.max_position,
                      "): GGUF's readers know no window in '", files.gguf, "'");
    return;  // a window that hides nothing is none
  }
  const std::int64_t window = c.window > 0 ? c.window : files.default_window;
  m.emplace_back(prefix + "attention.sliding_window", gguf_u32(static_cast<std::uint32_t>(window)));
  if (const std::int64_t pattern = window_pattern(c); pattern != kGemmaPattern)
    m.emplace_back(prefix + "attention.sliding_window_pattern",
                   gguf_u32(static_cast<std::uint32_t>(pattern)));
  if (c.local_rope_theta != kGemmaLocalTheta)
    m.emplace_back(prefix + "rope.freq_base_swa", gguf_f32(static_cast<float>(c.local_rope_theta)));
  if (const double usual = gguf_query_scale(c); c.query_scale > 0 && c.query_scale != usual)
    refuse_to_write("query_pre_attn_scalar: ", c.query_scale, ": GGUF's readers take ", usual);
}

void add_rope(const ModelConfig& c, const std::string& prefix, GgufWriter::Metadata& m) {
  m.emplace_back(prefix + "rope.dimension_count", gguf_u32(static_cast<std::uint32_t>(c.head_dim)));
  m.emplace_back(prefix + "rope.freq_base", gguf_f32(static_cast<float>(c.rope_theta)));
  switch (c.rope_scaling.kind) {
    case RopeScaling::Kind::None:
      break;
    case RopeScaling::Kind::Linear:
      m.emplace_back(prefix + "rope.scaling.type", gguf_string("linear"));
      m.emplace_back(prefix + "rope.scaling.factor",
                     gguf_f32(static_cast<float>(c.rope_scaling.factor)));
      break;
    case RopeScaling::Kind::Llama3:
    case RopeScaling::Kind::Factors:  // a tensor of its own, rope_freqs.weight
      if (prefix != "llama.")
        refuse_to_write("rope_type llama3: GGUF's readers know its factors in 'llama' only");
      break;
  }
}

}  // namespace

GgufWriter::Metadata config_to_gguf(const ModelConfig& c) {
  const FamilyFiles& files = files_of(c);
  const std::string prefix = std::string(files.gguf) + ".";
  GgufWriter::Metadata m;
  auto number = [&](const char* key, std::int64_t v) {
    m.emplace_back(prefix + key, gguf_u32(static_cast<std::uint32_t>(v)));
  };
  m.emplace_back("general.architecture", gguf_string(files.gguf));
  number("block_count", c.n_layers);
  number("context_length", c.max_position);
  number("embedding_length", c.hidden_size);
  number("feed_forward_length", c.intermediate_size);
  number("vocab_size", c.vocab_size);
  number("attention.head_count", c.n_heads);
  number("attention.head_count_kv", c.n_kv_heads);
  number("attention.key_length", c.head_dim);
  number("attention.value_length", c.head_dim);
  m.emplace_back(prefix + (c.norm == NormKind::Layer ? "attention.layer_norm_epsilon"
                                                     : "attention.layer_norm_rms_epsilon"),
                 gguf_f32(static_cast<float>(c.rms_eps)));
  if (c.attention_output_bias && !c.joined_qkv && prefix != "llama.")
    refuse_to_write("attention_bias: GGUF's readers know a bias of o in 'llama' and 'gpt2' only");
  if (!c.learned_positions) add_rope(c, prefix, m);
  add_window(c, files, m);
  return m;
}

}  // namespace lk
