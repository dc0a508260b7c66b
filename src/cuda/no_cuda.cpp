// open_device() and its companions in a build without CUDA. A build with CUDA has open_device.cpp
// instead.
#include "cpu/cpu_backend.h"
#include "cuda/open_device.h"

namespace lk {

int n_gpus() { return 0; }

bool has_link(const Backend&) { return false; }
std::string make_link_id() { throw UsageError("this program was built without CUDA"); }
std::unique_ptr<Transport> open_link(Backend&, const std::string&, int, int, std::chrono::seconds) {
  throw UsageError("this program was built without CUDA");
}

std::unique_ptr<Backend> open_device(const std::string& name) {
  if (name == "cpu" || name == "auto") return make_cpu_backend();
  if (name == "cuda" || name.rfind("cuda:", 0) == 0)
    throw UsageError(
        concat(name, ": this program was built without CUDA (configure with -Dcuda=enabled)"));
  throw UsageError(concat("unknown device \"", name, "\": expected auto, cpu, cuda or cuda:N"));
}

}  // namespace lk
