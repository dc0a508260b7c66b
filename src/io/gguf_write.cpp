#include "io/gguf_write.h"

#include <cstring>
#include <set>
#include <string_view>

#include "tensor/error.h"

namespace lk {

namespace {

constexpr std::uint64_t kAlignment = 32;

template <class T>
void put(std::string& out, T v) {
  out.append(reinterpret_cast<const char*>(&v), sizeof v);
}

void put_string(std::string& out, std::string_view text) {
  put(out, std::uint64_t{text.size()});
  out += text;
}

template <class T>
GgufValue number(GgufType type, T v) {
  GgufValue value;
  value.type = type;
  put(value.bytes, v);
  return value;
}

std::uint64_t padded(std::uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

void put_value(std::string& out, const GgufValue& value) {
  if (value.is_array) {
    put(out, GgufType::Array);
    put(out, value.type);
    put(out, value.items);
    for (const std::string& s : value.strings) put_string(out, s);
  } else {
    put(out, value.type);
    if (value.type == GgufType::String) return put_string(out, value.bytes);
  }
  out += value.bytes;
}

std::string header_bytes(const GgufWriter::Metadata& metadata,
                         const std::vector<EncodedTensor>& tensors) {
  std::string out = "GGUF";
  put(out, std::uint32_t{3});
  put(out, std::uint64_t{tensors.size()});
  put(out, std::uint64_t{metadata.size()});
  std::set<std::string_view> keys, names;
  for (const auto& [key, value] : metadata) {
    check(keys.insert(key).second && key != "general.alignment", "GGUF key '", key,
          "' can't be written (twice, or not the caller's)");
    put_string(out, key);
    put_value(out, value);
  }
  std::uint64_t offset = 0;
  for (const EncodedTensor& t : tensors) {
    check(names.insert(t.name).second && !t.name.empty() && t.name.size() <= 63, "GGUF tensor '",
          t.name, "' can't be written (twice, or not 1 to 63 bytes)");
    const int rank = t.shape.rank();
    check(rank >= 1 && rank <= 4 && t.shape[rank - 1] % t.type->block_values == 0, "GGUF tensor ",
          t.name, ": shape ", t.shape.str(), " as ", t.type->name);
    const GgmlEncoder* encoder = find_ggml_encoder(t.type->name);
    check(encoder != nullptr, "GGUF tensor ", t.name, ": GGUF has no type ", t.type->name);
    put_string(out, t.name);
    put(out, static_cast<std::uint32_t>(rank));
    for (int i = rank - 1; i >= 0; --i) put(out, static_cast<std::uint64_t>(t.shape[i]));
    put(out, encoder->id);
    put(out, offset);
    offset += padded(t.bytes());
  }
  out.resize(padded(out.size()), '\0');
  return out;
}

}  // namespace

GgufValue gguf_u32(std::uint32_t v) { return number(GgufType::U32, v); }
GgufValue gguf_f32(float v) { return number(GgufType::F32, v); }
GgufValue gguf_bool(bool v) { return number(GgufType::Bool, static_cast<std::uint8_t>(v)); }

GgufValue gguf_string(std::string v) {
  GgufValue value;
  value.type = GgufType::String;
  value.bytes = std::move(v);
  return value;
}

GgufValue gguf_strings(std::vector<std::string> v) {
  GgufValue value;
  value.type = GgufType::String;
  value.is_array = true;
  value.items = v.size();
  value.strings = std::move(v);
  return value;
}

GgufValue gguf_ints(const std::vector<std::int32_t>& v) {
  GgufValue value;
  value.type = GgufType::I32;
  value.is_array = true;
  value.items = v.size();
  for (std::int32_t i : v) put(value.bytes, i);
  return value;
}

GgufValue gguf_floats(const std::vector<float>& v) {
  GgufValue value;
  value.type = GgufType::F32;
  value.is_array = true;
  value.items = v.size();
  for (float x : v) put(value.bytes, x);
  return value;
}

GgufWriter::GgufWriter(const std::string& path, const Metadata& metadata,
                       std::vector<EncodedTensor> tensors)
    : file_(path), tensors_(std::move(tensors)) {
  const std::string header = header_bytes(metadata, tensors_);
  file_.append(header.data(), header.size());
  if (!tensors_.empty()) left_ = tensors_[0].bytes();
}

std::uint64_t GgufWriter::file_bytes(const Metadata& metadata,
                                     const std::vector<EncodedTensor>& tensors) {
  std::uint64_t bytes = header_bytes(metadata, tensors).size();
  for (const EncodedTensor& t : tensors) bytes += padded(t.bytes());
  return bytes;
}

void GgufWriter::append(const void* data, std::size_t bytes) {
  check(next_ < tensors_.size() && bytes <= left_, "GGUF: more bytes than tensor ",
        next_ < tensors_.size() ? tensors_[next_].name : "(none)", " has");
  file_.append(data, bytes);
  left_ -= bytes;
  if (left_ > 0) return;
  static constexpr char kZeros[kAlignment] = {};
  const std::uint64_t size = tensors_[next_].bytes();
  file_.append(kZeros, static_cast<std::size_t>(padded(size) - size));
  if (++next_ < tensors_.size()) left_ = tensors_[next_].bytes();
}

void GgufWriter::commit() {
  check(next_ == tensors_.size(), "GGUF: tensor ",
        next_ < tensors_.size() ? tensors_[next_].name : "", " is not complete");
  file_.commit();
}

}  // namespace lk
