// A model ready to be used: device, weights, tokenizer and, if asked for, an adapter.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lora/adapter.h"
#include "lora/adapter_set.h"
#include "nn/transformer.h"
#include "tensor/log.h"
#include "text/tokenizer.h"

namespace lk {

struct InferenceSettings {
  std::string model = {};
  std::string adapter = {};  // PEFT folder, may be empty
  // Adapters to choose from, each "name=PEFT folder"; not together with `adapter`.
  std::vector<std::string> named_adapters = {};
  std::string device = "auto", dtype = "auto";
  // How weights are held: "dense", "quantised" (as the file has them; refused where nothing can
  // be), or "auto": quantised where the backend can, if dtype is "auto" too.
  std::string weights = "dense";
  std::int64_t max_positions = 0;  // longest sequence; 0: the model's own, at most 8192
  LogFunction log = {};            // hears what was loaded; may be empty
};

struct InferenceModel {
  std::unique_ptr<Backend> backend;  // first: the rest lives in its memory
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Transformer> model;
  std::unique_ptr<Adapter> adapter;      // null without one
  std::unique_ptr<AdapterSet> adapters;  // null without named ones
};

// The values of --adapter: one folder for everything, or name=folder each. Throws UsageError.
void set_adapters(const std::vector<std::string>& flags, InferenceSettings& settings);

// Throws InputError, UsageError, IoError, OutOfMemoryError.
InferenceModel open_inference(const InferenceSettings& settings);

// The variant that `name` stands for, -1 for "". Throws InputError naming `where` if there is none.
std::int32_t find_adapter(const InferenceModel& m, const std::string& name,
                          const std::string& where);

// --dtype: auto (what the device prefers), f32 or bf16. Throws UsageError.
DType parse_compute_dtype(const std::string& name, const Backend& backend);

}  // namespace lk
