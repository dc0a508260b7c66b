#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "io/durable.h"
#include "io/json.h"
#include "io/printable.h"
#include "io/safetensors.h"
#include "tensor/error.h"

namespace lk {

namespace {

std::string json_text(const std::string& text, const std::string& path) {
  if (!is_utf8(text))
    throw UsageError(path + ": " + printable(text) + " is not UTF-8 and can't be written");
  return Json(text).dump();
}

// What the reference writer makes of it: metadata first, tensors by name (all are F32), the fields
// in this order, padded with spaces so that the data starts at a multiple of 8.
std::string header_text(const std::string& path, const std::vector<const SafetensorsEntry*>& order,
                        const std::map<std::string, std::string>& metadata) {
  std::string text = "{", separator;
  if (!metadata.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      text += separator + json_text(key, path) + ":" + json_text(value, path);
      separator = ",";
    }
    text += "}";
  }
  std::uint64_t at = 0;
  for (const SafetensorsEntry* t : order) {
    const std::uint64_t end = at + t->values.size() * sizeof(float);
    text += separator + json_text(t->name, path) + ":{\"dtype\":\"F32\",\"shape\":[";
    for (int i = 0; i < t->shape.rank(); ++i)
      text += (i > 0 ? "," : "") + std::to_string(t->shape[i]);
    text += concat("],\"data_offsets\":[", at, ",", end, "]}");
    separator = ",";
    at = end;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

}  // namespace

void write_safetensors(const std::string& path, const std::vector<SafetensorsEntry>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  static_assert(std::endian::native == std::endian::little, "tensor files are little-endian");
  std::vector<const SafetensorsEntry*> order;
  for (const SafetensorsEntry& t : tensors) {
    check(static_cast<std::int64_t>(t.values.size()) == t.shape.numel(), path, ": tensor ", t.name,
          ": ", t.values.size(), " values for shape ", t.shape.str());
    for (std::size_t i = 0; i < t.values.size(); ++i)
      if (!std::isfinite(t.values[i]))
        throw NonFiniteError(concat(path, ": tensor ", printable(t.name), ": value ", i, " is ",
                                    t.values[i], ": not written"));
    order.push_back(&t);
  }
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->name < b->name; });
  for (std::size_t i = 0; i < order.size(); ++i)
    check(order[i]->name != "__metadata__" && (i == 0 || order[i]->name != order[i - 1]->name),
          path, ": tensor ", order[i]->name, " can't be written (twice, or a reserved name)");

  const std::string header = header_text(path, order, metadata);
  const std::uint64_t length = header.size();
  DurableFile file(path);
  file.append(&length, sizeof length);
  file.append(header.data(), header.size());
  for (const SafetensorsEntry* t : order)
    file.append(t->values.data(), t->values.size() * sizeof(float));
  file.commit();
}

}  // namespace lk
