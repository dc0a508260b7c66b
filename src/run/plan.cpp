#include "run/plan.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "cuda/open_device.h"
#include "dist/shared_step.h"
#include "lora/trainer.h"
#include "nn/generate.h"
#include "nn/streamed_base.h"
#include "run/samples.h"
#include "run/size_text.h"

namespace lk {
namespace {

// Weights that have shapes but no values.
ModelWeights blank_weights(Backend& backend, const PlanRequest& r) {
  const DType dtype = r.compute_dtype;
  ModelWeights w;
  const int n = std::max(r.processes, 1);
  const ShardGroup group{0, n, [n](const std::string& own) {
                           return std::vector<std::string>(static_cast<std::size_t>(n), own);
                         }};
  const auto streamed = make_streamed_base(backend, r.streamed, r.processes > 0 ? &group : nullptr);
  std::size_t next = 0;
  for (const WeightSlot& slot : weight_slots(r.model, w)) {
    const HeldFormat format = r.formats.empty() ? HeldFormat() : r.formats.at(next++);
    if (format) {
      QuantisedMatrix q{*format, 0, {}};
      for (std::size_t p = 0; p < kPlanes; ++p)
        if (const PlaneShape plane = format->plane(static_cast<Plane>(p), slot.shape);
            plane.bytes() > 0)
          q.planes[p] = backend.empty(Tag::Weights, plane.dtype, {plane.rows, plane.cols});
      *slot.weight = Weight(slot.name, std::move(q), slot.shape, dtype);
    } else {
      *slot.weight = Weight(slot.name, backend.empty(Tag::Weights, dtype, slot.shape));
    }
    if (streamed && streamed->takes(slot))
      streamed->take(slot);
    else if (slot.linear && !format)
      backend.prepare_linear(*slot.weight);
  }
  if (streamed) streamed->finish();
  if (r.model.tie_embeddings) tie_head(backend, w);
  return w;
}

// The same methods but for their first values, which take no memory of their own.
MethodConfig without_values(MethodConfig methods) {
  methods.lora.init = LoraInit::Kaiming;
  return methods;
}

// Whether the run reads the base's own numbers and never writes them.
bool base_is_frozen(const PlanRequest& r) {
  return !replaces_base(r.methods) && !(r.methods.has("lora") && changes_base(r.methods.lora.init));
}

std::int64_t longest(const PlanRequest& r) {
  const std::vector<std::int64_t> rows = r.rows();
  return *std::max_element(rows.begin(), rows.end());
}

// A model for which any number of steps can be planned.
class Planner {
 public:
  explicit Planner(const PlanRequest& r)
      : backend_(open_plan_device(r.device)),
        model_(*backend_, r.model, blank_weights(*backend_, r), r.compute_dtype,
               r.seq_len + virtual_tokens(r.methods)),
        method_(make_method(model_, without_values(r.methods))) {
    method_->lay_out_for_training();
    TrainerConfig config;
    if (r.processes > 0) {
      shared_.emplace(model_, *method_, &nothing_, 0, r.processes,
                      SharedStep::Settings{config.clip, r.fast_reduce});
      shared_->join(config);
    }
    trainer_.emplace(model_, *method_, config);
    // All further micro-batches need what a process's second needs, and their inputs, which a process
    // that has the step to itself uploads together.
    const std::int64_t second = std::max(r.processes, 1) + 1;
    if (r.processes == 0) further_ = std::max<std::int64_t>(r.grad_accum - second, 0);
    micro_batches_ = static_cast<std::size_t>(std::min(r.grad_accum, second));
    const auto outline = [](const PlannedBatch& batch) {
      return Trainer::Outline{document_offsets(batch.documents), batch.supervised};
    };
    for (const PlannedBatch& batch : r.micro_batches) steps_.push_back(outline(batch));
    if (steps_.empty()) steps_.push_back({document_offsets(r.rows())});
    for (const PlannedBatch& batch : r.evaluations) evaluations_.push_back(outline(batch));
    sample_prompt_.resize(static_cast<std::size_t>(r.sample_prompt));
  }

  Plan step(const Recompute& recompute) {
    model_.set_recompute(recompute);
    backend_->reset_peaks();
    for (const Trainer::Outline& batch : steps_) {
      const Tensor inputs = further_inputs(batch);
      trainer_->rehearse(std::vector<Trainer::Outline>(micro_batches_, batch));
    }
    for (const Trainer::Outline& batch : evaluations_) evaluate(batch);
    if (!sample_prompt_.empty()) sample();
    Plan plan;
    plan.base_parameters = method_->replaces_base() ? 0 : model_.n_parameters();
    plan.trainable_parameters = method_->n_parameters();
    plan.memory = memory_report(*backend_);
    return plan;
  }
  const DeviceTraits& device() const { return backend_->traits(); }
  std::int64_t peak(const Recompute& recompute) { return step(recompute).memory.peak_bytes; }

 private:
  Tensor further_inputs(const Trainer::Outline& outline) {
    const auto live = [&] { return backend_->ledger()[Tag::Workspace].live_bytes; };
    const std::int64_t before = live();
    const TokenBatch batch = empty_batch(*backend_, outline.size(model_.virtual_tokens()));
    return backend_->empty(Tag::Workspace, DType::U8, {further_ * (live() - before)});
  }
  void evaluate(const Trainer::Outline& outline) {
    Tape tape(*backend_, Tape::Mode::NoGrad);
    TokenBatch batch = empty_batch(*backend_, outline.size(model_.virtual_tokens()));
    batch.segments.host = outline.offsets;
    model_.loss(tape, batch, 1.0, {});
  }
  // The prompt and one step behind it: the steps that follow need no more, as the cache has its size.
  void sample() {
    int n_tokens = 0;
    generate(model_, sample_prompt_, {.max_tokens = kSampleTokens},
             [&](std::int32_t) { return ++n_tokens < 2; });
  }

  std::unique_ptr<Backend> backend_;  // first: everything else lives in its memory
  Transformer model_;
  std::unique_ptr<Method> method_;
  struct MovesNothing : Transport {
    void exchange(std::span<const Piece>, std::span<const Piece>) override {}
  } nothing_;
  std::optional<SharedStep> shared_;
  std::optional<Trainer> trainer_;
  std::size_t micro_batches_ = 0;                      // of a step, that are rehearsed
  std::int64_t further_ = 0;                           // of it
  std::vector<Trainer::Outline> steps_, evaluations_;  // a step has such micro-batches alone
  std::vector<std::int32_t> sample_prompt_;
};

std::int64_t peak(const PlanRequest& r) { return Planner(r).peak(r.recompute); }

// Settings for plan_within() to try, from fast to slow, once gate and up of all layers are computed
// again: whole blocks; or blocks but for attention, and then either whole ones or what the host keeps.
enum class Ladder { Blocks, KeepAttentionThenBlocks, KeepAttentionThenOffload };

std::vector<Recompute> rungs(Ladder ladder, std::int64_t n_layers, bool can_offload) {
  std::vector<Recompute> all{{}};
  // One layer more each time; once a way covers all layers, the weaker ones don't matter.
  auto climb = [&](std::int64_t Recompute::*way) {
    Recompute r = all.back();
    for (std::int64_t n = 1; n < n_layers; ++n) r.*way = n, all.push_back(r);
    r = {};
    r.*way = Recompute::kAllLayers;
    all.push_back(r);
  };
  climb(&Recompute::gate_up);
  if (ladder != Ladder::Blocks) climb(&Recompute::keep_attention);
  if (ladder != Ladder::KeepAttentionThenOffload) climb(&Recompute::block);
  Recompute r = all.back();
  for (std::int64_t n = 1; n < n_layers && can_offload; ++n) {
    r.offload = n + 1 == n_layers ? Recompute::kAllLayers : n;
    all.push_back(r);
  }
  return all;
}

// Adds settings that need less memory, and what each would need.
void add_options(const PlanRequest& request, Planner& planner, Plan& plan) {
  auto add = [&](std::string flag, const PlanRequest& cheaper) {
    if (const std::int64_t bytes = peak(cheaper); bytes < plan.memory.peak_bytes)
      plan.options.push_back({std::move(flag), bytes});
  };
  for (const char* way :
       {"gate-up", "keep-attention", "block", "keep-attention,offload", "offload"}) {
    const Recompute recompute = parse_recompute(way);
    if (recompute.offload > 0 && !planner.device().can_offload) continue;
    if (const std::int64_t bytes = planner.peak(recompute); bytes < plan.memory.peak_bytes)
      plan.options.push_back({concat("--recompute ", way, " (same result)"), bytes});
  }
  if (!request.streamed && planner.device().can_offload && base_is_frozen(request)) {
    PlanRequest r = request;
    r.streamed = {StreamedLayers::kAll};
    add("--offload-base all (same result)", r);
  }
  if (request.batch > 1 && request.grad_accum <= kMostGradAccum / request.batch) {
    PlanRequest r = request;
    r.batch = 1;
    r.grad_accum = request.grad_accum * request.batch;
    r.row_lengths = {longest(request)}, r.micro_batches.clear();
    // A run of it evaluates no more at a time than that, but for single rows that are longer.
    for (PlannedBatch& e : r.evaluations)
      e.documents = {*std::max_element(e.documents.begin(), e.documents.end())};
    // By processes, micro-batches are added in another order.
    const char* const same = request.fast_reduce ? "" : " (same result)";
    add(concat("--batch 1 --grad-accum ", r.grad_accum, same), r);
  }
  if (request.compute_dtype == DType::F32) {
    PlanRequest r = request;
    r.compute_dtype = DType::BF16;
    add("--dtype bf16", r);
  }
  const std::int64_t added = virtual_tokens(request.methods), own = longest(request) - added;
  if (own >= 128) {
    PlanRequest r = request;
    r.seq_len = own / 2;
    r.micro_batches.clear(), r.evaluations.clear();
    for (std::int64_t& n : r.row_lengths) n = std::min(n, r.seq_len + added);
    add(concat("--seq-len ", r.seq_len, " --truncate"), r);
  }
  std::stable_sort(plan.options.begin(), plan.options.end(),
                   [](const auto& a, const auto& b) { return a.peak_bytes < b.peak_bytes; });
}

}  // namespace

std::vector<std::int64_t> PlanRequest::rows() const {
  if (!row_lengths.empty()) return row_lengths;
  return std::vector<std::int64_t>(static_cast<std::size_t>(batch),
                                   seq_len + virtual_tokens(methods));
}

std::int64_t PlanRequest::batch_tokens() const {
  const std::vector<std::int64_t> all = rows();
  return std::accumulate(all.begin(), all.end(), std::int64_t{0});
}

Plan plan_training(const PlanRequest& request) {
  Planner planner(request);
  Plan plan = planner.step(request.recompute);
  add_options(request, planner, plan);
  return plan;
}

std::int64_t plannable_bytes(std::int64_t budget, const DeviceTraits& device) {
  return budget - budget / 100 - device.uncounted_bytes;
}

// A layer that is offloaded costs what its transfers take longer than its own forward: they run at
// the same time. kFlopsPerByte is about the same for all cards: 600 TFLOP/s beside 50 GB/s each way.
double recomputed_flops(const PlanRequest& request, const Recompute& recompute) {
  constexpr double kFlopsPerByte = 12000;
  const ModelConfig& c = request.model;
  const std::int64_t q = c.q_size();
  double tokens = 0;
  for (std::int64_t n : request.rows()) tokens += static_cast<double>(n);
  auto product = [&](std::int64_t in, std::int64_t out) {
    return 2 * tokens * static_cast<double>(in) * static_cast<double>(out);
  };
  const double down = product(c.hidden_size, c.intermediate_size),
               gate_up = down * (c.mlp == MlpKind::Gelu ? 1 : 2),
               projections =
                   product(c.hidden_size, q + 2 * c.kv_size()) + product(q, c.hidden_size);
  double total = 0;
  for (std::int64_t layer = 0; layer < c.n_layers; ++layer) {
    const std::int64_t window = c.is_local(static_cast<std::size_t>(layer)) ? c.window : 0;
    double attention = 0;
    for (std::int64_t n : request.rows()) {
      const double keys = static_cast<double>(window > 0 ? std::min(window, n) : n);
      // Token i sees i + 1 keys, or the window if that is less.
      attention += 4 * (keys * (static_cast<double>(n) - keys) + keys * (keys + 1) / 2) *
                   static_cast<double>(q);
    }
    const RecomputeKind kind = recompute.of(layer);
    if (kind != RecomputeKind::None) total += gate_up;
    if (kind >= RecomputeKind::KeepAttention) total += projections;
    if (kind == RecomputeKind::Block) total += attention;
    if (recompute.offloads(layer, c.n_layers)) {
      const std::int64_t width = c.hidden_size + (kind == RecomputeKind::KeepAttention ? q : 0);
      const double bytes = tokens * static_cast<double>(width) *
                           static_cast<double>(dtype_size(request.compute_dtype));
      total += std::max(0.0, kFlopsPerByte * bytes - (projections + gate_up + down + attention));
    }
  }
  return total;
}

// Memory falls along a ladder except at its last steps, where a block's second run may need more
// than its first run no longer keeps. So where none fits, the peaks of all settings are compared.
// To keep attention's outputs costs memory that other layers could use, and saves much time where
// rows are long and little where they are short: of the ladders' choices the fastest is taken.
Plan plan_within(PlanRequest& request, std::int64_t budget) {
  Planner planner(request);
  const std::int64_t room = plannable_bytes(budget, planner.device());
  std::optional<Recompute> best;
  double least = 0;
  for (Ladder ladder :
       {Ladder::Blocks, Ladder::KeepAttentionThenBlocks, Ladder::KeepAttentionThenOffload}) {
    const std::vector<Recompute> all =
        rungs(ladder, request.model.n_layers, planner.device().can_offload);
    const auto fits = std::partition_point(
        all.begin(), all.end(), [&](const Recompute& r) { return planner.peak(r) > room; });
    if (fits == all.end()) continue;
    const double flops = recomputed_flops(request, *fits);
    if (!best || flops < least) best = *fits, least = flops;
    if (fits->keep_attention == 0 && fits->block == 0) break;  // all ladders begin alike
  }
  if (!best) {
    const std::vector<Recompute> all =
        rungs(Ladder::Blocks, request.model.n_layers, planner.device().can_offload);
    best = *std::min_element(all.begin(), all.end(), [&](const auto& a, const auto& b) {
      return planner.peak(a) < planner.peak(b);
    });
  }
  request.recompute = *best;
  Plan plan = planner.step(request.recompute);
  add_options(request, planner, plan);
  return plan;
}

void check_fits(const PlanRequest& request, const Plan& plan, std::int64_t bytes,
                const std::string& where) {
  if (plan.memory.peak_bytes > bytes)
    throw OutOfMemoryError(concat("this run needs ", size_text(plan.memory.peak_bytes), ", ", where,
                                  " ", size_text(bytes), "\n", plan_text(request, plan)));
}

void check_host_fits(const Plan& plan, std::int64_t processes, std::int64_t held) {
  const std::int64_t needed = plan.memory.offloaded_base_bytes;
  if (needed == 0) return;
  const std::int64_t free = open_device("cpu")->free_memory() / processes + held;
  if (needed <= free) return;
  const char* const each = processes > 1 ? " for each process" : "";
  throw OutOfMemoryError(concat("`offload_base`: ", size_text(needed),
                                " of the base wait on the host", each, ", which has ",
                                size_text(free), " left", each,
                                ": fewer layers, or fewer bits by `base_precision`, need less"));
}

}  // namespace lk
