#include "io/gguf.h"

#include <algorithm>
#include <cstring>

#include "io/block_reader.h"
#include "io/gguf_parse.h"
#include "io/input_file.h"
#include "io/printable.h"
#include "tensor/error.h"

namespace lk {

namespace {

// Item `i` of an integer value. A u64 above i64's range saturates: no caller's limit reaches there.
std::int64_t integer_at(const GgufValue& value, std::size_t i) {
  auto as = [&]<class T>() {
    T v;
    std::memcpy(&v, value.bytes.data() + i * sizeof v, sizeof v);
    if constexpr (std::is_same_v<T, std::uint64_t>)
      return static_cast<std::int64_t>(std::min<std::uint64_t>(v, INT64_MAX));
    else
      return static_cast<std::int64_t>(v);
  };
  switch (value.type) {
    case GgufType::U8:
      return as.operator()<std::uint8_t>();
    case GgufType::I8:
      return as.operator()<std::int8_t>();
    case GgufType::U16:
      return as.operator()<std::uint16_t>();
    case GgufType::I16:
      return as.operator()<std::int16_t>();
    case GgufType::U32:
      return as.operator()<std::uint32_t>();
    case GgufType::I32:
      return as.operator()<std::int32_t>();
    case GgufType::U64:
      return as.operator()<std::uint64_t>();
    case GgufType::I64:
      return as.operator()<std::int64_t>();
    default:
      throw Error("integer_at: not an integer");
  }
}

}  // namespace

struct GgufFile::Impl {
  explicit Impl(const std::string& path) : file(path), header(parse_gguf(file)) {}

  const GgufTensor& tensor(const std::string& name) const {
    auto at = header.tensors.find(name);
    if (at == header.tensors.end())
      throw InputError(file.path() + ": tensor " + printable(name) + ": missing");
    return at->second;
  }
  const GgufValue* find(const std::string& key) const {
    auto at = header.values.find(key);
    return at == header.values.end() ? nullptr : &at->second;
  }
  const GgufValue& value(const std::string& key) const {
    const GgufValue* v = find(key);
    if (v == nullptr) throw InputError(file.path() + ": " + key + ": missing");
    return *v;
  }
  [[noreturn]] void wrong_type(const std::string& key, const GgufValue& v,
                               const char* wanted) const {
    throw InputError(concat(file.path(), ": ", key, ": ", wanted, " is expected, not ",
                            v.is_array ? "an array of " : "", gguf_type_name(v.type)));
  }

  std::int64_t int_of(const std::string& key, const GgufValue& v, std::int64_t min,
                      std::int64_t max) const {
    if (v.is_array || !is_integer(v.type)) wrong_type(key, v, "an integer");
    std::int64_t n = integer_at(v, 0);
    if (n < min || n > max)
      throw InputError(
          concat(file.path(), ": ", key, ": must be between ", min, " and ", max, ", not ", n));
    return n;
  }
  double float_of(const std::string& key, const GgufValue& v) const {
    if (v.is_array || (v.type != GgufType::F32 && v.type != GgufType::F64))
      wrong_type(key, v, "a floating-point number");
    if (v.type == GgufType::F32) {
      float f;
      std::memcpy(&f, v.bytes.data(), sizeof f);
      return f;
    }
    double d;
    std::memcpy(&d, v.bytes.data(), sizeof d);
    return d;
  }

  InputFile file;
  GgufHeader header;
};

GgufFile::GgufFile(const std::string& path) : impl_(std::make_unique<Impl>(path)) {
  if (has_key("split.count") && get_int("split.count", 0, UINT16_MAX) > 1)
    throw InputError(path +
                     ": split.count: one part of a split model; make one file of the parts first: "
                     "llama-gguf-split --merge FIRST_PART ONE_FILE");
}
GgufFile::~GgufFile() = default;

const std::string& GgufFile::path() const { return impl_->file.path(); }
std::vector<const InputFile*> GgufFile::files() const { return {&impl_->file}; }

std::vector<std::string> GgufFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : impl_->header.tensors) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

bool GgufFile::has(const std::string& name) const { return impl_->header.tensors.count(name) > 0; }
Shape GgufFile::shape(const std::string& name) const { return impl_->tensor(name).shape; }
std::string GgufFile::stored_type(const std::string& name) const {
  return impl_->tensor(name).type->name;
}

void GgufFile::check_readable(const std::string& name) const {
  const GgmlType& type = *impl_->tensor(name).type;
  if (type.decode == nullptr)
    throw InputError(concat(path(), ": tensor ", printable(name), ": stored as ", type.name,
                            ", which can't be read (F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K, "
                            "IQ4_NL, IQ4_XS and MXFP4 can): use a file of one of those, such as "
                            "Q4_K_M"));
}

void GgufFile::read_rows(const std::string& name, std::int64_t begin, std::int64_t end,
                         float* dst) const {
  check_readable(name);
  const GgufTensor& t = impl_->tensor(name);
  read_block_rows(impl_->file, name, t.shape, t.offset,
                  {t.type->block_values, t.type->block_bytes, t.type->decode}, begin, end, dst);
}

const GgmlType* GgufFile::quantised_type(const std::string& name) const {
  const GgmlType* type = impl_->tensor(name).type;
  return type->quantised() ? type : nullptr;
}

void GgufFile::read_stored(const std::string& name, std::int64_t begin, std::int64_t end,
                           std::uint8_t* dst) const {
  const GgufTensor& t = impl_->tensor(name);
  read_stored_rows(impl_->file, name, t.shape, t.offset,
                   {t.type->block_values, t.type->block_bytes, nullptr}, begin, end, dst);
}

bool GgufFile::has_key(const std::string& key) const { return impl_->find(key) != nullptr; }

std::int64_t GgufFile::get_int(const std::string& key, std::int64_t min, std::int64_t max) const {
  return impl_->int_of(key, impl_->value(key), min, max);
}
std::int64_t GgufFile::get_int_or(const std::string& key, std::int64_t otherwise, std::int64_t min,
                                  std::int64_t max) const {
  const GgufValue* v = impl_->find(key);
  return v != nullptr ? impl_->int_of(key, *v, min, max) : otherwise;
}
double GgufFile::get_float(const std::string& key) const {
  return impl_->float_of(key, impl_->value(key));
}
double GgufFile::get_float_or(const std::string& key, double otherwise) const {
  const GgufValue* v = impl_->find(key);
  return v != nullptr ? impl_->float_of(key, *v) : otherwise;
}

bool GgufFile::get_bool_or(const std::string& key, bool otherwise) const {
  const GgufValue* v = impl_->find(key);
  if (v == nullptr) return otherwise;
  if (v->is_array || v->type != GgufType::Bool) impl_->wrong_type(key, *v, "a bool");
  return v->bytes[0] != 0;
}

std::string GgufFile::get_string(const std::string& key) const {
  const GgufValue& v = impl_->value(key);
  if (v.is_array || v.type != GgufType::String) impl_->wrong_type(key, v, "a string");
  return v.bytes;
}
std::string GgufFile::get_string_or(const std::string& key, const std::string& otherwise) const {
  return has_key(key) ? get_string(key) : otherwise;
}

const std::vector<std::string>& GgufFile::get_strings(const std::string& key) const {
  const GgufValue& v = impl_->value(key);
  if (!v.is_array || v.type != GgufType::String) impl_->wrong_type(key, v, "an array of strings");
  return v.strings;
}

std::vector<std::int32_t> GgufFile::get_ints(const std::string& key) const {
  const GgufValue& v = impl_->value(key);
  if (!v.is_array || (v.type != GgufType::I32 && v.type != GgufType::U32))
    impl_->wrong_type(key, v, "an array of i32 or u32");
  std::vector<std::int32_t> items(static_cast<std::size_t>(v.items));
  for (std::size_t i = 0; i < items.size(); ++i) {
    std::int64_t n = integer_at(v, i);
    if (n > INT32_MAX) throw InputError(concat(path(), ": ", key, ": item ", i, " is ", n));
    items[i] = static_cast<std::int32_t>(n);
  }
  return items;
}

std::vector<std::pair<std::string, GgufValue>> GgufFile::metadata() const {
  std::vector<std::pair<std::string, GgufValue>> all(impl_->header.values.begin(),
                                                     impl_->header.values.end());
  std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.first < b.first; });
  return all;
}

std::vector<float> GgufFile::get_floats(const std::string& key) const {
  const GgufValue& v = impl_->value(key);
  if (!v.is_array || v.type != GgufType::F32) impl_->wrong_type(key, v, "an array of f32");
  std::vector<float> items(static_cast<std::size_t>(v.items));
  check(v.bytes.size() == items.size() * sizeof(float), "GgufFile: ", key, " has a wrong length");
  if (!items.empty()) std::memcpy(items.data(), v.bytes.data(), v.bytes.size());
  return items;
}

}  // namespace lk
