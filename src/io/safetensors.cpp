#include "io/safetensors.h"

#include <algorithm>
#include <bit>
#include <string_view>

#include "io/block_reader.h"
#include "io/input_file.h"
#include "io/printable.h"
#include "io/safetensors_header.h"
#include "tensor/error.h"

namespace lk {

struct SafetensorsFile::Impl {
  Impl(const std::string& path, InputFile::Between between)
      : file(path, between), header(parse_safetensors_header(file)) {}

  const SafetensorsTensor& tensor(const std::string& name) const {
    auto at = header.tensors.find(name);
    if (at == header.tensors.end())
      throw InputError(file.path() + ": tensor " + printable(name) + ": missing");
    return at->second;
  }

  InputFile file;
  SafetensorsHeader header;
};

SafetensorsFile::SafetensorsFile(const std::string& path, InputFile::Between between)
    : impl_(std::make_unique<Impl>(path, between)) {}
SafetensorsFile::~SafetensorsFile() = default;

const std::string& SafetensorsFile::path() const { return impl_->file.path(); }
std::vector<const InputFile*> SafetensorsFile::files() const { return {&impl_->file}; }

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : impl_->header.tensors) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

bool SafetensorsFile::has(const std::string& name) const {
  return impl_->header.tensors.count(name) > 0;
}

Shape SafetensorsFile::shape(const std::string& name) const {
  const auto& dims = impl_->tensor(name).dims;
  auto d = [&](std::size_t i) { return static_cast<std::int64_t>(dims[i]); };
  switch (dims.size()) {
    case 0:
      return {};
    case 1:
      return {d(0)};
    case 2:
      return {d(0), d(1)};
    case 3:
      return {d(0), d(1), d(2)};
    case 4:
      return {d(0), d(1), d(2), d(3)};
    default:
      throw InputError(concat(path(), ": tensor ", printable(name), ": has ", dims.size(),
                              " dimensions; up to 4 can be read"));
  }
}

std::string SafetensorsFile::stored_type(const std::string& name) const {
  return impl_->tensor(name).dtype->name;
}

void SafetensorsFile::check_readable(const std::string& name) const {
  const SafetensorsTensor& t = impl_->tensor(name);
  if (t.dtype->decode == nullptr)
    throw InputError(path() + ": tensor " + printable(name) + ": stored as " + t.dtype->name +
                     ", which can't be read (F64, F32, F16, BF16 can)");
}

void SafetensorsFile::read_rows(const std::string& name, std::int64_t begin, std::int64_t end,
                                float* dst) const {
  check_readable(name);
  const SafetensorsTensor& t = impl_->tensor(name);
  read_block_rows(impl_->file, name, shape(name), t.offset, {1, t.dtype->bits / 8, t.dtype->decode},
                  begin, end, dst);
}

std::optional<DType> SafetensorsFile::plain_type(const std::string& name) const {
  const std::string_view type = impl_->tensor(name).dtype->name;
  if constexpr (std::endian::native != std::endian::little) return std::nullopt;
  if (type == "F32") return DType::F32;
  if (type == "BF16") return DType::BF16;
  return std::nullopt;
}

void SafetensorsFile::read_stored(const std::string& name, std::int64_t begin, std::int64_t end,
                                  std::uint8_t* dst) const {
  const SafetensorsTensor& t = impl_->tensor(name);
  read_stored_rows(impl_->file, name, shape(name), t.offset, {1, t.dtype->bits / 8, nullptr}, begin,
                   end, dst);
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return impl_->header.metadata;
}

}  // namespace lk
