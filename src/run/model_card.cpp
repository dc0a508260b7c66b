#include "run/model_card.h"

#include <iomanip>
#include <sstream>

#include "io/json.h"
#include "modelfile/base_identity.h"
#include "run/methods.h"
#include "version.h"

namespace lk {

namespace {

// Formats a path as code in one line of Markdown.
std::string code(std::string text) {
  for (char& c : text) {
    if (c == '`') c = '\'';
    if ((c >= 0 && c < ' ') || c == 0x7f) c = '?';
  }
  return "`" + text + "`";
}

std::string fixed(double x) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(4) << x;
  return out.str();
}

}  // namespace

std::string model_card(const FinetuneSettings& s, const FinetuneResult& r, const CardFacts& f) {
  std::ostringstream out;
  out.exceptions(std::ios::badbit);  // else a card that finds no memory would be cut in silence
  auto row = [&](const char* name, const auto&... value) {
    out << "| " << name << " | " << concat(value...) << " |\n";
  };
  const bool is_full = replaces_base(MethodConfig{s.methods});
  // A JSON string is also a YAML string.
  out << "---\nbase_model: " << json_text(Json(f.base_model))
      << "\nlibrary_name: " << (is_full ? "transformers" : "peft")
      << "\npipeline_tag: text-generation\ntags:\n";
  std::string names;
  for (const std::string& name : s.methods) {
    out << "- " << name << "\n";
    names += concat(names.empty() ? "" : ", ", name == "lora" ? "LoRA" : name);
  }
  const bool is_lora = s.methods == std::vector<std::string>{"lora"};
  out << "- lorikeet\n---\n\n# " << (is_full ? "Fully fine-tuned model" : names + " adapter")
      << "\n\nTrained with Lorikeet " << kVersion
      << (is_full ? ". All weights of the base model were trained; this folder is a whole model."
                  : ". The base model is not part of this folder and was not changed.")
      << "\n\n"
      << "| | |\n|---|---|\n";
  const bool on_hub = f.base_model != s.model;
  row("base model", code(f.base_model), on_hub ? ", read from " + code(s.model) : "");
  row("SHA-256 of its weights file", code(f.base_sha256));
  BaseIdentity held;
  set_precision(held, {s.base_precision, s.keep_dense});
  if (!held.precision.empty()) {
    std::string dense;
    for (const std::string& module : held.keep_dense) dense += (dense.empty() ? "" : ", ") + module;
    row("base held as", held.precision, dense.empty() ? "" : ", but " + code(dense));
  }
  row("data", code(s.data), ": ", f.data_format, ", ", f.rows, " rows, ", f.supervised_tokens,
      " supervised tokens");
  row("steps", r.steps, " of ", s.batch, s.packing ? " bins" : " rows", " x ", s.grad_accum,
      " micro-batches, at most ", *s.seq_len, s.packing ? " tokens a bin" : " tokens a row");
  for (const auto& [name, value] : f.method) row(name.c_str(), value);
  row("trainable parameters", r.trainable_parameters, " beside ", r.base_parameters, " frozen");
  row("learning rate", *s.lr, ", ", *s.schedule, ", warm-up ", *s.warmup, " steps");
  if (s.loraplus_ratio) row("learning rate of B", *s.loraplus_ratio, " times that (LoRA+)");
  row("weight decay, clip, seed", s.weight_decay, ", ", s.clip, ", ", s.seed);
  if (s.label_smoothing != 0) row("label smoothing", s.label_smoothing);
  row("computed in", f.dtype, " on ", f.device);
  row("training loss", fixed(r.first_loss), " in the first step, ", fixed(r.last_loss),
      " in the last");
  if (r.eval_before && r.eval_after) {
    row("evaluation data", s.eval_data.empty() ? "not trained on" : code(s.eval_data), ", ",
        r.eval_after->rows, " rows", s.eval_data.empty() ? " of the data" : "");
    const bool earlier = r.kept_step != r.steps && r.best;
    row("evaluation loss", fixed(r.eval_before->loss), " before, ",
        fixed(earlier ? r.best->loss : r.eval_after->loss), " after",
        earlier ? concat(" step ", r.kept_step, ", which is kept; ", fixed(r.eval_after->loss),
                         " after the last")
                : "");
  }
  out << "\nAll settings are in `run.json`, each step is in `metrics.jsonl`.\n\n## Use\n\n"
      << "```sh\ngenerate --model " << (is_full ? "THIS_FOLDER" : "BASE --adapter THIS_FOLDER")
      << f.use_flags << " --prompt '...'\n"
      << (is_lora ? "merge --model BASE --adapter THIS_FOLDER --out merged      # a plain model\n"
                    "export --model BASE --adapter THIS_FOLDER --out lora.gguf  # for llama.cpp "
                    "--lora\n"
                  : "")
      << "```\n";
  if (is_full)
    out << "\nor in Python:\n\n```python\nfrom transformers import AutoModelForCausalLM\n\n"
        << "model = AutoModelForCausalLM.from_pretrained(\"THIS_FOLDER\")\n```\n";
  if (!is_lora) return out.str();
  out << "\nor in Python";
  if (on_hub)
    out << ":\n\n```python\nfrom peft import AutoPeftModelForCausalLM\n\n"
        << "model = AutoPeftModelForCausalLM.from_pretrained(\"THIS_FOLDER\")\n```\n";
  else
    out << ", where BASE is the Hugging Face folder of the same model (of a GGUF file, `merge "
           "--model BASE.gguf --out BASE` makes one):\n\n```python\n"
        << "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        << "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(\"BASE\"), "
        << "\"THIS_FOLDER\")\n```\n";
  return out.str();
}

}  // namespace lk
