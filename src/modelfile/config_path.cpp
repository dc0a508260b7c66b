#include <sys/stat.h>

#include "io/gguf.h"
#include "modelfile/config.h"

namespace lk {

ModelConfig config_from_path(const std::string& path) {
  struct stat s;
  if (::stat(path.c_str(), &s) == 0 && S_ISDIR(s.st_mode)) return config_from_folder(path);
  return config_from_gguf(GgufFile(path));
}

}  // namespace lk
