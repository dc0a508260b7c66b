#include "methods/stored_parameters.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "io/printable.h"
#include "methods/initial_values.h"

namespace lk {

void refuse_unknown(const Json& config, std::span<const std::string_view> obeyed,
                    std::span<const std::string_view> harmless, const std::string& where,
                    const char* only) {
  if (const auto unknown = unknown_key(config, {obeyed, harmless}))
    throw InputError(concat(where, ": ", printable(unknown->key), " = ", unknown->value,
                            " is not supported: ", only));
}

std::vector<std::string> string_list(const Json& config, const char* key,
                                     const std::string& where) {
  std::vector<std::string> all;
  if (!config.contains(key) || config[key].is_null()) return all;
  const Json& value = config[key];
  if (value == "all-linear") return {"all-linear"};
  if (value.is_string())
    throw InputError(concat(where, ": ", key, " = ", printable(value.get<std::string>()),
                            ": a pattern is not supported, only a list of names"));
  if (!value.is_array()) throw InputError(concat(where, ": ", key, ": not a list of strings"));
  for (const Json& name : value) {
    if (!name.is_string()) throw InputError(concat(where, ": ", key, ": not a list of strings"));
    all.push_back(name.get<std::string>());
  }
  return all;
}

void load_parameters(const std::string& path, const std::vector<StoredParameter>& parameters) {
  const SafetensorsFile file(path);
  std::set<std::string> unread;
  for (const std::string& name : file.names()) unread.insert(name);
  std::vector<std::vector<float>> all;  // everything is checked before anything is changed
  for (const StoredParameter& p : parameters) {
    if (!file.has(p.name)) throw InputError(concat(path, ": tensor '", p.name, "' is missing"));
    if (!(file.shape(p.name) == p.shape))
      throw InputError(concat(path, ": ", p.name, " has shape ", file.shape(p.name).str(),
                              ", expected ", p.shape.str()));
    std::vector<float>& values = all.emplace_back(static_cast<std::size_t>(p.shape.numel()));
    file.read_rows(p.name, 0, p.shape.rows(), values.data());
    for (std::size_t i = 0; i < values.size(); ++i)
      if (!std::isfinite(values[i]))
        throw InputError(concat(path, ": ", p.name, " holds a non-finite value at element ", i));
    unread.erase(p.name);
  }
  if (!unread.empty())
    throw InputError(concat(path, ": ", printable(*unread.begin()),
                            " belongs to nothing that the config and this model have"));
  for (std::size_t i = 0; i < parameters.size(); ++i) set_values(*parameters[i].parameter, all[i]);
}

std::vector<SafetensorsEntry> entries_of(const std::vector<StoredParameter>& parameters) {
  std::vector<SafetensorsEntry> tensors;
  for (const StoredParameter& p : parameters)
    tensors.push_back({p.name, p.shape, to_host<float>(p.parameter->value())});
  return tensors;
}

}  // namespace lk
