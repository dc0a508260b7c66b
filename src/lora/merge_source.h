// MergeSource: the rows of base + update, for merge and unmerge, and the logits that judge both.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lora/merge.h"
#include "modelfile/base_identity.h"
#include "modelfile/held_rows.h"
#include "modelfile/model_file.h"

namespace lk {

class MergeSource {
 public:
  // Opens base and adapters and checks that they fit. Throws as merge() does. `other_base`: they may
  // have been trained on another one.
  MergeSource(const std::string& base, const std::vector<WeightedAdapter>& adapters,
              bool other_base, const BaseStorage& storage = {BasePrecision::Auto, {}});
  const ModelFile& base() const { return base_; }
  // As what the base is held, which is what the adapters are added to: quantised as it is loaded, or
  // dense, with its file's numbers.
  BaseStorage storage() const { return holds_others() ? held_.storage : BaseStorage{}; }
  bool holds_others() const { return rows_->changes(); }  // other numbers than its file has
  // Of the base; hashed when first asked for.
  const std::string& fingerprint();
  // As HeldBase has it.
  const std::string& remark() const { return held_.remark; }
  // What a user should know of adapters and base.
  const std::vector<std::string>& warnings() const { return held_.warnings; }
  const std::vector<AdapterFile>& files() const { return files_; }
  std::int64_t n_changed() const { return std::ssize(modules_); }
  // Puts on the base, loaded, what is merged; null without adapters.
  std::unique_ptr<Method> attach(Transformer& model) const;

  // Computes rows [begin, end) of W'. Returns whether the tensor has an update; w() and u() are
  // then its two parts.
  bool rows(const WeightSlot& slot, std::int64_t begin, std::int64_t end, std::span<float> merged);
  std::span<const float> w() const { return w_; }
  std::span<const float> u() const { return u_; }

 private:
  void load_factors(const WeightSlot& slot);

  ModelFile base_;
  std::vector<WeightedAdapter> adapters_;
  std::vector<AdapterFile> files_;
  HeldBase held_;
  std::unique_ptr<HeldRows> rows_;
  std::string fingerprint_;
  std::map<std::string, std::vector<std::size_t>> modules_;  // path -> adapters that have it
  std::string loaded_;                                       // the module that factors_ belong to
  std::vector<HostFactors> factors_;
  std::vector<float> w_, u_;
};

// Puts on a model what was merged.
using Attach = std::function<std::unique_ptr<Method>(Transformer& model)>;

// Reads back the model that was written to `path` with matrices of `type`: its logits (F32, CPU) at
// every position of a few fixed texts against those of the base, held as `storage`, with what is
// attached to it (null: as it is). Throws InputError or UsageError if one has logits that
// are not finite, Error if they differ although nothing was `rounded` (TypeChoice::rounds).
LogitCheck compare_merged(const ModelFile& base, const BaseStorage& storage, const Attach& attach,
                          const std::string& path, const std::string& type, bool rounded);

}  // namespace lk
