// TensorBoard's event files: framing and messages equal those of its own writer byte for byte
// (golden/make_event_golden.py).
#include <filesystem>

#include "harness.h"
#include "io/input_file.h"
#include "io/tfevents.h"
#include "scratch_folder.h"

using namespace lk;
namespace stdfs = std::filesystem;

TEST_CASE("CRC-32C of the published vectors") {
  // RFC 3720, B.4, and the check value of the CRC catalogues.
  CHECK(crc32c("") == 0);
  CHECK(crc32c("123456789") == 0xE3069283);
  CHECK(crc32c(std::string(32, '\0')) == 0x8A9136AA);
  CHECK(crc32c(std::string(32, '\xFF')) == 0x62A8AB43);
  std::string rising;
  for (char c = 0; c < 32; ++c) rising += c;
  CHECK(crc32c(rising) == 0x46DD794E);
}

TEST_CASE("event records are TensorBoard's own, byte for byte") {
  const std::string golden = read_file(std::string(LK_TEST_DATA) + "/golden/tfevents.bin", 4096);
  CHECK(tfrecord(version_event(1700000000.25)) +
            tfrecord(scalar_event(1700000001.5, 300, {{"loss", 2.5}, {"lr", 1e-4}})) +
            tfrecord(restart_event(1700000002, 7)) +
            tfrecord(text_event(1700000003, 40, "samples/1", "say **h\u00e9llo**\n")) ==
        golden);
}

TEST_CASE("text that is not UTF-8 is repaired, and Markdown can't read it as its own") {
  CHECK(text_event(0, 1, "a\xFF", "\xE4\xBD") == text_event(0, 1, "a\uFFFD", "\uFFFD\uFFFD"));
  CHECK(markdown_verbatim("# a\n\n<b>") == "\n    # a\n    \n    <b>\n");
}

TEST_CASE("an event file begins with the version, and with a restart if the run goes on") {
  const test::ScratchFolder folder;
  const std::size_t version = tfrecord(version_event(0)).size();
  {
    EventFile fresh(folder.path(), 1);
    fresh.flush();
    CHECK(stdfs::path(fresh.path()).filename().string().starts_with("events.out.tfevents."));
    CHECK(read_file(fresh.path(), 4096).size() == version);
    fresh.add(1, {{"loss", 1.0}});
    CHECK(read_file(fresh.path(), 4096).size() ==
          version + tfrecord(scalar_event(0, 1, {{"loss", 1.0}})).size());
    stdfs::remove(fresh.path());
    EventFile resumed(folder.path(), 5);
    CHECK(read_file(resumed.path(), 4096).size() == version + tfrecord(restart_event(0, 5)).size());
  }
  CHECK_THROWS_AS(EventFile(folder.file("none"), 1), IoError);
}
