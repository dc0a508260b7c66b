#include "run/shared_run.h"

#include <algorithm>
#include <cstring>

#include "cuda/open_device.h"
#include "dist/host_transport.h"
#include "run/run_identity.h"

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

ShardGroup shard_group(World& world) {
  return {world.rank(), world.size(),
          [&world](const std::string& own) { return world.gather(own); }};
}

void leave_base(World& world, Backend& backend) {
  backend.synchronize();
  world.await_all();
}

EvaluationShare share_of(World& world) {
  return {world.rank(), world.size(), [&world](const std::vector<double>& own) {
            std::vector<std::vector<double>> all;
            const auto* bytes = reinterpret_cast<const char*>(own.data());
            for (const std::string& text : world.gather({bytes, own.size() * sizeof own[0]})) {
              all.emplace_back(text.size() / sizeof own[0]);
              std::memcpy(all.back().data(), text.data(), text.size());
            }
            return all;
          }};
}

void require_same(World& world, const Json& own) {
  const std::vector<std::string> all = world.gather(json_text(own));
  const Json first = parse_json(all[0], process_name(0, world.size()));
  for (int r = 1; r < world.size(); ++r) {
    const std::string& theirs = all[static_cast<std::size_t>(r)];
    if (theirs == all[0]) continue;
    const Json other = parse_json(theirs, process_name(r, world.size()));
    throw UsageError(concat(process_name(r, world.size()), " has not what process 0 has: ",
                            identity_difference(first, other, {})));
  }
}

}  // namespace lk
