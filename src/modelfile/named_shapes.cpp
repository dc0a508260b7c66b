#include "modelfile/named_shapes.h"

#include "io/json.h"
#include "modelfile/config.h"

namespace lk {
namespace {

constexpr const char* kNamedShapes =
#include "modelfile/named_shapes.inc"
    ;

}  // namespace

ModelConfig named_shape(const std::string& name) {
  const Json shapes = Json::parse(kNamedShapes);
  std::string known;
  for (const auto& [key, config] : shapes.items()) {
    if (key == name) return config_from_json(config, concat("shape ", name));
    known += concat(known.empty() ? "" : ", ", key);
  }
  throw UsageError(concat("no model shape is named '", name, "': known are ", known));
}

}  // namespace lk
