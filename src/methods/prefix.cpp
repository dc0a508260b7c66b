#include "methods/prefix.h"

#include <algorithm>

#include "autograd/virtual_tokens.h"
#include "methods/initial_values.h"
#include "methods/peft_folder.h"
#include "nn/places.h"

namespace lk {
namespace {

constexpr const char* kPrefixTuning = "PREFIX_TUNING";
constexpr std::int64_t kMostHidden = 1 << 20;

// x (n,in) -> (n,out). The bias (out,1) is a linear map of ones: its gradient is then a sum over
// rows like any other weight's.
struct Linear {
  Parameter weight, bias;
  Linear(Backend& backend, DType dtype, const std::string& name, std::int64_t out, std::int64_t in,
         std::uint64_t seed, std::uint32_t site)
      : weight(linear_parameter(backend, dtype, name + ".weight", {out, in}, in, seed, site)),
        bias(linear_parameter(backend, dtype, name + ".bias", {out, 1}, in, seed, site + 1)) {}
  Var apply(Tape& tape, const Var& x) {
    Tensor ones = tape.activation(x.dtype(), {x.value().rows(), 1});
    tape.backend().fill(ones, 1);
    return add(tape, linear(tape, x, weight), linear(tape, tape.constant(ones), bias));
  }
  static constexpr std::int64_t kWeightGradients = 2;
};

}  // namespace

// tanh(W e + b) of the vectors e (n, G*D): PEFT's width for them is that of a layer's keys.
struct PrefixTuning::Encoder {
  Parameter vectors;
  Linear hidden;
  Encoder(Backend& backend, DType dtype, std::int64_t n, std::int64_t width, std::int64_t hidden,
          std::uint64_t seed)
      : vectors(normal_parameter(backend, dtype, "prefix.embedding", {n, width}, seed, 0)),
        hidden(backend, dtype, "prefix.transform.0", hidden, width, seed, 1) {}
  // Runs in every layer, inside what is recomputed with it: n rows cost next to nothing.
  Var apply(Tape& tape) { return tanh(tape, hidden.apply(tape, as_var(tape, vectors))); }
};

// A layer's keys and values: two matrices, or two maps of the encoder's output.
class PrefixTuning::Layer final : public AttentionPlace {
 public:
  Layer(Backend& backend, DType dtype, std::int64_t layer, std::int64_t n, std::int64_t width,
        std::int64_t hidden, Encoder* encoder, std::uint64_t seed)
      : n_(n), encoder_(encoder) {
    const auto site = static_cast<std::uint32_t>(4 * layer + 3);
    for (int i = 0; i < 2; ++i) {
      const std::string name = concat("prefix.layers.", layer, i == 0 ? ".key" : ".value");
      const std::uint32_t own = site + static_cast<std::uint32_t>(2 * i);
      if (encoder)
        maps_.push_back(std::make_unique<Linear>(backend, dtype, name, width, hidden, seed, own));
      else
        matrices_.push_back(std::make_unique<Parameter>(
            normal_parameter(backend, dtype, name, {n, width}, seed, own)));
    }
  }

  Var attend(Tape& tape, const Var& q, const Var& k, const Var& v, const AttentionShape& shape,
             const Segments& segments, const Tensor& positions) override {
    const auto [pk, pv] = keys(tape);
    return prefix_attention(tape, q, k, v, pk, pv, shape, segments, positions, n_);
  }
  void attend_cached(Tape& tape, const Tensor& o, const Tensor& lse, const Tensor& q,
                     const AttentionShape& shape, const Tensor& positions) override {
    const auto [pk, pv] = keys(tape);
    add_prefix(o, lse, q, {pk.value(), pv.value(), positions, n_}, shape);
  }

  // Keys and values (n, G*D).
  std::pair<Var, Var> keys(Tape& tape) {
    if (!encoder_) return {as_var(tape, *matrices_[0]), as_var(tape, *matrices_[1])};
    const Var h = encoder_->apply(tape);
    return {maps_[0]->apply(tape, h), maps_[1]->apply(tape, h)};
  }
  std::vector<Parameter*> parameters() const {
    std::vector<Parameter*> all;
    for (const auto& matrix : matrices_) all.push_back(matrix.get());
    for (const auto& map : maps_) all.insert(all.end(), {&map->weight, &map->bias});
    return all;
  }

 private:
  std::int64_t n_;
  Encoder* encoder_;
  std::vector<std::unique_ptr<Parameter>> matrices_;
  std::vector<std::unique_ptr<Linear>> maps_;
};

PrefixTuning::PrefixTuning(Transformer& model, const PrefixSettings& s)
    : model_(model), n_(s.virtual_tokens) {
  require(n_ >= 1 && n_ <= kMostVirtualTokens, "`virtual_tokens` ", n_, ": from 1 to ",
          kMostVirtualTokens);
  require(s.hidden_size >= 0 && s.hidden_size <= kMostHidden, "`prefix_hidden` ", s.hidden_size,
          ": from 0 to ", kMostHidden);
  const ModelConfig& config = model.config();
  for (std::int64_t i = 0; i < config.n_layers; ++i)
    require(!model.places(static_cast<std::size_t>(i)).attention,
            "`method` prefix: another method takes part in the attention");
  const std::int64_t width = config.kv_size();
  Backend& backend = model.backend();
  const DType dtype = model.compute_dtype();
  if (s.hidden_size > 0)
    encoder_ = std::make_unique<Encoder>(backend, dtype, n_, width, s.hidden_size, s.seed);
  for (std::int64_t i = 0; i < config.n_layers; ++i)
    layers_.push_back(std::make_unique<Layer>(backend, dtype, i, n_, width, s.hidden_size,
                                              encoder_.get(), s.seed));
  set_enabled(true);
}

PrefixTuning::~PrefixTuning() { set_enabled(false); }

void PrefixTuning::set_enabled(bool enabled) {
  model_.set_first_position(enabled ? n_ : 0);
  for (std::size_t i = 0; i < layers_.size(); ++i)
    model_.places(i).attention = enabled ? layers_[i].get() : nullptr;
}

std::vector<Parameter*> PrefixTuning::parameters() const {
  std::vector<Parameter*> all;
  if (encoder_) all = {&encoder_->vectors, &encoder_->hidden.weight, &encoder_->hidden.bias};
  for (const auto& layer : layers_) {
    const std::vector<Parameter*> own = layer->parameters();
    all.insert(all.end(), own.begin(), own.end());
  }
  return all;
}

// A layer runs the encoder's map and its own two; matrices get their gradients without a product.
std::int64_t PrefixTuning::weight_gradients() const {
  return encoder_ ? std::ssize(layers_) * 3 * Linear::kWeightGradients : 0;
}

std::vector<std::pair<std::string, std::string>> PrefixTuning::facts() const {
  std::vector<std::pair<std::string, std::string>> all{{"virtual tokens", concat(n_)}};
  if (encoder_)
    all.emplace_back("hidden size of the MLP", concat(encoder_->hidden.weight.shape()[0]));
  return all;
}

void PrefixTuning::set_prefix(const std::vector<float>& values) {
  check(!encoder_, "set_prefix: the prefix is what an MLP makes");
  const std::int64_t width = model_.config().kv_size(), row = 2 * std::ssize(layers_) * width;
  std::int64_t at = 0;  // the column where a matrix begins in the rows of all layers
  for (Parameter* p : parameters()) {
    std::vector<float> own;
    for (std::int64_t i = 0; i < n_; ++i) {
      const auto begin = values.begin() + i * row + at;
      own.insert(own.end(), begin, begin + width);
    }
    set_values(*p, own);
    at += width;
  }
}

// The config says what the file holds, which is keys and values, whether an MLP made them or not.
void PrefixTuning::save(const std::string& folder, const BaseIdentity& base) const {
  const ModelConfig& model = model_.config();
  const std::int64_t width = model.kv_size(), row = 2 * model.n_layers * width;
  std::vector<float> values(static_cast<std::size_t>(n_ * row));
  Tape tape(model_.backend(), Tape::Mode::NoGrad);
  std::int64_t at = 0;
  auto put = [&](const Tensor& x) {
    const std::vector<double> own = to_host_f64(x);
    for (std::int64_t i = 0; i < n_; ++i)
      for (std::int64_t j = 0; j < width; ++j)
        values[static_cast<std::size_t>(i * row + at + j)] =
            static_cast<float>(own[static_cast<std::size_t>(i * width + j)]);
    at += width;
  };
  if (encoder_)
    for (const auto& layer : layers_) {
      const auto [key, value] = layer->keys(tape);
      put(key.value()), put(value.value());
    }
  else
    for (const Parameter* p : parameters()) put(p->value());
  write_peft_folder(folder,
                    {{"peft_type", kPrefixTuning},
                     {"num_virtual_tokens", n_},
                     {"token_dim", width},
                     {"num_transformer_submodules", 1},
                     {"num_attention_heads", model.n_kv_heads},
                     {"num_layers", model.n_layers},
                     {"prefix_projection", false},
                     {"encoder_hidden_size", nullptr},
                     {"init_weights", nullptr}},
                    base, {{kPromptEmbeddings, {n_, row}, values}});
}

namespace {

class PrefixFile final : public MethodFile {
 public:
  explicit PrefixFile(const std::string& folder)
      : file_(folder, kPrefixTuning,
              {"num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_layers",
               "num_attention_heads"},
              // How the keys and values were made: they are in the file as they are.
              {"encoder_hidden_size", "init_weights", "prefix_projection"}),
        n_(number("num_virtual_tokens")) {
    if (given("num_transformer_submodules"))
      json_int(file_.config(), "num_transformer_submodules", 1, 1, file_.config_path());
  }
  std::string method() const override { return "prefix"; }
  BaseIdentity base() const override { return file_.base(); }
  std::string summary() const override { return concat(n_, " virtual tokens in every layer"); }
  std::int64_t first_position() const override { return n_; }
  std::unique_ptr<Method> attach(Transformer& model) const override {
    const ModelConfig& config = model.config();
    expect("token_dim", config.kv_size());
    expect("num_attention_heads", config.n_kv_heads);
    expect("num_layers", config.n_layers);
    file_.expect({{kPromptEmbeddings, {n_, 2 * config.n_layers * config.kv_size()}}});
    auto method = std::make_unique<PrefixTuning>(model, PrefixSettings{.virtual_tokens = n_});
    method->set_prefix(file_.read(kPromptEmbeddings));
    return method;
  }

 private:
  bool given(const char* key) const { return !file_.config().value(key, Json()).is_null(); }
  std::int64_t number(const char* key) const {
    return json_int(file_.config(), key, 1, kMostVirtualTokens, file_.config_path());
  }
  void expect(const char* key, std::int64_t want) const {
    if (!given(key)) return;
    const std::int64_t have = json_int(file_.config(), key, 1, INT32_MAX, file_.config_path());
    if (have != want)
      throw InputError(
          concat(file_.config_path(), ": ", key, ": ", have, ", the model has ", want));
  }
  PeftFolder file_;
  std::int64_t n_;
};

}  // namespace

std::unique_ptr<MethodFile> open_prefix_tuning(const std::string& folder) {
  return std::make_unique<PrefixFile>(folder);
}

}  // namespace lk
