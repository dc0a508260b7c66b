// What the file layer's tests share: builders of good and bad files, and checks that an error is of
// the right kind and names what it must.
#pragma once

#include <doctest/doctest.h>
#include <time.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "scratch_folder.h"
#include "tensor/error.h"

namespace lk::test {

inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

#ifdef __SANITIZE_ADDRESS__
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// Bytes of a text that must not take quadratic time. Sanitizers only check memory.
inline constexpr std::size_t kLongText = std::size_t{1} << (kSanitized ? 16 : 20);

// Processor time since the object was made. Limits on hostile input are stated in it, as the
// machine may be busy.
class CpuClock {
 public:
  double seconds() const { return now() - start_; }
  // Limits are meant for plain code; sanitizers make it at least ten times slower.
  bool within(double limit) const { return seconds() < limit * (kSanitized ? 20 : 1); }

 private:
  static double now() {
    timespec t{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
  }
  double start_ = now();
};

// f must throw exactly E, with each of `parts` in its message.
template <class E, class F>
void check_throws(const std::string& what, std::initializer_list<std::string> parts, F&& f) {
  INFO(what);
  try {
    f();
    FAIL_CHECK("nothing was thrown");
  } catch (const E& e) {
    const std::string message = e.what();
    CHECK(message.size() < 1000);
    for (const std::string& part : parts)
      CHECK_MESSAGE(message.find(part) != std::string::npos, "\"", message, "\" does not name \"",
                    part, "\"");
  } catch (const std::exception& e) {
    FAIL_CHECK("another exception: ", std::string(e.what()));
  }
}

// The bytes of a number, as both formats store it.
template <class T>
std::string raw(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}
inline std::string raw_floats(const std::vector<float>& values) {
  std::string bytes;
  for (float v : values) bytes += raw(v);
  return bytes;
}

// ---- safetensors: a header (any text) and data ------------------------------------------------
inline std::string safetensors_bytes(const std::string& header, const std::string& data = "") {
  return raw(std::uint64_t{header.size()}) + header + data;
}
// {"NAME":{"dtype":"F32","shape":[..],"data_offsets":[b,e]}} without the braces around it.
inline std::string entry(const std::string& name, const std::string& dtype,
                         const std::string& shape, const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}
// Two tensors, a (2) and b (2,2), of F32.
inline std::string good_safetensors() {
  return safetensors_bytes("{\"__metadata__\":{\"format\":\"pt\"}," +
                               entry("a", "F32", "[2]", "[0,8]") + "," +
                               entry("b", "F32", "[2,2]", "[8,24]") + "}",
                           raw_floats({1, 2, 3, 4, 5, 6}));
}

// ---- GGUF: every part of the file is a field that a test may spoil ---------------------------
struct GgufBuilder {
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t n_tensors = 0, n_values = 0;  // counted by the functions below
  std::string values, infos, data;
  std::uint64_t alignment = 32;

  static std::string text(const std::string& s) { return raw(std::uint64_t{s.size()}) + s; }

  GgufBuilder& value(const std::string& key, std::uint32_t type, const std::string& bytes) {
    values += text(key) + raw(type) + bytes;
    ++n_values;
    return *this;
  }
  GgufBuilder& u32(const std::string& key, std::uint32_t v) { return value(key, 4, raw(v)); }
  GgufBuilder& string(const std::string& key, const std::string& v) {
    return value(key, 8, text(v));
  }
  GgufBuilder& array(const std::string& key, std::uint32_t type, std::uint64_t n,
                     const std::string& items) {
    return value(key, 9, raw(type) + raw(n) + items);
  }
  GgufBuilder& info(const std::string& name, std::uint32_t n_dims,
                    const std::vector<std::uint64_t>& ne, std::uint32_t type,
                    std::uint64_t offset) {
    infos += text(name) + raw(n_dims);
    for (std::uint64_t d : ne) infos += raw(d);
    infos += raw(type) + raw(offset);
    ++n_tensors;
    return *this;
  }
  // Adds a tensor with its data in the right place.
  GgufBuilder& tensor(const std::string& name, const std::vector<std::uint64_t>& ne,
                      std::uint32_t type, const std::string& bytes) {
    info(name, static_cast<std::uint32_t>(ne.size()), ne, type, data.size());
    data += bytes;
    data.resize((data.size() + alignment - 1) / alignment * alignment, '\0');
    return *this;
  }
  std::string bytes() const {
    std::string all = magic + raw(version) + raw(n_tensors) + raw(n_values) + values + infos;
    all.resize((all.size() + alignment - 1) / alignment * alignment, '\0');
    return all + data;
  }
};

inline GgufBuilder good_gguf() {
  GgufBuilder b;
  b.string("general.architecture", "llama").u32("llama.block_count", 2);
  b.array("tokenizer.ggml.tokens", 8, 2, GgufBuilder::text("a") + GgufBuilder::text("bc"));
  b.tensor("norm", {4}, 0, raw_floats({1, 2, 3, 4}));
  b.tensor("embd", {2, 3}, 0, raw_floats({1, 2, 3, 4, 5, 6}));
  return b;
}

}  // namespace lk::test
