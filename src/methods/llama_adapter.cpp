#include "methods/llama_adapter.h"

#include <algorithm>

#include "autograd/virtual_tokens.h"
#include "methods/initial_values.h"
#include "methods/peft_folder.h"
#include "nn/block.h"
#include "nn/places.h"

namespace lk {
namespace {

constexpr const char* kAdaptionPrompt = "ADAPTION_PROMPT";
constexpr std::int64_t kMostLength = 65536;

// The attention's path: "model.layers.3.self_attn".
std::string attention_path(const ModelConfig& config, std::size_t layer) {
  const std::string o = site_path(config, layer, Site::O);
  return o.substr(0, o.rfind('.'));
}
// What PEFT calls the module in every layer: "self_attn", "attn".
std::string attention_name(const ModelConfig& config) {
  const std::string path = attention_path(config, 0);
  return path.substr(path.rfind('.') + 1);
}
std::string tensor_name(const Parameter& p) { return "base_model.model." + p.name(); }

// PEFT repeats each key head hidden_size / kv_size times and maps the addition by W_o with its bias.
void check_model(const ModelConfig& config) {
  const std::string& family = config.architecture;
  require(family == "llama" || family == "mistral" || family == "gpt2",
          "`method` llama-adapter: not for models of the family ", family,
          ", only for llama, mistral and gpt2");
  require(
      config.q_size() == config.hidden_size,
      "`method` llama-adapter: the model's heads together are not as wide as its hidden states");
  require(config.joined_qkv || !config.attention_output_bias,
          "`method` llama-adapter: the model's o_proj has a bias");
}

}  // namespace

class LlamaAdapter::Layer final : public AttentionPlace, public SublayerPlace {
 public:
  Layer(Transformer& model, std::size_t layer, std::int64_t length, std::uint64_t seed)
      : prompt_(normal_parameter(model.backend(), model.compute_dtype(),
                                 attention_path(model.config(), layer) + ".adaption_prompt",
                                 {length, model.config().hidden_size}, seed,
                                 static_cast<std::uint32_t>(layer))),
        gate_(attention_path(model.config(), layer) + ".adaption_gate",
              zero(model.backend(), model.compute_dtype()), stat_dtype(model.compute_dtype())),
        width_(model.config().kv_size()) {
    model.visit_sites(
        [&](const std::string&, std::size_t at, Site site, std::unique_ptr<LinearMap>& map) {
          if (at != layer) return;
          if (site == Site::Qkv) qkv_ = &map;
          if (site == Site::K) k_ = &map;
          if (site == Site::V) v_ = &map;
        });
  }

  Var attend(Tape& tape, const Var& q, const Var& k, const Var& v, const AttentionShape& shape,
             const Segments& segments, const Tensor&) override {
    const Var text = attention(tape, q, k, v, shape, segments), more = addition(tape, q, shape);
    if (!qkv_) return add(tape, text, more);
    pending_ = more;
    return text;
  }
  void attend_cached(Tape& tape, const Tensor& o, const Tensor&, const Tensor& q,
                     const AttentionShape& shape, const Tensor&) override {
    const Var more = addition(tape, tape.constant(q), shape);
    if (qkv_)
      pending_ = more;
    else
      tape.backend().add(o, o, more.value());
  }
  // GPT-2 alone: adds behind the output projection what attend() computed.
  Var apply(Tape& tape, const Var&, const Var& y, const ForwardMode&) override {
    return add(tape, y, std::exchange(pending_, Var()));
  }

  bool behind_output() const { return qkv_ != nullptr; }
  Parameter& prompt() { return prompt_; }
  Parameter& gate() { return gate_; }

 private:
  static Tensor zero(Backend& backend, DType compute_dtype) {
    Tensor t = backend.empty(Tag::Params, stat_dtype(compute_dtype), {1});
    backend.fill(t, 0);
    return t;
  }
  // gate softmax(q Kᵀ scale) V, with no mask, whatever the text's window.
  Var addition(Tape& tape, const Var& q, AttentionShape shape) {
    shape.window = 0;
    const Var p = as_var(tape, prompt_);
    if (!qkv_)
      return adapter_attention(tape, q, map(tape, p, *k_), map(tape, p, *v_), gate_, shape);
    const Var all = map(tape, p, *qkv_);
    const std::int64_t end = all.value().cols();
    return adapter_attention(tape, q, slice_cols(tape, all, end - 2 * width_, end - width_),
                             slice_cols(tape, all, end - width_, end), gate_, shape);
  }
  static Var map(Tape& tape, const Var& x, const std::unique_ptr<LinearMap>& site) {
    const FrozenLinear& w = site->frozen();
    return linear(tape, x, w.weight(), w.bias());
  }

  Parameter prompt_, gate_;  // (n, C), (1)
  std::int64_t width_;
  // The block's own places: a method that comes later may put another map there, W and bias in it.
  const std::unique_ptr<LinearMap>*qkv_ = nullptr, *k_ = nullptr, *v_ = nullptr;
  Var pending_;
};

LlamaAdapter::LlamaAdapter(Transformer& model, const LlamaAdapterSettings& s) : model_(model) {
  const std::int64_t all = model.config().n_layers;
  check_model(model.config());
  require(s.length >= 1 && s.length <= kMostLength, "`virtual_tokens` ", s.length, ": from 1 to ",
          kMostLength);
  require(s.layers >= 0 && s.layers <= all, "`adapter_layers` ", s.layers, ": the model has ", all);
  const std::int64_t n = s.layers > 0 ? s.layers : all > 2 ? all - 2 : all;
  for (std::int64_t i = all - n; i < all; ++i) {
    const auto layer = static_cast<std::size_t>(i);
    const BlockPlaces& places = model.places(layer);
    require(!places.attention && !(model.config().joined_qkv && places.after_attention),
            "`method` llama-adapter: another method takes part in the attention");
    layers_.push_back(std::make_unique<Layer>(model, layer, s.length, s.seed));
  }
  set_enabled(true);
}

LlamaAdapter::~LlamaAdapter() { set_enabled(false); }

std::size_t LlamaAdapter::first_layer() const {
  return static_cast<std::size_t>(model_.config().n_layers) - layers_.size();
}

void LlamaAdapter::set_enabled(bool enabled) {
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    BlockPlaces& places = model_.places(first_layer() + i);
    places.attention = enabled ? layers_[i].get() : nullptr;
    if (layers_[i]->behind_output()) places.after_attention = enabled ? layers_[i].get() : nullptr;
  }
}

std::vector<Parameter*> LlamaAdapter::parameters() const {
  std::vector<Parameter*> all;
  for (const auto& layer : layers_) all.insert(all.end(), {&layer->prompt(), &layer->gate()});
  return all;
}

// While a gate is 0, its layer's vectors have no gradient.
std::vector<Parameter*> LlamaAdapter::first_to_move() const {
  std::vector<Parameter*> all;
  for (const auto& layer : layers_) all.push_back(&layer->gate());
  return all;
}

std::vector<std::pair<std::string, std::string>> LlamaAdapter::facts() const {
  return {{"adapter's length", concat(layers_[0]->prompt().shape()[0])},
          {"layers, from the top", concat(layers_.size())}};
}

void LlamaAdapter::save(const std::string& folder, const BaseIdentity& base) const {
  std::vector<SafetensorsEntry> tensors;
  for (const Parameter* p : parameters()) {
    const Shape& s = p->shape();
    tensors.push_back(
        {tensor_name(*p), s.rank() == 2 ? Shape{1, s[0], s[1]} : s, to_host<float>(p->value())});
  }
  write_peft_folder(folder,
                    {{"peft_type", kAdaptionPrompt},
                     {"target_modules", attention_name(model_.config())},
                     {"adapter_len", layers_[0]->prompt().shape()[0]},
                     {"adapter_layers", layers_.size()}},
                    base, tensors);
}

namespace {

class LlamaAdapterFile final : public MethodFile {
 public:
  explicit LlamaAdapterFile(const std::string& folder)
      : file_(folder, kAdaptionPrompt, {"adapter_len", "adapter_layers", "target_modules"}, {}),
        length_(number("adapter_len", kMostLength)),
        layers_(number("adapter_layers", 1 << 20)) {}
  std::string method() const override { return "llama-adapter"; }
  BaseIdentity base() const override { return file_.base(); }
  std::string summary() const override {
    return concat(length_, " vectors in each of the top ", layers_, " layers");
  }
  std::unique_ptr<Method> attach(Transformer& model) const override {
    const ModelConfig& config = model.config();
    const std::string want = attention_name(config);
    if (const std::string name = json_string_or(file_.config(), "target_modules", want, path());
        name != want)
      throw InputError(concat(path(), ": target_modules: the model's attention is called ", want));
    if (layers_ > config.n_layers)
      throw InputError(
          concat(path(), ": adapter_layers: ", layers_, ", the model has ", config.n_layers));
    auto method = std::make_unique<LlamaAdapter>(
        model, LlamaAdapterSettings{.length = length_, .layers = layers_});
    std::vector<std::pair<std::string, Shape>> tensors;
    for (const Parameter* p : method->parameters()) {
      const Shape& s = p->shape();
      tensors.emplace_back(tensor_name(*p), s.rank() == 2 ? Shape{1, s[0], s[1]} : s);
    }
    file_.expect(tensors);
    for (Parameter* p : method->parameters()) set_values(*p, file_.read(tensor_name(*p)));
    return method;
  }

 private:
  const std::string& path() const { return file_.config_path(); }
  std::int64_t number(const char* key, std::int64_t most) const {
    return json_int(file_.config(), key, 1, most, file_.config_path());
  }
  PeftFolder file_;
  std::int64_t length_, layers_;
};

}  // namespace

std::unique_ptr<MethodFile> open_llama_adapter(const std::string& folder) {
  return std::make_unique<LlamaAdapterFile>(folder);
}

}  // namespace lk
