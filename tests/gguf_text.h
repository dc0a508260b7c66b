// A GGUF file of tokenizer metadata, written and opened by the tokenizer's tests.
#pragma once

#include "io/gguf.h"
#include "tensor/error.h"
#include "tokenizer_fixture.h"

namespace lk::test {

// A GGUF file of metadata only.
class GgufText {
 public:
  GgufText& text(const std::string& key, const std::string& value) {
    head(key, 8);
    string(value);
    return *this;
  }
  GgufText& number(const std::string& key, std::uint32_t value) {
    head(key, 4);
    raw(value);
    return *this;
  }
  GgufText& flag(const std::string& key, bool value) {
    head(key, 7);
    raw(static_cast<std::uint8_t>(value));
    return *this;
  }
  GgufText& texts(const std::string& key, const std::vector<std::string>& values) {
    head(key, 9);
    raw(std::uint32_t{8});
    raw(static_cast<std::uint64_t>(values.size()));
    for (const std::string& value : values) string(value);
    return *this;
  }
  GgufText& numbers(const std::string& key, const std::vector<std::int32_t>& values) {
    head(key, 9);
    raw(std::uint32_t{5});
    raw(static_cast<std::uint64_t>(values.size()));
    for (std::int32_t value : values) raw(value);
    return *this;
  }
  GgufText& reals(const std::string& key, const std::vector<float>& values) {
    head(key, 9);
    raw(std::uint32_t{6});
    raw(static_cast<std::uint64_t>(values.size()));
    for (float value : values) raw(value);
    return *this;
  }
  void write(const Scratch& folder, const std::string& name) const {
    std::string file = "GGUF";
    auto put = [&](auto value) {
      file.append(reinterpret_cast<const char*>(&value), sizeof(value));
    };
    put(std::uint32_t{3}), put(std::uint64_t{0}), put(count_);
    file += values_;
    file.resize((file.size() + 31) / 32 * 32);
    folder.write(name, file);
  }
  std::unique_ptr<Tokenizer> open() const {
    Scratch folder;
    write(folder, "model.gguf");
    return Tokenizer::from_gguf(GgufFile((folder.path / "model.gguf").string()));
  }
  std::string error() const {
    try {
      open();
    } catch (const InputError& e) {
      return e.what();
    }
    return "accepted";
  }

 private:
  template <class T>
  void raw(T value) {
    values_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void string(const std::string& value) {
    raw(static_cast<std::uint64_t>(value.size()));
    values_ += value;
  }
  void head(const std::string& key, std::uint32_t type) {
    string("tokenizer." + key);
    raw(type);
    ++count_;
  }
  std::string values_;
  std::uint64_t count_ = 0;
};

}  // namespace lk::test
