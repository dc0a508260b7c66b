#include "nn/config.h"

#include <cmath>

#include "nn/field_error.h"

namespace lk {
namespace {

// Bounds far above any published model, and far below where a product of two of them could
// overflow.
constexpr std::int64_t kMaxVocab = std::int64_t{1} << 24;
constexpr std::int64_t kMaxWidth = std::int64_t{1} << 20;
constexpr std::int64_t kMaxLayers = 1024;
constexpr std::int64_t kMaxHeads = 4096;
constexpr std::int64_t kMaxHeadDim = 1024;
constexpr std::int64_t kMaxPosition = std::int64_t{1} << 24;
constexpr double kMaxTheta = 1e12;

template <class... Args>
[[noreturn]] void refuse(const std::string& where, const char* field, const Args&... why) {
  throw FieldError(where, field, concat(why...));
}

void check_range(const char* field, std::int64_t value, std::int64_t max,
                 const std::string& where) {
  if (value < 1 || value > max) refuse(where, field, value, " is not in [1, ", max, "]");
}

void check_real(const char* field, double value, double max, const std::string& where) {
  if (!(value > 0 && value <= max))  // also false for NaN
    refuse(where, field, value, " is not in (0, ", max, "]");
}

void validate_rope(const ModelConfig& c, const std::string& where) {
  const RopeScaling& s = c.rope_scaling;
  using Kind = RopeScaling::Kind;
  if (s.kind == Kind::Linear || s.kind == Kind::Llama3)
    check_real("rope_scaling: factor", s.factor, 1e6, where);
  if (s.kind == Kind::Llama3) {
    check_real("rope_scaling: low_freq_factor", s.low_freq_factor, 1e6, where);
    check_real("rope_scaling: high_freq_factor", s.high_freq_factor, 1e6, where);
    if (s.high_freq_factor <= s.low_freq_factor)
      refuse(where, "rope_scaling: high_freq_factor", s.high_freq_factor,
             " must be above low_freq_factor ", s.low_freq_factor);
    check_range("rope_scaling: original_max_position_embeddings", s.original_max_position,
                kMaxPosition, where);
  }
  if (s.kind == Kind::Factors) {
    if (static_cast<std::int64_t>(s.factors.size()) != c.head_dim / 2)
      refuse(where, "rope factors", s.factors.size(), " of them for ", c.head_dim / 2,
             " frequencies (half the head size)");
    for (float f : s.factors) check_real("rope factors", f, 1e6, where);
  }
}

}  // namespace

std::int64_t ModelConfig::n_parameters() const {
  const std::int64_t C = hidden_size, norm_size = norm == NormKind::Layer ? 2 * C : C;
  std::int64_t attention = C * (2 * q_size() + 2 * kv_size());
  if (attention_bias) attention += q_size() + 2 * kv_size();
  if (attention_output_bias) attention += C;
  if (qk_norm) attention += 2 * head_dim;
  const std::int64_t n_inner = mlp == MlpKind::Gelu ? 1 : 2;  // up, and gate
  std::int64_t feed_forward = (n_inner + 1) * C * intermediate_size;
  if (mlp_bias) feed_forward += n_inner * intermediate_size + C;
  std::int64_t embeddings = (tie_embeddings ? 1 : 2) * vocab_size * C;
  if (learned_positions) embeddings += max_position * C;
  const std::int64_t n_norms = sandwich_norms ? 4 : 2;
  return embeddings + n_layers * (attention + feed_forward + n_norms * norm_size) + norm_size;
}

void validate_sizes(const ModelConfig& c, const std::string& where) {
  check_range("vocab_size", c.vocab_size, kMaxVocab, where);
  check_range("hidden_size", c.hidden_size, kMaxWidth, where);
  check_range("intermediate_size", c.intermediate_size, kMaxWidth, where);
  check_range("num_hidden_layers (layers)", c.n_layers, kMaxLayers, where);
  check_range("num_attention_heads (query heads)", c.n_heads, kMaxHeads, where);
  check_range("num_key_value_heads (key/value heads)", c.n_kv_heads, c.n_heads, where);
  if (c.n_heads % c.n_kv_heads != 0)
    refuse(where, "num_key_value_heads (key/value heads)", c.n_kv_heads, " does not divide the ",
           c.n_heads, " attention heads");
  check_range("head_dim", c.head_dim, kMaxHeadDim, where);
  if (c.head_dim % 2 != 0 && !c.learned_positions)
    refuse(where, "head_dim", c.head_dim, " is odd: rotary angles need pairs");
  check_range("q_proj rows (heads * head_dim)", c.q_size(), kMaxWidth, where);
  check_range("max_position_embeddings (context)", c.max_position, kMaxPosition, where);
  if (c.max_position == 1)
    refuse(where, "max_position_embeddings (context)", c.max_position, " has no token to predict");
}

void validate(const ModelConfig& c, const std::string& where) {
  validate_sizes(c, where);
  check_real(c.norm == NormKind::Layer ? "layer_norm_epsilon" : "rms_norm_eps", c.rms_eps, 1,
             where);
  if (c.learned_positions && c.rope_scaling.kind != RopeScaling::Kind::None)
    refuse(where, "rope_scaling", "this model has learned positions");
  if (c.joined_qkv && c.n_kv_heads != c.n_heads)
    refuse(where, "num_key_value_heads (key/value heads)", c.n_kv_heads, " for ", c.n_heads,
           " attention heads in one projection is not supported");
  if (!c.learned_positions) check_real("rope_theta", c.rope_theta, kMaxTheta, where);
  if (c.local_rope_theta != 0)
    check_real("rope_local_base_freq", c.local_rope_theta, kMaxTheta, where);
  if (c.query_scale != 0) check_real("query_pre_attn_scalar", c.query_scale, 1e6, where);
  if (c.window != 0) check_range("sliding_window", c.window, kMaxPosition, where);
  if (!c.local.empty() && std::ssize(c.local) != c.n_layers)
    refuse(where, "layer_types", c.local.size(), " of them for ", c.n_layers, " layers");
  validate_rope(c, where);
  auto check_id = [&](const char* field, std::int64_t id) {
    if (id >= c.vocab_size)
      refuse(where, field, id, " is outside the vocabulary of ", c.vocab_size);
  };
  check_id("bos_token_id", c.bos_id);
  for (std::int32_t id : c.eos_ids) check_id("eos_token_id", id);
}

}  // namespace lk
