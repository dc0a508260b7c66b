#include "run/shared_run.h"

#include <algorithm>

#include "cuda/open_device.h"
#include "dist/host_transport.h"

namespace lk {

std::string own_device(const World& world, const std::string& device) {
  const bool any = device == "auto" || device == "cuda";
  const int gpus = world.size() > 1 && any ? n_gpus() : 0;
  if (gpus < 2) return device;
  require(world.local_rank() < gpus, "`processes`: more than ", world.local_rank(),
          " on a machine with ", gpus, " GPUs");
  return concat("cuda:", world.local_rank());
}

std::unique_ptr<Transport> open_transport(World& world, Backend& backend, const LogFunction& log) {
  if (world.size() == 1) return nullptr;
  const std::vector<std::int64_t> able = world.gather(has_link(backend) ? 1 : 0);
  if (*std::min_element(able.begin(), able.end()) == 0) {
    if (backend.traits().can_offload)
      log_line(log, "no NCCL (libnccl.so.2): gradients go through the hosts' memory");
    return std::make_unique<HostTransport>(world);
  }
  const std::string id = world.gather(world.leads() ? make_link_id() : std::string())[0];
  return open_link(backend, id, world.rank(), world.size(), world.timeout());
}

}  // namespace lk
