// make_model: writes a Hugging Face folder of a named shape with random BF16 weights, for timing
// how a model is read (bench/load.sh). Values are one block of numbers, repeated: reading them
// costs the same.
#include <cmath>
#include <filesystem>
#include <random>

#include "../tools/program.h"
#include "io/durable.h"
#include "io/ggml_encode.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "modelfile/config.h"
#include "modelfile/named_shapes.h"
#include "nn/model_weights.h"

namespace {

using namespace lk;

// Uniform values with the standard deviation of random_weights().
std::vector<bf16> random_block() {
  std::mt19937 rng(1);
  std::uniform_real_distribution<float> uniform(-0.0346f, 0.0346f);
  std::vector<bf16> block(std::size_t{4} << 20);
  for (bf16& x : block) x = bf16(uniform(rng));
  return block;
}

int make(const std::string& shape, const std::string& folder) {
  const ModelConfig config = named_shape(shape);
  ModelWeights unused;
  std::vector<EncodedTensor> tensors;
  for (const WeightSlot& slot : weight_slots(config, unused))
    tensors.push_back({slot.name, slot.shape, find_ggml_encoder("BF16")});
  SafetensorsWriter::sort_as_reference(tensors);
  std::filesystem::create_directories(folder);
  Json json = config_to_json(config);
  json["eos_token_id"] = 2;
  write_file_durably(folder + "/config.json", json.dump(2) + "\n");
  SafetensorsWriter file(folder + "/model.safetensors", {{"format", "pt"}}, tensors);
  const std::vector<bf16> block = random_block(), ones(std::size_t{1} << 16, bf16(1.0f));
  for (const EncodedTensor& t : tensors) {
    const std::vector<bf16>& from = t.shape.rank() == 1 ? ones : block;  // the gain of a norm
    for (std::uint64_t left = t.bytes(); left > 0;) {
      const std::uint64_t n = std::min<std::uint64_t>(left, from.size() * sizeof(bf16));
      file.append(from.data(), n);
      left -= n;
    }
  }
  file.commit();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A Hugging Face folder of a named shape, random weights.", "make_model");
  std::string shape = "llama2-7b", folder;
  app.add_option("--shape", shape, "named shape")->capture_default_str();
  app.add_option("--out", folder, "the folder")->required();
  return program::run(app, argc, argv, [&] { return make(shape, folder); });
}
