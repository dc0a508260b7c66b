// A model ready for use: device, weights, tokenizer and, if requested, an adapter.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lora/adapter_set.h"
#include "nn/method.h"
#include "nn/transformer.h"
#include "tensor/log.h"
#include "text/tokenizer.h"

namespace lk {

struct InferenceSettings {
  std::string model = {};
  std::string adapter = {};  // folder of a trained method (run/methods.h); may be empty
  // Adapters to choose from, each as "name=PEFT folder". Not together with `adapter`.
  std::vector<std::string> named_adapters = {};
  std::string device = "auto", dtype = "auto";
  // How weights are held: "dense"; "quantised" (as in the file; refused where none can be kept so);
  // or "auto": quantised where that is faster (a CPU, provided that dtype is "auto" too) and, for
  // folders that are quantised already, on a GPU.
  std::string weights = "dense";
  // In which numbers a dense base is held: "auto": as the adapter was trained (hold_for() in
  // modelfile/base_identity.h); "dense": its file's; "nf4", "fp4", "fp8": quantised as it is loaded,
  // but for the modules of keep_dense.
  std::string base_precision = "auto";
  std::vector<std::string> keep_dense = {};
  std::int64_t max_positions = 0;  // longest sequence; 0: the model's own limit, at most 8192
  LogFunction log = {};            // hears what was loaded; may be empty
};

struct InferenceModel {
  InferenceModel() = default;
  InferenceModel(InferenceModel&&) = default;
  InferenceModel& operator=(InferenceModel&& other) noexcept;  // frees what it holds, backend last
  ~InferenceModel() = default;

  std::unique_ptr<Backend> backend;  // first: everything else lives in its memory
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Transformer> model;
  std::unique_ptr<Method> adapter;       // null if there is no adapter
  std::unique_ptr<AdapterSet> adapters;  // null if there are no named adapters
  std::vector<std::string> warnings;     // of adapters, for the user
  std::string remark;                    // of the base, if an adapter decided as what it is held
};

// Takes the values of --adapter: one folder for all requests, or several name=folder. A single one is for all, whether it
// has a name or not, unless `by_request`: then a request chooses it by its name.
void set_adapters(const std::vector<std::string>& flags, bool by_request,
                  InferenceSettings& settings);

// Opens everything that the settings name. Throws InputError, UsageError, IoError,
// OutOfMemoryError.
InferenceModel open_inference(const InferenceSettings& settings);

// The variant called `name`; -1 for "". Throws InputError naming `where` if there is none.
std::int32_t find_adapter(const InferenceModel& m, const std::string& name,
                          const std::string& where);

// Parses --dtype: auto (what the device prefers), f32 or bf16. Throws UsageError.
DType parse_compute_dtype(const std::string& name, const Backend& backend);

}  // namespace lk
