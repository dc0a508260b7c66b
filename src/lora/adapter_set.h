// AdapterSet: many adapters on one frozen model, where each document of a batch uses its own.
//
// Note [Many adapters]. The base product is computed once for the whole batch;
// AdapterKernels::lora_segments then adds each document's own factors. Which adapter a document
// gets is an index in the batch (RowVariants), so changing it moves no weight. Only for generation
// with a KV cache: elsewhere the model stays the base. Factors are frozen here: they have no
// gradient.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lora/adapter_io.h"
#include "nn/transformer.h"

namespace lk {

class AdapterSet {
 public:
  // The model must outlive the set. Throws UsageError, and leaves the model as it was, if it carries
  // an adapter.
  explicit AdapterSet(Transformer& model);
  ~AdapterSet();  // takes all factors off: the model is the frozen base again
  AdapterSet(const AdapterSet&) = delete;
  AdapterSet& operator=(const AdapterSet&) = delete;

  // Loads an adapter and returns its variant: the index for GenerationRequest::variant. Ranks and
  // targets may differ from those of other adapters. Throws UsageError for a name that is taken or
  // empty, InputError as attach_adapter does; the set is then unchanged.
  std::int32_t add(const std::string& name, const AdapterFile& file);
  // The variant of the adapter `name`, or -1.
  std::int32_t find(const std::string& name) const;

  struct Info {
    std::string name;
    std::int64_t rank, modules, bytes;  // the largest rank; bytes of A and B on the device
  };
  const std::vector<Info>& adapters() const { return infos_; }
  // Measures the seconds needed to choose other adapters for a batch of n documents: the upload of
  // their indices.
  double switch_seconds(std::int64_t n);

 private:
  class Site;
  Transformer& model_;
  std::vector<Info> infos_;
  std::vector<Site*> sites_;                         // owned by the model, one for each projection
  std::vector<std::unique_ptr<LinearMap>*> places_;  // in the model, of each site
};

}  // namespace lk
