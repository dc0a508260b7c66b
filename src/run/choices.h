// What a run's settings come to on its model, decided before any row is read: for a run and for its plan
// alike. Each throws UsageError naming the setting.
#pragma once

#include <vector>

#include "modelfile/base_precision.h"
#include "modelfile/model_file.h"
#include "run/finetune.h"
#include "run/methods.h"

namespace lk {

// The methods, as they are set for a model of this shape. Fills in the rank of a new adapter; one that is
// to be started from (`init_adapter`) is left to the caller.
MethodConfig choose_methods(FinetuneSettings& settings, const ModelConfig& model);

// Layers that `recompute`, `offload_base` and `shard_base` count are the model's.
void check_layers(const FinetuneSettings& settings, const ModelConfig& model);

// In how many bits the base is held.
struct ChosenPrecision {
  BaseStorage storage;
  std::vector<HeldFormat> formats;  // of weight_slots()

  // How many matrices are quantised and, if `is` is given, such as it says.
  std::int64_t count(bool (*is)(const QuantisedFormat&) = nullptr) const;
};
// What computes with the base's own numbers needs them dense, which "auto" then means. `file`: the
// model's, or null for a shape that no file holds.
ChosenPrecision choose_precision(const FinetuneSettings& settings, const MethodConfig& methods,
                                 const ModelConfig& model, const ModelFile* file, Backend& backend,
                                 DType dtype);

// Fills in the longest row. It and the methods' virtual tokens take positions that the model has.
void choose_seq_len(FinetuneSettings& settings, const MethodConfig& methods,
                    const ModelConfig& model);

}  // namespace lk
