#include "io/gguf_parse.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "io/checked.h"
#include "io/input_file.h"
#include "io/printable.h"
#include "tensor/error.h"

namespace lk {

namespace {

// These limits are well above any published model; they bound the memory a header can ask for.
constexpr std::uint64_t kMaxValues = 16'384, kMaxGgufTensors = 65'536;
constexpr std::uint64_t kMaxStrings = std::uint64_t{1} << 20;  // in all arrays together
constexpr std::uint64_t kMaxKeyBytes = 65'535, kMaxNameBytes = 63;
constexpr std::uint64_t kMaxGgufDimension = std::uint64_t{1} << 40;
constexpr std::uint64_t kMaxAlignment = std::uint64_t{1} << 24;

constexpr struct {
  const char* name;
  std::uint32_t bytes;  // 0: not of fixed size
} kValueTypes[] = {{"u8", 1},  {"i8", 1},  {"u16", 2},  {"i16", 2},    {"u32", 4},
                   {"i32", 4}, {"f32", 4}, {"bool", 1}, {"string", 0}, {"array", 0},
                   {"u64", 8}, {"i64", 8}, {"f64", 8}};

// Reads forward, in large pieces, and knows how much is left.
class Reader {
 public:
  explicit Reader(const InputFile& file) : file_(file) {}

  std::uint64_t position() const { return position_; }
  std::uint64_t remaining() const { return file_.size() - position_; }

  template <class T>
  T number() {
    T value;
    read(&value, sizeof value);
    return value;
  }
  CheckedU64 u32() { return CheckedU64(number<std::uint32_t>()); }
  CheckedU64 u64() { return CheckedU64(number<std::uint64_t>()); }

  std::string string(std::uint64_t max) {
    const std::uint64_t start = position_;
    CheckedU64 length = u64();
    std::uint64_t n = length.within(std::min(max, remaining()), [&] {
      return at(start, concat("a string of ", length.str(), " bytes; ", remaining(),
                              " bytes are left, ", max, " allowed"));
    });
    return take(n);
  }
  // Callers know that `n` is at most remaining().
  std::string take(std::uint64_t n) {
    std::string bytes(static_cast<std::size_t>(n), '\0');
    read(bytes.data(), bytes.size());
    return bytes;
  }

  std::string at(std::uint64_t offset, const std::string& rule) const {
    return concat(file_.path(), ": byte ", offset, ": ", rule);
  }
  [[noreturn]] void fail(std::uint64_t offset, const std::string& rule) const {
    throw InputError(at(offset, rule));
  }

 private:
  void read(void* dst, std::size_t n) {
    if (n > remaining()) fail(position_, "the file ends here, inside the header");
    auto* to = static_cast<char*>(dst);
    while (n > 0) {
      if (used_ == buffer_.size()) {
        buffer_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(remaining(), kPiece)));
        file_.read(position_, buffer_.data(), buffer_.size());
        used_ = 0;
      }
      std::size_t piece = std::min(n, buffer_.size() - used_);
      std::memcpy(to, buffer_.data() + used_, piece);
      to += piece, used_ += piece, position_ += piece, n -= piece;
    }
  }

  static constexpr std::uint64_t kPiece = std::uint64_t{1} << 18;
  const InputFile& file_;
  std::uint64_t position_ = 0;
  std::vector<char> buffer_;
  std::size_t used_ = 0;
};

class GgufParser {
 public:
  explicit GgufParser(const InputFile& file) : file_(file), in_(file) {}

  GgufHeader parse() {
    auto [n_tensors, n_values] = counts();
    header_.values.reserve(static_cast<std::size_t>(n_values));
    for (std::uint64_t i = 0; i < n_values; ++i) key_and_value();
    alignment_ = alignment();
    header_.tensors.reserve(static_cast<std::size_t>(n_tensors));
    for (std::uint64_t i = 0; i < n_tensors; ++i) tensor();
    place_tensors();
    return std::move(header_);
  }

 private:
  struct Counts {
    std::uint64_t tensors, values;
  };
  Counts counts() {
    if (in_.remaining() < 4 || in_.take(4) != "GGUF")
      in_.fail(0, "not a GGUF file (it starts otherwise)");
    auto version = in_.number<std::uint32_t>();
    if ((version & 0xffffu) == 0 && version != 0)
      in_.fail(4, "a big-endian GGUF file: convert it to little-endian");
    if (version != 2 && version != 3)
      in_.fail(4, concat("GGUF version ", version, "; versions 2 and 3 are read"));
    // The smallest value takes 14 bytes, the smallest tensor entry 32.
    auto count = [&](std::uint64_t limit, std::uint64_t least_bytes, const char* what) {
      const std::uint64_t start = in_.position();
      CheckedU64 n = in_.u64();
      std::uint64_t fit = std::min(limit, in_.remaining() / least_bytes);
      return n.within(fit, [&] {
        return in_.at(start,
                      concat(n.str(), " ", what, "; at most ", fit, " are possible in this file"));
      });
    };
    Counts c{};
    c.tensors = count(kMaxGgufTensors, 32, "tensors");
    c.values = count(kMaxValues, 14, "metadata values");
    return c;
  }

  GgufType type(const std::string& key) {
    const std::uint64_t start = in_.position();
    CheckedU64 t = in_.u32();
    return static_cast<GgufType>(t.within(std::size(kValueTypes) - 1, [&] {
      return in_.at(start, concat(key, ": unknown value type ", t.str()));
    }));
  }

  void key_and_value() {
    const std::uint64_t start = in_.position();
    std::string key = in_.string(kMaxKeyBytes);
    if (key.empty()) in_.fail(start, "an empty key");
    if (!std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < 0x7f; }))
      in_.fail(start, "the key " + printable(key) + " is not plain ASCII");
    auto [entry, is_new] = header_.values.try_emplace(key);
    if (!is_new) in_.fail(start, "the key " + printable(key) + " occurs twice");
    GgufValue& value = entry->second;
    const std::string shown = printable(key);
    value.type = type(shown);
    if (value.type == GgufType::Array) {
      value.is_array = true;
      value.type = type(shown);
      if (value.type == GgufType::Array) in_.fail(start, shown + ": an array of arrays");
      array_items(value, shown);
    } else if (value.type == GgufType::String) {
      value.bytes = in_.string(UINT64_MAX);
    } else {
      numbers(value, shown, CheckedU64(1));
    }
  }

  void array_items(GgufValue& value, const std::string& key) {
    const std::uint64_t start = in_.position();
    CheckedU64 n = in_.u64();
    if (value.type != GgufType::String) return numbers(value, key, n);
    // Each string takes at least its 8 bytes of length.
    std::uint64_t fit = std::min(kMaxStrings - n_strings_, in_.remaining() / 8);
    value.items = n.within(fit, [&] {
      return in_.at(start, concat(key, ": an array of ", n.str(), " strings; at most ", fit,
                                  " are possible here"));
    });
    n_strings_ += value.items;
    value.strings.reserve(static_cast<std::size_t>(value.items));
    for (std::uint64_t i = 0; i < value.items; ++i) value.strings.push_back(in_.string(UINT64_MAX));
  }

  void numbers(GgufValue& value, const std::string& key, CheckedU64 n) {
    const std::uint64_t start = in_.position();
    CheckedU64 bytes = n * CheckedU64(kValueTypes[static_cast<std::size_t>(value.type)].bytes);
    std::uint64_t known = bytes.within(in_.remaining(), [&] {
      return in_.at(start, concat(key, ": ", n.str(), " items of type ", gguf_type_name(value.type),
                                  "; only ", in_.remaining(), " bytes are left"));
    });
    value.items = n.within(known, [&] { return in_.at(start, key + ": too many items"); });
    value.bytes = in_.take(known);
    if (value.type == GgufType::Bool && std::any_of(value.bytes.begin(), value.bytes.end(),
                                                    [](char b) { return b != 0 && b != 1; }))
      in_.fail(start, key + ": a bool that is neither 0 nor 1");
  }

  std::uint64_t alignment() {
    auto at = header_.values.find("general.alignment");
    if (at == header_.values.end()) return 32;
    const GgufValue& value = at->second;
    if (value.is_array || value.type != GgufType::U32)
      throw InputError(file_.path() + ": general.alignment: must be a u32");
    std::uint32_t n;
    std::memcpy(&n, value.bytes.data(), sizeof n);
    if (n == 0 || (n & (n - 1)) != 0 || n > kMaxAlignment)
      throw InputError(concat(file_.path(), ": general.alignment: must be a power of two up to ",
                              kMaxAlignment, ", not ", n));
    return n;
  }

  void tensor() {
    const std::uint64_t start = in_.position();
    std::string name = in_.string(kMaxNameBytes);
    const std::string shown = "tensor " + printable(name);
    auto fails = [&](const std::string& rule) { return in_.at(start, shown + ": " + rule); };
    if (name.find('\0') != std::string::npos) throw InputError(fails("a NUL byte in the name"));

    CheckedU64 rank_read = in_.u32();
    auto rank_rule = [&] { return fails(rank_read.str() + " dimensions; 1 to 4 are possible"); };
    const std::uint64_t rank = rank_read.within(4, rank_rule);
    if (rank == 0) throw InputError(rank_rule());
    CheckedU64 numel(1), row(0);
    std::array<std::int64_t, 4> dims{1, 1, 1, 1};  // fastest first, as stored
    for (std::uint64_t i = 0; i < rank; ++i) {
      CheckedU64 d = in_.u64();
      auto rule = [&] { return fails(concat("dimension ", i, " is ", d.str())); };
      dims[i] = static_cast<std::int64_t>(d.within(kMaxGgufDimension, rule));
      if (d.equals(0)) throw InputError(rule());
      if (i == 0) row = d;
      numel = numel * d;
    }

    CheckedU64 type_read = in_.u32();
    const GgmlType* type =
        find_ggml_type(type_read.within(UINT32_MAX, [] { return std::string(); }));
    if (type == nullptr)
      throw InputError(fails(
          concat("unknown type ", type_read.str(), ": use a file of another, such as Q4_K_M")));
    if (!row.is_multiple_of(type->block_values))
      throw InputError(fails(concat("rows of ", row.str(), " values are not whole blocks of ",
                                    type->block_values, " (", type->name, ")")));
    CheckedU64 bytes = numel / type->block_values * CheckedU64(type->block_bytes);
    CheckedU64 offset = in_.u64();
    auto in_file = [&](CheckedU64 n) {
      return n.within(file_.size(),
                      [&] { return fails("its " + bytes.str() + " bytes are not in the file"); });
    };
    const std::uint64_t size = in_file(bytes), place = in_file(expected_);
    if (!offset.equals(place))
      throw InputError(fails(concat("its data starts at ", offset.str(), "; ", place,
                                    " is where the tensor before it ends")));

    auto [entry, is_new] = header_.tensors.try_emplace(std::move(name));
    if (!is_new) throw InputError(fails("occurs twice"));
    // The tensor lies in the file, so the number of its elements can't overflow.
    entry->second = {row_major(rank, dims), type, place, size};
    expected_ = (expected_ + bytes).padded_to(alignment_);
  }

  static Shape row_major(std::uint64_t rank, const std::array<std::int64_t, 4>& ne) {
    switch (rank) {
      case 1:
        return {ne[0]};
      case 2:
        return {ne[1], ne[0]};
      case 3:
        return {ne[2], ne[1], ne[0]};
      default:
        return {ne[3], ne[2], ne[1], ne[0]};
    }
  }

  // Offsets count from the data's start, which is known once the header has been read.
  void place_tensors() {
    CheckedU64 data = CheckedU64(in_.position()).padded_to(alignment_), end = data + expected_;
    const bool no_data = header_.tensors.empty() && in_.remaining() == 0;  // nothing to pad for
    if (!end.equals(file_.size()) && !no_data)
      throw InputError(concat(
          file_.path(), ": byte ", file_.size(), ": the file ends here, but its tensors end at ",
          end.str(), end.at_most(file_.size()) ? " (something follows them)" : " (cut short?)"));
    for (auto& [name, tensor] : header_.tensors) {
      CheckedU64 begin = data + CheckedU64(tensor.offset);
      tensor.offset = begin.within(file_.size(), [&] { return file_.path() + ": data offset"; });
    }
  }

  const InputFile& file_;
  Reader in_;
  GgufHeader header_;
  std::uint64_t n_strings_ = 0, alignment_ = 32;
  CheckedU64 expected_{0};  // where the next tensor must start, from the data's start
};

}  // namespace

const char* gguf_type_name(GgufType type) {
  return kValueTypes[static_cast<std::size_t>(type)].name;
}

bool is_integer(GgufType type) {
  switch (type) {
    case GgufType::F32:
    case GgufType::F64:
    case GgufType::Bool:
    case GgufType::String:
    case GgufType::Array:
      return false;
    default:
      return true;
  }
}

GgufHeader parse_gguf(const InputFile& file) { return GgufParser(file).parse(); }

}  // namespace lk
