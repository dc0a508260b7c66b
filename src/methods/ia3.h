// (IA)3: outputs of some projections, and inputs of feed-forward ones, times a trained vector.
//   y = l * (x wᵀ + bias)       or, feed-forward,       y = (x * l) wᵀ + bias
// Source: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
// Learning", 2022; files as PEFT 0.21 writes them.
//
// It merges exactly: l scales the rows of w and the bias, or the columns of w.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "methods/method_file.h"
#include "methods/projections.h"
#include "methods/stored_parameters.h"

namespace lk {

struct Ia3Config {
  // Module names, ends of paths, or "all-linear"; empty: PEFT's defaults for the family.
  std::vector<std::string> targets = {};
  // Endings of the paths of those targets whose input is scaled. Unset: PEFT's defaults for the
  // family, as far as they are targets.
  std::optional<std::vector<std::string>> feed_forward = {};
};

class Ia3 : public ProjectionMethod {
 public:
  // Wraps the targets with vectors of ones, which change nothing. Throws UsageError, as
  // find_projections() does, and if a feed-forward ending matches no target.
  Ia3(Transformer& model, Ia3Config config);

  std::string name() const override { return "ia3"; }
  std::vector<std::pair<std::string, std::string>> facts() const override;
  void save(const std::string& folder, const BaseIdentity& base) const override;
  const Ia3Config& config() const { return config_; }
  // The vectors as tensors of the file: (N,1), or (1,K) of feed-forward modules.
  std::vector<StoredParameter> stored() const;

 private:
  Ia3Config config_;
};

// Reads and checks the folder's config and the header of its weights. Throws InputError.
std::unique_ptr<MethodFile> open_ia3(const std::string& folder);

}  // namespace lk
