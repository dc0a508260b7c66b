#include "run/run_record.h"

#include "modelfile/base_identity.h"
#include "run/json_values.h"
#include "run/run_files.h"
#include "run/run_identity.h"
#include "version.h"

namespace lk {

Json run_json(const FinetuneSettings& s, const RunInputs& in, const RunFacts& facts,
              const FinetuneResult& result) {
  BaseIdentity held;
  set_precision(held, in.storage);
  Json settings = sort_settings(s).recorded;
  settings["recompute"] = recompute_text(facts.recompute);  // as it was chosen
  settings["format"] = in.data.format;
  settings["run"] = run_identity(s, in, facts.fingerprint, facts.dtype);
  Json run = {{"status", facts.status},
              {"version", kVersion},
              {"settings", settings},
              {"device", {{"name", facts.device}, {"description", facts.device_description}}},
              {"dtype", dtype_name(facts.dtype)},
              {"base",
               {{"path", s.model},
                {"sha256", or_null(facts.fingerprint)},
                {"precision", or_null(held.precision)},
                {"keep_dense", held.keep_dense},
                {"weights_sha256", facts.base_hash},
                {"weights_are", replaces_base(in.methods) ? "the base's, before they were trained"
                                : changes_base(in.methods.lora.init)
                                    ? "what is left of the base without the start of A and B"
                                    : "the base's"}}},
              {"parameters",
               {{"base", result.base_parameters}, {"trainable", result.trainable_parameters}}},
              {"data",
               {{"rows", std::ssize(in.data.rows)},
                {"chats", in.data.chats < 0 ? Json(nullptr) : Json(in.data.chats)},
                {"system", or_null(in.data.system)},
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
  if (facts.status == "running" || facts.status == "failed") return run;
  run["memory"] = memory_to_json(result.memory);
  run["weight_gradient_matmuls_per_micro_step"] = facts.weight_gradient_matmuls_per_micro_step;
  run["adapter_matrices"] = facts.adapter_matrices;
  run["result"] = {{"steps", result.steps},
                   {"first_loss", result.first_loss},
                   {"last_loss", result.last_loss},
                   {"seconds", result.seconds},
                   {"first_step_seconds", result.first_step_seconds},
                   {"recorded_steps", result.recorded_steps},
                   {"tokens_per_second", result.tokens_per_second()},
                   {"peak_bytes", result.peak_bytes},
                   {"kept_step", result.kept_step},
                   {"out_of_patience", result.out_of_patience}};
  if (result.best)
    run["result"]["best"] = {{"step", result.best->step}, {"loss", result.best->loss}};
  if (result.eval_before) run["result"]["eval_before"] = evaluation_to_json(*result.eval_before);
  if (result.eval_after) run["result"]["eval_after"] = evaluation_to_json(*result.eval_after);
  return run;
}

}  // namespace lk
