#include "run/run_settings.h"

#include <algorithm>
#include <cmath>

#include "io/paths.h"
#include "lora/rank_patterns.h"
#include "modelfile/hub_name.h"
#include "run/methods.h"
#include "text/fitted_template.h"

namespace lk {

namespace {

// A setting of methods that the run does not train would do nothing.
void check_method_settings(const FinetuneSettings& s) {
  check_methods(s.methods);
  auto belongs = [&](bool given, const char* setting, std::vector<std::string> to) {
    const bool used = std::any_of(to.begin(), to.end(), [&](const std::string& name) {
      return std::count(s.methods.begin(), s.methods.end(), name) > 0;
    });
    require(!given || used, "`", setting, "`: is a setting of `method` ", MethodConfig{to}.text(),
            ", and this run trains ", MethodConfig{s.methods}.text());
  };
  belongs(s.rank.has_value(), "rank", {"lora"});
  belongs(s.alpha.has_value(), "alpha", {"lora"});
  belongs(s.dropout != 0, "dropout", {"lora", "bottleneck"});
  belongs(!s.targets.empty(), "targets", {"lora", "ia3", "bitfit"});
  require(s.layers.empty() || s.targets.empty() || !s.targets[0].starts_with(kTargetExpression),
          "`layers`: goes with names as `targets`; an expression can say the layers itself");
  for (auto name = s.targets.begin(); name != s.targets.end(); ++name)
    require(std::find(s.targets.begin(), name, *name) == name, "`targets`: ", *name,
            " stands there twice");
  belongs(s.bottleneck != FinetuneSettings{}.bottleneck, "bottleneck", {"bottleneck"});
  belongs(s.bottleneck_kind != FinetuneSettings{}.bottleneck_kind, "bottleneck_kind",
          {"bottleneck"});
  require(s.bottleneck >= 1 && s.bottleneck <= (1 << 24), "`bottleneck` ", s.bottleneck,
          ": must be from 1 to ", 1 << 24);
  BottleneckConfig::of_kind(s.bottleneck_kind, s.bottleneck);
  belongs(!s.init_adapter.empty(), "init_adapter", {"lora"});
  belongs(!s.layers.empty(), "layers", {"lora"});
  belongs(!s.rank_pattern.empty(), "rank_pattern", {"lora"});
  belongs(!s.alpha_pattern.empty(), "alpha_pattern", {"lora"});
  belongs(s.rslora, "rslora", {"lora"});
  belongs(s.dora, "dora", {"lora"});
  belongs(s.init != LoraInit::Kaiming, "init", {"lora"});
  belongs(s.loraplus_ratio.has_value(), "loraplus_ratio", {"lora"});
  belongs(s.virtual_tokens.has_value(), "virtual_tokens", {"prompt", "prefix", "llama-adapter"});
  belongs(!s.prompt_text.empty(), "prompt_text", {"prompt"});
  belongs(s.prefix_hidden != 0, "prefix_hidden", {"prefix"});
  belongs(s.adapter_layers != 0, "adapter_layers", {"llama-adapter"});
  require(!s.virtual_tokens || *s.virtual_tokens >= 1, "`virtual_tokens` must be at least 1");
  require(s.prefix_hidden >= 0 && s.adapter_layers >= 0,
          "`prefix_hidden` and `adapter_layers` must not be negative");
  require(s.init_adapter.empty() || s.methods.size() == 1,
          "`init_adapter` starts `method` lora alone");
}

void check_lora_settings(const FinetuneSettings& s) {
  require(!s.rank || *s.rank >= 1, "`rank` ", s.rank.value_or(0), ": must be at least 1");
  require(!s.alpha || (std::isfinite(*s.alpha) && *s.alpha > 0), "`alpha` must be positive");
  // Dropout is computed with as F32, in which all above 0.99999997 is 1.
  require(s.dropout >= 0 && static_cast<float>(s.dropout) < 1, "`dropout` ", s.dropout,
          ": must be in [0, 1)");
  require(!s.loraplus_ratio || (std::isfinite(*s.loraplus_ratio) && *s.loraplus_ratio > 0),
          "`loraplus_ratio` ", s.loraplus_ratio.value_or(0), ": must be positive");
  require(!s.dora || !changes_base(s.init), "`dora` and `init` ", lora_init_name(s.init),
          ": give one of the two, as PEFT has no way to save both for the base as it was");
  const bool shaped = s.rslora || s.dora || !s.layers.empty() || !s.rank_pattern.empty() ||
                      !s.alpha_pattern.empty() || s.init != LoraInit::Kaiming;
  require(s.init_adapter.empty() || (!shaped && s.targets.empty()),
          "`init_adapter` comes with its ranks, alphas and modules: `targets`, `rslora`, `dora`, "
          "`layers`, `rank_pattern`, `alpha_pattern` and `init` are for a new adapter");
}

// How the steps are shared out and what they keep where.
void check_memory_settings(const FinetuneSettings& s) {
  require(!s.fast_reduce || (s.processes && s.grad_accum > 1),
          "`fast_reduce`: is for the micro-batches of a step (`grad_accum`) that processes share "
          "(`processes`, and no sweep)");
  require(s.memory_limit >= 0 && s.memory >= 0, "`memory_limit` and `memory`: not negative");
  require(s.memory == 0 || s.recompute == Recompute{},
          "`memory` chooses `recompute`: give one of the two");
  require(s.memory == 0 || s.memory_limit == 0, "`memory` and `memory_limit`: give one of the two");
  require(s.streamed.count >= 0, s.streamed.setting(), ": must not be negative");
  require(!s.streamed.in_parts() || s.processes.value_or(1) > 1,
          "`shard_base`: is for several processes that share a run (`processes`, and no sweep)");
}

}  // namespace

void validate_step(const FinetuneSettings& s) {
  check_method_settings(s);
  check_lora_settings(s);
  require(s.batch >= 1 && s.batch <= kMostBatch, "`batch` must be in 1 .. ", kMostBatch);
  require(s.grad_accum >= 1 && s.grad_accum <= kMostGradAccum, "`grad_accum` must be in 1 .. ",
          kMostGradAccum);
  require(!s.seq_len || (*s.seq_len >= 2 && *s.seq_len <= (1 << 24)), "`seq_len` must be in 2 .. ",
          1 << 24);
  lora_init_name(s.init), base_precision_name(s.base_precision);  // throw for what is none
  require(s.fp8_products == "auto" || s.fp8_products == "on" || s.fp8_products == "off",
          "`fp8_products` ", s.fp8_products, ": one of auto, on, off");
  require(s.dtype == "auto" || s.dtype == "f32" || s.dtype == "bf16", "`dtype` ", s.dtype,
          ": one of auto, f32, bf16");
  check_memory_settings(s);
}

void validate_settings(const FinetuneSettings& s, bool own_rows) {
  require(!s.model.empty(), "`model` is required");
  require(own_rows || !s.data.empty(), "`data` is required");
  require(!own_rows || (s.data.empty() && s.eval_data.empty()),
          "`data` and `eval_data`: the rows are given in memory, so name no files");
  require(
      !own_rows || (!s.chat_template && !s.system && s.columns.empty() && s.format == "auto"),
      "`template`, `system`, `columns` and `format` say how files are read, and the rows are given "
      "in memory");
  require(!s.out.empty(), "`out` is required");
  require(s.data != "-" || s.eval_data != "-",
          "`data` - and `eval_data` -: standard input can be read once only");
  validate_step(s);
  require(!(s.steps && s.epochs), "`steps` and `epochs`: give one of the two");
  require(!s.steps || *s.steps >= 1, "`steps` must be at least 1");
  require(!s.epochs || (std::isfinite(*s.epochs) && *s.epochs > 0), "`epochs` must be positive");
  require(!s.lr || (std::isfinite(*s.lr) && *s.lr >= 0),
          "`lr` must be a finite number, not negative");
  require(std::isfinite(s.weight_decay) && s.weight_decay >= 0,
          "`weight_decay` must not be negative");
  require(std::isfinite(s.clip) && s.clip >= 0, "`clip` must not be negative (0 turns it off)");
  require(s.label_smoothing >= 0 && s.label_smoothing < 1, "`label_smoothing` ", s.label_smoothing,
          ": must be in [0, 1)");
  require(s.warmup.value_or(0) >= 0, "`warmup` must not be negative");
  require(s.eval_every.value_or(0) >= 0 && s.save_every.value_or(0) >= 0 && s.sample_every >= 0,
          "`eval_every`, `save_every` and `sample_every` must not be negative");
  require(s.base_name.empty() || is_hub_name(s.base_name) || is_folder(s.base_name), "`base_name` ",
          s.base_name,
          ": a name on the hub, ORG/NAME, or a Hugging Face folder of the base is expected");
  check_system_text(s.system);
  require(s.eval_rows == -1 || s.eval_rows >= 1, "`eval_rows` must be at least 1");
  require(s.sample_every == 0 || s.samples != 0, "`sample_every` and `samples` 0: no samples");
  require(s.show_rows >= 0, "`show_rows` must not be negative");
  require(!s.eval_split || (*s.eval_split >= 0 && *s.eval_split < 1),
          "`eval_split` must be in [0, 1)");
  require(!s.eval_split || s.eval_data.empty(),
          "`eval_split` and `eval_data`: give one of the two");
  require(s.keep == "auto" || s.keep == "best" || s.keep == "last", "`keep` ", s.keep,
          ": best or last");
  require(s.patience >= 0, "`patience` must not be negative");
  require(!s.samples || *s.samples >= 0, "`samples` must not be negative");
  if (s.schedule) parse_schedule_kind(*s.schedule);
}

}  // namespace lk
