#include "methods/bitfit.h"

#include "autograd/trained.h"
#include "methods/initial_values.h"
#include "methods/peft_folder.h"

namespace lk {
namespace {

// y = f(x) + b, where f is the frozen projection, or y = x wᵀ + b, where b stands for its bias.
class BiasedLinear : public VectorLinear {
 public:
  BiasedLinear(std::string path, std::unique_ptr<FrozenLinear> base, Parameter b, bool own)
      : VectorLinear(std::move(path), std::move(base), std::move(b)), own_(own) {}

  Var apply(Tape& tape, const Var& x, const ForwardMode& mode, Output output) override {
    if (!enabled()) return frozen().apply(tape, x, mode, output);
    const Var y = own_ ? linear(tape, x, frozen().weight()) : frozen().apply(tape, x, mode);
    return add_bias(tape, y, vector());
  }
  bool adapts() const override { return !enabled() || !own_; }
  void adapt(Tape& tape, const Tensor& y, const Tensor&, const ForwardMode&) override {
    check(!enabled() || !own_, path(), ": a bias in place of another adds nothing");
    if (enabled()) tape.backend().add_bias(y, Weight(vector().name(), vector().compute()));
  }

 private:
  bool own_;
};

std::vector<float> host(const Weight& w) {
  const std::vector<double> values = to_host_f64(w.values());
  return {values.begin(), values.end()};
}

}  // namespace

Bitfit::Bitfit(Transformer& model, BitfitConfig config)
    : ProjectionMethod(model), config_(std::move(config)) {
  const bool has_biases = model.config().norm == NormKind::Layer;
  require(!has_biases || config_.targets.empty(), "`targets`: ", model.config().architecture,
          " has biases, and all of them train");
  own_ = has_biases;
  if (!own_ && config_.targets.empty()) config_.targets = {"v_proj"};
  Backend& backend = model.backend();
  const DType dtype = model.compute_dtype();
  const std::vector<std::string> targets =
      own_ ? std::vector<std::string>{"all-linear"} : config_.targets;
  wrap(find_projections(model, targets), [&](const std::string& path,
                                             std::unique_ptr<FrozenLinear> base) {
    const std::int64_t n = base->out_features();
    check(!own_ || base->bias(), path, ": has no bias");
    const std::vector<float> first =
        own_ ? host(*base->bias()) : std::vector<float>(static_cast<std::size_t>(n));
    Parameter b = parameter_of(backend, dtype, path + (own_ ? ".bias" : ".beft_bias"), {n}, first);
    return std::make_unique<BiasedLinear>(path, std::move(base), std::move(b), own_);
  });
  if (!own_) return;
  model.visit_norms([&](const std::string& path, NormWeights& norm) {
    norms_.push_back(
        {&norm, std::make_unique<Parameter>(parameter_of(backend, dtype, path + ".bias",
                                                         norm.bias.shape(), host(norm.bias)))});
    norm.trained_bias = norms_.back().bias.get();
  });
}

Bitfit::~Bitfit() { set_enabled(false); }

std::vector<Parameter*> Bitfit::parameters() const {
  std::vector<Parameter*> all = ProjectionMethod::parameters();
  for (const NormBias& n : norms_) all.push_back(n.bias.get());
  return all;
}

void Bitfit::set_enabled(bool enabled) {
  ProjectionMethod::set_enabled(enabled);
  for (NormBias& n : norms_) n.norm->trained_bias = enabled ? n.bias.get() : nullptr;
}

std::vector<std::pair<std::string, std::string>> Bitfit::facts() const {
  if (own_) return {{"trained biases", "all of the model's own"}};
  std::string names;
  for (const std::string& t : config_.targets) names += (names.empty() ? "" : ", ") + t;
  return {{"new biases on", names}};
}

std::vector<StoredParameter> Bitfit::stored() const {
  std::vector<StoredParameter> all;
  for (Parameter* p : parameters()) {
    const std::int64_t n = p->numel();
    all.push_back(
        {p, own_ ? p->name() : "base_model.model." + p->name(), own_ ? Shape{n} : Shape{1, n}});
  }
  return all;
}

void Bitfit::save(const std::string& folder, const BaseIdentity& base) const {
  Json config = {{"peft_type", own_ ? kOwnBiases : "BEFT"}};
  if (!own_)
    config.update({{"target_modules", listed(config_.targets)},
                   {"init_weights", true},
                   {"modules_to_save", nullptr}});
  write_peft_folder(folder, config, base, entries_of(stored()));
}

namespace {

class BitfitFile final : public MethodFile {
 public:
  BitfitFile(const std::string& folder, bool own)
      : file_(folder, own ? kOwnBiases : "BEFT", {"target_modules"}, {"init_weights"}),
        own_(own),
        config_{string_list(file_.config(), "target_modules", file_.config_path())} {
    if (own_ && !config_.targets.empty())
      throw InputError(file_.config_path() +
                       ": target_modules: the model's own biases are all trained");
  }
  std::string method() const override { return "bitfit"; }
  BaseIdentity base() const override { return file_.base(); }
  std::string summary() const override {
    if (own_) return "the model's own biases";
    std::string names;
    for (const std::string& t : config_.targets) names += (names.empty() ? "" : ", ") + t;
    return "biases on " + (names.empty() ? "v_proj" : names);
  }
  std::unique_ptr<Method> attach(Transformer& model) const override {
    auto bitfit =
        from_file(file_.config_path(), [&] { return std::make_unique<Bitfit>(model, config_); });
    if (bitfit->own() != own_)
      throw InputError(concat(file_.config_path(), ": peft_type: ",
                              own_ ? "the model has no biases of its own everywhere"
                                   : "the model's own biases train instead of new ones"));
    load_parameters(file_.weights_path(), bitfit->stored());
    return bitfit;
  }

 private:
  PeftFolder file_;
  bool own_;
  BitfitConfig config_;
};

}  // namespace

std::unique_ptr<MethodFile> open_bitfit(const std::string& folder) {
  const std::string path = folder + "/adapter_config.json";
  const Json config = parse_json(read_json_text(path, std::size_t{16} << 20), path);
  const bool own = config.is_object() && config.value("peft_type", Json()) == kOwnBiases;
  return std::make_unique<BitfitFile>(folder, own);
}

}  // namespace lk
