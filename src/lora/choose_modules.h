// Which modules of a model an adapter goes on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lora/lora_config.h"
#include "nn/transformer.h"

namespace lk {

struct ChosenModule {
  std::string path;
  std::uint32_t site;  // its number among all projections of the model
  std::unique_ptr<LinearMap>* map;
};

// The modules that `config` selects, in running order. Throws UsageError if a target, a layer or an
// exception names nothing (naming what there is), a number is out of its range, or a projection
// carries an adapter already.
std::vector<ChosenModule> choose_modules(Transformer& model, const LoraConfig& config);

}  // namespace lk
