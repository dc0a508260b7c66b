#include "run/run_toml.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "nn/recompute.h"
#include "nn/streamed_layers.h"

namespace lk {
namespace {

bool is_control(char c) { return static_cast<unsigned char>(c) < 32 || c == 127; }

// A text as TOML's basic string, or as a literal one where that needs no escapes.
std::string value_text(const std::string& x) {
  const bool controls = std::any_of(x.begin(), x.end(), is_control);
  if (!controls && x.find_first_of("\"\\") == x.npos) return '"' + x + '"';
  if (!controls && x.find('\'') == x.npos) return '\'' + x + '\'';
  std::string out = "\"";
  for (const char c : x) {
    if (is_control(c)) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04X", static_cast<unsigned>(c));
      out += code;
    } else {
      out += (c == '"' || c == '\\' ? "\\" : "") + std::string(1, c);
    }
  }
  return out + '"';
}
std::string value_text(bool x) { return x ? "true" : "false"; }
std::string value_text(std::int64_t x) { return std::to_string(x); }
std::string value_text(std::uint64_t x) { return std::to_string(x); }
// The shortest text that is read back as the same number.
std::string value_text(double x) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, x).ptr};
}

std::string list_text(const std::vector<std::string>& items) {
  std::string list;
  for (const std::string& item : items) list += (list.empty() ? "" : ",") + item;
  return list;
}

struct TomlLines {
  std::string text;
  template <class T>
  void add(const char* flag, const T& value) {
    text += concat(flag, " = ", value_text(value), "\n");
  }
  template <class T>
  void add(const char* flag, const std::optional<T>& value) {
    if (value) add(flag, *value);
  }
  void add_text(const char* flag, const std::string& value) {
    if (!value.empty()) add(flag, value);
  }
};

}  // namespace

std::string run_toml(const FinetuneSettings& settings) {
  // Takes the struct apart into all of its members: a new one does not compile until it stands here.
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
  static_cast<void>(resume), static_cast<void>(show_rows);  // of one call, not of the run
  TomlLines l{"# finetune --config run.toml --out DIR trains the same adapter.\n"};
  l.add("model", model);
  l.add("data", data);
  l.add("out", out);
  l.add("rank", rank);
  l.add("alpha", alpha);
  l.add("dropout", dropout);
  if (methods != FinetuneSettings{}.methods) l.add("method", list_text(methods));
  l.add("virtual-tokens", virtual_tokens);
  l.add_text("prompt-text", prompt_text);
  if (prefix_hidden > 0) l.add("prefix-hidden", prefix_hidden);
  if (adapter_layers > 0) l.add("adapter-layers", adapter_layers);
  l.add_text("targets", list_text(targets));
  l.add_text("layers", layers_text(layers));
  l.add_text("rank-pattern", pattern_text(rank_pattern));
  l.add_text("alpha-pattern", pattern_text(alpha_pattern));
  l.add("rslora", rslora);
  l.add("dora", dora);
  l.add("init", std::string(lora_init_name(init)));
  l.add("loraplus-ratio", loraplus_ratio);
  if (bottleneck != FinetuneSettings{}.bottleneck) l.add("bottleneck", bottleneck);
  if (bottleneck_kind != FinetuneSettings{}.bottleneck_kind)
    l.add("bottleneck-kind", bottleneck_kind);
  l.add("steps", steps);
  l.add("epochs", epochs);
  l.add("batch", batch);
  l.add("grad-accum", grad_accum);
  l.add("seq-len", seq_len);
  l.add("lr", lr);
  l.add("schedule", schedule);
  l.add("warmup", warmup);
  l.add("weight-decay", weight_decay);
  l.add("clip", clip);
  l.add("label-smoothing", label_smoothing);
  l.add("seed", seed);
  l.add("device", device);
  l.add("dtype", dtype);
  l.add("processes", processes);
  if (fast_reduce) l.add("fast-reduce", fast_reduce);
  if (base_precision != BasePrecision::Auto)
    l.add("base-precision", std::string(base_precision_name(base_precision)));
  l.add_text("keep-dense", list_text(keep_dense));
  if (fp8_products != "auto") l.add("fp8-products", fp8_products);
  l.add_text("init-adapter", init_adapter);
  l.add("no-shuffle", !shuffle);
  l.add("long-rows", std::string(long_rows_name(long_rows)));
  l.add("skip-bad-rows", skip_bad_rows);
  l.add("packing", packing);
  l.add("format", format);
  l.add("template", chat_template);
  l.add("train-on", std::string(train_on_name(train_on)));
  l.add_text("columns", columns.text());
  l.add("system", system);
  l.add_text("base-name", base_name);
  l.add_text("eval-data", eval_data);
  l.add("eval-split", eval_split);
  if (eval_rows >= 0) l.add("eval-rows", eval_rows);
  l.add("eval-every", eval_every);
  if (keep != "auto") l.add("keep", keep);
  l.add("patience", patience);
  l.add("save-every", save_every);
  if (memory > 0)
    l.add("memory", std::to_string(memory));
  else
    l.add("recompute", recompute_text(recompute));
  if (streamed) l.add(streamed.in_parts() ? "shard-base" : "offload-base", streamed.text());
  if (memory_limit > 0) l.add("memory-limit", std::to_string(memory_limit));
  l.add("no-verify-base", !verify_base);
  l.add("samples", samples);
  l.add("sample-every", sample_every);
  l.add("tensorboard", tensorboard);
  return l.text;
}

}  // namespace lk
