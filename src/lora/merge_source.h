// MergeSource: the rows of base + update, for merge and unmerge, and the logits that judge both.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "lora/merge.h"
#include "modelfile/model_file.h"

namespace lk {

class MergeSource {
 public:
  // Opens base and adapters and checks that they fit. Throws as merge() does.
  MergeSource(const std::string& base, const std::vector<WeightedAdapter>& adapters,
              bool other_base);
  const ModelFile& base() const { return base_; }
  const std::vector<AdapterFile>& files() const { return files_; }
  std::int64_t n_changed() const { return std::ssize(modules_); }

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
  std::map<std::string, std::vector<std::size_t>> modules_;  // path -> adapters that have it
  std::string loaded_;                                       // the module that factors_ belong to
  std::vector<HostFactors> factors_;
  std::vector<float> w_, u_;
};

// Logits (F32, CPU) of the model in `file` with the adapters on it, at every position of a few
// fixed texts.
std::vector<float> probe_logits(const ModelFile& file, const std::vector<WeightedAdapter>& adapters,
                                const std::vector<AdapterFile>& files);

}  // namespace lk
