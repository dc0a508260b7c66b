// safetensors: hostile files (the cases S and X), round trips, and bytes equal to the reference's.
#include <sys/resource.h>
#include <sys/stat.h>

#include <chrono>
#include <cmath>
#include <string>

#include "harness.h"
#include "hostile.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "tensor_file.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kGolden = std::string(LK_TEST_DATA) + "/golden/";

void refuses(const std::string& what, const std::string& bytes,
             std::initializer_list<std::string> parts) {
  refuses_file<SafetensorsFile>(what, bytes, parts);
}
void refuses_header(const std::string& what, const std::string& header,
                    std::initializer_list<std::string> parts, std::size_t data = 0) {
  refuses(what, safetensors_bytes(header, std::string(data, '\0')), parts);
}
// One tensor "w"; `data` bytes follow.
void refuses_tensor(const std::string& what, const std::string& dtype, const std::string& shape,
                    const std::string& offsets, std::size_t data,
                    std::initializer_list<std::string> parts) {
  INFO(shape, offsets);
  refuses_header(what, "{" + entry("w", dtype, shape, offsets) + "}", parts, data);
}
void accepts(const std::string& what, const std::string& header, std::size_t data = 0) {
  accepts_file<SafetensorsFile>(what, safetensors_bytes(header, std::string(data, '\0')));
}

}  // namespace

TEST_CASE("safetensors: a good file") {
  ScratchFolder folder;
  SafetensorsFile f(folder.write("m.safetensors", good_safetensors()));
  CHECK(f.names() == std::vector<std::string>{"a", "b"});
  CHECK(f.has("a"));
  CHECK(!f.has("__metadata__"));
  CHECK(f.shape("b") == Shape{2, 2});
  CHECK(f.stored_type("b") == "F32");
  CHECK(f.metadata().at("format") == "pt");
  CHECK(read_all(f, "a") == std::vector<float>{1, 2});
  CHECK(read_all(f, "b") == std::vector<float>{3, 4, 5, 6});
  float row[2];
  f.read_rows("b", 1, 2, row);
  CHECK(row[0] == 5);
  CHECK(row[1] == 6);
  f.read_rows("b", 1, 1, nullptr);
  CHECK_THROWS_AS(f.read_rows("b", 1, 3, row), Error);
  CHECK_THROWS_AS(f.read_rows("b", -1, 1, row), Error);
  check_throws<InputError>("absent tensor", {"m.safetensors", "\"c\"", "missing"},
                           [&] { f.shape("c"); });
}

TEST_CASE("S1-S6: the frame") {
  refuses("S1", "", {"too short"});
  refuses("S2", std::string(7, '\0'), {"too short"});
  refuses("S3", raw(UINT64_MAX) + "{}", {"header of 18446744073709551615 bytes"});
  refuses("S3", raw(UINT64_MAX - 7) + "{}", {"header of"});
  refuses("S4", raw(std::uint64_t{(32u << 20) + 1}) + "{}", {"at most 33554432"});
  refuses("S5", raw(std::uint64_t{3}) + "{}", {"header of 3 bytes", "has 10"});
  refuses("S6", raw(std::uint64_t{0}), {"empty"});
  refuses("a pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
          {"git lfs pull"});
  refuses("a GGUF file by name", good_gguf().bytes(), {"is this a safetensors file?"});
}

TEST_CASE("S7-S14: the header's JSON") {
  refuses_header("S7", "{\"a\xff\":1}", {"UTF-8", "byte 3"});
  refuses_header("S8", "{\"a\xc0\xaf\":1}", {"UTF-8"});
  refuses_header("S9", "{\"w\":{\"dtype\":\"F32\"", {"too early"});
  refuses_header("S10", "[]", {"not a JSON object"});
  refuses_header("S10", "17", {"not a JSON object"});
  refuses_header("S11", "{}x", {"after the end"});
  refuses_header("S11", "{}{}", {"after the end"});
  refuses_header("S12", "\xef\xbb\xbf{}", {"byte order mark"});
  const std::string w = entry("w", "F32", "[1]", "[0,4]"),
                    later = entry("w", "F32", "[1]", "[4,8]");
  refuses_header("S13 same offsets", "{" + w + "," + w + "}", {"\"w\"", "twice"}, 4);
  refuses_header("S13 others", "{" + w + "," + later + "}", {"\"w\"", "twice"}, 8);
  refuses_header("S14", R"({"w":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                 {"\"w\"", "dtype", "twice"}, 4);
  refuses_header("S14", R"({"w":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})",
                 {"\"w\"", "shape", "twice"}, 4);
  refuses_header("missing", R"({"w":{"dtype":"F32","shape":[1]}})",
                 {"\"w\"", "data_offsets", "missing"});
  refuses_header("missing", R"({"w":{}})", {"\"w\"", "dtype", "missing"});
  refuses_header("not an object", R"({"w":7})", {"object"});
  refuses_header("metadata twice", R"({"__metadata__":{},"__metadata__":{}})",
                 {"__metadata__", "twice"});
  refuses_header("key twice", R"({"__metadata__":{"a":"1","a":"1"}})",
                 {"__metadata__", "\"a\"", "twice"});
}

TEST_CASE("S15-S19, S24-S26: one tensor's numbers") {
  refuses_tensor("S15", "F33", "[1]", "[0,4]", 4, {"\"w\"", "F33"});
  refuses_tensor("S15", "f32", "[1]", "[0,4]", 4, {"\"w\"", "f32"});
  for (const char* dim :
       {"-1", "1.0", "1e0", "18446744073709551616", "\"1\"", "null", "true", "[1]"})
    refuses_tensor("S16", "F32", "[" + std::string(dim) + "]", "[0,4]", 4, {"header", "byte"});
  refuses_tensor("S16", "F32", "[9223372036854775808]", "[0,4]", 4, {"\"w\"", "2^40"});
  refuses_tensor("S17", "F32", "[4294967296,4294967296]", "[0,0]", 0, {"\"w\"", "overflow"});
  refuses_tensor("S17", "F32", "[1099511627776,4194304]", "[0,0]", 0,
                 {"\"w\""});  // 2^62 values, 2^64 bytes
  refuses_tensor("S18", "F32", "[0,9223372036854775808,2]", "[0,0]", 0, {"\"w\"", "2^40"});
  refuses_tensor("S18", "F32", "[1099511627776,1099511627776,0]", "[0,0]", 0,
                 {"\"w\"", "overflow"});
  refuses_tensor("S19", "F32", "[1]", "[4,0]", 4, {"\"w\"", "data_offsets"});
  refuses_tensor("S19", "F32", "[1]", "[0]", 4, {"\"w\"", "data_offsets"});
  refuses_tensor("S19", "F32", "[1]", "[]", 4, {"\"w\"", "data_offsets"});
  refuses_tensor("S19", "F32", "[1]", "[0,4,8]", 4, {"\"w\"", "data_offsets"});
  refuses_tensor("offsets wrap", "F32", "[1]", "[18446744073709551612,18446744073709551615]", 4,
                 {"\"w\""});
  refuses_tensor("offsets wrap", "U8", "[1]", "[18446744073709551614,18446744073709551615]", 4,
                 {"\"w\""});
  refuses_tensor("S24", "F32", "[2]", "[0,4]", 4, {"\"w\"", "8 bytes", "4"});
  refuses_tensor("S24", "F32", "[1]", "[0,8]", 8, {"\"w\"", "4 bytes", "8"});
  refuses_tensor("S24 past the end", "F32", "[2]", "[0,8]", 4, {"\"w\"", "end of the file"});
  refuses_tensor("S25", "F4", "[3]", "[0,1]", 1, {"\"w\"", "whole number of bytes"});
  accepts("even F4", "{" + entry("w", "F4", "[4]", "[0,2]") + "}", 2);
  std::string ones = "[1";
  for (int i = 1; i < 10'000; ++i) ones += ",1";
  refuses_tensor("S26", "F32", ones + "]", "[0,4]", 4, {"\"w\"", "more than 8"});
  accepts("rank 8", "{" + entry("w", "F32", "[1,1,1,1,1,1,1,1]", "[0,4]") + "}", 4);
}

TEST_CASE("S20-S23: the layout") {
  auto two = [](const char* first, const char* second) {
    return "{" + entry("a", "F32", "[2]", first) + "," + entry("b", "F32", "[2]", second) + "}";
  };
  accepts("in order", two("[0,8]", "[8,16]"), 16);
  accepts("any order", two("[8,16]", "[0,8]"), 16);
  refuses_header("S20", two("[0,8]", "[4,12]"), {"\"b\"", "overlap"}, 12);
  refuses_header("S21", two("[0,8]", "[0,8]"), {"overlap"}, 8);
  refuses_header("S22 start", two("[8,16]", "[16,24]"), {"\"a\"", "gap"}, 24);
  refuses_header("S22 middle", two("[0,8]", "[12,20]"), {"\"b\"", "gap"}, 20);
  refuses_header("S23", two("[0,8]", "[8,16]"), {"133 bytes"}, 1 + 16);
  refuses_header("S23 no tensors", "{}", {"bytes"}, 1);
  accepts("nothing at all", "{}");
  accepts("only spaces after", "{}      ");
  accepts("space before", "  {}");
}

TEST_CASE("S27-S31: size, depth, names") {
  std::string many = "{";
  for (int i = 0; i < 300'000; ++i)
    many += (i ? "," : "") + entry(std::to_string(i), "F32", "[0]", "[0,0]");
  refuses_header("S27", many + "}", {"more than 200000"});
  std::string deep = R"({"w":{"x":)" + std::string(100'000, '[');
  refuses_header("S28", deep, {"64 levels"});
  refuses_header("S29", R"({"__metadata__":{"a":1}})", {"string"});
  refuses_header("S29", R"({"__metadata__":"a"})", {"object"});
  refuses_header("S29", R"({"__metadata__":{"a":null}})", {"string"});
  accepts(
      "unknown field",
      R"({"w":{"dtype":"F32","shape":[],"data_offsets":[0,4],"later":[1,"a",null,[],{"x":true}]}})",
      4);
  accepts("S30 NUL", "{" + entry("\\u0000", "F32", "[0]", "[0,0]") + "}");
  accepts("S30 path", "{" + entry("../../x", "F32", "[0]", "[0,0]") + "}");
  accepts("S30 empty", "{" + entry("", "F32", "[0]", "[0,0]") + "}");
  accepts("S30 1 MiB", "{" + entry(std::string(1 << 20, 'n'), "F32", "[0]", "[0,0]") + "}");
  refuses_header("S30 1 MiB, bad: the message stays short",
                 "{" + entry(std::string(1 << 20, 'n'), "F99", "[0]", "[0,0]") + "}",
                 {"nnn...", "F99"});
  refuses_header("S31", "{" + entry("\\ud800", "F32", "[0]", "[0,0]") + "}", {"surrogate"});
  refuses_header("terminal escapes stay out of messages",
                 "{" + entry("\\u001b[31m", "F99", "[0]", "[0,0]") + "}", {"\\x1b[31m"});
}

TEST_CASE("S36: things that are no files") {
  ScratchFolder folder;
  const std::string fifo = folder.file("fifo");
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  check_throws<InputError>("FIFO", {fifo, "regular"}, [&] { SafetensorsFile f(fifo); });
  check_throws<InputError>("folder", {folder.path(), "folder"},
                           [&] { SafetensorsFile f(folder.path()); });
  check_throws<InputError>("device", {"/dev/zero", "regular"},
                           [&] { SafetensorsFile f("/dev/zero"); });
  check_throws<InputError>("absent", {"none", "No such file"},
                           [&] { SafetensorsFile f(folder.file("none")); });
  check_throws<InputError>("NUL", {"NUL"}, [&] { SafetensorsFile f(std::string("a\0b", 3)); });
}

TEST_CASE("I2: cut at every byte, grown by one") {
  ScratchFolder folder;
  const std::string good = good_safetensors();
  for (std::size_t n = 0; n < good.size(); ++n) {
    INFO(n);
    std::string path = folder.write("cut", good.substr(0, n));
    CHECK_THROWS_AS(SafetensorsFile{path}, InputError);
  }
  for (char c : {'\0', ' ', '{'}) {
    std::string path = folder.write("grown", good + c);
    CHECK_THROWS_AS(SafetensorsFile{path}, InputError);
  }
}

TEST_CASE("I3: changed while it is read") {
  ScratchFolder folder;
  const std::string path = folder.write("m", good_safetensors());
  SafetensorsFile f(path);
  float v[4];
  std::filesystem::resize_file(path, good_safetensors().size() - 4);
  check_throws<InputError>("cut", {path, "\"b\""}, [&] { f.read_rows("b", 0, 2, v); });
  folder.write("m", good_safetensors());
  std::filesystem::last_write_time(
      path, std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
  check_throws<InputError>("rewritten", {path, "changed"}, [&] { f.read_rows("a", 0, 1, v); });
}

TEST_CASE("safetensors: dtypes as the reference library has them") {
  SafetensorsFile f(kGolden + "io_dtypes.safetensors");
  CHECK(f.metadata().at("who") == "torch");
  for (const char* name : {"f64", "f32", "f16", "bf16"}) {
    INFO(name);
    CHECK(read_all(f, name) == read_all(f, std::string(name) + ".as_f32"));
    std::vector<float> last(5), all = read_all(f, name);
    f.read_rows(name, 2, 3, last.data());
    CHECK(last == std::vector<float>(all.end() - 5, all.end()));
  }
  CHECK(f.shape("scalar").rank() == 0);
  CHECK(read_all(f, "scalar") == std::vector<float>{2.5f});
  CHECK(f.shape("empty") == Shape{0, 4});
  CHECK(read_all(f, "empty").empty());
  check_throws<InputError>("rank 5", {"io_dtypes", "\"rank5\"", "5 dimensions"},
                           [&] { f.shape("rank5"); });
  float v[3];
  check_throws<InputError>("ids", {"io_dtypes", "\"ids\"", "I64"},
                           [&] { f.read_rows("ids", 0, 1, v); });
  check_throws<InputError>("mask", {"\"mask\"", "BOOL"}, [&] { f.read_rows("mask", 0, 1, v); });
}

TEST_CASE("safetensors: written bytes are the reference writer's") {
  ScratchFolder folder;
  const std::string path = folder.file("w.safetensors");
  write_safetensors(
      path,
      {{"b.weight", {2, 3}, {0, 1, 2, 3, 4, 5}}, {"c\"\\\n", {0, 2}, {}}, {"a.ü", {1}, {1.5f}}},
      {{"format", "pt"}});
  CHECK(slurp(path) == slurp(kGolden + "io_written.safetensors"));
  CHECK(folder.names() == std::vector<std::string>{"w.safetensors"});
}

TEST_CASE("safetensors: write and read back") {
  ScratchFolder folder;
  const std::string path = folder.file("w.safetensors");
  std::vector<float> big(100'003);
  for (std::size_t i = 0; i < big.size(); ++i) big[i] = std::sin(static_cast<float>(i));
  std::vector<SafetensorsEntry> tensors = {
      {"z", {}, {7}}, {"big", {100'003}, big}, {"empty", {3, 0}, {}}};
  write_safetensors(path, tensors, {{"k", "v\n\"é"}});
  SafetensorsFile f(path);
  CHECK(f.metadata().at("k") == "v\n\"é");
  for (const SafetensorsEntry& t : tensors) {
    CHECK(f.shape(t.name) == t.shape);
    CHECK(read_all(f, t.name) == t.values);
  }
  write_safetensors(path, {}, {});
  CHECK(SafetensorsFile(path).names().empty());
}

TEST_CASE("safetensors: what is not written") {
  ScratchFolder folder;
  const std::string path = folder.write("w.safetensors", "old");
  for (float bad : {NAN, INFINITY, -INFINITY})
    check_throws<NonFiniteError>("non-finite", {path, "\"x\"", "value 1"}, [&] {
      write_safetensors(path, {{"x", {2}, {1, bad}}}, {});
    });
  CHECK_THROWS_AS(write_safetensors(path, {{"x", {2}, {1}}}, {}), Error);
  CHECK_THROWS_AS(write_safetensors(path, {{"x", {1}, {1}}, {"x", {1}, {1}}}, {}), Error);
  CHECK_THROWS_AS(write_safetensors(path, {{"__metadata__", {1}, {1}}}, {}), Error);
  CHECK_THROWS_AS(write_safetensors(path, {{"\xff", {1}, {1}}}, {}), UsageError);
  CHECK_THROWS_AS(write_safetensors(folder.file("none/w"), {}, {}), IoError);
  CHECK(slurp(path) == "old");
  CHECK(folder.names().size() == 1);
}

// ---- sharded folders --------------------------------------------------------------------------
namespace {

std::string shard_with(const std::string& name, float value) {
  return safetensors_bytes("{" + entry(name, "F32", "[1]", "[0,4]") + "}", raw(value));
}

// A folder "m" with two shards: a in s1, b in s2; the index is the test's.
struct Sharded {
  ScratchFolder root;
  std::string folder = root.file("m");
  Sharded() {
    std::filesystem::create_directory(folder);
    root.write("m/s1", shard_with("a", 1));
    root.write("m/s2", shard_with("b", 2));
  }
  void index(const std::string& map, const std::string& metadata = R"({"total_size":8})") const {
    root.write("m/model.safetensors.index.json",
               "{\"metadata\":" + metadata + ",\"weight_map\":" + map + "}");
  }
  void refuses(const std::string& what, std::initializer_list<std::string> parts) const {
    check_throws<InputError>(what, parts, [&] { open_safetensors_model(folder); });
  }
};

}  // namespace

TEST_CASE("sharded model: a good folder") {
  Sharded s;
  s.index(R"({"a":"s1","b":"s2"})");
  auto model = open_safetensors_model(s.folder);
  CHECK(model->names() == std::vector<std::string>{"a", "b"});
  CHECK(read_all(*model, "a") == std::vector<float>{1});
  CHECK(read_all(*model, "b") == std::vector<float>{2});
  CHECK(model->stored_type("b") == "F32");
  check_throws<InputError>("absent", {"index.json", "\"c\""}, [&] { model->shape("c"); });
  s.root.write("m/model.safetensors", shard_with("single", 3));
  CHECK(open_safetensors_model(s.folder)->names() == std::vector<std::string>{"single"});
  ScratchFolder empty;
  check_throws<InputError>("nothing there", {empty.path(), "model.safetensors"},
                           [&] { open_safetensors_model(empty.path()); });
}

TEST_CASE("X: hostile indexes") {
  Sharded s;
  s.root.write("outside", shard_with("b", 2));
  const std::string index = "model.safetensors.index.json";
  s.index(R"({"a":"s1","b":"../outside"})");
  s.refuses("X1", {index, "../outside", "same folder"});
  s.index(R"({"a":"s1","b":")" + s.root.file("outside") + "\"}");
  s.refuses("X2", {index, "same folder"});
  for (const char* name : {"", ".", "..", "s1\\u0000", "m/s1"}) {
    s.index(R"({"a":")" + std::string(name) + "\"}");
    s.refuses(name, {index, "same folder"});
  }
  std::filesystem::create_symlink(s.root.file("outside"), s.folder + "/link");
  s.index(R"({"a":"s1","b":"link"})");
  s.refuses("X3", {index, "\"link\"", "out of the model's folder"});
  s.index(R"({"a":"s1","b":"s3"})");
  s.refuses("X4", {index, "\"s3\"", "No such file"});
  s.index(R"({"a":"s1","b":"s2","c":"s2"})");
  s.refuses("X5", {index, "\"c\"", "\"s2\""});
  s.root.write("m/s2", safetensors_bytes("{" + entry("b", "F32", "[1]", "[0,4]") + "," +
                                             entry("d", "F32", "[1]", "[4,8]") + "}",
                                         std::string(8, '\0')));
  s.index(R"({"a":"s1","b":"s2"})");
  s.refuses("X5 reverse", {index, "\"d\"", "missing"});
  s.root.write("m/s2", safetensors_bytes("{" + entry("a", "F32", "[1]", "[0,4]") + "," +
                                             entry("b", "F32", "[1]", "[4,8]") + "}",
                                         std::string(8, '\0')));
  s.refuses("X6", {index, "\"a\"", "one file"});
  s.root.write("m/s2", shard_with("b", 2));
  s.index(R"({"a":"s1","b":"s2"})", R"({"total_size":-5})");
  CHECK_NOTHROW(
      open_safetensors_model(s.folder));  // X7: total_size carries no information and is not used
  std::string many = "{";
  for (int i = 0; i < 20'000; ++i)
    many += (i ? ",\"" : "\"") + std::to_string(i) + "\":\"" + std::to_string(i) + "\"";
  s.index(many + "}");
  s.refuses("X8", {index, "more than 10000"});
  s.index(R"({"a":"s1","b":"model.safetensors.index.json"})");
  s.refuses("X9", {index, "the index itself"});
  std::filesystem::create_directory(s.folder + "/d");
  s.index(R"({"a":"d"})");
  s.refuses("a folder as shard", {"d", "folder"});
  for (const char* map :
       {"{}", "[]", "7", R"({"a":7})", R"({"a":null})", R"({"a":"s1","a":"s2"})"}) {
    s.index(map);
    s.refuses(map, {index});
  }
}

TEST_CASE("more shards than files may be open") {
  Sharded s;
  std::string map;
  constexpr int kShards = 300;
  for (int i = 0; i < kShards; ++i) {
    const std::string name = "t" + std::to_string(i);
    s.root.write("m/" + name + ".safetensors", shard_with(name, static_cast<float>(i)));
    map += (i ? ",\"" : "{\"") + name + "\":\"" + name + ".safetensors\"";
  }
  s.index(map + "}");
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  rlimit few = before;
  few.rlim_cur = 64;
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &few) == 0);
  const auto model = open_safetensors_model(s.folder);
  CHECK(read_all(*model, "t0") == std::vector<float>{0});
  CHECK(read_all(*model, "t299") == std::vector<float>{299});
  // A file that is opened again must be the file of the first time, though this one looks like it.
  s.root.write("m/other", shard_with("t7", 7));
  std::filesystem::rename(s.folder + "/other", s.folder + "/t7.safetensors");
  check_throws<InputError>("replaced", {"t7.safetensors", "changed while it was read"},
                           [&] { read_all(*model, "t7"); });
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
}

TEST_CASE("a folder with weights in pickle files only says so") {
  ScratchFolder folder;
  folder.write("pytorch_model.bin", "");
  check_throws<InputError>("pickle", {folder.path(), "pytorch_model.bin", "safetensors"},
                           [&] { open_safetensors_model(folder.path()); });
}

TEST_CASE("I4: links as a hub's cache and people lay them") {
  Sharded s;
  s.index(R"({"a":"s1","b":"s2"})");
  // The hub's cache: snapshots/REV/NAME -> ../../blobs/HASH, the index too.
  namespace stdfs = std::filesystem;
  const std::string cache = s.root.file("cache"), rev = cache + "/snapshots/rev";
  stdfs::create_directories(rev);
  stdfs::rename(s.folder, cache + "/blobs");
  for (const char* name : {"s1", "s2", "model.safetensors.index.json"})
    stdfs::create_symlink(stdfs::path("../../blobs") / name, stdfs::path(rev) / name);
  CHECK(read_all(*open_safetensors_model(rev), "b") == std::vector<float>{2});
  // A link to the folder, and a folder of links to it.
  stdfs::create_directory_symlink(rev, s.root.file("alias"));
  CHECK(read_all(*open_safetensors_model(s.root.file("alias")), "a") == std::vector<float>{1});
  // A link that goes somewhere else is refused, though the others are fine.
  stdfs::remove(rev + "/s2");
  s.root.write("elsewhere", shard_with("b", 2));
  stdfs::create_symlink(s.root.file("elsewhere"), rev + "/s2");
  check_throws<InputError>("elsewhere", {"\"s2\"", "out of the model's folder"},
                           [&] { open_safetensors_model(rev); });
}
