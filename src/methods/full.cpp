#include "methods/full.h"

#include <algorithm>

#include "autograd/trained.h"
#include "io/output_folder.h"
#include "io/paths.h"
#include "methods/projections.h"
#include "modelfile/model_output.h"
#include "nn/streamed_base.h"

namespace lk {
namespace {

// y = x wᵀ + bias, both trained.
class TrainedLinear : public LinearMap {
 public:
  // `view` reads what w and bias compute with.
  TrainedLinear(std::unique_ptr<FrozenLinear> view, Parameter& w, Parameter* bias)
      : view_(std::move(view)), w_(w), bias_(bias) {}
  Var apply(Tape& tape, const Var& x, const ForwardMode&, Output) override {
    return linear(tape, x, w_, bias_);
  }
  void adapt(Tape&, const Tensor&, const Tensor&, const ForwardMode&) override {}
  std::int64_t in_features() const override { return view_->in_features(); }
  std::int64_t out_features() const override { return view_->out_features(); }
  FrozenLinear& frozen() override { return *view_; }
  std::unique_ptr<FrozenLinear> release_view() { return std::move(view_); }

 private:
  std::unique_ptr<FrozenLinear> view_;
  Parameter& w_;
  Parameter* bias_;
};

// The masters' values, row by row, gains as the base's file has them.
class MasterPipe : public RowPipe {
 public:
  MasterPipe(const Full& full, const ModelFile& base) : full_(full), base_(base) {}
  void produce(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
               std::span<float> values) override {
    const Tensor& all = full_.at(slot.name).value();
    const std::vector<float> rows =
        to_host<float>(slot.shape.rank() == 1 ? all : all.slice_rows(begin, end));
    const float less = base_.stored(slot).minus_one ? 1 : 0;
    std::transform(rows.begin(), rows.end(), values.begin(), [&](float v) { return v - less; });
  }
  void stored(const WeightSlot&, std::int64_t, std::int64_t, std::span<const float>) override {}

 private:
  const Full& full_;
  const ModelFile& base_;
};

}  // namespace

Full::Full(Transformer& model, std::shared_ptr<const ModelFile> base)
    : model_(model), base_(std::move(base)) {
  find_projections(model, {"all-linear"});  // refuses those that carry an adapter
  require(
      !is_streamed(model.weights()),
      "`offload_base`, `shard_base`: `method` full trains the base's own numbers, which can't wait "
      "elsewhere");
  Backend& backend = model.backend();
  ModelWeights weights = model.weights();
  const bool tied = weights.tied();
  for (WeightSlot& slot : weight_slots(model.config(), weights)) {
    Tensor master = backend.empty(Tag::Params, stat_dtype(model.compute_dtype()), slot.shape);
    backend.copy(master, slot.weight->values());
    parameters_.push_back(
        std::make_unique<Parameter>(slot.name, std::move(master), model.compute_dtype()));
    Parameter& p = *parameters_.back();
    p.set_decays(slot.shape.rank() > 1);  // as usual, gains and biases are not drawn to 0
    by_name_[slot.name] = &p;
    *slot.weight = Weight(slot.name, p.compute());
  }
  if (tied) weights.head = weights.embedding.renamed(weights.head.name());
  model.set_weights(std::move(weights));

  auto find = [&](const std::string& name) {
    const auto at = by_name_.find(name);
    return at == by_name_.end() ? nullptr : at->second;
  };
  model.visit_sites(
      [&](const std::string& path, std::size_t, Site, std::unique_ptr<LinearMap>& map) {
        std::unique_ptr<FrozenLinear> view(static_cast<FrozenLinear*>(map.release()));
        map = std::make_unique<TrainedLinear>(std::move(view), at(path + ".weight"),
                                              find(path + ".bias"));
      });
  model.visit_norms([&](const std::string& path, NormWeights& norm) {
    norm.trained_gain = &at(path + ".weight"), norm.trained_bias = find(path + ".bias");
  });
  auto table = [&](const Weight& w) { return w.defined() ? &at(w.name()) : nullptr; };
  const ModelWeights& now = model.weights();
  model.tables() = {table(now.embedding), table(now.positions),
                    table(tied ? now.embedding : now.head)};
}

Full::~Full() {
  model_.tables() = {};
  model_.visit_norms([](const std::string&, NormWeights& norm) {
    norm.trained_gain = norm.trained_bias = nullptr;
  });
  model_.visit_sites([](const std::string&, std::size_t, Site, std::unique_ptr<LinearMap>& map) {
    map = static_cast<TrainedLinear&>(*map).release_view();
  });
}

std::vector<Parameter*> Full::parameters() const {
  std::vector<Parameter*> all;
  for (const auto& p : parameters_) all.push_back(p.get());
  return all;
}

std::int64_t Full::weight_gradients() const {
  const TablePlaces& tables = model_.tables();
  return std::ssize(parameters_) - (tables.head == tables.embedding ? 0 : 1);
}

std::int64_t Full::head_gradients(std::int64_t supervised) const {
  const std::int64_t rows = model_.loss_rows();
  return (supervised + rows - 1) / rows;
}

void Full::set_enabled(bool enabled) { check(enabled, "full: the base's own weights are gone"); }

std::vector<std::pair<std::string, std::string>> Full::facts() const {
  return {{"trained", "all weights"}};
}

void Full::save(const std::string& folder, const BaseIdentity&) const {
  check(base_ != nullptr, "full: the model came from no file, and can't be saved as one");
  MasterPipe pipe(*this, *base_);
  // One file of weights, whatever its size: it then replaces an earlier one whole or not at all.
  ModelOutput(*base_, {.gguf = false, .type = {}, .shard_bytes = UINT64_MAX})
      .write(
          [&](const std::string& name) {
            const std::string path = folder + "/" + name;
            make_folders(parent_folder(path));
            return path;
          },
          pipe);
  ModelFile(folder).reader();  // checks that all tensors are there, with their shapes
}

}  // namespace lk
