// A plan as text and as JSON.
#include <algorithm>
#include <cstdio>

#include "dist/shared_step.h"
#include "io/json.h"
#include "run/bytes_per_parameter.h"
#include "run/plan.h"
#include "run/size_text.h"

namespace lk {
namespace {

// That a process sends in a step.
std::int64_t sent_bytes(const PlanRequest& r, const Plan& plan) {
  return SharedStep::sent_bytes(plan.trainable_parameters, r.processes, r.grad_accum,
                                r.fast_reduce);
}

}  // namespace

std::string plan_text(const PlanRequest& request, const Plan& plan) {
  const std::vector<std::int64_t> rows = request.rows();
  char text[512];
  std::snprintf(text, sizeof text,
                "plan: %s on %s, %lld rows of up to %lld tokens at a time, %s\n"
                "base parameters       %14lld  frozen\n"
                "trainable parameters  %14lld  (%.3f %% of all)\n",
                dtype_name(request.compute_dtype), request.device.c_str(),
                static_cast<long long>(rows.size()),
                static_cast<long long>(*std::max_element(rows.begin(), rows.end())),
                describe(request.methods).c_str(), static_cast<long long>(plan.base_parameters),
                static_cast<long long>(plan.trainable_parameters),
                100.0 * static_cast<double>(plan.trainable_parameters) /
                    static_cast<double>(std::max<std::int64_t>(
                        plan.base_parameters + plan.trainable_parameters, 1)));
  std::string out = text;
  out += bytes_per_parameter(request.methods.text(), plan.memory, plan.base_parameters,
                             plan.trainable_parameters) +
         "\n";
  if (request.recompute != Recompute{})
    out += concat("recompute             ", recompute_text(request.recompute), "\n");
  const std::int64_t elsewhere = std::min(request.streamed.count, request.model.n_layers);
  if (request.streamed.on_host())
    out += concat("base on the host      ", elsewhere, " of ", request.model.n_layers,
                  " layers: ", size_text(plan.memory.offloaded_base_bytes), " of pinned memory\n");
  if (request.streamed.in_parts())
    out += concat("base in parts         ", elsewhere, " of ", request.model.n_layers,
                  " layers, on ", request.processes, " GPUs\n");
  if (request.processes > 1) {
    std::snprintf(text, sizeof text,
                  "processes             %14d  each as below; a step sends %.2f MiB from each\n",
                  request.processes, static_cast<double>(sent_bytes(request, plan)) / (1 << 20));
    out += text;
  }
  out += memory_table(plan.memory);
  for (const Plan::Option& o : plan.options) {
    std::snprintf(text, sizeof text, "  with %-40s peak %10.2f MiB\n", o.flag.c_str(),
                  static_cast<double>(o.peak_bytes) / (1 << 20));
    out += text;
  }
  return out;
}

Json plan_to_json(const PlanRequest& request, const Plan& plan) {
  Json options = Json::array();
  for (const Plan::Option& o : plan.options)
    options.push_back({{"flags", o.flag}, {"peak_bytes", o.peak_bytes}});
  Json json = {{"device", request.device},
               {"dtype", dtype_name(request.compute_dtype)},
               {"base_parameters", plan.base_parameters},
               {"trainable_parameters", plan.trainable_parameters},
               {"recompute", recompute_text(request.recompute)},
               {"offload_base", request.streamed.text(false)},
               {"shard_base", request.streamed.text(true)},
               {"memory", memory_to_json(plan.memory)},
               {"options", options}};
  if (request.processes > 0) {
    json["processes"] = request.processes;
    json["fast_reduce"] = request.fast_reduce;
    json["sent_bytes_per_step"] = sent_bytes(request, plan);
  }
  return json;
}

}  // namespace lk
