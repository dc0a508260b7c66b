// FieldError: what validate() (nn/config.h) throws, for readers of files that call a field by another
// key than Hugging Face does.
#pragma once

#include <string>

#include "tensor/error.h"

namespace lk {

struct FieldError : InputError {
  FieldError(const std::string& where, const std::string& key, const std::string& reason)
      : InputError(concat(where, ": ", key, ": ", reason)), field(key), why(reason) {}
  std::string field;  // by Hugging Face's key: "hidden_size", "rope_scaling: factor"
  std::string why;
};

}  // namespace lk
