// In how many bits a frozen base is held: decided matrix by matrix, by what the file holds.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "nn/config.h"
#include "nn/model_weights.h"
#include "nn/streamed_layers.h"

namespace lk {

class ModelFile;

enum class BasePrecision : std::uint8_t {
  Auto,    // what is quantised in the file stays as stored, all else is dense
  Dense,   // all dense, in the compute dtype
  Stored,  // as Auto, and something must be quantised
  Nf4,     // a dense base is quantised as it is loaded: the projections of all blocks
  Fp4,
  Fp8,
  Fp8Head,  // as Fp8, and the head too
};
// auto, dense, stored, nf4, fp4, fp8, fp8-head. Throws UsageError.
BasePrecision parse_base_precision(const std::string& text);
const char* base_precision_name(BasePrecision precision);
// Whether a dense base is quantised as it is loaded: nf4, fp4, fp8 and fp8-head.
bool quantises(BasePrecision precision);
// The precision of that name if it quantises(), else nothing.
std::optional<BasePrecision> quantising_precision(const std::string& name);

struct BaseStorage {
  BasePrecision precision = BasePrecision::Dense;
  std::vector<std::string> keep_dense =
      {};                        // modules: "down_proj", "layers.0", "model.layers.3.mlp"
  bool fp8_products = false;     // E4M3 matrices are multiplied as such: tensor/fp8_product.h
  StreamedLayers streamed = {};  // on a GPU only, and for training
  bool recorded = false;         // keep_dense is an adapter's record: some names may spare nothing
  bool operator==(const BaseStorage&) const = default;
};

// What `fp8_products` (auto, on, off) means for a model on a device that computes in `dtype`: whether
// E4M3 matrices are multiplied as such in training. Auto: where the device does that in hardware and
// the model is kFp8Width wide or more; a narrower one gains no time by it and loses more. Throws
// UsageError for another word, and for `on` where the device does not do it at all.
inline constexpr std::int64_t kFp8Width = 1024;
bool uses_fp8_products(const std::string& setting, const ModelConfig& model, Backend& backend,
                       DType dtype);
// Why it is not used where the setting is auto: "cuda:0: its tensor cores have ..."
std::string no_fp8_products(const ModelConfig& model, Backend& backend, DType dtype);

// A matrix's format, nothing for what is dense.
using HeldFormat = std::optional<QuantisedFormat>;

// How each of the file's slots will be held, in their order. Throws UsageError if the file does not
// fit the precision: nothing to keep as stored, or nothing dense to quantise.
std::vector<HeldFormat> held_formats(const ModelFile& file, const BaseStorage& storage);
// The formats of a model that no file holds: its file would be dense.
std::vector<HeldFormat> held_formats(const ModelConfig& config, const BaseStorage& storage);

// "nf4", "fp8 in fp8 products"
std::string held_name(const QuantisedFormat& format);
// "nf4 x 210, dense x 63": for messages.
std::string describe_formats(const std::vector<HeldFormat>& formats);

// Quantises a dense weight that is on its device already.
void quantise_weight(Backend& backend, const WeightSlot& slot, const QuantisedFormat& format);
// Quantises the projections of dense weights that are on their device already: for benches and tests.
void quantise_weights(Backend& backend, const ModelConfig& config, ModelWeights& weights,
                      const BaseStorage& storage);

}  // namespace lk
