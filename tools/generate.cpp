// generate: continues prompts with a model, with or without adapters, or holds a conversation.
#include <cstdio>

#include "inference_report.h"
#include "io/json.h"
#include "nn/generate.h"
#include "own_sampling.h"
#include "processes.h"
#include "program.h"
#include "prompt_rows.h"
#include "run/adapter_use.h"
#include "run/inference.h"
#include "run/shared_inference.h"
#include "run/shared_run.h"
#include "settings_file.h"
#include "talk.h"
#include "text/chat_template.h"
#include "text/fitted_template.h"

namespace {

using namespace lk;
using program::PromptRow;
using program::write;

struct Settings {
  InferenceSettings inference;
  std::optional<std::string> prompt, system;
  std::string prompts, chat_template, columns, keep_dense;
  std::vector<std::string> adapters;
  SamplingSettings sampling;
  std::int64_t batch = 16;
  program::ProcessFlags processes;
  bool chat = false, json = false;
};

OrderedJson as_json(const PromptRow& p, std::size_t n_prompt, const Generation& g) {
  const double n = static_cast<double>(g.ids.size());
  OrderedJson out = {{"prompt", p.text},
                     {"ids", g.ids},
                     {"text", g.text},
                     {"stopped", g.stopped},
                     {"prompt_tokens", n_prompt},
                     {"prefill_tokens_per_second",
                      static_cast<double>(n_prompt) / std::max(g.prefill_seconds, 1e-9)},
                     {"tokens_per_second", n > 1 ? (n - 1) / std::max(g.decode_seconds, 1e-9) : 0}};
  if (!p.adapter.empty()) out["adapter"] = p.adapter;
  return out;
}

std::vector<std::int32_t> prompt_ids(const InferenceModel& m,
                                     const std::optional<ChatTemplate>& chat,
                                     std::vector<Message> turns, const PromptRow& p) {
  try {
    if (!chat) return m.tokenizer->encode_prompt(p.text).ids;
    turns.push_back({"user", p.text});
    return encode_chat(*m.tokenizer, chat->render(turns, true)).ids;
  } catch (const InputError& e) {
    throw InputError(concat(p.where.empty() ? "--prompt" : p.where, ": ", e.what()));
  }
}

// Throws InputError for a row whose prompt the model can't take: empty, or too long.
void check_prompts(const Generator& generator, const std::vector<PromptRow>& prompts,
                   const std::vector<GenerationRequest>& requests) {
  for (std::size_t i = 0; i < prompts.size(); ++i) try {
      generator.check(std::span(&requests[i], 1));
    } catch (const UsageError& e) {
      if (prompts[i].where.empty()) throw;  // of --prompt
      throw InputError(concat(prompts[i].where, ": ", e.what()));
    }
}

// `world`: the processes that share the prompts; null: this one alone.
void answer_all(const Settings& s, InferenceModel& m, const std::vector<PromptRow>& prompts,
                World* world) {
  std::optional<ChatTemplate> chat;
  std::vector<Message> opening;
  if (s.chat) {
    chat = ChatTemplate::choose(*m.tokenizer, s.chat_template);
    opening = opening_turns(*chat, s.system);
  }
  std::vector<GenerationRequest> requests;
  for (const PromptRow& p : prompts)
    requests.push_back({prompt_ids(m, chat, opening, p), s.sampling,
                        find_adapter(m, p.adapter, p.where + ": \"adapter\"")});
  const bool stream = !s.json && prompts.size() == 1 && !world;
  std::vector<const Generation*> done(prompts.size());
  std::size_t printed = 0;
  GenerationEvents events;
  if (stream) events.on_text = [](std::size_t, std::string_view text) { return write(text); };
  events.on_done = [&](std::size_t i, const Generation& g) {
    done[i] = &g;
    for (; printed < done.size() && done[printed]; ++printed) {  // in the order of the prompts
      const Generation& next = *done[printed];
      if (s.json)
        write(json_text(as_json(prompts[printed], requests[printed].prompt.size(), next)));
      else if (!stream)
        write(next.text);
      write("\n");
    }
  };
  Generator generator(*m.model, m.tokenizer.get(), {.max_batch = s.batch});
  check_prompts(generator, prompts, requests);
  if (!world) {
    generator.run(requests, events);
    return;
  }
  const std::int64_t groups = generation_groups(std::ssize(requests), s.sampling.beams, s.batch);
  if (groups < world->size())
    program::message(concat("warning: ", requests.size(), " prompts in batches of `batch` ",
                            s.batch, " are ", groups, " groups for ", world->size(),
                            " processes: ", world->size() - groups, " of them compute nothing"));
  generate_shared(*world, generator, requests, events.on_done);
}

// Adapters answer prompts as they learnt to; others they answer wrongly without a sign of it.
void warn_of_use(const Settings& s, const Tokenizer& tokenizer) {
  if (s.prompts.empty() && !s.inference.named_adapters.empty())
    program::message(
        "warning: the base answers, as nothing chooses one of these adapters: rows of --prompts "
        "do, by {\"adapter\": name}");
  const AdapterUse prompts{
      s.chat, s.chat_template.empty() ? std::nullopt : std::optional(s.chat_template), s.system};
  std::vector<std::pair<std::string, std::string>> folders;  // what to call them
  for (const std::string& named : s.inference.named_adapters)
    folders.emplace_back(named, named.substr(named.find('=') + 1));
  if (const std::string& one = s.inference.adapter; !one.empty()) folders.emplace_back(one, one);
  if (prompts.chats)
    for (const std::string& warning : marker_warnings(tokenizer, prompts.chat_template))
      program::message(warning);
  for (const auto& [adapter, folder] : folders) {
    const auto use = read_adapter_use(folder);
    const std::string doubt = use ? use_doubt(*use, prompts) : "";
    if (!doubt.empty())
      program::message(concat("warning: adapter ", adapter, " ", doubt, ": ",
                              use->chats ? "add" + use_flags(*use) : "leave --chat out"));
  }
}

// Answers prompts together with the other processes, or holds a conversation; `in_groups`: answers as
// processes share them, also if there is one. Returns what the program ends with.
ExitCode generate(const CLI::App& app, Settings& s, World& world, bool in_groups) {
  std::vector<PromptRow> rows;
  if (s.prompt) rows = {{*s.prompt, "", ""}};
  if (!s.prompts.empty())
    rows = program::read_prompt_rows(s.prompts,
                                     s.columns.empty() ? Columns() : Columns::parse(s.columns));
  s.inference.device = own_device(world, s.inference.device);
  InferenceModel m = open_inference(s.inference);
  if (!m.remark.empty()) program::message(m.remark);
  for (const std::string& warning : m.warnings) program::message("warning: " + warning);
  warn_of_use(s, *m.tokenizer);
  s.sampling.stop_ids = m.tokenizer->stop_ids();
  program::take_own_sampling(app, s.inference.model, s.sampling);
  program::report_adapters(m, std::min(s.batch, std::max<std::int64_t>(1, std::ssize(rows))));
  if (world.size() > 1)
    require_same_inference(world, *m.model, program::shared_settings(app, s.prompts));
  ExitCode code = ExitCode::Done;
  if (rows.empty())
    code = program::talk(m, s.sampling, s.chat_template, s.system);
  else
    answer_all(s, m, rows, in_groups && !s.prompts.empty() ? &world : nullptr);
  program::report_memory(m.backend->ledger());
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Continue prompts. Only the continuations go to stdout.\n\n"
      "  generate --model model.gguf --adapter runs/mine --prompt 'Once upon a time'\n"
      "  generate --model model.gguf --adapter runs/mine --chat --system 'Be kind.'\n"
      "  generate --model model.gguf --adapter a=runs/a --adapter b=runs/b --prompts rows.jsonl\n"
      "  generate --model model.gguf --prompts rows.jsonl --processes all\n",
      "generate");
  Settings s;
  const auto& whole = program::whole_number();
  const auto& real = program::real_number();
  app.add_option("--model", s.inference.model, program::kModelHelp)
      ->required()
      ->transform(program::model_name());
  app.add_option("--adapter", s.adapters,
                 "PEFT folder for all prompts; or name=FOLDER, as often as you like, for prompts "
                 "with {\"adapter\": name}")
      ->allow_extra_args(false);
  auto* prompt = app.add_option("--prompt", s.prompt, "text to continue");
  auto* prompts =
      app.add_option("--prompts", s.prompts, "rows {\"prompt\": ...}: .jsonl, .json, .csv, .tsv");
  prompt->excludes(prompts);
  app.add_option("--columns", s.columns,
                 "the key or column of --prompts with the prompt: prompt=KEY")
      ->type_name(program::kList)
      ->needs(prompts);
  app.add_option("--batch", s.batch, "prompts at a time, or their beams")
      ->check(whole)
      ->capture_default_str();
  app.add_option("--max-tokens", s.sampling.max_tokens, "at most this many")->check(whole);
  app.add_option("--temperature", s.sampling.temperature, "0 is greedy")->check(real);
  app.add_option("--top-k", s.sampling.top_k, "sample from the k most likely tokens")->check(whole);
  app.add_option("--top-p", s.sampling.top_p,
                 "sample from the most likely tokens of total probability p")
      ->check(real);
  app.add_option("--min-p", s.sampling.min_p,
                 "only tokens with at least p times the largest probability")
      ->check(real);
  app.add_option("--repetition-penalty", s.sampling.repetition_penalty,
                 "divides the logits of tokens that occurred before; 1 turns it off")
      ->check(real);
  app.add_option("--no-repeat-ngram", s.sampling.no_repeat_ngram,
                 "no N tokens in a row come twice, the prompt's included; 0 turns it off")
      ->check(whole);
  app.add_option("--beams", s.sampling.beams,
                 "beam search: keep the N most likely texts so far, and print the best at its end")
      ->check(whole);
  app.add_option(
         "--length-penalty", s.sampling.length_penalty,
         "beams are compared by log-probability / length^X (1); larger favours longer texts")
      ->check(real);
  app.add_option("--seed", s.sampling.seed, "seed of sampling, the same for each prompt")
      ->check(program::seed_number());
  app.add_option("--stop", s.sampling.stop, "end before this text; may be given several times")
      ->allow_extra_args(false);
  app.add_flag("--chat", s.chat,
               "wrap the prompt in the model's chat template; without a prompt: a conversation, "
               "lines from stdin, /reset and /exit");
  app.add_option("--system", s.system, "a system turn before what --chat says");
  app.add_option("--template", s.chat_template, "chat template by name");
  app.add_flag("--json", s.json, "one object per prompt: ids, text, speed");
  app.add_option("--device", s.inference.device, "auto, cpu, cuda, cuda:0")->capture_default_str();
  s.processes.add(
      app,
      "N or all: one a GPU, or that many on the CPU, share --prompts in groups of --batch, "
      "with the same result for any N");
  app.add_option("--dtype", s.inference.dtype, "auto, f32, bf16")->capture_default_str();
  s.inference.weights = "auto";
  app.add_option("--weights", s.inference.weights,
                 "auto, quantised (as the file has them, CPU only), dense")
      ->capture_default_str();
  app.add_option("--base-precision", s.inference.base_precision, program::kHeldHelp)
      ->capture_default_str();
  app.add_option("--keep-dense", s.keep_dense, program::kKeepDenseHelp)->type_name(program::kList);
  return program::run(app, argc, argv, [&] {
    const bool conversation = s.chat && !s.prompt && s.prompts.empty();
    if (!conversation && !s.prompt && s.prompts.empty())
      throw UsageError("give --prompt TEXT or --prompts FILE, or --chat for a conversation");
    if (s.system && !s.chat) throw UsageError("--system: is for --chat");
    if (!s.chat_template.empty() && !s.chat) throw UsageError("--template: is for --chat");
    check_system_text(s.system);
    if (s.batch < 1) throw UsageError("--batch must be at least 1");
    check_sampling(s.sampling);
    const bool draws = s.sampling.temperature > 0;
    for (const char* flag : {"--top-k", "--top-p", "--min-p"})
      if (!draws && s.sampling.beams == 1 && app.count(flag) > 0 && s.sampling.top_k != 1)
        program::message(concat("warning: ", flag,
                                ": without effect, as the likeliest token is taken; --temperature "
                                "1 draws from all that it leaves"));
    set_adapters(s.adapters, !s.prompts.empty(), s.inference);
    if (!s.keep_dense.empty())
      s.inference.keep_dense = program::parse_list(s.keep_dense, "--keep-dense");
    const program::SharedCommand shared(s.processes, s.inference.device);
    require(shared.count() == 1 || !s.prompts.empty(), "--processes ", shared.count(),
            ": they share the rows of --prompts; ",
            s.prompt ? "--prompt is one alone" : "a conversation is held with one alone");
    if (!s.prompts.empty()) shared.check_readable("--prompts", s.prompts);
    if (shared.starts_others()) return shared.start(argc, argv);
    World world = shared.open_world();
    return telling_others(
        world, [&] { return static_cast<int>(generate(app, s, world, shared.shared())); });
  });
}
