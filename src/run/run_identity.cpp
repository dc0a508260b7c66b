#include "run/run_identity.h"

#include <algorithm>

#include "nn/streamed_layers.h"
#include "run/json_values.h"

namespace lk {
namespace {

constexpr std::size_t kMostShown = 4;  // differences in a message

// The functions below take a struct apart into all of its members: a new member does not compile
// until it has its place here.

Json to_json(const RopeScaling& scaling) {
  const auto& [kind, factor, low, high, original_max_position, factors] = scaling;
  return {{"kind", static_cast<int>(kind)},
          {"factor", factor},
          {"low_freq_factor", low},
          {"high_freq_factor", high},
          {"original_max_position", original_max_position},
          {"factors", factors}};
}

Json to_json(const ModelConfig& config) {
  const auto& [architecture, vocab_size, hidden_size, intermediate_size, n_layers, n_heads,
               n_kv_heads, head_dim, rms_eps, rope_theta, rope_scaling, max_position, norm, mlp,
               sandwich_norms, qk_norm, learned_positions, joined_qkv, scaled_embedding,
               query_scale, window, local, local_rope_theta, tie_embeddings, attention_bias,
               attention_output_bias, mlp_bias, bos_id, eos_ids, stored_dtype] = config;
  return {{"architecture", architecture},
          {"vocab_size", vocab_size},
          {"hidden_size", hidden_size},
          {"intermediate_size", intermediate_size},
          {"n_layers", n_layers},
          {"n_heads", n_heads},
          {"n_kv_heads", n_kv_heads},
          {"head_dim", head_dim},
          {"rms_eps", rms_eps},
          {"rope_theta", rope_theta},
          {"rope_scaling", to_json(rope_scaling)},
          {"max_position", max_position},
          {"norm", static_cast<int>(norm)},
          {"mlp", static_cast<int>(mlp)},
          {"sandwich_norms", sandwich_norms},
          {"qk_norm", qk_norm},
          {"learned_positions", learned_positions},
          {"joined_qkv", joined_qkv},
          {"scaled_embedding", scaled_embedding},
          {"query_scale", query_scale},
          {"window", window},
          {"local", local},
          {"local_rope_theta", local_rope_theta},
          {"tie_embeddings", tie_embeddings},
          {"attention_bias", attention_bias},
          {"attention_output_bias", attention_output_bias},
          {"mlp_bias", mlp_bias},
          {"bos_id", bos_id},
          {"eos_ids", eos_ids},
          {"stored_dtype", stored_dtype}};
}

// Members of `lora` stand in the identity under their own names. The seed is a setting.
void add_lora(const LoraConfig& lora, Json& identity) {
  const auto& [shape, targets, seed, exceptions, wide_ranks, layers, init] = lora;
  const auto& [rank, alpha, dropout, rslora, dora] = shape;
  identity.update({{"rank", rank},
                   {"alpha", alpha},
                   {"dropout", dropout},
                   {"rslora", rslora},
                   {"targets", targets},
                   {"wide_ranks", wide_ranks}});
  static_cast<void>(seed);
  // Only where they are set: a checkpoint of a version that did not know them goes on without.
  if (!layers.empty()) identity["layers"] = layers;
  if (dora) identity["dora"] = true;
  if (init != LoraInit::Kaiming) identity["init"] = lora_init_name(init);
  for (const auto& [path, own] : exceptions)
    identity["exceptions"][path] = {{"rank", own.rank}, {"alpha", own.alpha}};
}

// The formats of quantised matrices, and how many there are of each; empty for a dense base.
Json formats_to_json(const RunInputs& in) {
  Json counts = Json::object();
  for (const HeldFormat& format : in.formats)
    if (format) counts[held_name(*format)] = counts.value(held_name(*format), 0) + 1;
  return counts;
}

std::vector<std::string> sorted_copy(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  return names;
}

std::string shown(const Json* value) { return value == nullptr ? "unset" : value->dump(); }

void collect(const Json& before, const Json& now, const std::string& prefix,
             const std::vector<std::string>& may_differ, std::vector<std::string>& differences) {
  Json either = before;
  either.update(now);
  for (const auto& [key, ignored] : either.items()) {
    const std::string name = prefix + key;
    if (std::find(may_differ.begin(), may_differ.end(), name) != may_differ.end()) continue;
    const Json* was = before.contains(key) ? &before[key] : nullptr;
    const Json* is = now.contains(key) ? &now[key] : nullptr;
    const Json none = Json::object();
    const bool nested = (was == nullptr || was->is_object()) && (is == nullptr || is->is_object());
    if (nested)
      collect(was ? *was : none, is ? *is : none, name + ".", may_differ, differences);
    else if (shown(was) != shown(is))
      differences.push_back(concat(name, " was ", shown(was), ", now it is ", shown(is)));
  }
}

}  // namespace

SortedSettings sort_settings(const FinetuneSettings& settings) {
  const auto& [model, data, out, rank, alpha, dropout, methods, virtual_tokens, prompt_text,
               prefix_hidden, adapter_layers, bottleneck, bottleneck_kind, targets, layers,
               rank_pattern, alpha_pattern, rslora, dora, init, loraplus_ratio, steps, epochs,
               batch, grad_accum, seq_len, lr, schedule, warmup, weight_decay, clip,
               label_smoothing, seed, device, dtype, processes, fast_reduce, base_precision,
               keep_dense, fp8_products, init_adapter, shuffle, long_rows, skip_bad_rows, packing,
               format, chat_template, train_on, columns, system, base_name, eval_data, eval_split,
               eval_rows, eval_every, keep, patience, save_every, resume, recompute, streamed,
               memory_limit, memory, verify_base, show_rows, samples, sample_every, tensorboard] =
      settings;
  // These shape the run by the formats that they resolve to, and run_identity() has keep_dense.
  static_cast<void>(base_precision), static_cast<void>(keep_dense), static_cast<void>(fp8_products);
  // Settings that run_identity() has as they were resolved: what LoraConfig has of the
  // adapter, the number of steps, the format found and the computing dtype. And those that leave no
  // trace: resume, show_rows.
  SortedSettings sorted{{{"model", model},
                         {"data", data},
                         {"out", out},
                         {"init_adapter", or_null(init_adapter)},
                         {"base_name", or_null(base_name)},
                         {"eval_data", or_null(eval_data)},
                         {"eval_rows", eval_rows},
                         {"eval_split", or_null(eval_split)},
                         {"eval_every", or_null(eval_every)},
                         {"keep", keep},
                         {"patience", patience},
                         {"sample_every", sample_every},
                         {"save_every", or_null(save_every)},
                         {"device", device},
                         {"memory", memory > 0 ? Json(memory) : Json(nullptr)},
                         {"memory_limit", memory_limit > 0 ? Json(memory_limit) : Json(nullptr)},
                         {"verify_base", verify_base},
                         {"samples", or_null(samples)},
                         {"tensorboard", tensorboard}},
                        {{"batch", batch},
                         {"grad_accum", grad_accum},
                         {"seq_len", or_null(seq_len)},
                         {"lr", or_null(lr)},
                         {"schedule", or_null(schedule)},
                         {"warmup", or_null(warmup)},
                         {"weight_decay", weight_decay},
                         {"clip", clip},
                         {"seed", seed},
                         {"shuffle", shuffle},
                         {"packing", packing},
                         {"long_rows", long_rows_name(long_rows)},
                         {"skip_bad_rows", skip_bad_rows},
                         {"template", or_null(chat_template)},
                         {"train_on", train_on_name(train_on)}}};
  if (processes) sorted.recorded["processes"] = *processes;
  if (streamed)
    sorted.recorded[streamed.in_parts() ? "shard_base" : "offload_base"] = streamed.text();
  // Only where they are set: a checkpoint of a version that did not know them goes on without.
  if (methods != FinetuneSettings{}.methods) sorted.shaping["methods"] = methods;
  if (virtual_tokens) sorted.shaping["virtual_tokens"] = *virtual_tokens;
  if (!prompt_text.empty()) sorted.shaping["prompt_text"] = prompt_text;
  if (prefix_hidden > 0) sorted.shaping["prefix_hidden"] = prefix_hidden;
  if (adapter_layers > 0) sorted.shaping["adapter_layers"] = adapter_layers;
  if (MethodConfig{methods}.has("bottleneck"))
    sorted.shaping.update({{"bottleneck", bottleneck}, {"bottleneck_kind", bottleneck_kind}});
  if (!columns.empty()) sorted.shaping["columns"] = columns.text();
  if (fast_reduce) sorted.shaping["fast_reduce"] = true;
  if (label_smoothing != 0) sorted.shaping["label_smoothing"] = label_smoothing;
  if (system) sorted.shaping["system"] = *system;
  if (loraplus_ratio) sorted.shaping["loraplus_ratio"] = *loraplus_ratio;
  return sorted;
}

Json run_identity(const FinetuneSettings& s, const RunInputs& in, const std::string& base,
                  DType dtype) {
  Json identity = sort_settings(s).shaping;
  if (in.methods.has("lora")) add_lora(in.methods.lora, identity);
  if (in.methods.has("ia3") || in.methods.has("bitfit")) identity["vector_targets"] = s.targets;
  identity["steps"] = in.steps;
  identity["dtype"] = dtype_name(dtype);
  if (const Json formats = formats_to_json(in); !formats.empty())
    identity["base_formats"] = formats;
  if (!s.keep_dense.empty()) identity["keep_dense"] = sorted_copy(s.keep_dense);
  identity["format"] = in.data.format;
  identity["config"] = to_json(in.model->config());
  // config.json is compared as parsed, which leaves this out.
  if (const std::string codes = in.model->codes_format(); !codes.empty())
    identity["quantization_config"]["checkpoint_format"] = codes;
  identity["model_files"] = in.model_files;
  identity["base_sha256"] = or_null(base);
  identity["data_sha256"] = in.data.sha256;
  identity["rows_sha256"] = in.rows_sha256;
  identity["eval_rows_sha256"] = or_null(in.eval_rows_sha256);
  identity["init_adapter_sha256"] = or_null(in.init_sha256);
  return identity;
}

std::string identity_difference(const Json& before, const Json& now,
                                const std::vector<std::string>& may_differ) {
  std::vector<std::string> differences;
  collect(before, now, "", may_differ, differences);
  std::string text;
  for (std::size_t i = 0; i < differences.size(); ++i) {
    if (i == kMostShown) return text + concat("; and ", differences.size() - i, " more");
    text += (i == 0 ? "" : "; ") + differences[i];
  }
  return text;
}

}  // namespace lk
