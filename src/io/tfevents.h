// TensorBoard's event files: TFRecord frames around protobuf messages, written by hand.
// Sources: the TFRecord layout (length, masked CRC-32C of it, data, masked CRC-32C of it; little
// endian); tensorflow/core/util/event.proto, framework/summary.proto, tensor.proto and
// tensor_shape.proto for the fields; tensorboard/plugins/text for what its text tab shows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/durable.h"

namespace lk {

// CRC-32C (Castagnoli), reflected, as iSCSI and TFRecord use it.
std::uint32_t crc32c(std::string_view bytes);
// The CRC-32C as TFRecord stores it: rotated by 15 bits, plus a constant.
std::uint32_t masked_crc32c(std::string_view bytes);

// One frame of a TFRecord file.
std::string tfrecord(std::string_view data);

using Scalars = std::vector<std::pair<std::string, double>>;  // by tag; stored as floats
// Event messages: the version, with which every file begins; scalars of a step; a text of a step
// under a tag, shown as Markdown; and the mark that a run was resumed at `step`, at which readers
// forget what earlier files say of that step and later ones. What is not UTF-8 in tag and text
// becomes U+FFFD.
std::string version_event(double wall_time);
std::string scalar_event(double wall_time, std::int64_t step, const Scalars& scalars);
std::string text_event(double wall_time, std::int64_t step, std::string_view tag,
                       std::string_view text);
std::string restart_event(double wall_time, std::int64_t step);

// Text that Markdown shows as it is: a block of code.
std::string markdown_verbatim(std::string_view text);

// folder/events.out.tfevents.<seconds>.<host>.<process>: a new file each time that a run is started
// or resumed; readers show all files of a folder as one run. Each record is written at once,
// flush() makes them durable. All functions throw IoError.
class EventFile {
 public:
  // The next step to be added is `first_step`; above 1 the file begins with a restart.
  EventFile(const std::string& folder, std::int64_t first_step);
  const std::string& path() const { return log_.path(); }
  void add(std::int64_t step, const Scalars& scalars);  // stamped with the current time
  void add_text(std::int64_t step, std::string_view tag, std::string_view text);
  void flush() { log_.flush(); }

 private:
  AppendLog log_;
};

}  // namespace lk
