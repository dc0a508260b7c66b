// golden/peft/tiny with one projection as GPTQ stores it.
#pragma once

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "io/input_file.h"
#include "io/json.h"
#include "scratch_folder.h"

namespace lk::test {

inline const std::string kGptqModule = "model.layers.0.mlp.up_proj";

// Writes config.json, with this quantization_config, and model.safetensors into a folder that is there:
// groups of 16 columns, zeros stored as 7. `bias`: the matrix has one, of bytes like this.
inline void write_gptq_tiny(const std::string& folder, const Json& quantisation,
                            std::optional<char> bias = {}) {
  const std::string tiny = std::string(LK_TEST_DATA) + "/golden/peft/tiny/";
  const std::string dense = read_file(tiny + "model.safetensors", 1 << 24);
  std::uint64_t length = 0;
  std::memcpy(&length, dense.data(), sizeof length);
  Json header = Json::parse(dense.substr(8, length));
  std::string data = dense.substr(8 + length);
  const Json weight = header[kGptqModule + ".weight"];
  const std::int64_t N = weight["shape"][0], K = weight["shape"][1];
  const std::size_t from = weight["data_offsets"][0], to = weight["data_offsets"][1];
  header.erase(kGptqModule + ".weight");
  data.erase(from, to - from);
  for (auto& [name, tensor] : header.items())
    if (name != "__metadata__" && tensor["data_offsets"][0] >= to)
      for (Json& offset : tensor["data_offsets"]) offset = offset.get<std::size_t>() - (to - from);
  const auto add = [&](const char* end, const char* type, std::vector<std::int64_t> shape,
                       char byte) {
    std::int64_t bytes = 4;
    for (std::int64_t n : shape) bytes *= n;
    const std::size_t begin = data.size();
    data.append(static_cast<std::size_t>(bytes), byte);
    header[kGptqModule + end] = {
        {"dtype", type}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
  };
  add(".qweight", "I32", {K / 8, N}, 0x5a);
  add(".qzeros", "I32", {K / 16, N / 8}, 0x77);
  add(".scales", "F32", {K / 16, N}, 0x3c);  // 0.0115
  if (bias) add(".bias", "F32", {N}, *bias);
  Json config = read_json(tiny + "config.json");
  config["quantization_config"] = quantisation;
  const std::string text = header.dump();
  const std::uint64_t size = text.size();
  std::ofstream(folder + "/config.json") << config.dump();
  std::ofstream(folder + "/model.safetensors", std::ios::binary)
      << std::string(reinterpret_cast<const char*>(&size), sizeof size) << text << data;
}

}  // namespace lk::test
