#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <tuple>

#include "io/json.h"
#include "io/printable.h"
#include "io/safetensors.h"
#include "io/utf8.h"
#include "tensor/error.h"

namespace lk {

namespace {

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian");

std::string quoted(const std::string& text, const std::string& path) {
  if (!is_utf8(text))
    throw UsageError(path + ": " + printable(text) + " is not UTF-8 and can't be written");
  return Json(text).dump();
}

// The header as the reference writer makes it: metadata first, the fields in this order, padded
// with spaces so that the data starts at a multiple of 8.
std::string header_text(const std::string& path, const std::vector<EncodedTensor>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  std::string text = "{", separator;
  if (!metadata.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      text += separator + quoted(key, path) + ":" + quoted(value, path);
      separator = ",";
    }
    text += "}";
  }
  std::uint64_t at = 0;
  for (const EncodedTensor& t : tensors) {
    const std::uint64_t end = at + t.bytes();
    text +=
        concat(separator, quoted(t.name, path), ":{\"dtype\":\"", t.type->name, "\",\"shape\":[");
    for (int i = 0; i < t.shape.rank(); ++i)
      text += (i > 0 ? "," : "") + std::to_string(t.shape[i]);
    text += concat("],\"data_offsets\":[", at, ",", end, "]}");
    separator = ",";
    at = end;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

// What the reference writer sorts by. It puts BF16 before F16, which has the same size.
auto reference_key(const EncodedTensor& t) {
  return std::make_tuple(-static_cast<int>(t.type->block_bytes), std::string_view(t.type->name),
                         std::string_view(t.name));
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path,
                                     const std::map<std::string, std::string>& metadata,
                                     std::vector<EncodedTensor> tensors)
    : file_(path) {
  std::vector<std::string> names;
  for (const EncodedTensor& t : tensors) {
    check(t.type->block_values == 1, path, ": tensor ", t.name, ": safetensors has no type ",
          t.type->name);
    names.push_back(t.name);
    left_ += t.bytes();
  }
  std::sort(names.begin(), names.end());
  for (std::size_t i = 0; i < names.size(); ++i)
    check(names[i] != "__metadata__" && (i == 0 || names[i] != names[i - 1]), path, ": tensor ",
          names[i], " can't be written (twice, or a reserved name)");
  const std::string header = header_text(path, tensors, metadata);
  const std::uint64_t length = header.size();
  file_.append(&length, sizeof length);
  file_.append(header.data(), header.size());
}

void SafetensorsWriter::sort_as_reference(std::vector<EncodedTensor>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const EncodedTensor& a, const EncodedTensor& b) {
    return reference_key(a) < reference_key(b);
  });
}

void SafetensorsWriter::append(const void* data, std::size_t bytes) {
  check(bytes <= left_, "safetensors: ", bytes, " bytes where ", left_, " are missing");
  file_.append(data, bytes);
  left_ -= bytes;
}

void SafetensorsWriter::commit() {
  check(left_ == 0, "safetensors: ", left_, " bytes are missing");
  file_.commit();
}

std::vector<EncodedTensor> SafetensorsShard::tensors() const {
  std::vector<EncodedTensor> all;
  for (const TensorGroup& group : groups) all.insert(all.end(), group.begin(), group.end());
  return all;
}

std::vector<SafetensorsShard> split_into_shards(const std::vector<TensorGroup>& groups,
                                                std::uint64_t max_bytes) {
  std::vector<SafetensorsShard> shards(1);
  std::uint64_t used = 0;
  for (const TensorGroup& group : groups) {
    std::uint64_t bytes = 0;
    for (const EncodedTensor& t : group) bytes += t.bytes();
    if (used > 0 && used + bytes > max_bytes) {
      shards.emplace_back();
      used = 0;
    }
    used += bytes;
    shards.back().groups.push_back(group);
  }
  for (std::size_t i = 0; i < shards.size(); ++i) {
    char name[64] = "model.safetensors";
    if (shards.size() > 1)
      std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    shards[i].file = name;
    std::sort(shards[i].groups.begin(), shards[i].groups.end(),
              [](const TensorGroup& a, const TensorGroup& b) {
                return reference_key(a.front()) < reference_key(b.front());
              });
  }
  return shards;
}

std::string shard_index(const std::vector<SafetensorsShard>& shards) {
  std::uint64_t total = 0;
  Json map = Json::object();
  for (const SafetensorsShard& shard : shards)
    for (const EncodedTensor& t : shard.tensors()) {
      total += t.bytes();
      map[t.name] = shard.file;
    }
  return Json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n";
}

void write_safetensors(const std::string& path, const std::vector<SafetensorsEntry>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<EncodedTensor> order;
  std::map<std::string, const SafetensorsEntry*> entries;
  for (const SafetensorsEntry& t : tensors) {
    check(static_cast<std::int64_t>(t.values.size()) == t.shape.numel(), path, ": tensor ", t.name,
          ": ", t.values.size(), " values for shape ", t.shape.str());
    for (std::size_t i = 0; i < t.values.size(); ++i)
      if (!std::isfinite(t.values[i]))
        throw NonFiniteError(concat(path, ": tensor ", printable(t.name), ": value ", i, " is ",
                                    t.values[i], ": not written"));
    order.push_back({t.name, t.shape, find_ggml_encoder("F32")});
    entries[t.name] = &t;
  }
  SafetensorsWriter::sort_as_reference(order);
  SafetensorsWriter file(path, metadata, order);
  for (const EncodedTensor& t : order)
    file.append(entries.at(t.name)->values.data(), static_cast<std::size_t>(t.bytes()));
  file.commit();
}

}  // namespace lk
