// generate: continue a prompt with a model, with or without an adapter.
#include <cstdio>

#include "io/json.h"
#include "lora/inference.h"
#include "nn/generate.h"
#include "program.h"
#include "text/chat_template.h"
#include "text/jsonl.h"

namespace {

using namespace lk;

struct Settings {
  InferenceSettings inference;
  std::optional<std::string> prompt;
  std::string prompts, chat_template;
  SamplingSettings sampling;
  bool chat = false, json = false;
};

// The prompts themselves: --prompt, or the "prompt" of each line of --prompts.
std::vector<std::string> read_prompts(const Settings& s) {
  if (s.prompt) return {*s.prompt};
  std::vector<std::string> prompts;
  for_each_json_line(s.prompts, [&](const Json& row, const std::string& where) {
    prompts.push_back(json_string(row, "prompt", where));
    return true;
  });
  if (prompts.empty()) throw InputError(s.prompts + ": no prompts");
  return prompts;
}

std::vector<std::int32_t> encode(const Settings& s, const Tokenizer& tokenizer,
                                 const std::string& prompt) {
  if (!s.chat) return tokenizer.encode(prompt);
  ChatTemplate chat = ChatTemplate::choose(tokenizer, s.chat_template);
  RenderedChat text = chat.render({{"user", prompt}}, true);
  return tokenizer.encode(text.text, text.content);
}

void answer(const Settings& s, InferenceModel& m, const std::string& prompt, bool stream) {
  std::vector<std::int32_t> ids = encode(s, *m.tokenizer, prompt), seen;
  std::size_t printed = 0;
  auto on_token = [&](std::int32_t id) {
    if (!stream) return true;
    seen.push_back(id);
    std::string text = m.tokenizer->decode(seen);
    // A character may span tokens: wait for the rest of it.
    if (text.ends_with("\xEF\xBF\xBD")) return true;
    std::fwrite(text.data() + printed, 1, text.size() - printed, stdout);
    std::fflush(stdout);
    printed = text.size();
    return true;
  };
  Generation g = generate(*m.model, ids, s.sampling, on_token);
  std::string text = m.tokenizer->decode(g.ids);
  if (s.json) {
    const double decoded = static_cast<double>(g.ids.size());
    OrderedJson out = {{"prompt", prompt},
                       {"ids", g.ids},
                       {"text", text},
                       {"stopped", g.stopped},
                       {"prompt_tokens", ids.size()},
                       {"prefill_tokens_per_second",
                        static_cast<double>(ids.size()) / std::max(g.prefill_seconds, 1e-9)},
                       {"tokens_per_second",
                        decoded > 1 ? (decoded - 1) / std::max(g.decode_seconds, 1e-9) : 0.0}};
    std::printf("%s\n", out.dump(-1, ' ', false, OrderedJson::error_handler_t::replace).c_str());
    return;
  }
  if (stream) text.erase(0, std::min(printed, text.size()));
  std::printf("%s\n", text.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Continue a prompt. Only the continuation goes to stdout.", "generate");
  Settings s;
  const auto& whole = program::whole_number();
  const auto& real = program::real_number();
  app.add_option("--model", s.inference.model, ".gguf file or Hugging Face folder")->required();
  app.add_option("--adapter", s.inference.adapter, "PEFT folder");
  auto* prompt = app.add_option("--prompt", s.prompt, "text to continue");
  auto* prompts = app.add_option("--prompts", s.prompts, ".jsonl with {\"prompt\": ...} rows");
  prompt->excludes(prompts);
  app.add_option("--max-tokens", s.sampling.max_tokens, "at most this many")->check(whole);
  app.add_option("--temperature", s.sampling.temperature, "0 is greedy")->check(real);
  app.add_option("--top-k", s.sampling.top_k, "sample among the k likeliest")->check(whole);
  app.add_option("--top-p", s.sampling.top_p, "sample among the likeliest p")->check(real);
  app.add_option("--seed", s.sampling.seed, "of sampling")->check(whole);
  app.add_flag("--chat", s.chat, "wrap the prompt in the model's chat template");
  app.add_option("--template", s.chat_template, "chat template by name");
  app.add_flag("--json", s.json, "one object per prompt: ids, text, speed");
  app.add_option("--device", s.inference.device, "auto, cpu, cuda:0")->capture_default_str();
  app.add_option("--dtype", s.inference.dtype, "auto, f32, bf16")->capture_default_str();
  s.inference.weights = "auto";
  app.add_option("--weights", s.inference.weights,
                 "auto, quantised (as the file has them, CPU only), dense")
      ->capture_default_str();
  return program::run(app, argc, argv, [&] {
    if (!s.prompt && s.prompts.empty()) throw UsageError("give --prompt TEXT or --prompts FILE");
    if (s.sampling.max_tokens < 1) throw UsageError("--max-tokens must be at least 1");
    if (s.sampling.temperature < 0 || s.sampling.top_k < 0 || s.sampling.top_p <= 0 ||
        s.sampling.top_p > 1)
      throw UsageError("--temperature and --top-k must not be negative, --top-p in (0, 1]");
    std::vector<std::string> prompts_text = read_prompts(s);
    InferenceModel m = open_inference(s.inference);
    s.sampling.stop_ids = m.tokenizer->stop_ids();
    for (const std::string& p : prompts_text) answer(s, m, p, !s.json && prompts_text.size() == 1);
    return 0;
  });
}
