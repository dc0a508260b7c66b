#include "methods/ia3.h"

#include <algorithm>
#include "autograd/trained.h"

#include "methods/initial_values.h"
#include "methods/peft_folder.h"
#include "modelfile/family_files.h"

namespace lk {
namespace {

// y = l * f(x), or f(x * l) where f is the frozen projection.
class ScaledLinear : public VectorLinear {
 public:
  ScaledLinear(std::string path, std::unique_ptr<FrozenLinear> base, Parameter l, bool feed_forward)
      : VectorLinear(std::move(path), std::move(base), std::move(l)), feed_forward_(feed_forward) {}

  // The vector's gradient reads the frozen output, so that is always computed.
  Var apply(Tape& tape, const Var& x, const ForwardMode& mode, Output output) override {
    if (!enabled()) return frozen().apply(tape, x, mode, output);
    if (feed_forward_) return frozen().apply(tape, scale_columns(tape, x, vector()), mode, output);
    return scale_columns(tape, frozen().apply(tape, x, mode), vector());
  }
  bool adapts() const override { return !enabled(); }
  void adapt(Tape&, const Tensor&, const Tensor&, const ForwardMode&) override {
    check(!enabled(), path(), ": a scaled projection adds nothing");
  }
  bool feed_forward() const { return feed_forward_; }

 private:
  bool feed_forward_;
};

std::vector<std::string> default_targets(const ModelConfig& config) {
  if (config.joined_qkv) return {"c_attn", "mlp.c_proj"};
  const bool llama = config.architecture == "llama" || config.architecture == "mistral";
  return {llama ? "k_proj" : "q_proj", "v_proj", "down_proj"};
}

std::vector<std::string> default_feed_forward(const ModelConfig& config) {
  return {config.joined_qkv ? "mlp.c_proj" : "down_proj"};
}

}  // namespace

Ia3::Ia3(Transformer& model, Ia3Config config)
    : ProjectionMethod(model), config_(std::move(config)) {
  if (config_.targets.empty()) config_.targets = default_targets(model.config());
  const std::vector<ProjectionSite> sites = find_projections(model, config_.targets);
  auto is_target = [&](const std::string& end) {
    return std::any_of(sites.begin(), sites.end(),
                       [&](const ProjectionSite& s) { return s.path.ends_with(end); });
  };
  if (!config_.feed_forward) {
    config_.feed_forward = default_feed_forward(model.config());
    std::erase_if(*config_.feed_forward, [&](const std::string& end) { return !is_target(end); });
  }
  for (const std::string& end : *config_.feed_forward)
    require(is_target(end), "`feed_forward`: '", end, "' matches none of the targets");
  auto is_feed_forward = [&](const std::string& path) {
    return std::any_of(config_.feed_forward->begin(), config_.feed_forward->end(),
                       [&](const std::string& end) { return path.ends_with(end); });
  };
  wrap(sites, [&](const std::string& path, std::unique_ptr<FrozenLinear> base) {
    const bool feed_forward = is_feed_forward(path);
    const std::int64_t n = feed_forward ? base->in_features() : base->out_features();
    Parameter ones = parameter_of(model.backend(), model.compute_dtype(), path + ".ia3_l", {n},
                                  std::vector<float>(static_cast<std::size_t>(n), 1.0f));
    return std::make_unique<ScaledLinear>(path, std::move(base), std::move(ones), feed_forward);
  });
}

std::vector<std::pair<std::string, std::string>> Ia3::facts() const {
  auto list = [](const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
  };
  return {{"scaled outputs and inputs", list(config_.targets)},
          {"scaled inputs", list(*config_.feed_forward)}};
}

std::vector<StoredParameter> Ia3::stored() const {
  std::vector<StoredParameter> all;
  for (VectorLinear* map : maps()) {
    const std::int64_t n = map->vector().numel();
    const bool feed_forward = static_cast<const ScaledLinear*>(map)->feed_forward();
    all.push_back({&map->vector(), "base_model.model." + map->vector().name(),
                   feed_forward ? Shape{1, n} : Shape{n, 1}});
  }
  return all;
}

void Ia3::save(const std::string& folder, const BaseIdentity& base) const {
  // PEFT wants each of feedforward_modules among target_modules, by the same name. Where a name means others
  // too than those that are scaled, these are listed by their paths.
  std::vector<std::string> targets = listed(config_.targets), feed_forward;
  for (const std::string& end : *config_.feed_forward) {
    std::vector<std::string> scaled;
    for (const VectorLinear* map : maps())
      if (map->path().ends_with(end)) scaled.push_back(map->path());
    std::size_t all = 0;
    model().visit_sites([&](const std::string& path, std::size_t, Site,
                            std::unique_ptr<LinearMap>&) { all += path.ends_with(end); });
    if (scaled.size() == all) scaled = {end};
    feed_forward.insert(feed_forward.end(), scaled.begin(), scaled.end());
  }
  for (const std::string& name : feed_forward)
    if (std::find(targets.begin(), targets.end(), name) == targets.end()) targets.push_back(name);
  write_peft_folder(folder,
                    {{"peft_type", "IA3"},
                     {"target_modules", targets},
                     {"feedforward_modules", feed_forward},
                     {"fan_in_fan_out", files_of(model().config()).conv1d},
                     {"init_ia3_weights", true},
                     {"exclude_modules", nullptr},
                     {"modules_to_save", nullptr}},
                    base, entries_of(stored()));
}

namespace {

// fan_in_fan_out says how the base's file stores its matrices.
class Ia3File final : public MethodFile {
 public:
  explicit Ia3File(const std::string& folder)
      : file_(folder, "IA3", {"feedforward_modules", "target_modules"},
              {"fan_in_fan_out", "init_ia3_weights"}) {
    const Json& config = file_.config();
    config_.targets = string_list(config, "target_modules", file_.config_path());
    if (config.contains("feedforward_modules") && !config["feedforward_modules"].is_null())
      config_.feed_forward = string_list(config, "feedforward_modules", file_.config_path());
  }
  std::string method() const override { return "ia3"; }
  BaseIdentity base() const override { return file_.base(); }
  std::string summary() const override {
    std::string names;
    for (const std::string& t : config_.targets) names += (names.empty() ? "" : ", ") + t;
    return "vectors on " + (names.empty() ? "the family's default modules" : names);
  }
  std::unique_ptr<Method> attach(Transformer& model) const override {
    auto ia3 =
        from_file(file_.config_path(), [&] { return std::make_unique<Ia3>(model, config_); });
    load_parameters(file_.weights_path(), ia3->stored());
    return ia3;
  }

 private:
  PeftFolder file_;
  Ia3Config config_;
};

}  // namespace

std::unique_ptr<MethodFile> open_ia3(const std::string& folder) {
  return std::make_unique<Ia3File>(folder);
}

}  // namespace lk
