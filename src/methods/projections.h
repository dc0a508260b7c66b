// Methods that take places around projections: each wraps some of a model's projections in a LinearMap
// of its own, with one trainable vector each.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nn/method.h"
#include "nn/transformer.h"

namespace lk {

// A frozen projection with a trainable vector around it.
class VectorLinear : public LinearMap {
 public:
  VectorLinear(std::string path, std::unique_ptr<FrozenLinear> base, Parameter vector)
      : path_(std::move(path)), base_(std::move(base)), vector_(std::move(vector)) {}

  std::int64_t in_features() const override { return base_->in_features(); }
  std::int64_t out_features() const override { return base_->out_features(); }
  FrozenLinear& frozen() override { return *base_; }

  const std::string& path() const { return path_; }  // "model.layers.0.self_attn.q_proj"
  Parameter& vector() { return vector_; }
  const Parameter& vector() const { return vector_; }
  // Gives the frozen projection back; the map is of no use afterwards.
  std::unique_ptr<FrozenLinear> release_base() { return std::move(base_); }
  // Disabled, the map is the frozen projection alone.
  void set_enabled(bool enabled) { enabled_ = enabled; }
  bool enabled() const { return enabled_; }

 private:
  std::string path_;
  std::unique_ptr<FrozenLinear> base_;
  Parameter vector_;
  bool enabled_ = true;
};

// A projection of a model.
struct ProjectionSite {
  std::string path;
  std::unique_ptr<LinearMap>* map;
};
// The projections that `targets` name, in running order: module names ("q_proj"), ends of paths
// ("mlp.c_proj"), or the single word "all-linear". Throws UsageError if a target matches nothing or a
// projection carries an adapter already.
std::vector<ProjectionSite> find_projections(Transformer& model,
                                             const std::vector<std::string>& targets);
// Whether a target names the module at `path`. PEFT's rule: equal, or a suffix after a dot.
bool names_module(const std::string& target, const std::string& path);

// What (IA)3 and trained biases share: the wrapped projections.
class ProjectionMethod : public Method {
 public:
  ~ProjectionMethod() override;  // the model is the frozen base again
  ProjectionMethod(const ProjectionMethod&) = delete;
  ProjectionMethod& operator=(const ProjectionMethod&) = delete;

  std::vector<Parameter*> parameters() const override;
  std::int64_t weight_gradients() const override { return std::ssize(maps_); }
  void set_enabled(bool enabled) override;

 protected:
  explicit ProjectionMethod(Transformer& model) : model_(model) {}
  using Wrap = std::function<std::unique_ptr<VectorLinear>(const std::string& path,
                                                           std::unique_ptr<FrozenLinear> base)>;
  void wrap(const std::vector<ProjectionSite>& sites, const Wrap& make);
  const std::vector<VectorLinear*>& maps() const { return maps_; }
  // The targets as a file lists them: the names of the modules in the place of "all-linear".
  std::vector<std::string> listed(const std::vector<std::string>& targets) const;
  Transformer& model() const { return model_; }

 private:
  Transformer& model_;
  std::vector<VectorLinear*> maps_;
  std::vector<std::unique_ptr<LinearMap>*> places_;
};

}  // namespace lk
