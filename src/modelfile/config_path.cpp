#include "io/gguf.h"
#include "io/paths.h"
#include "modelfile/config.h"

namespace lk {

ModelConfig config_from_path(const std::string& path) {
  if (is_folder(path)) return config_from_folder(path);
  return config_from_gguf(GgufFile(path));
}

}  // namespace lk
