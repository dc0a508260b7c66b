#include "lora/whole_weights.h"

#include <algorithm>
#include <functional>

#include "io/safetensors.h"

namespace lk {
namespace {

// A weight of the base that is read row by row.
struct BaseWeight {
  Shape shape;
  std::int64_t block_rows;
  std::function<void(std::int64_t begin, std::int64_t end, float* dst)> read;
  DType dtype;  // to which the adapter's values are rounded before they are compared
};

std::vector<float> rounded(const std::vector<float>& values, DType dtype) {
  std::vector<float> result(values.size());
  dispatch_float(dtype, [&]<class T>() {
    std::transform(values.begin(), values.end(), result.begin(),
                   [](float v) { return static_cast<float>(static_cast<T>(v)); });
  });
  return result;
}

void compare(const AdapterFile& file, const std::string& name, const BaseWeight& base) {
  const SafetensorsFile weights(file.folder + "/" + kAdapterWeights);
  const std::string tensor = kAdapterPrefix + name;
  auto refuse = [&](const std::string& what) {
    throw InputError(concat(weights.path(), ": tensor '", tensor, "' ", what,
                            ": only LoRA matrices can be used beside the base. Merge the adapter "
                            "in PEFT (merge_and_unload) and use the merged model"));
  };
  if (!(weights.shape(tensor) == base.shape))
    refuse(concat("has shape ", weights.shape(tensor), ", the base's is ", base.shape));
  const std::int64_t rows = base.shape.rows();
  std::vector<float> have, want;
  for (std::int64_t begin = 0; begin < rows; begin += base.block_rows) {
    const std::int64_t end = std::min(begin + base.block_rows, rows);
    have.resize(static_cast<std::size_t>((end - begin) * base.shape.cols()));
    want.resize(have.size());
    weights.read_rows(tensor, begin, end, have.data());
    base.read(begin, end, want.data());
    if (rounded(have, base.dtype) != want) refuse("is not the base's own");
  }
}

// The weight's name in the base: PEFT saves one that has A and B beside it as its module's base_layer.
std::string name_in_base(std::string name) {
  constexpr std::string_view kWrapped = ".base_layer.weight";
  if (name.ends_with(kWrapped)) name.replace(name.size() - kWrapped.size(), name.npos, ".weight");
  return name;
}

[[noreturn]] void refuse_other(const AdapterFile& file, const std::string& name) {
  throw InputError(concat(file.folder, "/", kAdapterWeights, ": tensor '", kAdapterPrefix, name,
                          "' is neither a LoRA matrix nor the base's embedding or head"));
}

}  // namespace

void check_whole_weights(const AdapterFile& file, const Transformer& model) {
  const ModelWeights& w = model.weights();
  for (const std::string& name : file.whole_weights) {
    const std::string own = name_in_base(name);
    const Weight* weight = own == w.embedding.name() ? &w.embedding
                           : own == w.head.name()    ? &w.head
                                                     : nullptr;
    if (weight == nullptr) refuse_other(file, name);
    if (weight->quantised())
      throw InputError(concat(file.folder, "/", kAdapterWeights, ": tensor '", kAdapterPrefix, name,
                              "' can't be compared with a quantised base: use `weights` dense"));
    const std::int64_t row_bytes = 4 * weight->shape().cols();
    auto read = [&](std::int64_t begin, std::int64_t end, float* dst) {
      const std::vector<double> rows = to_host_f64(weight->values().slice_rows(begin, end));
      std::transform(rows.begin(), rows.end(), dst, [](double v) { return static_cast<float>(v); });
    };
    compare(file, name,
            {weight->shape(), std::max<std::int64_t>(1, kWeightBlockBytes / row_bytes), read,
             weight->dtype()});
  }
}

void check_whole_weights(const AdapterFile& file, const ModelFile& base) {
  for (const std::string& name : file.whole_weights) {
    const std::string own = name_in_base(name);
    const WeightSlot *found = nullptr, *embedding = nullptr;
    for (const WeightSlot& slot : base.slots()) {
      if (slot.role == Role::Embedding) embedding = &slot;
      if (slot.name == own && (slot.role == Role::Embedding || slot.role == Role::Head))
        found = &slot;
    }
    if (base.config().tie_embeddings && own == "lm_head.weight") found = embedding;
    if (found == nullptr) refuse_other(file, name);
    auto read = [&](std::int64_t begin, std::int64_t end, float* dst) {
      base.read_rows(*found, begin, end, dst);
    };
    compare(file, name, {found->shape, base.block_rows(*found), read, DType::F32});
  }
}

}  // namespace lk
