#include "io/gguf.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "io/block_reader.h"
#include "io/gguf_parse.h"
#include "io/input_file.h"
#include "io/paths.h"
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

// A file: the whole of a model, or a part.
struct Part {
  explicit Part(const std::string& path) : file(path), header(parse_gguf(file)) {}

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
  std::int64_t int_at(const std::string& key, std::int64_t min, std::int64_t max) const {
    return int_of(key, value(key), min, max);
  }

  InputFile file;
  GgufHeader header;
};

// "-00002-of-00003.gguf": how the name of part `i`, counted from 0, of `count` ends.
std::string part_ending(std::int64_t i, std::int64_t count) {
  auto five_digits = [](std::int64_t n) {
    const std::string digits = std::to_string(n);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  return "-" + five_digits(i + 1) + "-of-" + five_digits(count) + ".gguf";
}

}  // namespace

// Metadata is the first part's: the others have little more than their place.
struct GgufFile::Impl : Part {
  explicit Impl(const std::string& path) : Part(path) {
    const std::int64_t count = find("split.count") ? int_at("split.count", 0, UINT16_MAX) : 1;
    if (count <= 1) return;
    const std::string ending = part_ending(0, count);
    const std::int64_t own = int_at("split.no", 0, count - 1);
    if (own != 0)
      throw InputError(concat(path, ": split.no: part ", own + 1, " of ", count,
                              " of a model; give the first, whose name ends in ", ending));
    if (!path.ends_with(ending))
      throw InputError(concat(path, ": split.count: the first of ", count,
                              " parts of a model; its name must end in ", ending,
                              " for the others to be found"));
    const std::string stem = path.substr(0, path.size() - ending.size());
    std::size_t tensors = header.tensors.size();
    for (std::int64_t i = 1; i < count; ++i) {
      const std::string other = stem + part_ending(i, count);
      if (!exists(other))
        throw InputError(
            concat(path, ": split.count: ", count, " parts, and ", other, " is missing"));
      add(other, i, count);
      tensors += others.back().header.tensors.size();
    }
    if (const GgufValue* all = find("split.tensors.count");
        all &&
        int_of("split.tensors.count", *all, 0, INT64_MAX) != static_cast<std::int64_t>(tensors))
      throw InputError(
          concat(path, ": split.tensors.count: ", int_of("split.tensors.count", *all, 0, INT64_MAX),
                 ", but the ", count, " parts hold ", tensors));
  }

  void add(const std::string& path, std::int64_t i, std::int64_t count) {
    const Part& part = others.emplace_back(path);
    const std::int64_t of = part.int_at("split.count", 0, UINT16_MAX),
                       own = part.int_at("split.no", 0, UINT16_MAX);
    if (of != count || own != i)
      throw InputError(concat(path, ": split.no, split.count: part ", own + 1, " of ", of,
                              ", where part ", i + 1, " of ", count, " is expected"));
    for (const auto& [name, tensor] : part.header.tensors)
      for_each_part([&, &name = name](const Part& earlier) {
        if (&earlier != &part && earlier.header.tensors.count(name))
          throw InputError(
              concat(path, ": tensor ", printable(name), ": also in ", earlier.file.path()));
      });
  }

  template <class F>
  void for_each_part(const F& f) const {
    f(static_cast<const Part&>(*this));
    for (const Part& part : others) f(part);
  }
  // The part that has a tensor, or null.
  const Part* part_of(const std::string& name) const {
    const Part* found = nullptr;
    for_each_part([&](const Part& part) {
      if (part.header.tensors.count(name)) found = &part;
    });
    return found;
  }
  struct Stored {
    const InputFile& file;
    const GgufTensor& tensor;
  };
  Stored stored(const std::string& name) const {
    const Part* part = part_of(name);
    if (!part) throw InputError(file.path() + ": tensor " + printable(name) + ": missing");
    return {part->file, part->header.tensors.at(name)};
  }
  const GgufTensor& tensor(const std::string& name) const { return stored(name).tensor; }

  std::deque<Part> others;
};

GgufFile::GgufFile(const std::string& path) : impl_(std::make_unique<Impl>(path)) {}
GgufFile::~GgufFile() = default;

const std::string& GgufFile::path() const { return impl_->file.path(); }
const std::string& GgufFile::path_of(const std::string& name) const {
  const auto* part = impl_->part_of(name);
  return part ? part->file.path() : path();
}
std::vector<const InputFile*> GgufFile::files() const {
  std::vector<const InputFile*> files;
  impl_->for_each_part([&](const auto& part) { files.push_back(&part.file); });
  return files;
}

std::vector<std::string> GgufFile::names() const {
  std::vector<std::string> names;
  impl_->for_each_part([&](const auto& part) {
    for (const auto& [name, tensor] : part.header.tensors) names.push_back(name);
  });
  std::sort(names.begin(), names.end());
  return names;
}

bool GgufFile::has(const std::string& name) const { return impl_->part_of(name) != nullptr; }
Shape GgufFile::shape(const std::string& name) const { return impl_->tensor(name).shape; }
std::string GgufFile::stored_type(const std::string& name) const {
  return impl_->tensor(name).type->name;
}

void GgufFile::check_readable(const std::string& name) const {
  const GgmlType& type = *impl_->tensor(name).type;
  if (type.decode == nullptr)
    throw InputError(concat(path_of(name), ": tensor ", printable(name), ": stored as ", type.name,
                            ", which can't be read (F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K, "
                            "IQ4_NL, IQ4_XS and MXFP4 can): use a file of one of those, such as "
                            "Q4_K_M"));
}

void GgufFile::read_rows(const std::string& name, std::int64_t begin, std::int64_t end,
                         float* dst) const {
  check_readable(name);
  const auto& [file, t] = impl_->stored(name);
  read_block_rows(file, name, t.shape, t.offset,
                  {t.type->block_values, t.type->block_bytes, t.type->decode}, begin, end, dst);
}

const GgmlType* GgufFile::quantised_type(const std::string& name) const {
  const GgmlType* type = impl_->tensor(name).type;
  return type->quantised() ? type : nullptr;
}

void GgufFile::read_stored(const std::string& name, std::int64_t begin, std::int64_t end,
                           std::uint8_t* dst) const {
  const auto& [file, t] = impl_->stored(name);
  read_stored_rows(file, name, t.shape, t.offset,
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
