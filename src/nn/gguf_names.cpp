#include "nn/gguf_names.h"

#include <string_view>
#include <utility>

#include "tensor/error.h"

namespace lk {

std::string gguf_name(const std::string& hf_name) {
  static constexpr std::pair<std::string_view, std::string_view> kWhole[] = {
      {"model.embed_tokens.weight", "token_embd.weight"},
      {"model.norm.weight", "output_norm.weight"},
      {"lm_head.weight", "output.weight"},
  };
  static constexpr std::pair<std::string_view, std::string_view> kModules[] = {
      {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"},
      {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"},
  };
  for (const auto& [hf, gguf] : kWhole)
    if (hf_name == hf) return std::string(gguf);
  constexpr std::string_view kLayers = "model.layers.";
  std::size_t dot = hf_name.find('.', kLayers.size());  // ends the layer's number
  std::size_t last = hf_name.rfind('.');                // begins ".weight" or ".bias"
  if (hf_name.starts_with(kLayers) && dot != std::string::npos && dot < last) {
    std::string module = hf_name.substr(dot + 1, last - dot - 1);
    for (const auto& [hf, gguf] : kModules)
      if (module == hf)
        return concat("blk.", hf_name.substr(kLayers.size(), dot - kLayers.size()), ".", gguf,
                      hf_name.substr(last));
  }
  throw Error(concat("no GGUF name for '", hf_name, "'"));
}

}  // namespace lk
