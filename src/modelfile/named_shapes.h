// Shapes of published models, for plans and benches on random weights.
#pragma once

#include <string>

#include "nn/config.h"

namespace lk {

// The config of the model of that name in named_shapes.json, each as its config.json has it. Throws UsageError
// listing the names.
ModelConfig named_shape(const std::string& name);

}  // namespace lk
