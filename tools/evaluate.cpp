// evaluate: loss and perplexity of a model, with or without an adapter, on rows of text.
#include <cmath>
#include <cstdio>

#include "io/json.h"
#include "lora/inference.h"
#include "nn/evaluation.h"
#include "program.h"

int main(int argc, char** argv) {
  using namespace lk;
  CLI::App app("Loss and perplexity on a file: one JSON object on stdout.", "evaluate");
  InferenceSettings settings;
  std::string data, format = "auto";
  std::optional<std::string> chat_template;
  std::int64_t n_rows = -1;
  DatasetOptions options;
  app.add_option("--model", settings.model, ".gguf file or Hugging Face folder")->required();
  app.add_option("--adapter", settings.adapter, "PEFT folder");
  app.add_option("--data", data, "rows, as for finetune")->required();
  app.add_option("--rows", n_rows, "only the first N rows")->check(program::whole_number());
  app.add_option("--seq-len", options.seq_len, "longest row")
      ->check(program::whole_number())
      ->capture_default_str();
  app.add_flag("--truncate", options.truncate, "cut longer rows");
  app.add_option("--format", options.format,
                 "auto, text, prompt-completion, alpaca, messages, txt");
  app.add_option("--template", chat_template, "chat template by name");
  app.add_option("--device", settings.device, "auto, cpu, cuda:0")->capture_default_str();
  app.add_option("--dtype", settings.dtype, "auto, f32, bf16")->capture_default_str();
  return program::run(app, argc, argv, [&] {
    if (n_rows == 0 || n_rows < -1) throw UsageError("--rows must be at least 1");
    if (options.seq_len < 2) throw UsageError("--seq-len must be at least 2");
    settings.max_positions = options.seq_len;
    options.max_rows = n_rows;
    InferenceModel m = open_inference(settings);
    Dataset rows = load_dataset(data, *m.tokenizer, chat_template, options);
    program::message(concat(data, ": format ", rows.format, ", ", rows.rows.size(), " rows"));
    Evaluation e = evaluate(*m.model, rows.rows, std::max<std::int64_t>(options.seq_len, 2048));
    if (!std::isfinite(e.loss)) throw NonFiniteError("the loss is not finite");
    OrderedJson out = {{"loss", e.loss},
                       {"perplexity", e.perplexity},
                       {"tokens", e.supervised_tokens},
                       {"rows", e.rows}};
    std::printf("%s\n", out.dump().c_str());
    return 0;
  });
}
