#include "flag_names.h"

#include <algorithm>
#include <map>

#include "io/nearest.h"
#include "tensor/error.h"

namespace lk::program {
namespace {

// Names in Hugging Face's TrainingArguments and PEFT's LoraConfig, in TRL, Unsloth, Axolotl and
// llama.cpp, of settings that take the same values here.
const std::map<std::string, std::string>& names_elsewhere() {
  static const std::map<std::string, std::string> names = {
      {"--learning-rate", "--lr"},
      {"--lora-r", "--rank"},
      {"--lora-rank", "--rank"},
      {"--r", "--rank"},
      {"--lora-alpha", "--alpha"},
      {"--lora-dropout", "--dropout"},
      {"--target-modules", "--targets"},
      {"--lora-target-modules", "--targets"},
      {"--layers-to-transform", "--layers"},
      {"--init-lora-weights", "--init"},
      {"--use-rslora", "--rslora"},
      {"--use-dora", "--dora"},
      {"--loraplus-lr-ratio", "--loraplus-ratio"},
      {"--lora-plus-ratio", "--loraplus-ratio"},
      {"--lora-plus", "--loraplus-ratio"},
      {"--loraplus", "--loraplus-ratio"},
      {"--max-seq-length", "--seq-len"},
      {"--max-seq-len", "--seq-len"},
      {"--max-length", "--seq-len"},
      {"--sequence-len", "--seq-len"},
      {"--cutoff-len", "--seq-len"},
      {"--per-device-train-batch-size", "--batch"},
      {"--micro-batch-size", "--batch"},
      {"--batch-size", "--batch"},
      {"--gradient-accumulation-steps", "--grad-accum"},
      {"--grad-accumulation-steps", "--grad-accum"},
      {"--num-train-epochs", "--epochs"},
      {"--num-epochs", "--epochs"},
      {"--max-steps", "--steps"},
      {"--warmup-steps", "--warmup"},
      {"--num-warmup-steps", "--warmup"},
      {"--lr-scheduler-type", "--schedule"},
      {"--lr-scheduler", "--schedule"},
      {"--max-grad-norm", "--clip"},
      {"--label-smoothing-factor", "--label-smoothing"},
      {"--eval-steps", "--eval-every"},
      {"--save-steps", "--save-every"},
      {"--val-set-size", "--eval-split"},
      {"--output-dir", "--out"},
      {"--output", "--out"},
      {"--model-name-or-path", "--model"},
      {"--base-model", "--model"},
      {"--model-path", "--model"},
      {"--train-file", "--data"},
      {"--train-data", "--data"},
      {"--validation-file", "--eval-data"},
      {"--early-stopping-patience", "--patience"},
      {"--chat-template", "--template"},
      {"--sample-packing", "--packing"},
      {"--max-new-tokens", "--max-tokens"},
      {"--lora", "--adapter"},
      {"--peft-model", "--adapter"},
      {"--adapter-path", "--adapter"},
      {"--temp", "--temperature"},
      {"--system-prompt", "--system"},
      {"--n-threads", "--threads"},
      {"--num-threads", "--threads"},
      {"--gpus", "--processes"},
      {"--num-processes", "--processes"},
      {"--nproc-per-node", "--processes"},
  };
  return names;
}

}  // namespace

std::vector<std::string> own_names(const CLI::App& app, int argc, const char* const* argv) {
  std::vector<std::string> args;
  for (int i = 1; i < argc; ++i) {
    std::string arg = argv[i];
    if (arg.starts_with("--")) {
      const std::size_t end = std::min(arg.find('='), arg.size());
      std::string name = arg.substr(0, end);
      if (!app.get_option_no_throw(name)) {
        std::replace(name.begin(), name.end(), '_', '-');
        const auto found = names_elsewhere().find(name);
        if (!app.get_option_no_throw(name) && found != names_elsewhere().end())
          name = found->second;
        if (app.get_option_no_throw(name)) arg = name + arg.substr(end);
      }
    }
    args.push_back(std::move(arg));
  }
  return args;
}

std::string own_name(const CLI::App& app, const std::string& flag) {
  const char* argv[] = {"", flag.c_str()};
  return own_names(app, 2, argv)[0];
}

std::vector<std::string> unknown_flags(const CLI::App& app, int argc, const char* const* argv) {
  std::vector<std::string> unknown;
  for (const std::string& arg : own_names(app, argc, argv))
    if (arg.starts_with("--") && arg.size() > 2 &&
        !app.get_option_no_throw(arg.substr(0, arg.find('='))))
      unknown.push_back(arg);
  return unknown;
}

std::string fields_as_flags(const CLI::App& app, const std::string& message) {
  std::string out;
  std::size_t at = 0;
  for (std::size_t begin; (begin = message.find('`', at)) != std::string::npos;) {
    const std::size_t end = message.find('`', begin + 1);
    if (end == std::string::npos) break;
    std::string flag = "--" + message.substr(begin + 1, end - begin - 1);
    std::replace(flag.begin(), flag.end(), '_', '-');
    out += message.substr(at, begin - at);
    out += app.get_option_no_throw(flag) ? flag : message.substr(begin, end + 1 - begin);
    at = end + 1;
  }
  return out + message.substr(at);
}

std::string named_in_file(const CLI::App& app, int argc, const char* const* argv,
                          const std::string& message) {
  const CLI::Option* config = app.get_config_ptr();
  if (!config || config->count() == 0) return "";
  const std::vector<std::string> line = own_names(app, argc, argv);
  const auto on_line = [&](const std::string& flag) {
    return std::any_of(line.begin(), line.end(), [&](const std::string& arg) {
      return arg == flag || arg.starts_with(flag + "=");
    });
  };
  std::string names;
  int n = 0;
  for (std::size_t at = message.find("--"); at != message.npos; at = message.find("--", at + 2)) {
    const std::size_t end = std::min(
        message.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-", at), message.size());
    const std::string flag = message.substr(at, end - at);
    const CLI::Option* option = app.get_option_no_throw(flag);
    if (!option || option == config || option->count() == 0 || on_line(flag)) continue;
    if ((names + ",").find(flag + ",") != names.npos) continue;
    names += (n++ > 0 ? ", " : "") + flag;
  }
  if (n == 0) return "";
  return concat(" (", names, n > 1 ? " stand in " : " stands in ", config->results().back(), ")");
}

std::string hint_for_flag(const CLI::App& app, const std::string& flag) {
  struct Hint {
    const char *flag, *ours, *text;  // said where the app has the flag `ours`
  };
  static constexpr Hint kHints[] = {
      {"--warmup-ratio", "--warmup",
       "--warmup takes a number of steps; without it, a tenth of them"},
      {"--load-in-4bit", "--model",
       "--base-precision nf4 quantises --model as it is loaded; one that is quantised already, in "
       "a "
       ".gguf file or a folder, is used as it lies"},
      {"--load-in-8bit", "--model",
       "--base-precision fp8 quantises --model as it is loaded; one that is quantised already, in "
       "a "
       ".gguf file or a folder, is used as it lies"},
      {"--eval-rows", "--rows", "--rows takes the first N rows of --data"},
      {"--fp16", "--dtype", "--dtype is f32 or bf16"},
      {"--bf16", "--dtype", "--dtype bf16 says that"},
  };
  std::string name = flag;
  std::replace(name.begin(), name.end(), '_', '-');
  for (const Hint& hint : kHints)
    if (name == hint.flag && app.get_option_no_throw(hint.ours)) return hint.text;
  return "";
}

std::string nearest_flag(const CLI::App& app, const std::string& wrong) {
  const std::string given = wrong.substr(0, wrong.find('='));
  std::string nearest;
  std::size_t least = given.size() / 3 + 1;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) {
      const std::string flag = "--" + name;
      const bool part = given.size() > 4 && (flag.starts_with(given) || given.starts_with(flag));
      const std::size_t d = part ? 1 : edit_distance(given, flag);
      if (d < least) least = d, nearest = flag;
    }
  return nearest;
}

std::string unknown_flag_text(const CLI::App& app, const std::string& flag) {
  const std::string hint = hint_for_flag(app, flag),
                    meant = hint.empty() ? nearest_flag(app, flag) : "";
  return concat("there is no flag ", flag, !hint.empty() ? ": " + hint : "",
                !meant.empty() ? concat("; did you mean ", meant, "?") : "");
}

}  // namespace lk::program
