#include "methods/prompt.h"

#include <cmath>

#include "autograd/virtual_tokens.h"
#include "methods/initial_values.h"
#include "methods/peft_folder.h"

namespace lk {
namespace {

constexpr const char* kPromptTuning = "PROMPT_TUNING";

// The embeddings of `ids`, repeated or cut to n rows, as the blocks read them.
Tensor embedded(Transformer& model, const std::vector<std::int32_t>& ids, std::int64_t n) {
  const ModelConfig& config = model.config();
  std::vector<std::int32_t> all;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int32_t id = ids[static_cast<std::size_t>(i) % ids.size()];
    require(0 <= id && id < config.vocab_size, "`prompt_text`: token ", id, " of ",
            config.vocab_size);
    all.push_back(id);
  }
  Backend& backend = model.backend();
  const Tensor x = backend.empty(Tag::Workspace, model.compute_dtype(), {n, config.hidden_size});
  backend.embedding_forward(x, model.weights().embedding, to_device(backend, Tag::Workspace, all));
  if (config.scaled_embedding)
    backend.scale(x, GradMode::Write, std::sqrt(static_cast<double>(config.hidden_size)), {}, x);
  const Tensor t =
      backend.empty(Tag::Params, stat_dtype(model.compute_dtype()), {n, config.hidden_size});
  backend.copy(t, x);
  return t;
}

Parameter initial(Transformer& model, const PromptSettings& s) {
  require(s.virtual_tokens >= 1 && s.virtual_tokens <= kMostVirtualTokens, "`virtual_tokens` ",
          s.virtual_tokens, ": from 1 to ", kMostVirtualTokens);
  require(!model.input_place(), "`method` prompt: the place before the blocks is taken");
  const DType dtype = model.compute_dtype();
  if (!s.text.empty())
    return Parameter(kPromptEmbeddings, embedded(model, s.text, s.virtual_tokens), dtype);
  const Shape shape{s.virtual_tokens, model.config().hidden_size};
  return normal_parameter(model.backend(), dtype, kPromptEmbeddings, shape, s.seed, 0);
}

class PromptFile final : public MethodFile {
 public:
  explicit PromptFile(const std::string& folder)
      : file_(folder, kPromptTuning,
              {"num_virtual_tokens", "token_dim", "num_transformer_submodules"},
              // How the vectors were initialised, and numbers of the model that they don't use.
              {"num_attention_heads", "num_layers", "prompt_tuning_init", "prompt_tuning_init_text",
               "tokenizer_kwargs", "tokenizer_name_or_path"}),
        n_(json_int(file_.config(), "num_virtual_tokens", 1, kMostVirtualTokens,
                    file_.config_path())) {
    if (!file_.config().value("num_transformer_submodules", Json()).is_null())
      json_int(file_.config(), "num_transformer_submodules", 1, 1, file_.config_path());
  }
  std::string method() const override { return "prompt"; }
  BaseIdentity base() const override { return file_.base(); }
  std::string summary() const override { return concat(n_, " virtual tokens"); }
  std::int64_t virtual_tokens() const override { return n_; }
  std::unique_ptr<Method> attach(Transformer& model) const override {
    const std::int64_t C = model.config().hidden_size;
    if (!file_.config().value("token_dim", Json()).is_null() &&
        json_int(file_.config(), "token_dim", 1, INT32_MAX, file_.config_path()) != C)
      throw InputError(
          concat(file_.config_path(), ": token_dim: the model's embeddings have ", C, " numbers"));
    file_.expect({{kPromptEmbeddings, {n_, C}}});
    auto method = std::make_unique<PromptTuning>(model, PromptSettings{.virtual_tokens = n_});
    set_values(*method->parameters()[0], file_.read(kPromptEmbeddings));
    return method;
  }

 private:
  PeftFolder file_;
  std::int64_t n_;
};

}  // namespace

PromptTuning::PromptTuning(Transformer& model, const PromptSettings& settings)
    : model_(model), vectors_(initial(model, settings)) {
  model_.input_place() = this;
}

PromptTuning::~PromptTuning() { set_enabled(false); }

void PromptTuning::set_enabled(bool enabled) { model_.input_place() = enabled ? this : nullptr; }

std::vector<std::pair<std::string, std::string>> PromptTuning::facts() const {
  return {{"virtual tokens", concat(tokens())}};
}

// In generation the tokens come in any number and order, each with its index.
Var PromptTuning::apply(Tape& tape, const Var& x, const VirtualRows& at) {
  if (!at.rows.defined() || at.rows.numel() == 0) return x;
  if (!at.index.defined()) return virtual_tokens(tape, x, at.rows, vectors_);
  check(!tape.recording(), "virtual tokens with an index have no backward");
  const Tensor y = tape.activation(x.dtype(), x.value().shape(), x.value().margin());
  const Tensor rows = tape.activation(x.dtype(), {at.rows.numel(), x.value().cols()});
  Backend& backend = tape.backend();
  backend.copy(y, x.value());
  backend.embedding_forward(rows, Weight(kPromptEmbeddings, vectors_.compute()), at.index);
  backend.put_rows(y, rows, at.rows);
  return tape.constant(y);
}

// The vectors as they are say it all: PEFT would ask for a tokenizer to load an initial text.
void PromptTuning::save(const std::string& folder, const BaseIdentity& base) const {
  const ModelConfig& model = model_.config();
  write_peft_folder(folder,
                    {{"peft_type", kPromptTuning},
                     {"num_virtual_tokens", tokens()},
                     {"token_dim", model.hidden_size},
                     {"num_transformer_submodules", 1},
                     {"num_attention_heads", model.n_heads},
                     {"num_layers", model.n_layers},
                     {"prompt_tuning_init", "RANDOM"},
                     {"prompt_tuning_init_text", nullptr},
                     {"tokenizer_name_or_path", nullptr}},
                    base,
                    {{kPromptEmbeddings, vectors_.shape(), to_host<float>(vectors_.value())}});
}

std::unique_ptr<MethodFile> open_prompt_tuning(const std::string& folder) {
  return std::make_unique<PromptFile>(folder);
}

}  // namespace lk
