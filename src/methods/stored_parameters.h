// Parameters as tensors of a file, one each, and what the readers of method's configs share.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/parameter.h"
#include "io/config_keys.h"
#include "io/json.h"
#include "io/safetensors.h"

namespace lk {

// A Parameter and the tensor that holds it in a file. The shapes have the same number of elements;
// the file's may have dimensions of 1 more.
struct StoredParameter {
  Parameter* parameter;
  std::string name;
  Shape shape;
};

// Fills the parameters from the file at `path`. Throws InputError, naming file and tensor, if one is
// missing or has another shape, a value is not finite, or the file has a tensor for none of them.
void load_parameters(const std::string& path, const std::vector<StoredParameter>& parameters);
// The parameters' values, for a writer. Masters are F32.
std::vector<SafetensorsEntry> entries_of(const std::vector<StoredParameter>& parameters);

// InputError naming the first key that is neither listed nor off: Note [Obey or refuse] in
// lora/peft_config.h. `only` ends the message: "only bottleneck adapters are".
void refuse_unknown(const Json& config, std::span<const std::string_view> obeyed,
                    std::span<const std::string_view> harmless, const std::string& where,
                    const char* only);
// The list of strings at `key`; empty if the key is missing or null, and that one word for
// "all-linear". Throws InputError otherwise, for a pattern too.
std::vector<std::string> string_list(const Json& config, const char* key, const std::string& where);

// Calls make() for a file at `path`: what a user could not ask for is then wrong in the file.
template <class F>
auto from_file(const std::string& path, const F& make) {
  try {
    return make();
  } catch (const UsageError& error) {
    throw InputError(concat(path, ": ", error.what()));
  }
}

}  // namespace lk
