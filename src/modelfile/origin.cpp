#include "modelfile/origin.h"

#include "io/json.h"
#include "io/paths.h"
#include "tensor/error.h"

namespace lk {
namespace {

constexpr std::size_t kMostBytes = std::size_t{1} << 20;

std::vector<std::string> strings(const Json& record, const char* key, const std::string& where) {
  std::vector<std::string> all;
  const Json& list = json_at(record, key, where);
  if (!list.is_array()) throw InputError(concat(where, ": ", key, ": not a list"));
  for (const Json& text : list) {
    if (!text.is_string()) throw InputError(concat(where, ": ", key, ": not a list of strings"));
    all.push_back(text.get<std::string>());
  }
  return all;
}

}  // namespace

std::string origin_text(const Origin& o) {
  return json_text(OrderedJson{{"sha256", o.weights},
                               {"made_from", o.base},
                               {"made_from_sha256", o.bases},
                               {"precision", o.precision},
                               {"keep_dense", o.keep_dense},
                               {"type", o.type},
                               {"exact", o.exact},
                               {"adapters", o.adapters}},
                   2) +
         "\n";
}

std::optional<Origin> read_origin(const std::string& path, const std::string& fingerprint) {
  const std::string file = path + "/" + kOriginFile;
  if (!is_folder(path) || !exists(file)) return std::nullopt;
  const Json record = read_json(file, kMostBytes);
  if (!record.is_object()) throw InputError(file + ": not an object");
  Origin o;
  o.weights = json_string(record, "sha256", file);
  o.base = json_string(record, "made_from", file);
  o.bases = strings(record, "made_from_sha256", file);
  o.precision = json_string(record, "precision", file);
  o.keep_dense = strings(record, "keep_dense", file);
  o.type = json_string(record, "type", file);
  o.exact = json_bool_or(record, "exact", false, file);
  o.adapters = strings(record, "adapters", file);
  return fingerprint.empty() || o.weights == fingerprint ? std::optional(o) : std::nullopt;
}

std::vector<std::string> same_weights(const std::string& path, const std::string& fingerprint) {
  std::vector<std::string> all{fingerprint};
  const std::optional<Origin> origin = read_origin(path, fingerprint);
  if (origin && origin->exact && origin->adapters.empty() && origin->precision.empty())
    all.insert(all.end(), origin->bases.begin(), origin->bases.end());
  return all;
}

}  // namespace lk
