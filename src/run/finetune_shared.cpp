// What the processes that share a run agree on: where they begin, when they stop, what they have.
#include <algorithm>
#include <numeric>
#include <sstream>

#include "io/paths.h"
#include "modelfile/weight_hash.h"
#include "run/finetune_run.h"
#include "run/run_toml.h"

namespace lk {
namespace {

// The text of each value, by key.
Json toml_values(const std::string& toml) {
  Json values = Json::object();
  std::istringstream lines(toml);
  for (std::string line; std::getline(lines, line);)
    if (const auto at = line.find(" = "); at != line.npos && line[0] != '#')
      values[line.substr(0, at)] = line.substr(at + 3);
  return values;
}

}  // namespace

void FinetuneRun::check_same_everywhere() {
  if (!world_ || world_->size() == 1) return;
  FinetuneSettings settings = s_;
  settings.out.clear();
  require_same(*world_, {{"settings", toml_values(run_toml(settings))},
                         {"identity", run_identity(s_, in_, "", facts_.dtype)}});
}

void FinetuneRun::check_same_base() {
  if (world_ && world_->size() > 1) require_same(*world_, {{"base_sha256", facts_.base_hash}});
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
  return world_ ? share_of(*world_) : EvaluationShare{};
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
  const std::vector<std::int64_t> moments =
      world_->gather(base_.backend->ledger()[Tag::Optimizer].live_bytes);
  const auto held = std::accumulate(moments.begin(), moments.end(), std::int64_t{0});
  check(held == 2 * 4 * method_->n_parameters(), "the processes have ", held,
        " bytes of optimizer state for ", method_->n_parameters(), " trained numbers");
}

std::optional<WholeMoments> FinetuneRun::gather_moments() {
  std::optional<WholeMoments> moments;
  if (world_ && world_->size() > 1)
    trainer_->between_steps([&] { moments = shared_step_->gather_moments(trainer_->optimizer()); });
  return moments;
}

FinetuneResult finetune(const FinetuneSettings& settings, World& world, FinetuneListener& listener,
                        const std::atomic<int>& stop) {
  FinetuneListener nobody;
  FinetuneSettings own = settings;
  own.processes = world.size();
  // Outlives what ends it: the others hear of that before the part of a base that they read is freed.
  FinetuneRun run(own, nullptr, nullptr, world.leads() ? listener : nobody, stop, &world);
  return telling_others(world, [&] {
    require(world.size() == 1 || !(settings.data == "-" || is_pipe(settings.data) ||
                                   settings.eval_data == "-" || is_pipe(settings.eval_data)),
            "`data` and `eval_data`: each process reads them, so several take no pipe");
    if (world.leads() && settings.grad_accum < world.size())
      listener.message(concat("warning: a step has ", settings.grad_accum,
                              " micro-batches (`grad_accum`) for ", world.size(), " processes: ",
                              world.size() - settings.grad_accum, " of them compute nothing"));
    return run.go();
  });
}

}  // namespace lk
