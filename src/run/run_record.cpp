#include "run/run_record.h"

#include "run/run_files.h"
#include "run/run_settings.h"
#include "version.h"

namespace lk {
namespace {

Json or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

}  // namespace

Json run_json(const FinetuneSettings& s, const RunInputs& in, const RunFacts& facts,
              const FinetuneResult& result) {
  Json identity = run_identity(s, in.steps, facts.fingerprint, in.data, facts.dtype, in.lora);
  identity["base_sha256"] = or_null(facts.fingerprint);
  Json run = {{"status", facts.status},
              {"version", kVersion},
              {"settings",
               {{"model", s.model},
                {"data", s.data},
                {"out", s.out},
                {"init_adapter", or_null(s.init_adapter)},
                {"eval_data", or_null(s.eval_data)},
                {"eval_rows", s.eval_rows},
                {"eval_every", s.eval_every},
                {"save_every", s.save_every},
                {"device", s.device},
                {"recompute", recompute_text(facts.recompute)},
                {"memory", s.memory > 0 ? Json(s.memory) : Json(nullptr)},
                {"format", in.data.format},
                {"run", identity}}},
              {"device", {{"name", facts.device}, {"description", facts.device_description}}},
              {"dtype", dtype_name(facts.dtype)},
              {"base",
               {{"path", s.model},
                {"sha256", or_null(facts.fingerprint)},
                {"weights_sha256", facts.base_hash}}},
              {"parameters",
               {{"base", result.base_parameters}, {"trainable", result.trainable_parameters}}},
              {"data",
               {{"rows", std::ssize(in.data.rows)},
                {"rows_read", in.data.rows_read},
                {"chats_apart", in.data.chats_apart},
                {"rows_truncated", in.data.rows_truncated},
                {"rows_too_long", in.data.rows_too_long},
                {"rows_bad", in.data.rows_bad},
                {"rows_cut_to_nothing", in.data.rows_cut_to_nothing},
                {"ignored_keys", in.data.ignored_keys},
                {"tokens", in.data.tokens},
                {"supervised_tokens", in.data.supervised_tokens},
                {"rows_ending_in_eos", in.data.rows_ending_in_eos},
                {"packing", in.packing}}},
              {"planned_peak_bytes", facts.planned_peak},
              {"load_seconds", facts.load_seconds}};
  if (facts.status == "running") return run;
  run["memory"] = memory_to_json(result.memory);
  run["weight_gradient_matmuls_per_micro_step"] = facts.weight_gradient_matmuls_per_micro_step;
  run["adapter_matrices"] = facts.adapter_matrices;
  run["result"] = {{"steps", result.steps},
                   {"first_loss", result.first_loss},
                   {"last_loss", result.last_loss},
                   {"seconds", result.seconds},
                   {"first_step_seconds", result.first_step_seconds},
                   {"recorded_steps", result.recorded_steps},
                   {"tokens_per_second", result.tokens_per_second}};
  if (result.eval_before) run["result"]["eval_before"] = evaluation_to_json(*result.eval_before);
  if (result.eval_after) run["result"]["eval_after"] = evaluation_to_json(*result.eval_after);
  return run;
}

}  // namespace lk
