// Methods: which of them a run trains, how each is set, and how their files are found again. Each is
// one entry of a table in methods.cpp.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lora/adapter.h"
#include "methods/bitfit.h"
#include "methods/bottleneck.h"
#include "methods/full.h"
#include "methods/ia3.h"
#include "methods/llama_adapter.h"
#include "methods/method_file.h"
#include "methods/prefix.h"
#include "methods/prompt.h"

namespace lk {

// What a run trains. `names` are distinct and can be combined (check_methods()).
struct MethodConfig {
  std::vector<std::string> names = {"lora"};
  LoraConfig lora = {};
  std::shared_ptr<const ModelFile> base = {};  // of `full`: what it saves the model as
  BottleneckConfig bottleneck = {};
  BitfitConfig bitfit = {};
  Ia3Config ia3 = {};
  PromptSettings prompt = {};
  PrefixSettings prefix = {};
  LlamaAdapterSettings llama_adapter = {};

  bool has(const std::string& name) const;
  // "lora,prefix"
  std::string text() const;
};

// Throws UsageError unless the names are known, distinct and can be combined.
void check_methods(const std::vector<std::string>& names);

// Takes the methods' places in `model`, which must outlive the result. Throws UsageError if the
// model's family has no place for one of them, as Adapter does, and leaves the model as it was.
std::unique_ptr<Method> make_method(Transformer& model, const MethodConfig& config);

// A learning rate that teaches, in units of LoRA's (run/defaults.h), measured: docs/methods.md. Of
// several methods, the lowest one's.
double rate_of(const std::vector<std::string>& names);

// What one who reads a proof should know trains: "A and B", "what prefix trains".
std::string what_trains(const MethodConfig& config);

// How a method is set, for people: "rank 16 on q_proj, v_proj".
std::string describe(const MethodConfig& config);

// Whether the base's own weights train: Method::replaces_base() of what make_method() makes.
bool replaces_base(const MethodConfig& config);

// Positions that a model must have besides those of the text.
std::int64_t extra_positions(const MethodConfig& config);
// Of those, the ones that are tokens of the batch: virtual tokens before each document.
std::int64_t virtual_tokens(const MethodConfig& config);

// Opens a folder that Method::save() wrote, or that PEFT or adapter-hub wrote: one method, or a folder
// for each of several. Throws InputError naming file and key.
std::unique_ptr<MethodFile> open_method(const std::string& folder);
// Throws UsageError "<setting>: is of <method>, and <why>" if such a folder is of another method than LoRA.
// What is wrong with a folder of no method is left to open_adapter().
void require_lora(const std::string& folder, const std::string& setting, const std::string& why);

}  // namespace lk
