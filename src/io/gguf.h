// GGUF v3 reader: metadata and tensors, every number from the file checked. A model split over several
// files, as llama.cpp splits it, is opened by its first one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/tensor_reader.h"

namespace lk {

struct GgufValue;

// Tensor types read: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K ... Q6_K, IQ4_NL, IQ4_XS,
// MXFP4, dequantised exactly as ggml does. Shapes are row-major (ggml's dimensions reversed). Rows of q and k are as
// stored: FileLayout puts llama's into our order.
class GgufFile : public TensorReader {
 public:
  // Opens the other parts too, if there are any, which lie beside it: "x-00001-of-00003.gguf".
  explicit GgufFile(const std::string& path);
  ~GgufFile() override;
  const std::string& path() const override;
  const std::string& path_of(const std::string& name) const override;
  std::vector<const InputFile*> files() const override;
  std::vector<std::string> names() const override;
  bool has(const std::string& name) const override;
  Shape shape(const std::string& name) const override;
  std::string stored_type(const std::string& name) const override;
  void check_readable(const std::string& name) const override;
  void read_rows(const std::string& name, std::int64_t begin, std::int64_t end,
                 float* dst) const override;
  const GgmlType* quantised_type(const std::string& name) const override;
  void read_stored(const std::string& name, std::int64_t begin, std::int64_t end,
                   std::uint8_t* dst) const override;

  // Metadata. The typed getters throw InputError (file and key) on a wrong type, a number out of
  // [min, max], or, without a default, a missing key.
  bool has_key(const std::string& key) const;
  std::int64_t get_int(const std::string& key, std::int64_t min, std::int64_t max) const;
  std::int64_t get_int_or(const std::string& key, std::int64_t otherwise, std::int64_t min,
                          std::int64_t max) const;
  double get_float(const std::string& key) const;
  double get_float_or(const std::string& key, double otherwise) const;
  bool get_bool_or(const std::string& key, bool otherwise) const;
  std::string get_string(const std::string& key) const;
  std::string get_string_or(const std::string& key, const std::string& otherwise) const;
  const std::vector<std::string>& get_strings(const std::string& key) const;  // array of strings
  std::vector<std::int32_t> get_ints(const std::string& key) const;           // array of i32 / u32
  // All metadata as stored, sorted by key, for writing it elsewhere. (io/gguf_parse.h has
  // GgufValue.)
  std::vector<std::pair<std::string, GgufValue>> metadata() const;
  std::vector<float> get_floats(const std::string& key) const;  // array of f32

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lk
