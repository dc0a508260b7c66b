#include "modelfile/gguf_names.h"

#include <string_view>

namespace lk {

std::string gguf_name(const std::string& hf_name, const Family& family) {
  const std::string_view prefix = family.layer_prefix;
  const std::size_t last = hf_name.rfind('.');  // begins ".weight" or ".bias"
  if (last != std::string::npos) {
    std::string module = hf_name.substr(0, last), layer;
    const std::size_t dot = hf_name.find('.', prefix.size());  // ends the layer's number
    if (hf_name.starts_with(prefix) && dot < last) {
      module = hf_name.substr(dot + 1, last - dot - 1);
      layer = concat("blk.", hf_name.substr(prefix.size(), dot - prefix.size()), ".");
    }
    for (const RoleName& n : family.names)
      if (module == n.hf) return concat(layer, n.gguf, hf_name.substr(last));
  }
  throw Error(concat("no GGUF name for '", hf_name, "'"));
}

}  // namespace lk
