// Adapter files in PEFT's layout: adapter_config.json and adapter_model.safetensors (F32).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "lora/adapter.h"

namespace lk {

// The names in PEFT's layout: of the folder's two files, and what tensors' names begin with.
inline constexpr const char* kAdapterConfig = "adapter_config.json";
inline constexpr const char* kAdapterWeights = "adapter_model.safetensors";
inline constexpr const char* kAdapterPrefix = "base_model.model.";

// A checked adapter folder, of which only the header of the weights was read.
struct AdapterFile {
  std::string folder;
  // Targets are the paths of the modules that the weights have and the config selects; modules
  // with a rank or alpha of their own are exceptions.
  LoraConfig config;
  std::vector<std::string> target_modules;  // as the config lists them; empty: PEFT's defaults
  std::vector<std::string> unselected;      // modules of the weights that the config leaves out
  // Whether the config's target_modules, less what limits them, select a module.
  std::function<bool(const std::string& module)> selects;
  std::vector<std::string> whole_weights;  // "lm_head.weight": see whole_weights.h
  BaseIdentity base;  // all but the name is empty unless Lorikeet wrote the file
};

// Reads and checks folder/adapter_config.json (see Note [Obey or refuse] in peft_config.h) and the
// header of its weights. As in PEFT, matrices of modules that the config does not select are left
// out. Throws InputError naming file and key for what can't be obeyed, for shapes that are not
// those of the config's ranks, for an A without its B, and for tensors that are neither.
AdapterFile open_adapter(const std::string& folder);
// Where the two files of an adapter for a model of `config` disagree, a line each, for warnings:
// modules of the weights that are not selected, and selected ones that the weights lack. As in PEFT,
// neither changes anything of the base.
std::vector<std::string> disagreements(const AdapterFile& file, const ModelConfig& config);
// Throws InputError, which says of a file's module that no adapter can be on it: the model has it, but it is
// no projection of a layer, or has none of this name.
[[noreturn]] void refuse_module(const std::string& where, const std::string& module,
                                const ModelConfig& config, const std::string& model);
// refuse_module() for the first of the file's modules that is no projection of the model's layers.
void check_modules(const AdapterFile& file, const ModelConfig& config, const std::string& model);
// Throws InputError for an adapter whose B are all zero; `where` is its file or folder.
[[noreturn]] void refuse_untrained(const std::string& where);
// What the adapter is, in one line for messages: "rank 4, alpha 8, 14 modules".
std::string summary(const AdapterFile& file);
// A and B of one module on the host, for callers without a model: y += scale * B (A x). With a
// magnitude (out), which DoRA has, rows of W + scale * B A are then given its lengths.
struct HostFactors {
  std::int64_t rank = 0, in = 0, out = 0;
  double scale = 1;
  std::vector<float> a, b;  // (R, in), (out, R)
  std::vector<float> magnitude = {};
};
// Reads the factors of module `path` (one of file.config.targets), whose matrix is (out, in).
// Throws InputError naming file and tensor if a shape does not fit or a value is not finite.
HostFactors read_factors(const AdapterFile& file, const std::string& path, std::int64_t out,
                         std::int64_t in);

// Puts the adapter on `model` and fills it: every module that file.config selects gets its A and B,
// shapes equal, values finite, and the file's whole weights are the model's in its compute dtype;
// otherwise InputError naming file and tensor, and the model is as it was or unusable. `config` is
// file.config, perhaps with another dropout or seed.
// `allow_untrained`: accept an adapter whose B are all zero (a fresh one, for --init-adapter).
std::unique_ptr<Adapter> attach_adapter(Transformer& model, const AdapterFile& file,
                                        const LoraConfig& config, bool allow_untrained);

// The factors of every module of the file, by path, in the model's compute dtype, with B
// transposed. The model is not changed. Checks and throws as attach_adapter() does.
std::map<std::string, LoraFactors> load_factors(Transformer& model, const AdapterFile& file);

// Writes both files durably, over those that are there, into a folder that is made if there is none; reads
// them back and compares them with the live values bit for bit. Throws IoError, NonFiniteError.
void save_adapter(const std::string& folder, const Adapter& adapter, const BaseIdentity& base);
// The same of a base in its file's own numbers.
void save_adapter(const std::string& folder, const Adapter& adapter, const std::string& base_model,
                  const std::string& base_fingerprint);

}  // namespace lk
