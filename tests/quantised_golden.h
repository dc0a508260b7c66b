// The matrices of tests/golden/quantised/formats.safetensors, which one file holds in all formats.
#pragma once

#include <string>

#include "modelfile/stored_quantised.h"

namespace lk::test {

// What config.json would say of the matrix of this name.
inline QuantisationConfig config_for(const std::string& name) {
  QuantisationConfig config;
  if (name == "awq") config.method = QuantisationConfig::Method::Awq;
  if (name.starts_with("gptq")) config.method = QuantisationConfig::Method::Gptq;
  if (name == "gptq_v2") config.gptq_zero_shift = 0;
  return config;
}

}  // namespace lk::test
