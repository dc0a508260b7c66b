#include "modelfile/base_precision.h"

#include <algorithm>
#include <map>

#include "modelfile/model_file.h"
#include "modelfile/quantise.h"
#include "tensor/fp8_product.h"
#include "tensor/quantised_kernels.h"

namespace lk {
namespace {

struct Name {
  BasePrecision precision;
  const char* name;
};
constexpr Name kNames[] = {{BasePrecision::Auto, "auto"},       {BasePrecision::Dense, "dense"},
                           {BasePrecision::Stored, "stored"},   {BasePrecision::Nf4, "nf4"},
                           {BasePrecision::Fp4, "fp4"},         {BasePrecision::Fp8, "fp8"},
                           {BasePrecision::Fp8Head, "fp8-head"}};

std::optional<Encoding> own_encoding(BasePrecision precision) {
  if (precision == BasePrecision::Nf4) return Encoding::Nf4;
  if (precision == BasePrecision::Fp4) return Encoding::Fp4;
  if (precision == BasePrecision::Fp8 || precision == BasePrecision::Fp8Head) return Encoding::Fp8;
  return std::nullopt;
}

// Whether whole components of the tensor's name are `pattern`.
bool names(const std::string& tensor, const std::string& pattern) {
  return !pattern.empty() && ("." + tensor + ".").find("." + pattern + ".") != std::string::npos;
}
bool kept_dense(const WeightSlot& slot, const BaseStorage& storage) {
  return std::any_of(storage.keep_dense.begin(), storage.keep_dense.end(),
                     [&](const std::string& pattern) { return names(slot.name, pattern); });
}

// Embeddings stay dense, and heads unless they are named: as bitsandbytes leaves them.
bool quantisable(const WeightSlot& slot, const BaseStorage& storage) {
  return slot.linear && (slot.role != Role::Head || storage.precision == BasePrecision::Fp8Head);
}

// A tied head is the table of embeddings.
void check_head(const std::vector<WeightSlot>& slots, const BaseStorage& storage) {
  require(storage.precision != BasePrecision::Fp8Head ||
              std::any_of(slots.begin(), slots.end(),
                          [](const WeightSlot& slot) { return slot.role == Role::Head; }),
          "`base_precision` fp8-head: the model's head is its table of embeddings, which stays "
          "dense: fp8 is for what is quantised of it");
}

// Marks what is multiplied in FP8. A scale for a whole matrix becomes one for each row of it.
HeldFormat with_products(HeldFormat format, const WeightSlot& slot, const BaseStorage& storage) {
  if (!format || !storage.fp8_products || !slot.linear || !fp8_products_serve(*format, slot.shape))
    return format;
  format->scale_rows = 1;
  format->multiplied = true;
  return format;
}

void check_patterns(const std::vector<WeightSlot>& slots, const BaseStorage& storage) {
  for (const std::string& pattern : storage.keep_dense)
    require(std::any_of(slots.begin(), slots.end(),
                        [&](const WeightSlot& slot) { return names(slot.name, pattern); }),
            "`keep_dense` ", pattern, ": no module of the model is called so");
}

// Of a base of which `any` matrix is quantised, and these would be if nothing were kept dense.
void check_kept(const BaseStorage& storage, bool any, const std::vector<const WeightSlot*>& would) {
  for (const std::string& pattern : storage.keep_dense)
    require(storage.recorded ||
                std::any_of(would.begin(), would.end(),
                            [&](const WeightSlot* slot) { return names(slot->name, pattern); }),
            "`keep_dense` ", pattern,
            ": without it nothing that it names would be quantised; it goes with "
            "`base_precision` nf4, fp4, fp8, fp8-head, or a base that is quantised");
  require(any || !quantises(storage.precision), "`keep_dense`: leaves nothing to quantise");
}

}  // namespace

BasePrecision parse_base_precision(const std::string& text) {
  for (const Name& one : kNames)
    if (text == one.name) return one.precision;
  throw UsageError(
      concat("`base_precision` ", text, ": one of auto, dense, stored, nf4, fp4, fp8, fp8-head"));
}

const char* base_precision_name(BasePrecision precision) {
  for (const Name& one : kNames)
    if (one.precision == precision) return one.name;
  throw UsageError("`base_precision`: no such value");
}

bool uses_fp8_products(const std::string& setting, const ModelConfig& model, Backend& backend,
                       DType dtype) {
  require(setting == "auto" || setting == "on" || setting == "off", "`fp8_products` ", setting,
          ": one of auto, on, off");
  if (setting == "off") return false;
  Fp8Kernels* kernels = backend.quantised_kernels()->fp8_kernels();
  const bool can = kernels && kernels->takes(dtype);
  require(can || setting == "auto", "`fp8_products` on: ", no_fp8_products(model, backend, dtype));
  return can && (setting == "on" || (kernels->in_hardware() && model.hidden_size >= kFp8Width));
}

std::string no_fp8_products(const ModelConfig& model, Backend& backend, DType dtype) {
  QuantisedKernels& device = *backend.quantised_kernels();
  Fp8Kernels* kernels = device.fp8_kernels();
  if (!kernels) return concat(backend.name(), ": ", device.why_no_fp8());
  if (!kernels->takes(dtype))
    return concat(backend.name(), ": it has no products of FP8 in ", dtype_name(dtype));
  if (!kernels->in_hardware())
    return concat(backend.name(), ": it has no products of FP8 in hardware");
  return concat("a model of width ", model.hidden_size, " gains nothing by products in FP8 (from ",
                kFp8Width, " on)");
}

bool quantises(BasePrecision precision) { return own_encoding(precision).has_value(); }

std::optional<BasePrecision> quantising_precision(const std::string& name) {
  for (const Name& one : kNames)
    if (name == one.name && quantises(one.precision)) return one.precision;
  return std::nullopt;
}

std::vector<HeldFormat> held_formats(const ModelFile& file, const BaseStorage& storage) {
  std::vector<HeldFormat> formats(file.slots().size());
  const std::optional<Encoding> encoding = own_encoding(storage.precision);
  check_patterns(file.slots(), storage);
  check_head(file.slots(), storage);
  bool any = false;
  std::vector<const WeightSlot*> would;
  const std::size_t n = storage.precision == BasePrecision::Dense ? 0 : formats.size();
  for (std::size_t i = 0; i < n; ++i) {
    const WeightSlot& slot = file.slots()[i];
    const HeldFormat stored = file.quantised_format(slot);
    if (encoding ? !quantisable(slot, storage)
                 : !stored || !(slot.linear || slot.role == Role::Embedding))
      continue;
    would.push_back(&slot);
    if (kept_dense(slot, storage)) continue;
    any = true;
    if (encoding) {
      require(!stored, "`base_precision` ", base_precision_name(storage.precision), ": ",
              file.path(), " holds ", slot.name, " as ", stored ? stored->name() : "",
              " already: `base_precision` stored trains on it, dense dequantises it");
      formats[i] = with_products(own_format(*encoding, slot.shape), slot, storage);
    } else {
      formats[i] = with_products(stored, slot, storage);
    }
  }
  require(any || storage.precision != BasePrecision::Stored,
          "`base_precision` stored: ", file.path(),
          " holds nothing quantised: nf4, fp4 or fp8 quantise it as it is loaded");
  check_kept(storage, any, would);
  return formats;
}

std::vector<HeldFormat> held_formats(const ModelConfig& config, const BaseStorage& storage) {
  ModelWeights unused;
  const std::vector<WeightSlot> slots = weight_slots(config, unused);
  std::vector<HeldFormat> formats(slots.size());
  const std::optional<Encoding> encoding = own_encoding(storage.precision);
  check_patterns(slots, storage);
  check_head(slots, storage);
  require(storage.precision != BasePrecision::Stored,
          "`base_precision` stored: a shape without a file has nothing stored");
  bool any = false;
  std::vector<const WeightSlot*> would;
  for (std::size_t i = 0; i < slots.size() && encoding; ++i) {
    if (!quantisable(slots[i], storage)) continue;
    would.push_back(&slots[i]);
    if (kept_dense(slots[i], storage)) continue;
    formats[i] = with_products(own_format(*encoding, slots[i].shape), slots[i], storage);
    any = true;
  }
  check_kept(storage, any, would);
  return formats;
}

std::string held_name(const QuantisedFormat& format) {
  return format.multiplied ? concat(format.name(), " in fp8 products") : format.name();
}

std::string describe_formats(const std::vector<HeldFormat>& formats) {
  std::map<std::string, int> counts;
  for (const HeldFormat& f : formats) ++counts[f ? held_name(*f) : "dense"];
  std::string text;
  for (const auto& [name, n] : counts) text += concat(text.empty() ? "" : ", ", name, " x ", n);
  return text;
}

void quantise_weight(Backend& backend, const WeightSlot& slot, const QuantisedFormat& format) {
  Weight& w = *slot.weight;
  const std::int64_t step = std::max<std::int64_t>(1, kWeightBlockBytes / (4 * slot.shape.cols()));
  const HostPlanes planes = quantise(
      format.encoding, slot.shape, step, [&](std::int64_t begin, std::int64_t end, float* dst) {
        Tensor rows = backend.empty(Tag::Workspace, DType::F32, {end - begin, w.shape()[1]});
        backend.copy(rows, w.values().slice_rows(begin, end));
        backend.download(dst, rows, rows.bytes());
      });
  const DType dtype = w.dtype();
  w = Weight();
  w = Weight(slot.name, planes.upload(backend, &format), slot.shape, dtype);
}

void quantise_weights(Backend& backend, const ModelConfig& config, ModelWeights& weights,
                      const BaseStorage& storage) {
  const std::vector<HeldFormat> formats = held_formats(config, storage);
  const std::vector<WeightSlot> slots = weight_slots(config, weights);
  for (std::size_t i = 0; i < slots.size(); ++i)
    if (formats[i]) quantise_weight(backend, slots[i], *formats[i]);
  backend.trim();
  backend.reset_peaks();
}

}  // namespace lk
