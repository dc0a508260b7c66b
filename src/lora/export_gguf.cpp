#include "lora/export_gguf.h"

#include <algorithm>
#include <cmath>

#include "io/gguf.h"
#include "io/gguf_write.h"
#include "io/staged_output.h"
#include "lora/adapter_io.h"
#include "lora/whole_weights.h"
#include "modelfile/base_identity.h"
#include "modelfile/model_file.h"

namespace lk {
namespace {

// The alpha by which llama.cpp's alpha / rank is the scale.
double alpha_of(const LoraShape& shape) { return shape.scale() * static_cast<double>(shape.rank); }

// What all modules share, else that of the config's r and lora_alpha.
double file_alpha(const LoraConfig& config) {
  const double first = alpha_of(config.shape_of(config.targets.front()));
  for (const std::string& module : config.targets)
    if (alpha_of(config.shape_of(module)) != first) return alpha_of(config.shape);
  return first;
}

}  // namespace

GgufAdapter export_gguf_adapter(const std::string& model, const std::string& folder,
                                const std::string& out) {
  const ModelFile base(model);
  const AdapterFile file = open_adapter(folder);
  if (file.config.shape.dora)
    throw InputError(concat(folder, "/", kAdapterConfig,
                            ": use_dora: llama.cpp's adapter files have no place for DoRA's "
                            "magnitudes: merge the adapter into its base instead"));
  check_whole_weights(file, base);
  const FileLayout layout = gguf_layout(base.config());
  GgufAdapter result{0, 0, file_alpha(file.config), disagreements(file, base.config())};
  if (!std::isfinite(static_cast<float>(result.alpha)))
    throw InputError(concat(folder, "/", kAdapterConfig, ": lora_alpha: llama.cpp's is ",
                            result.alpha, " here, which float32 does not hold"));
  if (std::string doubt = unproven_base(file.folder, file.base, model); !doubt.empty())
    result.warnings.push_back(std::move(doubt));
  if (!file.base.precision.empty())
    result.warnings.push_back(concat(folder, ": was trained on a base held as ",
                                     file.base.precision,
                                     ": on one of other numbers its answers differ"));
  const GgufWriter::Metadata metadata = {
      {"general.architecture", gguf_string(layout.files->gguf)},
      {"general.type", gguf_string("adapter")},
      {"general.file_type", gguf_u32(0)},
      {"adapter.type", gguf_string("lora")},
      {"adapter.lora.alpha", gguf_f32(static_cast<float>(result.alpha))},
  };
  std::vector<EncodedTensor> tensors;
  std::vector<std::vector<float>> values;
  const GgmlEncoder* f32 = find_ggml_encoder("F32");
  std::vector<std::string> left = file.config.targets;
  bool moved = false;
  for (const WeightSlot& slot : base.slots()) {
    if (!slot.linear) continue;
    const std::string module = slot.name.substr(0, slot.name.rfind('.'));
    if (std::erase(left, module) == 0) continue;
    HostFactors f = read_factors(file, module, slot.shape[0], slot.shape[1]);
    const double own = alpha_of(file.config.shape_of(module));
    moved = moved || std::any_of(f.b.begin(), f.b.end(), [](float b) { return b != 0; });
    if (own != result.alpha)
      for (float& b : f.b) b = static_cast<float>(b * (own / result.alpha));
    if (!std::all_of(f.b.begin(), f.b.end(), [](float b) { return std::isfinite(b); }))
      throw InputError(concat(folder, "/", kAdapterConfig, ": alpha_pattern: scales ", module,
                              " so far beyond the others that float32 does not hold its B"));
    result.rank = std::max(result.rank, f.rank);
    const StoredTensor stored = layout.find(slot);
    stored.to_stored(f.b, f.rank);
    const std::string& name = stored.name;
    tensors.push_back({name + ".lora_a", Shape{f.rank, f.in}, f32});
    values.push_back(std::move(f.a));
    tensors.push_back({name + ".lora_b", Shape{f.out, f.rank}, f32});
    values.push_back(std::move(f.b));
    ++result.modules;
  }
  if (!left.empty()) refuse_module(folder + "/" + kAdapterWeights, left[0], base.config(), model);
  if (!moved) refuse_untrained(folder + "/" + kAdapterWeights);

  StagedOutput staged(out, StagedOutput::Kind::File, GgufWriter::file_bytes(metadata, tensors));
  GgufWriter writer(staged.file("adapter"), metadata, tensors);
  for (const std::vector<float>& v : values) writer.append(v.data(), v.size() * sizeof(float));
  writer.commit();
  const GgufFile back(staged.path());
  std::vector<float> read;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    read.resize(values[i].size());
    back.read_rows(tensors[i].name, 0, tensors[i].shape[0], read.data());
    if (read != values[i])
      throw IoError(concat(out, ": ", tensors[i].name, " read back differently"));
  }
  staged.commit();
  return result;
}

}  // namespace lk
