// What the processes that share a run agree on: where they begin, when they stop, what they have.
#include <algorithm>
#include <cstring>

#include "io/paths.h"
#include "modelfile/weight_hash.h"
#include "run/finetune_run.h"
#include "run/run_toml.h"

namespace lk {

void FinetuneRun::check_same_everywhere() {
  if (!world_ || world_->size() == 1) return;
  FinetuneSettings settings = s_;
  settings.out.clear();
  const Json own = {{"settings", run_toml(settings)},
                    {"identity", run_identity(s_, in_, facts_.base_hash, facts_.dtype)}};
  const std::vector<std::string> all = world_->gather(json_text(own));
  const Json first = parse_json(all[0], process_name(0, world_->size()));
  for (int r = 1; r < world_->size(); ++r) {
    const std::string& theirs = all[static_cast<std::size_t>(r)];
    if (theirs == all[0]) continue;
    const Json other = parse_json(theirs, process_name(r, world_->size()));
    throw UsageError(concat(process_name(r, world_->size()), " has not what process 0 has: ",
                            identity_difference(first, other, {})));
  }
}

std::int64_t FinetuneRun::free_memory() {
  std::int64_t free = base_.backend->free_memory();
  if (!world_) return free;
  if (!base_.backend->traits().can_offload) free /= world_->local_size();  // it is the host's
  const std::vector<std::int64_t> all = world_->gather(free);
  return *std::min_element(all.begin(), all.end());
}

int FinetuneRun::agreed_stop() {
  if (!world_) return stop_.load();
  const std::vector<std::int64_t> all = world_->gather(stop_.load());
  return static_cast<int>(*std::max_element(all.begin(), all.end()));
}

EvaluationShare FinetuneRun::evaluation_share() {
  if (!world_) return {};
  return {world_->rank(), world_->size(), [this](const std::vector<double>& own) {
            std::vector<std::vector<double>> all;
            const auto* bytes = reinterpret_cast<const char*>(own.data());
            for (const std::string& text : world_->gather({bytes, own.size() * sizeof own[0]})) {
              all.emplace_back(text.size() / sizeof own[0]);
              std::memcpy(all.back().data(), text.data(), text.size());
            }
            return all;
          }};
}

void FinetuneRun::prove_replicas() {
  if (!world_ || world_->size() == 1) return;
  std::string hashes;
  for (const Parameter* p : method_->parameters()) hashes += tensor_sha256(p->value());
  const std::vector<std::string> all = world_->gather(hashes);
  for (int r = 1; r < world_->size(); ++r)
    require(all[static_cast<std::size_t>(r)] == all[0], process_name(r, world_->size()),
            " has trained other numbers than process 0 from the same gradients: processors of one "
            "kind are needed");
}

FinetuneResult finetune(const FinetuneSettings& settings, World& world, FinetuneListener& listener,
                        const std::atomic<int>& stop) {
  FinetuneListener nobody;
  FinetuneSettings own = settings;
  own.processes = world.size();
  try {
    require(world.size() == 1 || !(settings.data == "-" || is_pipe(settings.data) ||
                                   settings.eval_data == "-" || is_pipe(settings.eval_data)),
            "`data` and `eval_data`: each process reads them, so several take no pipe");
    if (world.leads() && settings.grad_accum < world.size())
      listener.message(concat("warning: a step has ", settings.grad_accum,
                              " micro-batches (`grad_accum`) for ", world.size(), " processes: ",
                              world.size() - settings.grad_accum, " of them compute nothing"));
    return FinetuneRun(own, nullptr, nullptr, world.leads() ? listener : nobody, stop, &world).go();
  } catch (const Error& e) {
    world.end_with(e);
    throw;
  } catch (const std::bad_alloc&) {
    world.end_with(OutOfMemoryError("out of host memory"));
    throw;
  } catch (const std::exception& e) {
    world.end_with(Error(e.what()));
    throw;
  }
}

}  // namespace lk
