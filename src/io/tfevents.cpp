#include "io/tfevents.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>

#include "io/utf8.h"
#include "tensor/error.h"

namespace lk {
namespace {

constexpr std::array<std::uint32_t, 256> crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    table[byte] = crc;
  }
  return table;
}

template <class T>
void little_endian(std::string& out, T bits) {
  for (std::size_t i = 0; i < sizeof bits; ++i) out += static_cast<char>(bits >> 8 * i & 0xFF);
}

// Protobuf: a field is its number and kind, then the value; integers are base 128, low part first.
void varint(std::string& out, std::uint64_t value) {
  for (; value >= 128; value >>= 7) out += static_cast<char>(value | 128);
  out += static_cast<char>(value);
}
enum Kind : std::uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
void key(std::string& out, std::uint64_t field, Kind kind) { varint(out, field << 3 | kind); }

void bytes_field(std::string& out, std::uint64_t field, std::string_view bytes) {
  key(out, field, kBytes);
  varint(out, bytes.size());
  out += bytes;
}
void int_field(std::string& out, std::uint64_t field, std::int64_t value) {
  key(out, field, kVarint);
  varint(out, static_cast<std::uint64_t>(value));
}

// message Event { double wall_time = 1; int64 step = 2; string file_version = 3;
//                 Summary summary = 5; SessionLog session_log = 7; }
std::string event(double wall_time) {
  std::string out;
  key(out, 1, kFixed64);
  little_endian(out, std::bit_cast<std::uint64_t>(wall_time));
  return out;
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string new_path(const std::string& folder) {
  char host[256] = "host";
  if (::gethostname(host, sizeof host - 1) != 0 || host[0] == '\0') host[0] = 'h', host[1] = '\0';
  return concat(folder, "/events.out.tfevents.", static_cast<std::int64_t>(now()), ".", host, ".",
                ::getpid());
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<std::uint32_t, 256> kTable = crc_table();
  std::uint32_t crc = 0xFFFFFFFF;
  for (char c : bytes) crc = crc >> 8 ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  return ~crc;
}

std::uint32_t masked_crc32c(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xA282EAD8u;
}

std::string tfrecord(std::string_view data) {
  std::string out;
  little_endian(out, std::uint64_t{data.size()});
  little_endian(out, masked_crc32c(out));
  out += data;
  little_endian(out, masked_crc32c(data));
  return out;
}

std::string version_event(double wall_time) {
  std::string out = event(wall_time);
  bytes_field(out, 3, "brain.Event:2");
  return out;
}

// message Summary { repeated Value value = 1; }  Value { string tag = 1; float simple_value = 2; }
std::string scalar_event(double wall_time, std::int64_t step, const Scalars& scalars) {
  std::string summary;
  for (const auto& [tag, number] : scalars) {
    std::string value;
    bytes_field(value, 1, tag);
    key(value, 2, kFixed32);
    little_endian(value, std::bit_cast<std::uint32_t>(static_cast<float>(number)));
    bytes_field(summary, 1, value);
  }
  std::string out = event(wall_time);
  int_field(out, 2, step);
  bytes_field(out, 5, summary);
  return out;
}

// Value { string tag = 1; TensorProto tensor = 8; SummaryMetadata metadata = 9; }
// TensorProto { DataType dtype = 1; TensorShapeProto tensor_shape = 2; repeated bytes string_val = 8; }
// TensorShapeProto { repeated Dim dim = 2; }  Dim { int64 size = 1; }
// SummaryMetadata { PluginData plugin_data = 1; }  PluginData { string plugin_name = 1; }
std::string text_event(double wall_time, std::int64_t step, std::string_view tag,
                       std::string_view text) {
  constexpr std::int64_t kString = 7;  // DT_STRING
  std::string dim, shape, tensor, plugin, metadata, value, summary;
  int_field(dim, 1, 1);
  bytes_field(shape, 2, dim);
  int_field(tensor, 1, kString);
  bytes_field(tensor, 2, shape);
  bytes_field(tensor, 8, utf8_repaired(text));
  bytes_field(plugin, 1, "text");
  bytes_field(metadata, 1, plugin);
  bytes_field(value, 1, utf8_repaired(tag));
  bytes_field(value, 8, tensor);
  bytes_field(value, 9, metadata);
  bytes_field(summary, 1, value);
  std::string out = event(wall_time);
  int_field(out, 2, step);
  bytes_field(out, 5, summary);
  return out;
}

// message SessionLog { SessionStatus status = 1; }  START = 1
std::string restart_event(double wall_time, std::int64_t step) {
  std::string start;
  int_field(start, 1, 1);
  std::string out = event(wall_time);
  int_field(out, 2, step);
  bytes_field(out, 7, start);
  return out;
}

std::string markdown_verbatim(std::string_view text) {
  std::string out = "\n    ";
  for (const char c : text)
    out += c == '\n' || c == '\r' ? std::string("\n    ") : std::string(1, c);
  return out + "\n";
}

EventFile::EventFile(const std::string& folder, std::int64_t first_step) : log_(new_path(folder)) {
  log_.append_record(tfrecord(version_event(now())));
  if (first_step > 1) log_.append_record(tfrecord(restart_event(now(), first_step)));
}

void EventFile::add(std::int64_t step, const Scalars& scalars) {
  log_.append_record(tfrecord(scalar_event(now(), step, scalars)));
}

void EventFile::add_text(std::int64_t step, std::string_view tag, std::string_view text) {
  log_.append_record(tfrecord(text_event(now(), step, tag, text)));
}

}  // namespace lk
