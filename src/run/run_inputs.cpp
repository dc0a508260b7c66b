#include "run/run_inputs.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "io/checked.h"
#include "io/paths.h"
#include "io/sha256.h"
#include "modelfile/hub_name.h"
#include "modelfile/load.h"
#include "run/choices.h"
#include "run/defaults.h"
#include "text/chat_template.h"

namespace lk {
namespace {

std::string sha256(const std::string& content) {
  Sha256 hash;
  hash.update(content.data(), content.size());
  return hash.hex();
}

// The digest of rows as training sees them: whatever shapes a row shows here.
std::string rows_sha256(const std::vector<Row>& rows) {
  Sha256 all;
  for (const Row& row : rows) {
    const std::uint64_t n = row.ids.size();
    all.update(&n, sizeof n);
    all.update(row.ids.data(), n * sizeof row.ids[0]);
    all.update(row.supervised.data(), row.supervised.size());
  }
  return all.hex();
}

// An adapter to start from comes with its rank, alpha and modules.
void take_adapter(FinetuneSettings& s, FinetuneListener& listener, RunInputs& in) {
  require_lora(s.init_adapter, concat("`init_adapter` ", s.init_adapter),
               "training goes on from A and B alone");
  in.init = open_adapter(s.init_adapter);
  check_modules(*in.init, in.model->config(), s.model);
  in.init_sha256 = sha256_file(s.init_adapter + "/" + kAdapterWeights);
  LoraConfig& lora = in.methods.lora;
  lora = in.init->config;
  shorten_targets(lora, in.model->config());
  lora.shape.dropout = static_cast<float>(s.dropout);
  lora.seed = s.seed;
  const auto [rank, alpha] = std::pair(lora.shape.rank, lora.shape.alpha);
  require(s.rank.value_or(rank) == rank, "`rank` ", s.rank.value_or(0), ": `init_adapter` ",
          s.init_adapter, " has rank ", rank);
  require(s.alpha.value_or(alpha) == alpha, "`alpha` ", s.alpha.value_or(0), ": `init_adapter` ",
          s.init_adapter, " has alpha ", alpha);
  s.rank = rank;
  listener.message(concat("starting from ", s.init_adapter, ": ", summary(*in.init)));
}

void take_methods(FinetuneSettings& s, FinetuneListener& listener, RunInputs& in) {
  if (!in.model) in.model = std::make_shared<ModelFile>(s.model);
  check_layers(s, in.model->config());
  in.methods = choose_methods(s, in.model->config());
  in.methods.base = in.model;
  if (!s.init_adapter.empty()) take_adapter(s, listener, in);
}

void take_precision(const FinetuneSettings& s, Backend& backend, DType dtype,
                    FinetuneListener& listener, RunInputs& in) {
  const ModelConfig& config = in.model->config();
  const ChosenPrecision held =
      choose_precision(s, in.methods, config, in.model.get(), backend, dtype);
  in.storage = held.storage, in.formats = held.formats;
  if (held.count() > 0) listener.message(concat("base: ", describe_formats(in.formats)));
  const auto fp8 = held.count([](const QuantisedFormat& f) { return f.encoding == Encoding::Fp8; });
  const auto multiplied = held.count([](const QuantisedFormat& f) { return f.multiplied; });
  if (fp8 > multiplied && s.fp8_products != "off")
    listener.message(concat(fp8 - multiplied, " fp8 matrices are dequantised for each product: ",
                            in.storage.fp8_products
                                ? "products in fp8 need a scale for each output channel or each "
                                  "matrix, and sides that are multiples of 16"
                                : no_fp8_products(config, backend, dtype)));
}

// A folder that is to be opened in place of the model holds a model of its shape.
void check_base_folder(const std::string& folder, const ModelConfig& model) {
  require(exists(folder + "/config.json"), "`base_name` ", folder,
          ": no Hugging Face folder of a model: it has no config.json");
  const ModelConfig own = ModelFile(folder).config();
  require(own.vocab_size == model.vocab_size && own.hidden_size == model.hidden_size &&
              own.n_layers == model.n_layers && own.n_parameters() == model.n_parameters(),
          "`base_name` ", folder, ": another model: ", own.n_layers, " layers of width ",
          own.hidden_size, " and ", own.n_parameters(), " parameters, `model` has ", model.n_layers,
          " of ", model.hidden_size, " and ", model.n_parameters());
}

// Decides what the adapter calls its base, for PEFT's AutoPeftModel and the hub. A folder wins over a
// name on the hub, as it does for transformers.
void name_base(const FinetuneSettings& s, FinetuneListener& listener, RunInputs& in) {
  const HubName found =
      s.base_name.empty() ? hub_name(*in.model) : HubName{s.base_name, "`base_name`"};
  in.base_model = found.name.empty() ? s.model : found.name;
  if (!s.base_name.empty() && is_folder(s.base_name)) {
    check_base_folder(s.base_name, in.model->config());
    listener.message(concat("base model: the folder ", s.base_name, ", by ", found.from));
    return;
  }
  if (found.name.empty() && replaces_base(in.methods))
    listener.message(concat("base model: called ", s.model, " in the model card"));
  else if (found.name.empty())
    listener.message(concat("base model: called ", s.model,
                            " in the adapter, as its files name no repository on the Hugging Face "
                            "hub: `base_name` ORG/NAME lets others open the adapter",
                            in.model->gguf() ? ", and so does `base_name` FOLDER, a Hugging Face "
                                               "folder of the base (merge makes one)"
                                             : ""));
  else
    listener.message(concat("base model: ", found.name, " on the hub, by ", found.from));
}

// Refuses rows that files would not have given.
void check_rows(const Dataset& data, std::int64_t seq_len, std::int64_t vocab_size) {
  require(!data.rows.empty(), data.path, ": none");
  for (std::size_t i = 0; i < data.rows.size(); ++i) {
    const Row& row = data.rows[i];
    const std::string where = concat(data.path, ": rows[", i, "]: ");
    require(std::ssize(row.ids) <= seq_len, where, row.ids.size(), " tokens, `seq_len` is ",
            seq_len);
    require(row.n_supervised() > 0, where, "no token to train on");
    for (std::size_t j = 0; j < row.ids.size(); ++j)
      require(row.ids[j] >= 0 && row.ids[j] < vocab_size, where, "ids[", j, "] is ", row.ids[j],
              ", the model's tokens are 0 to ", vocab_size - 1);
  }
}

// Virtual tokens before each row predict its first token too.
void count_first_tokens(Dataset& data, const MethodConfig& methods) {
  if (virtual_tokens(methods) == 0) return;
  for (const Row& row : data.rows) data.supervised_tokens += row.supervised[0] != 0;
}

void read_data(FinetuneSettings& s, FinetuneListener& listener, RunInputs& in, FinetuneRows* rows) {
  in.tokenizer = in.model->read_tokenizer();
  if (!s.prompt_text.empty()) in.methods.prompt.text = in.tokenizer->encode(s.prompt_text);
  name_base(s, listener, in);
  for (const auto& [name, content] : in.model->side_files())
    if (name != "config.json")
      in.model_files[name] = sha256(content);  // that is compared as parsed
  const ModelConfig& config = in.model->config();
  if (in.init)
    for (const std::string& text : disagreements(*in.init, config))
      listener.message("warning: " + text);
  choose_seq_len(s, in.methods, config);
  DatasetOptions options{*s.seq_len, s.long_rows, s.skip_bad_rows, -1,
                         s.format,   s.train_on,  s.columns,       s.system};
  in.data = rows ? dataset_of(std::move(rows->train), *in.tokenizer, "rows in memory")
                 : load_dataset(s.data, *in.tokenizer, s.chat_template, options);
  if (rows) {
    check_rows(in.data, *s.seq_len, config.vocab_size);
    in.data.chats = rows->chats ? (*rows->chats ? std::ssize(in.data.rows) : 0) : -1;
    in.data.system = rows->system;
  }
  // A run that goes on has the template that it began with, or is refused for that.
  require(s.resume || !s.chat_template || in.data.chats != 0, "`template`: the rows of ", s.data,
          " are no chats, which it is for");
  count_first_tokens(in.data, in.methods);
  if (rows && !rows->eval.empty()) {
    in.eval = dataset_of(std::move(rows->eval), *in.tokenizer, "evaluation rows in memory");
    check_rows(in.eval, *s.seq_len, config.vocab_size);
    in.eval_rows_sha256 = rows_sha256(in.eval.rows);
  }
  listener.message(concat("data: ", in.data.path, ": ", in.data.container, ", format ",
                          in.data.format, ", ", in.data.rows.size(), " rows, ", in.data.tokens,
                          " tokens, ", in.data.supervised_tokens, " supervised, ",
                          in.data.rows_ending_in_eos, " rows end in a stop token"));
  for (const std::string& remark : in.data.remarks()) listener.message(remark);
  if (in.data.chats > 0)
    for (const std::string& warning : marker_warnings(*in.tokenizer, s.chat_template))
      listener.message(warning);
  const double share = in.eval.rows.empty() ? eval_share(s, std::ssize(in.data.rows)) : 0;
  if (share > 0) {
    const std::size_t all = in.data.rows.size();
    const std::int64_t most = s.eval_split ? INT64_MAX : kMostSplitRows;
    in.eval = split_off(in.data, *in.tokenizer, share, s.eval_rows > 0 ? s.eval_rows : most);
    count_first_tokens(in.data, in.methods);
    in.eval_rows_sha256 = rows_sha256(in.eval.rows);
    listener.message(concat("evaluation: ", in.eval.rows.size(), " of the ", all,
                            " rows are kept for it and not trained on",
                            s.eval_split ? "" : " (`eval_split` 0 trains on all)"));
  }
  in.rows_sha256 = rows_sha256(in.data.rows);
  for (std::int64_t i = 0; i < std::min<std::int64_t>(s.show_rows, std::ssize(in.data.rows)); ++i)
    listener.rows(show_row(in.data.rows[static_cast<std::size_t>(i)], *in.tokenizer, false,
                           virtual_tokens(in.methods) > 0));
  if (!s.eval_data.empty()) {
    options.max_rows = s.eval_rows;
    in.eval = load_dataset(s.eval_data, *in.tokenizer, s.chat_template, options);
    in.eval_rows_sha256 = rows_sha256(in.eval.rows);
    listener.message(concat("eval data: ", in.eval.path, ": ", in.eval.container, ", format ",
                            in.eval.format, ", ", in.eval.rows.size(), " rows"));
    for (const std::string& remark : in.eval.remarks()) listener.message("eval data: " + remark);
  }
}

// "trains: 18 steps of 8 rows, 3 passes over 43 rows; rank 16 on all-linear; lr 0.0015, linear after
// 1 step of warm-up; evaluates every 2 steps and keeps the best"
std::string opening_line(const FinetuneSettings& s, const RunInputs& in, double epochs) {
  const std::int64_t rows = s.batch * s.grad_accum;
  std::string line = concat("trains: ", in.steps, in.steps == 1 ? " step of " : " steps of ", rows,
                            s.packing ? " bins, " : " rows, ", std::round(epochs * 100) / 100,
                            " passes over ", in.data.rows.size(), " rows; ", describe(in.methods),
                            "; lr ", *s.lr, ", ", *s.schedule);
  if (*s.warmup > 0) line += concat(" after ", *s.warmup, " of warm-up");
  if (in.eval.rows.empty()) return line;
  line += *s.eval_every > 0 ? concat("; evaluates every ", *s.eval_every, " steps")
                            : std::string("; evaluates before and after");
  return line + (s.keep == "best" ? " and keeps the best" : " and keeps the last");
}

// Decides which rows each step will see, and how many steps that makes.
void arrange(FinetuneSettings& s, FinetuneListener& listener, RunInputs& in, const Json* before) {
  if (s.packing) {
    in.sampler.emplace(in.row_lengths(), *s.seq_len + virtual_tokens(in.methods), s.batch,
                       s.shuffle, s.seed);
    const auto rows = static_cast<double>(in.data.rows.size());
    const auto bins = static_cast<double>(in.sampler->bins_per_epoch());
    const double full =
        static_cast<double>(in.data.tokens) / bins / static_cast<double>(*s.seq_len);
    in.packing = {
        {"bins", in.sampler->bins_per_epoch()}, {"full", full}, {"rows_per_bin", rows / bins}};
    char text[160];
    std::snprintf(text, sizeof text,
                  "packing: %.0f bins of %lld tokens an epoch, %.1f %% full, %.1f rows a bin", bins,
                  static_cast<long long>(*s.seq_len), 100 * full, rows / bins);
    listener.message(text);
  } else {
    in.sampler.emplace(std::ssize(in.data.rows), s.batch, s.shuffle, s.seed);
  }
  const double per_step = static_cast<double>(s.batch * s.grad_accum);
  const auto per_epoch = static_cast<double>(in.sampler->bins_per_epoch());
  // Micro-batches are counted in 32 bits, which dropout's masks are drawn from.
  const std::int64_t most = INT32_MAX / s.grad_accum;
  if (!s.steps && !s.epochs) s.epochs = default_epochs(std::ssize(in.data.rows));
  const double wanted = std::ceil(s.epochs.value_or(1.0) * per_epoch / per_step);
  const auto steps = s.steps ? s.steps : to_integer(std::max(wanted, 1.0), 1, most);
  require(steps && *steps <= most,
          s.steps ? concat("`steps` ", *s.steps) : concat("`epochs` ", s.epochs.value_or(0)),
          ": more than ", most, " steps");
  in.steps = *steps;
  const std::int64_t parameters = in.model->config().n_parameters();
  fill_in_rates(s, parameters, in.steps, before);
  require(*s.warmup <= in.steps, "`warmup` ", *s.warmup, ": the run has ", in.steps, " steps");
  const double epochs = static_cast<double>(in.steps) * per_step / per_epoch;
  const auto tokens = to_integer(epochs * static_cast<double>(in.data.tokens), 0, INT64_MAX / 8);
  if (!s.save_every) s.save_every = default_save_every(in.steps);
  fill_in_evaluation(s, in.steps, epochs, tokens.value_or(INT64_MAX / 8), in.eval.tokens);
  listener.message(opening_line(s, in, epochs));
  require(
      !in.eval.rows.empty() || (s.eval_every == 0 && s.keep != "best" && s.patience == 0 &&
                                s.samples == 0 && s.sample_every == 0 && s.eval_rows == -1),
      "`eval_rows`, `eval_every`, `keep` best, `patience`, `samples` and `sample_every` need rows "
      "to evaluate on: `eval_data` or `eval_split`");
  for (const std::string& doubt : doubts(s, parameters, in.steps, !in.eval.rows.empty()))
    listener.message(doubt);
}

}  // namespace

std::vector<std::int64_t> RunInputs::row_lengths() const {
  std::vector<std::int64_t> lengths;
  for (const Row& row : data.rows) lengths.push_back(std::ssize(row.ids) + virtual_tokens(methods));
  return lengths;
}

std::vector<const Row*> RunInputs::rows_of(std::int64_t micro_batch) const {
  std::vector<const Row*> rows;
  for (std::int64_t i : sampler->batch(micro_batch))
    rows.push_back(&data.rows[static_cast<std::size_t>(i)]);
  return rows;
}

std::vector<HostBatch> RunInputs::lay_out(std::int64_t step, std::int64_t grad_accum) const {
  std::vector<HostBatch> batches;
  for (std::int64_t g = 0; g < grad_accum; ++g)
    batches.push_back(make_host_batch(rows_of(step * grad_accum + g), virtual_tokens(methods)));
  return batches;
}

RunInputs read_inputs(FinetuneSettings& settings, Backend& backend, DType dtype,
                      FinetuneListener& listener, const Json* before, FinetuneRows* rows,
                      std::shared_ptr<const ModelFile> opened) {
  RunInputs in;
  in.model = std::move(opened);
  take_methods(settings, listener, in);
  take_precision(settings, backend, dtype, listener, in);
  read_data(settings, listener, in, rows);
  arrange(settings, listener, in, before);
  return in;
}

}  // namespace lk
