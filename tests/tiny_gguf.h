// TinyGguf: a small GGUF file of F32 tensors by name, valid or wrong on purpose, for tests of code
// that reads models.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "hostile.h"

namespace lk::test {

class TinyGguf {
 public:
  TinyGguf& u32(const std::string& key, std::uint32_t v) { return set(key, 4, raw(v)); }
  TinyGguf& u64(const std::string& key, std::uint64_t v) { return set(key, 10, raw(v)); }
  TinyGguf& i32(const std::string& key, std::int32_t v) { return set(key, 5, raw(v)); }
  TinyGguf& f32(const std::string& key, float v) { return set(key, 6, raw(v)); }
  TinyGguf& boolean(const std::string& key, bool v) {
    return set(key, 7, std::string(1, v ? 1 : 0));
  }
  TinyGguf& string(const std::string& key, const std::string& v) {
    return set(key, 8, GgufBuilder::text(v));
  }
  TinyGguf& strings(const std::string& key, const std::vector<std::string>& v) {
    std::string out = raw(std::uint32_t{8}) + raw(std::uint64_t{v.size()});
    for (const std::string& s : v) out += GgufBuilder::text(s);
    return set(key, 9, out);
  }
  TinyGguf& erase(const std::string& key) {
    keys_.erase(key);
    return *this;
  }
  // F32 values, row-major shape as PyTorch shows it.
  TinyGguf& tensor(const std::string& name, std::vector<std::int64_t> shape,
                   std::vector<float> values) {
    tensors_[name] = {std::move(shape), std::move(values)};
    return *this;
  }
  TinyGguf& drop(const std::string& name) {
    tensors_.erase(name);
    return *this;
  }

  void write(const std::string& path) const {
    GgufBuilder file;
    for (const auto& [key, value] : keys_) file.value(key, value.first, value.second);
    for (const auto& [name, t] : tensors_)
      file.tensor(name, {t.first.rbegin(), t.first.rend()}, 0, raw_floats(t.second));
    std::ofstream(path, std::ios::binary) << file.bytes();
  }

 private:
  TinyGguf& set(const std::string& key, std::uint32_t type, const std::string& value) {
    keys_[key] = {type, value};
    return *this;
  }

  std::map<std::string, std::pair<std::uint32_t, std::string>> keys_;
  std::map<std::string, std::pair<std::vector<std::int64_t>, std::vector<float>>> tensors_;
};

}  // namespace lk::test
