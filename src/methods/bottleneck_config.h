// The `config` of adapter-hub's adapter_config.json for a bottleneck adapter (BnConfig).
#pragma once

#include <string>

#include "io/json.h"
#include "methods/bottleneck.h"

namespace lk {

// Reads it for a model of this width and, once it is known, this number of layers. Throws InputError
// naming the key for what is malformed or not supported: norms, gates, invertible adapters,
// hypercomplex layers, learned scales, and residual connections other than x + h.
BottleneckConfig read_bottleneck_config(const Json& config, std::int64_t hidden_size,
                                        std::int64_t layers, const std::string& where);
// The inverse, with every key that adapters 1.3 writes.
Json bottleneck_config_json(const BottleneckConfig& config, std::int64_t hidden_size,
                            std::int64_t layers);

}  // namespace lk
