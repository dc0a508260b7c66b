// Adapter files in PEFT's layout: adapter_config.json and adapter_model.safetensors (F32).
#pragma once

#include <map>
#include <memory>
#include <string>

#include "lora/adapter.h"

namespace lk {

// What adapter_config.json says, as far as it changes the mathematics.
struct AdapterFile {
  std::string folder;
  LoraConfig config;  // targets are the module paths found in the weights
  std::vector<std::string> target_modules;
  std::string base_model;
  std::string base_fingerprint;  // lorikeet_base_sha256 if we wrote it, else empty
};

// Reads and checks folder/adapter_config.json and the header of its weights. Throws InputError
// naming file and key for anything that is not plain LoRA (DoRA, rsLoRA is obeyed, biases,
// patterns, embeddings, modules_to_save, ...), for mixed ranks, and for a half-filled adapter.
AdapterFile open_adapter(const std::string& folder);

// A and B of one module, for whoever needs no model: y += scale * B (A x).
struct HostFactors {
  std::int64_t rank = 0, in = 0, out = 0;
  double scale = 1;
  std::vector<float> a, b;  // (R, in), (out, R)
};
// Those of module `path` (one of file.config.targets), whose matrix is (out, in). Throws InputError
// naming file and tensor if the shapes differ from that or a value is not finite.
HostFactors read_factors(const AdapterFile& file, const std::string& path, std::int64_t out,
                         std::int64_t in);

// Puts the adapter on `model` and fills it: every tensor of the file is used and every parameter
// filled, shapes equal, values finite; otherwise InputError naming file and tensor, and the model
// is as it was or unusable. `config` is file.config, perhaps with another dropout or seed.
// `allow_untrained`: accept an adapter whose B are all zero (a fresh one, for --init-adapter).
std::unique_ptr<Adapter> attach_adapter(Transformer& model, const AdapterFile& file,
                                        const LoraConfig& config, bool allow_untrained);

// The factors of every module of the file, by path, in the model's compute dtype, B transposed; the
// model is not changed. Checks and errors are those of attach_adapter.
std::map<std::string, LoraFactors> load_factors(Transformer& model, const AdapterFile& file);

// Writes both files durably, reads them back and compares with the live values bit for bit.
// Throws IoError, NonFiniteError.
void save_adapter(const std::string& folder, const Adapter& adapter, const std::string& base_model,
                  const std::string& base_fingerprint);

}  // namespace lk
