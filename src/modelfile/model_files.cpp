#include "modelfile/model_files.h"

#include "io/input_file.h"
#include "io/json.h"
#include "io/paths.h"
#include "modelfile/config.h"
#include "modelfile/config_gguf_write.h"
#include "text/tokenizer_convert.h"

namespace lk {

namespace {

constexpr std::size_t kMaxFile = std::size_t{256} << 20;

std::string hf_dtype(const GgmlEncoder& type) {
  const std::string name = type.name;
  return name == "F16" ? "float16" : name == "BF16" ? "bfloat16" : "float32";
}

std::string generation_config(const ModelConfig& c) {
  Json j = {{"bos_token_id", nullptr}, {"eos_token_id", nullptr}, {"do_sample", false}};
  if (c.bos_id >= 0) j["bos_token_id"] = c.bos_id;
  if (c.eos_ids.size() == 1) j["eos_token_id"] = c.eos_ids[0];
  if (c.eos_ids.size() > 1) j["eos_token_id"] = c.eos_ids;
  return j.dump(2) + "\n";
}

// config.json as it is; only the dtype may have changed.
std::string folder_config(const std::string& path, const std::string& dtype) {
  const std::string text = read_file(path, std::size_t{1} << 20);
  OrderedJson j = OrderedJson::parse(text);  // config_from_folder() has been through it
  bool same = true;
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (!j.contains(key)) continue;
    same = same && j[key] == dtype;
    j[key] = dtype;
  }
  if (!j.contains("dtype") && !j.contains("torch_dtype")) {
    j["torch_dtype"] = dtype;  // version 5 reads it too
    same = false;
  }
  return same ? text : j.dump(2) + "\n";
}

std::string model_name(const std::string& path) {
  const std::string name = folder_name(path);
  return name.empty() ? "model" : name;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> model_files(const ModelSource& base,
                                                             const GgmlEncoder* type) {
  std::vector<std::pair<std::string, std::string>> files;
  if (base.gguf() != nullptr) {
    ModelConfig c = base.config();
    if (type != nullptr) c.stored_dtype = hf_dtype(*type);
    files.emplace_back("config.json", config_to_json(c).dump(2) + "\n");
    files.emplace_back("generation_config.json", generation_config(c));
    for (auto& file : hf_tokenizer_files(*base.gguf())) files.push_back(std::move(file));
    return files;
  }
  const std::string config = base.path() + "/config.json";
  files.emplace_back("config.json", type != nullptr ? folder_config(config, hf_dtype(*type))
                                                    : read_file(config, kMaxFile));
  for (const char* name : {"generation_config.json", "tokenizer.json", "tokenizer_config.json",
                           "special_tokens_map.json", "added_tokens.json", "vocab.json",
                           "merges.txt", "chat_template.jinja", "tokenizer.model"}) {
    const std::string path = base.path() + "/" + name;
    if (exists(path)) files.emplace_back(name, read_file(path, kMaxFile));
  }
  return files;
}

GgufWriter::Metadata model_metadata(const ModelSource& base, const GgmlEncoder& type) {
  GgufWriter::Metadata m;
  if (const GgufFile* file = base.gguf()) {
    for (auto& [key, value] : file->metadata())
      if (key != "general.alignment" && key != "general.file_type" &&
          key != "general.quantization_version" && !key.starts_with("split."))
        m.emplace_back(key, std::move(value));
  } else {
    m = config_to_gguf(base.config());
    m.emplace_back("general.type", gguf_string("model"));
    m.emplace_back("general.name", gguf_string(model_name(base.path())));
    for (auto& entry : gguf_tokenizer(base.path(), base.config().vocab_size))
      m.push_back(std::move(entry));
  }
  m.emplace_back("general.file_type", gguf_u32(type.file_type));
  if (type.quantised) m.emplace_back("general.quantization_version", gguf_u32(2));
  return m;
}

std::vector<float> rope_factors(const ModelSource& base) {
  const ModelConfig& c = base.config();
  if (c.rope_scaling.kind == RopeScaling::Kind::Factors) return c.rope_scaling.factors;
  if (c.rope_scaling.kind != RopeScaling::Kind::Llama3) return {};
  if (base.gguf() != nullptr) {  // where the rule was recognised by its factors
    std::vector<float> factors(static_cast<std::size_t>(c.head_dim / 2));
    base.gguf()->read_rows("rope_freqs.weight", 0, 1, factors.data());
    return factors;
  }
  ModelConfig plain = c;
  plain.rope_scaling = {};
  const std::vector<double> scaled = inverse_frequencies(c), unscaled = inverse_frequencies(plain);
  std::vector<float> factors;
  for (std::size_t i = 0; i < scaled.size(); ++i)
    factors.push_back(static_cast<float>(unscaled[i] / scaled[i]));
  return factors;
}

}  // namespace lk
