// evaluate: loss and perplexity of a model, with or without an adapter, its accuracy on questions
// with choices, or scores of its generated texts against references.
#include <cmath>
#include <cstdio>

#include "io/durable.h"
#include "io/json.h"
#include "io/staged_output.h"
#include "nn/evaluation.h"
#include "own_sampling.h"
#include "processes.h"
#include "program.h"
#include "row_flags.h"
#include "run/adapter_use.h"
#include "run/inference.h"
#include "run/scoring.h"
#include "run/shared_inference.h"
#include "run/shared_run.h"
#include "settings_file.h"
#include "text/chat_template.h"

namespace {

using namespace lk;

struct Settings {
  InferenceSettings inference;
  std::string data, predictions;
  std::optional<std::string> chat_template;
  DatasetOptions rows;
  program::LongRowFlags long_rows;
  std::string train_on = "assistant", columns, keep_dense;
  SamplingSettings sampling;
  std::int64_t batch = 16;
  program::ProcessFlags processes;
  bool generate = false;
  CLI::Option* seq_len = nullptr;  // --seq-len
  std::int64_t batch_tokens() const { return std::max<std::int64_t>(rows.seq_len, 2048); }
  EvalRowOptions eval_rows() const {
    return {rows.seq_len, rows.max_rows, rows.columns, chat_template, rows.system};
  }
};

void show_progress(std::int64_t done, std::int64_t total) {
  program::progress(concat(done, "/", total, " rows"), done == total);
}

// An adapter's scores say little of rows of another kind than it was trained on, a model's of chats
// between markers that it does not know.
void warn_of_use(const Settings& s, const Tokenizer& tokenizer, const AdapterUse& rows) {
  if (rows.chats)
    for (const std::string& warning : marker_warnings(tokenizer, rows.chat_template))
      program::message(warning);
  const auto use = read_adapter_use(s.inference.adapter);
  const std::string doubt = use ? use_doubt(*use, rows) : "";
  if (doubt.empty()) return;
  std::string flags;
  if (rows.chats && use->chats) {
    if (use->chat_template) flags += " --template " + shell_word(*use->chat_template);
    if (use->system) flags += " --system " + shell_word(*use->system);
  }
  program::message(concat("warning: adapter ", s.inference.adapter, " ", doubt,
                          flags.empty() ? "" : ": it learnt with" + flags));
}

OrderedJson loss(const Settings& s, const ByteSource& data, InferenceModel& m, World& world) {
  Dataset rows = load_dataset(data, *m.tokenizer, s.chat_template, s.rows);
  require(!s.chat_template || rows.chats > 0, "--template: the rows of ", s.data,
          " are no chats, which it is for");
  program::message(concat(rows.path, ": ", rows.container, ", format ", rows.format, ", ",
                          rows.rows.size(), " rows"));
  for (const std::string& remark : rows.remarks()) program::message(remark);
  warn_of_use(s, *m.tokenizer, {rows.chats > 0, s.chat_template, rows.system});
  const Evaluation e = evaluate(*m.model, rows.rows, s.batch_tokens(), share_of(world));
  if (!std::isfinite(e.loss)) throw NonFiniteError("the loss is not finite");
  return {{"loss", e.loss},
          {"perplexity", e.perplexity},
          {"tokens", e.supervised_tokens},
          {"rows", e.rows}};
}

OrderedJson choices(const Settings& s, const ByteSource& data, InferenceModel& m, World& world) {
  const std::vector<ChoiceRow> rows = load_choices(data, *m.tokenizer, s.eval_rows());
  program::message(concat(s.data, ": ", rows.size(), " rows with choices"));
  warn_of_use(s, *m.tokenizer, {});
  const ChoiceScores scores = score_choices(
      rows,
      choice_log_probabilities(*m.model, rows, s.batch_tokens(), show_progress, share_of(world)));
  return {{"accuracy", scores.accuracy},
          {"accuracy_norm", scores.accuracy_norm},
          {"rows", scores.rows},
          {"choices", scores.choices},
          {"tokens", scores.tokens}};
}

void write_predictions(StagedOutput& file, const std::vector<ReferenceRow>& rows,
                       const std::vector<std::string>& texts) {
  std::string lines;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const OrderedJson line = {
        {"prompt", rows[i].prompt}, {"text", texts[i]}, {"references", rows[i].references}};
    lines += json_text(line) + "\n";
  }
  write_file_durably(file.file("predictions"), lines);
  file.commit();
}

OrderedJson generation(Settings s, const ByteSource& data, InferenceModel& m, World* world,
                       std::optional<StagedOutput>& predictions) {
  const std::vector<ReferenceRow> rows =
      load_references(data, *m.tokenizer, s.eval_rows(), s.sampling.max_tokens);
  std::size_t references = 0;
  for (const ReferenceRow& row : rows) references += row.references.size();
  program::message(concat(s.data, ": ", rows.size(), " prompts with ", references, " references"));
  warn_of_use(s, *m.tokenizer, {rows[0].is_chat, s.chat_template, s.rows.system});
  s.sampling.stop_ids = m.tokenizer->stop_ids();
  const GenerationScores scores =
      score_generation(*m.model, *m.tokenizer, rows, s.sampling, s.batch, show_progress, world);
  if (predictions) write_predictions(*predictions, rows, scores.texts);
  return {{"bleu", scores.bleu},
          {"bleu_variant", "sacreBLEU corpus, case:mixed, eff:no, tok:13a, smooth:exp"},
          {"brevity_penalty", scores.brevity_penalty},
          {"rouge_l", scores.rouge_l},
          {"rouge_l_variant", "rouge-score rougeL F1, no stemmer, best reference, mean over rows"},
          {"e2e",
           {{"bleu", scores.e2e_bleu},
            {"nist", scores.e2e_nist},
            {"rouge_l", scores.e2e_rouge_l},
            {"cider", scores.e2e_cider},
            {"variant",
             "formulas of e2e-metrics; mteval-v13a words in lower case, those of rouge_l "
             "and cider without punctuation"}}},
          {"rows", scores.rows},
          {"references", scores.references},
          {"hypothesis_tokens", scores.hypothesis_tokens},
          {"reference_tokens", scores.reference_tokens}};
}

void add_flags(CLI::App& app, Settings& s) {
  const auto& whole = program::whole_number();
  app.add_option("--model", s.inference.model, program::kModelHelp)
      ->required()
      ->transform(program::model_name());
  app.add_option("--adapter", s.inference.adapter, "PEFT folder");
  app.add_option("--data", s.data, "rows: as for finetune, or with choices, or with references")
      ->required();
  app.add_option("--rows", s.rows.max_rows, "only the first N rows")->check(whole);
  s.seq_len = app.add_option("--seq-len", s.rows.seq_len,
                             "longest row (default 1024, or what the model has if that is less)")
                  ->check(whole);
  program::add_long_row_flags(app, s.long_rows);
  app.add_flag("--skip-bad-rows", s.rows.skip_bad_rows,
               "leave out and count rows that can't be read (loss only)");
  app.add_option("--format", s.rows.format, program::kFormatHelp);
  app.add_option("--columns", s.columns, program::kColumnsHelp)->type_name(program::kList);
  app.add_option("--system", s.rows.system, program::kSystemHelp);
  app.add_option("--template", s.chat_template, "chat template by name");
  app.add_option("--train-on", s.train_on, program::kTrainOnHelp)->capture_default_str();
  s.sampling.max_tokens = 64;
  app.add_flag("--generate", s.generate,
               "answer each prompt, greedily or with --beams, and score it against its references, "
               "its completion or "
               "the assistant's last turn: BLEU, ROUGE-L, NIST, CIDEr");
  app.add_option("--max-tokens", s.sampling.max_tokens, "of each answer")
      ->check(whole)
      ->capture_default_str();
  app.add_option("--repetition-penalty", s.sampling.repetition_penalty,
                 "divides the logits of tokens that occurred before; 1 turns it off")
      ->check(program::real_number());
  app.add_option("--no-repeat-ngram", s.sampling.no_repeat_ngram,
                 "no N tokens in a row come twice in a prompt and its answer; 0 turns it off")
      ->check(whole);
  app.add_option("--beams", s.sampling.beams, "answer by beam search: the best of N beams")
      ->check(whole);
  app.add_option("--length-penalty", s.sampling.length_penalty,
                 "beams are compared by log-probability / length^X (1)")
      ->check(program::real_number());
  app.add_option("--batch", s.batch, "answers at a time, or their beams")
      ->check(whole)
      ->capture_default_str();
  app.add_option("--predictions", s.predictions, "write prompts and answers here (.jsonl)");
  app.add_option("--device", s.inference.device, "auto, cpu, cuda, cuda:0")->capture_default_str();
  s.processes.add(app,
                  "N or all: one a GPU, or that many on the CPU, share the rows, with the same "
                  "result for any N");
  app.add_option("--dtype", s.inference.dtype, "auto, f32, bf16")->capture_default_str();
  app.add_option("--weights", s.inference.weights,
                 "dense, quantised (as the file has them, CPU only), auto")
      ->capture_default_str();
  app.add_option("--base-precision", s.inference.base_precision, program::kHeldHelp)
      ->capture_default_str();
  app.add_option("--keep-dense", s.keep_dense, program::kKeepDenseHelp)->type_name(program::kList);
}

// Scores the file's rows together with the other processes; `in_groups`: as processes share them, also
// if there is one.
void score(const CLI::App& app, Settings& s, World& world, bool in_groups) {
  const ByteSource data(s.data);                 // opened once: a pipe can be read once only
  const bool settled = s.rows.format != "auto";  // --format names a format of rows for the loss
  EvalKind kind = settled ? EvalKind::Loss : detect_eval_kind(data, s.rows.columns);
  if (s.generate) kind = EvalKind::Generation;
  if (s.rows.train_on != TrainOn::Assistant && kind != EvalKind::Loss)
    throw UsageError("--train-on is for the loss of chats: these rows have none");
  if (!s.predictions.empty() && kind != EvalKind::Generation)
    throw UsageError("--predictions: nothing is generated; add --generate");
  for (const char* flag : {"--max-tokens", "--batch", "--beams", "--length-penalty",
                           "--repetition-penalty", "--no-repeat-ngram"})
    if (kind != EvalKind::Generation && app.count(flag) > 0)
      throw UsageError(concat(flag, ": nothing is generated; add --generate"));
  for (const char* flag : {"--long-rows", "--truncate", "--skip-bad-rows"})
    if (kind != EvalKind::Loss && app.count(flag) > 0)
      throw UsageError(concat(flag, ": is for rows whose loss is computed"));
  std::optional<StagedOutput> predictions;  // taken before the work, so that none is done in vain
  if (!s.predictions.empty() && world.leads())
    predictions.emplace(s.predictions, StagedOutput::Kind::File, std::uint64_t{0});
  if (s.seq_len->count() > 0) s.inference.max_positions = s.rows.seq_len;
  s.inference.device = own_device(world, s.inference.device);
  InferenceModel m = open_inference(s.inference);
  if (!m.remark.empty()) program::message(m.remark);
  for (const std::string& warning : m.warnings) program::message("warning: " + warning);
  s.rows.seq_len = std::min(s.rows.seq_len, m.model->config().max_position);
  if (world.size() > 1)
    require_same_inference(world, *m.model,
                           program::shared_settings(app, s.data, {"--predictions"}));
  if (kind == EvalKind::Generation) program::take_own_sampling(app, s.inference.model, s.sampling);
  const OrderedJson out = kind == EvalKind::Choices ? choices(s, data, m, world)
                          : kind == EvalKind::Generation
                              ? generation(s, data, m, in_groups ? &world : nullptr, predictions)
                              : loss(s, data, m, world);
  program::write(json_text(out) + "\n");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Scores a model on a file: one JSON object on stdout.\n\n"
      "  evaluate --model model.gguf --adapter runs/mine --data test.jsonl\n"
      "  evaluate --model model.gguf --data questions.jsonl --rows 100\n"
      "  evaluate --model model.gguf --data test.jsonl --generate --predictions answers.jsonl\n"
      "  evaluate --model model.gguf --data test.jsonl --processes all\n",
      "evaluate");
  Settings s;
  add_flags(app, s);
  return program::run(app, argc, argv, [&] {
    if (s.rows.max_rows == 0 || s.rows.max_rows < -1) throw UsageError("--rows must be at least 1");
    if (s.rows.seq_len < 2) throw UsageError("--seq-len must be at least 2");
    check_sampling(s.sampling);
    if (s.batch < 1) throw UsageError("--batch must be at least 1");
    if (s.rows.format != "auto" && s.generate) throw UsageError("--generate takes no --format");
    s.rows.long_rows = program::long_rows(s.long_rows);
    s.rows.train_on = parse_train_on(s.train_on);
    if (!s.columns.empty()) s.rows.columns = Columns::parse(s.columns);
    if (!s.keep_dense.empty())
      s.inference.keep_dense = program::parse_list(s.keep_dense, "--keep-dense");
    const program::SharedCommand shared(s.processes, s.inference.device);
    shared.check_readable("--data", s.data);
    if (shared.starts_others()) return shared.start(argc, argv);
    World world = shared.open_world();
    return telling_others(world, [&] {
      score(app, s, world, shared.shared());
      return 0;
    });
  });
}
