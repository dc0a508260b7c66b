// ModelConfig: everything about a model's maths that its weights do not determine.
//
// Note [Refuse, never default]: a config field that changes the maths and is not implemented here
// (partial rotary, soft-capped logits, experts, ...) is an InputError naming file, field
// and value. A model that loads is computed as its authors meant.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/backend.h"

namespace lk {

// How rotary frequencies are stretched for contexts longer than those of pre-training.
struct RopeScaling {
  enum class Kind : std::uint8_t {
    None,
    Linear,   // every frequency / factor
    Llama3,   // low frequencies / factor, high ones kept, a blend between (Llama 3.1)
    Factors,  // frequency i / factors[i]: GGUF's rope_freqs.weight
  };
  Kind kind = Kind::None;
  double factor = 1;                       // Linear, Llama3
  double low_freq_factor = 1;              // Llama3
  double high_freq_factor = 4;             // Llama3
  std::int64_t original_max_position = 0;  // Llama3
  std::vector<float> factors;              // Factors: head_dim / 2 divisors
};

enum class NormKind : std::uint8_t {
  Rms,    // x / rms(x) * gain
  Layer,  // (x - mean) / deviation * gain + bias
};
enum class MlpKind : std::uint8_t {
  SwiGlu,  // down(silu(gate) * up)
  GeGlu,   // down(gelu(gate) * up), gelu's tanh form
  Gelu,    // down(gelu(up)): no gate
};

struct ModelConfig {
  std::string architecture = "llama";  // Hugging Face's model_type: a row of nn/family.h
  std::int64_t vocab_size = 0;         // V: rows of the embedding
  std::int64_t hidden_size = 0;        // C
  std::int64_t intermediate_size = 0;  // F
  std::int64_t n_layers = 0;
  std::int64_t n_heads = 0;     // H
  std::int64_t n_kv_heads = 0;  // G, divides H
  std::int64_t head_dim = 0;    // D, even; H * D need not be C
  double rms_eps = 0;           // of every norm, LayerNorm too
  double rope_theta = 0;
  RopeScaling rope_scaling = {};
  std::int64_t max_position = 0;  // context length of the model
  NormKind norm = NormKind::Rms;
  MlpKind mlp = MlpKind::SwiGlu;
  bool sandwich_norms = false;     // attention's and the MLP's results are normed too
  bool qk_norm = false;            // each head of q and k is normed before it is rotated
  bool learned_positions = false;  // max_position rows are added to the embedding; no rotary angles
  bool joined_qkv = false;         // q, k, v are one projection
  bool scaled_embedding = false;   // embeddings times sqrt(C), rounded to the compute dtype
  double query_scale = 0;          // scores are q . k / sqrt(query_scale); 0: head_dim is used
  // Local layers see the last `window` tokens only and may have rotary angles of their own.
  std::int64_t window = 0;                 // 0: every layer sees all
  std::vector<std::uint8_t> local = {};    // n_layers flags; empty: none is local
  double local_rope_theta = 0;             // of local layers, never scaled; 0: rope_theta
  bool tie_embeddings = false;             // the head is the embedding
  bool attention_bias = false;             // q, k, v have biases
  bool attention_output_bias = false;      // o has a bias
  bool mlp_bias = false;                   // gate, up, down have biases
  std::int32_t bos_id = -1;                // -1 if the model names none
  std::vector<std::int32_t> eos_ids = {};  // empty if the model names none
  std::string stored_dtype =
      {};  // as the file says: "bfloat16", "Q4_1", ...; empty if it says nothing

  std::int64_t q_size() const { return n_heads * head_dim; }
  bool is_local(std::size_t layer) const { return window > 0 && !local.empty() && local[layer]; }
  std::int64_t kv_size() const { return n_kv_heads * head_dim; }
  // Number of elements in the base model; a tied head counts once.
  std::int64_t n_parameters() const;
};

// Checks ranges and divisibility of every field. Throws FieldError (nn/field_error.h).
void validate(const ModelConfig& config, const std::string& where);
// The part of validate() that bounds the counts: whoever makes a list of a config's layers or of
// its heads' frequencies calls it first. Throws FieldError.
void validate_sizes(const ModelConfig& config, const std::string& where);

// The D/2 rotary frequencies with scaling applied. Computed in float32 step by step as transformers
// does: at position 8,000 the rounding of a frequency is worth 5e-4 rad, so "more exact" would be
// different.
std::vector<double> inverse_frequencies(const ModelConfig& config);
// The frequencies of local layers: computed from local_rope_theta if it is set, else
// inverse_frequencies().
std::vector<double> local_inverse_frequencies(const ModelConfig& config);
// A table (n_positions, D) on the device, cos in columns [0, D/2) and sin in [D/2, D). The angle is
// the float32 product position * frequency, as in transformers; its cosine and sine are computed in
// double and rounded to `dtype` (F32 or F64). Tag::Weights.
Tensor rope_table(Backend& backend, const ModelConfig& config, std::int64_t n_positions,
                  DType dtype = DType::F32);
// rope_table() from given frequencies.
Tensor rope_table(Backend& backend, const std::vector<double>& frequencies,
                  std::int64_t n_positions, DType dtype);

}  // namespace lk
