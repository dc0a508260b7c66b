// GgufBuilder: writes small GGUF v3 files, good or wrong on purpose. For tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace lk::test {

class GgufBuilder {
 public:
  GgufBuilder& u32(const std::string& key, std::uint32_t v) { return set(key, 4, bytes(v)); }
  GgufBuilder& u64(const std::string& key, std::uint64_t v) { return set(key, 10, bytes(v)); }
  GgufBuilder& i32(const std::string& key, std::int32_t v) { return set(key, 5, bytes(v)); }
  GgufBuilder& f32(const std::string& key, float v) { return set(key, 6, bytes(v)); }
  GgufBuilder& boolean(const std::string& key, bool v) {
    return set(key, 7, std::string(1, v ? 1 : 0));
  }
  GgufBuilder& string(const std::string& key, const std::string& v) { return set(key, 8, text(v)); }
  GgufBuilder& strings(const std::string& key, const std::vector<std::string>& v) {
    std::string out = bytes(std::uint32_t{8}) + bytes(std::uint64_t{v.size()});
    for (const std::string& s : v) out += text(s);
    return set(key, 9, out);
  }
  GgufBuilder& erase(const std::string& key) {
    keys_.erase(key);
    return *this;
  }
  // F32 values, row-major shape as PyTorch shows it.
  GgufBuilder& tensor(const std::string& name, std::vector<std::int64_t> shape,
                      std::vector<float> values) {
    tensors_[name] = {std::move(shape), std::move(values)};
    return *this;
  }
  GgufBuilder& drop(const std::string& name) {
    tensors_.erase(name);
    return *this;
  }

  void write(const std::string& path) const {
    std::string head = "GGUF" + bytes(std::uint32_t{3}) + bytes(std::uint64_t{tensors_.size()}) +
                       bytes(std::uint64_t{keys_.size()});
    for (const auto& [key, value] : keys_) head += text(key) + value;
    std::string data;
    for (const auto& [name, t] : tensors_) {
      head += text(name) + bytes(static_cast<std::uint32_t>(t.first.size()));
      for (auto d = t.first.rbegin(); d != t.first.rend(); ++d)
        head += bytes(static_cast<std::uint64_t>(*d));
      head += bytes(std::uint32_t{0}) + bytes(std::uint64_t{data.size()});
      data.append(reinterpret_cast<const char*>(t.second.data()), 4 * t.second.size());
      pad(data);
    }
    pad(head);
    std::ofstream(path, std::ios::binary) << head << data;
  }

 private:
  template <class T>
  static std::string bytes(T v) {
    std::string out(sizeof(T), '\0');
    std::memcpy(out.data(), &v, sizeof(T));
    return out;
  }
  static std::string text(const std::string& s) { return bytes(std::uint64_t{s.size()}) + s; }
  static void pad(std::string& s) { s.resize((s.size() + 31) / 32 * 32, '\0'); }
  GgufBuilder& set(const std::string& key, std::uint32_t type, const std::string& value) {
    keys_[key] = bytes(type) + value;
    return *this;
  }

  std::map<std::string, std::string> keys_;
  std::map<std::string, std::pair<std::vector<std::int64_t>, std::vector<float>>> tensors_;
};

}  // namespace lk::test
