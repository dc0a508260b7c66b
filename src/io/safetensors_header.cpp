#include "io/safetensors_header.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

#include "io/checked.h"
#include "io/ggml_blocks.h"
#include "io/input_file.h"
#include "io/json_scanner.h"
#include "io/printable.h"
#include "tensor/error.h"

namespace lk {

namespace {

constexpr std::uint64_t kMaxHeader = std::uint64_t{32} << 20, kMaxTensors = 200'000,
                        kMaxMetadata = 10'000;
constexpr std::uint64_t kMaxDimension = std::uint64_t{1} << 40, kMaxRank = 8;

void copy_f32(const std::uint8_t* src, std::int64_t n, float* dst) {
  std::memcpy(dst, src, static_cast<std::size_t>(n) * sizeof(float));
}
void decode_f64(const std::uint8_t* src, std::int64_t n, float* dst) {
  for (std::int64_t i = 0; i < n; ++i) {
    double value;
    std::memcpy(&value, src + 8 * i, sizeof value);
    dst[i] = static_cast<float>(value);
  }
}

constexpr SafetensorsDtype kDtypes[] = {
    {"F32", 32, copy_f32},       {"BF16", 16, decode_bf16}, {"F16", 16, decode_f16},
    {"F64", 64, decode_f64},     {"BOOL", 8, nullptr},      {"U8", 8, nullptr},
    {"I8", 8, nullptr},          {"I16", 16, nullptr},      {"U16", 16, nullptr},
    {"I32", 32, nullptr},        {"U32", 32, nullptr},      {"I64", 64, nullptr},
    {"U64", 64, nullptr},        {"C64", 64, nullptr},      {"F8_E4M3", 8, nullptr},
    {"F8_E5M2", 8, nullptr},     {"F8_E8M0", 8, nullptr},   {"F8_E4M3FNUZ", 8, nullptr},
    {"F8_E5M2FNUZ", 8, nullptr}, {"F6_E2M3", 6, nullptr},   {"F6_E3M2", 6, nullptr},
    {"F4", 4, nullptr},
};

const SafetensorsDtype* find_dtype(const std::string& name) {
  for (const SafetensorsDtype& dtype : kDtypes)
    if (name == dtype.name) return &dtype;
  return nullptr;
}

class HeaderParser {
 public:
  HeaderParser(const InputFile& file, std::string_view text, const std::string& where)
      : file_(file), in_(text, where), data_(8 + text.size()) {}

  SafetensorsHeader parse() {
    if (in_.peek() != '{') in_.fail("the header is not a JSON object");
    bool has_metadata = false;
    in_.object([&](std::string name) {
      if (name == "__metadata__") {
        if (std::exchange(has_metadata, true)) in_.fail("__metadata__ occurs twice");
        metadata();
      } else {
        tensor(std::move(name));
      }
    });
    in_.end();
    check_layout();
    return std::move(header_);
  }

 private:
  void metadata() {
    in_.object([&](std::string key) {
      std::string value = in_.string();
      auto [at, is_new] = header_.metadata.try_emplace(std::move(key), std::move(value));
      if (header_.metadata.size() > kMaxMetadata)
        in_.fail(concat("__metadata__: more than ", kMaxMetadata, " keys"));
      if (!is_new) in_.fail("__metadata__: the key " + printable(at->first) + " occurs twice");
    });
  }

  void tensor(std::string name) {
    if (header_.tensors.size() == kMaxTensors)
      in_.fail(concat("more than ", kMaxTensors, " tensors"));
    auto [entry, is_new] = header_.tensors.try_emplace(std::move(name));
    const std::string shown = "tensor " + printable(entry->first);
    if (!is_new) in_.fail(shown + " occurs twice");
    SafetensorsTensor& t = entry->second;
    std::optional<std::string> dtype;
    std::optional<std::vector<std::uint64_t>> shape, range;
    in_.object([&](const std::string& field) {
      auto once = [&](auto& slot, auto value) {
        if (slot.has_value()) in_.fail(shown + ": " + field + " occurs twice");
        slot = std::move(value);
      };
      if (field == "dtype")
        once(dtype, in_.string());
      else if (field == "shape")
        once(shape, whole_numbers(shown, "shape", kMaxRank));
      else if (field == "data_offsets")
        once(range, whole_numbers(shown, "data_offsets", 2));
      else
        in_.skip();  // a later version of the format may add fields
    });
    if (!dtype || !shape || !range)
      in_.fail(shown + ": " +
               (!dtype   ? "dtype"
                : !shape ? "shape"
                         : "data_offsets") +
               " is missing");
    t.dtype = find_dtype(*dtype);
    if (t.dtype == nullptr) in_.fail(shown + ": unknown dtype " + printable(*dtype));
    t.dims = std::move(*shape);
    place(t, shown, *range);
  }

  std::vector<std::uint64_t> whole_numbers(const std::string& shown, const char* field,
                                           std::size_t max) {
    std::vector<std::uint64_t> numbers;
    in_.array([&] {
      if (numbers.size() == max)
        in_.fail(concat(shown, ": ", field, ": more than ", max, " numbers"));
      numbers.push_back(in_.whole_number());
    });
    return numbers;
  }

  // Checks that the range holds exactly the shape's values.
  void place(SafetensorsTensor& t, const std::string& shown,
             const std::vector<std::uint64_t>& range) {
    CheckedU64 numel(1), nonzero(1);
    for (std::uint64_t d : t.dims) {
      if (d > kMaxDimension) in_.fail(concat(shown, ": shape: dimension ", d, " is over 2^40"));
      if (d != 0) nonzero = nonzero * CheckedU64(d);
      numel = numel * CheckedU64(d);
    }
    // Holds for a tensor without elements too: its other dimensions must make a shape.
    if (!nonzero.at_most(INT64_MAX)) in_.fail(shown + ": shape: the number of elements overflows");
    if (range.size() != 2) in_.fail(shown + ": data_offsets: two numbers are expected");
    if (range[0] > range[1]) in_.fail(shown + ": data_offsets: the end lies before the beginning");
    CheckedU64 bits = numel * CheckedU64(t.dtype->bits), bytes = bits / 8;
    CheckedU64 length = CheckedU64(range[1]) - CheckedU64(range[0]);
    if (!bits.is_multiple_of(8)) in_.fail(shown + ": not a whole number of bytes");
    t.bytes = length.within(file_.size(), [&] { return beyond(shown); });
    if (!bytes.equals(t.bytes))
      in_.fail(concat(shown, ": its shape and dtype take ", bytes.str(),
                      " bytes, its data_offsets ", t.bytes));
    CheckedU64 end = data_ + CheckedU64(range[1]), begin = data_ + CheckedU64(range[0]);
    end.within(file_.size(), [&] { return beyond(shown); });
    t.offset = begin.within(file_.size(), [&] { return beyond(shown); });
  }
  std::string beyond(const std::string& shown) const {
    return concat(file_.path(), ": ", shown, ": data_offsets: beyond the end of the file (",
                  file_.size(), " bytes)");
  }

  // No gaps, no overlaps, nothing after the last tensor: each byte of the file has one meaning.
  void check_layout() {
    using Item = const std::pair<const std::string, SafetensorsTensor>*;
    std::vector<Item> order;
    order.reserve(header_.tensors.size());
    for (const auto& item : header_.tensors) order.push_back(&item);
    std::sort(order.begin(), order.end(), [](Item a, Item b) {
      if (a->second.offset != b->second.offset) return a->second.offset < b->second.offset;
      return a->second.bytes < b->second.bytes;
    });
    CheckedU64 expected = data_;
    for (Item item : order) {
      const SafetensorsTensor& t = item->second;
      if (!expected.equals(t.offset))
        throw InputError(concat(file_.path(), ": tensor ", printable(item->first),
                                ": data_offsets: starts at byte ", t.offset,
                                expected.at_most(t.offset)
                                    ? ", leaving a gap after byte "
                                    : ", overlapping the tensor before it, which ends at ",
                                expected.str()));
      expected = expected + CheckedU64(t.bytes);
    }
    if (!expected.equals(file_.size()))
      throw InputError(concat(file_.path(), ": byte ", expected.str(),
                              ": the tensors end here, but the file has ", file_.size(), " bytes"));
  }

  const InputFile& file_;
  JsonScanner in_;
  CheckedU64 data_;  // where the data starts in the file
  SafetensorsHeader header_;
};

}  // namespace

SafetensorsHeader parse_safetensors_header(const InputFile& file) {
  static_assert(std::endian::native == std::endian::little, "tensor files are little-endian");
  auto fail = [&](const std::string& rule) { return file.path() + ": " + rule; };
  if (file.size() < 8) throw InputError(fail("too short for a safetensors file"));
  std::uint64_t length;
  file.read(0, &length, sizeof length);
  CheckedU64 header_end = CheckedU64(length) + CheckedU64(8);
  if (!CheckedU64(length).at_most(kMaxHeader))
    throw InputError(fail(concat("byte 0: a header of ", length, " bytes; at most ", kMaxHeader,
                                 " are allowed (is this a safetensors file?)")));
  header_end.within(file.size(), [&] {
    return fail(concat("byte 0: a header of ", length, " bytes, but the file has ", file.size()));
  });
  std::string text(static_cast<std::size_t>(length), '\0');
  file.read(8, text.data(), text.size());
  const std::string where = file.path() + ": header";
  return HeaderParser(file, text, where).parse();
}

}  // namespace lk
