// The model's own settings of generation, for the programs that generate.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "nn/sampling.h"

namespace lk::program {

// Takes from the model's folder what no flag says, and prints on stderr what it took and, as a
// warning, which keys nothing here obeys. Throws InputError.
void take_own_sampling(const CLI::App& app, const std::string& model, SamplingSettings& sampling);

}  // namespace lk::program
