// Strict JSON: what is refused, what is kept exactly, and how errors name the place.
#include <cmath>
#include <string>

#include "harness.h"
#include "hostile.h"
#include "io/checked.h"
#include "io/json.h"
#include "io/printable.h"

using namespace lk;
using test::check_throws;

namespace {
Json parse(const std::string& text) { return parse_json(text, "f.json"); }
void refuses(const std::string& text, std::initializer_list<std::string> parts) {
  check_throws<InputError>(text.substr(0, 60), parts, [&] { parse(text); });
}
}  // namespace

TEST_CASE("json: values of every kind") {
  Json j = parse(" {\"a\": [1, -2, 3.5, true, false, null, \"x\"], \"b\": {}, \"\": []} \r\n\t");
  CHECK(j["a"].size() == 7);
  CHECK(j["a"][0].get<int>() == 1);
  CHECK(j["a"][1].get<int>() == -2);
  CHECK(j["a"][2].get<double>() == 3.5);
  CHECK(j["a"][3].get<bool>() == true);
  CHECK(j["a"][5].is_null());
  CHECK(j["b"].empty());
  CHECK(j[""].is_array());
  CHECK(parse("7").get<int>() == 7);
  CHECK(parse("\"s\"").get<std::string>() == "s");
}

TEST_CASE("json: the same values as nlohmann's own parser") {
  for (const char* text :
       {"0", "-0", "0.0", "-0.0", "1e5", "1E+5", "1.25e-3", "18446744073709551615",
        "-9223372036854775808", "5e-324", "1.7976931348623157e308", "[[],{}]", "{\"b\":1,\"a\":2}",
        "\"\\u00e9\\ud83d\\ude00\\n\\/\\\"\\\\\\b\\f\\r\\t\"", "\"é😀\"", "\"\\u0000\"", "0.1",
        "123456789012345678", "3.141592653589793"}) {
    CHECK_MESSAGE(parse(text) == Json::parse(text), text);
    CHECK_MESSAGE(parse(text).type() == Json::parse(text).type(), text);
  }
  CHECK(std::signbit(parse("-0.0").get<double>()));
}

TEST_CASE("json: integers are exact") {
  CHECK(parse("18446744073709551615").get<std::uint64_t>() == UINT64_MAX);
  CHECK(parse("-9223372036854775808").get<std::int64_t>() == INT64_MIN);
  CHECK(parse("9007199254740993").get<std::uint64_t>() == 9007199254740993u);
  // Hugging Face's model_max_length is 10^30: kept as a double, never taken for an integer.
  for (const char* big :
       {"18446744073709551616", "-9223372036854775809", "1000000000000000019884624838656"}) {
    Json j = parse_json(std::string("{\"n\":") + big + "}", "f.json");
    CHECK(j["n"].is_number_float());
    CHECK_THROWS_AS(json_int(j, "n", INT64_MIN, INT64_MAX, "f.json"), InputError);
    // A row's might be printed again, as another number.
    CHECK_THROWS_WITH_AS(
        parse_row_json(std::string("{\"n\": ") + big + "}", "rows.jsonl:7"),
        "rows.jsonl:7: byte 6: an integer of more than 64 bits: write it in quotes", InputError);
    CHECK(parse_row_json("18446744073709551615", "r").get<std::uint64_t>() == UINT64_MAX);
  }
}

TEST_CASE("json: numbers out of range or out of grammar") {
  refuses("1e999", {"range"});
  refuses("-1e999", {"range"});
  refuses("1e-999", {"range"});
  for (const char* bad : {"01", "-", "-a", "1.", ".5", "1e", "1e+", "+1", "0x10", "NaN", "Infinity",
                          "-Infinity", "1_000", "--1", "1.e5", "00"})
    refuses(bad, {"f.json"});
}

TEST_CASE("json: strict UTF-8 and escapes") {
  refuses("\"\xff\"", {"byte 1", "UTF-8"});
  refuses("\"a\xc0\xaf\"", {"byte 2", "UTF-8"});  // overlong slash
  refuses("\"\xe0\x80\xaf\"", {"UTF-8"});         // overlong, three bytes
  refuses("\"\xed\xa0\x80\"", {"UTF-8"});         // a surrogate
  refuses("\"\xf4\x90\x80\x80\"", {"UTF-8"});     // over U+10FFFF
  refuses("\"\xf0\x8f\xbf\xbf\"", {"UTF-8"});     // overlong, four bytes
  refuses("\"\xe2\x82\"", {"UTF-8"});             // cut
  refuses("{\"\xff\": 1}", {"UTF-8"});
  refuses("\"\\ud800\"", {"byte 1", "surrogate"});
  refuses("\"\\ud800x\"", {"surrogate"});
  refuses("\"\\ud800\\n\"", {"surrogate"});
  refuses("\"\\ud800\\ud800\"", {"surrogate"});
  refuses("\"\\udc00\"", {"surrogate"});
  refuses("\"\\u12g4\"", {"hexadecimal"});
  refuses("\"\\u+123\"", {"hexadecimal"});
  refuses("\"\\u12\"", {"hexadecimal"});
  refuses("\"\\x41\"", {"escape"});
  refuses("\"a\nb\"", {"control"});
  refuses(std::string("\"a\0b\"", 5), {"control"});
  refuses("\xef\xbb\xbf{}", {"byte order mark"});
  CHECK(parse("\"\\ud83d\\ude00\"").get<std::string>() == "😀");
  CHECK(parse("\"\xf4\x8f\xbf\xbf\"").get<std::string>() == "\xf4\x8f\xbf\xbf");
  CHECK(parse("\"\\u0000\"").get<std::string>() == std::string(1, '\0'));
}

TEST_CASE("json: duplicate keys, also when written differently") {
  refuses("{\"a\":1,\"b\":2,\"a\":3}", {"\"a\"", "twice"});
  refuses("{\"x\":{\"a\":1,\"\\u0061\":1}}", {"\"a\"", "twice"});
  CHECK(parse("[{\"a\":1},{\"a\":2}]").size() == 2);
}

TEST_CASE("json: depth") {
  auto nested = [](std::size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  CHECK_NOTHROW(parse(nested(64)));
  refuses(nested(65), {"byte 64", "64 levels"});
  refuses(std::string(100'000, '['), {"64 levels"});
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  refuses(objects, {"64 levels"});
}

TEST_CASE("json: broken texts, and where") {
  refuses("", {"f.json", "empty"});
  refuses("  ", {"too early"});
  refuses("{} {}", {"byte 3", "after the end"});
  refuses("{\"a\":1}x", {"byte 7"});
  refuses("[1,]", {"comma"});
  refuses("{\"a\":1,}", {"comma"});
  refuses("[1 2]", {"','"});
  refuses("{\"a\" 1}", {"':'", "\"a\""});
  refuses("{a:1}", {"key"});
  refuses("{1:1}", {"key"});
  refuses("[1", {"too early"});
  refuses("{", {"too early"});
  refuses("[}", {"byte 1"});
  refuses("\"abc", {"inside a string"});
  refuses("\"abc\\", {"inside a string"});
  refuses("tru", {"true"});
  refuses("nul", {"null"});
  refuses("// c\n1", {"byte 0"});
  refuses("'a'", {"byte 0"});
  refuses("{\n\n \"a\": @}", {"byte 9", "line 3"});
  refuses("\x1f\x8b\x08", {"byte 0", "\\x1f"});
}

TEST_CASE("json: truncated anywhere is refused") {
  const std::string text =
      "{\"a\":[1,2.5e3,\"x\\u00e9\\ud83d\\ude00é\"],\"b\":{\"c\":null,\"d\":true}}";
  REQUIRE_NOTHROW(parse(text));
  for (std::size_t n = 0; n < text.size(); ++n)
    CHECK_THROWS_AS(parse_json(std::string_view(text).substr(0, n), "f.json"), InputError);
}

TEST_CASE("json: values that need far more memory than their text are refused") {
  std::string text = "[";
  for (int i = 0; i < 4'000'000; ++i) text += "[],";
  refuses(text + "[]]", {"too many values"});
}

TEST_CASE("json: a tokenizer's size in time") {
  // Like a tokenizer.json of 128,000 tokens and 280,000 merges: 11 MB.
  std::string text = "{\"vocab\":{";
  for (int i = 0; i < 128'000; ++i)
    text += (i ? ",\"" : "\"") + std::to_string(i * 7919 % 1'000'003) +
            "\xc4\xa0tok\":" + std::to_string(i);
  text += "},\"merges\":[";
  for (int i = 0; i < 280'000; ++i)
    text += std::string(i ? "," : "") + "[\n      \"\xc4\xa0" + std::to_string(i) +
            "\",\n      \"ab\"\n    ]";
  text += "]}";
  const test::CpuClock clock;
  Json j = parse(text);
  CHECK_MESSAGE(clock.within(2), (text.size() / 1000000), " MB in ", clock.seconds(), " s");
  CHECK(j["merges"].size() == 280'000);
}

TEST_CASE("json: checked access names file and key") {
  Json j = parse(
      "{\"n\":7,\"neg\":-1,\"big\":18446744073709551615,\"x\":1.5,\"s\":\"t\",\"b\":true,\"z\":"
      "null}");
  CHECK(json_int(j, "n", 1, 10, "c.json") == 7);
  CHECK(json_int_or(j, "absent", 3, 1, 10, "c.json") == 3);
  CHECK(json_number(j, "n", "c.json") == 7.0);
  CHECK(json_number_or(j, "absent", 0.5, "c.json") == 0.5);
  CHECK(json_string(j, "s", "c.json") == "t");
  CHECK(json_string_or(j, "absent", "d", "c.json") == "d");
  CHECK(json_bool_or(j, "b", false, "c.json"));
  CHECK(json_bool_or(j, "absent", true, "c.json"));
  auto refused = [&](std::initializer_list<std::string> parts, auto f) {
    check_throws<InputError>("access", parts, f);
  };
  refused({"c.json: absent: missing"}, [&] { json_at(j, "absent", "c.json"); });
  refused({"c.json: n: ", "between 8 and 10", "7"}, [&] { json_int(j, "n", 8, 10, "c.json"); });
  refused({"c.json: neg: "}, [&] { json_int(j, "neg", 0, 10, "c.json"); });
  refused({"c.json: big: ", "18446744073709551615"},
          [&] { json_int(j, "big", INT64_MIN, INT64_MAX, "c.json"); });
  refused({"c.json: x: ", "1.5"}, [&] { json_int(j, "x", 0, 10, "c.json"); });
  refused({"c.json: s: ", "\"t\""}, [&] { json_int_or(j, "s", 0, 0, 10, "c.json"); });
  refused({"c.json: z: ", "null"}, [&] { json_int_or(j, "z", 0, 0, 10, "c.json"); });
  refused({"c.json: s: "}, [&] { json_number(j, "s", "c.json"); });
  refused({"c.json: n: "}, [&] { json_string(j, "n", "c.json"); });
  refused({"c.json: n: "}, [&] { json_bool_or(j, "n", true, "c.json"); });
  refused({"c.json: ", "object"}, [&] { json_int_or(parse("[1]"), "n", 0, 0, 1, "c.json"); });
}

TEST_CASE("json: files") {
  test::ScratchFolder folder;
  CHECK(read_json(folder.write("ok.json", "{\"a\":1}"))["a"] == 1);
  std::string big = folder.write("big.json", "[" + std::string(100, ' ') + "]");
  check_throws<InputError>("over the limit", {big, "102 bytes", "50"}, [&] { read_json(big, 50); });
  check_throws<InputError>("absent", {"none.json", "No such file"},
                           [&] { read_json(folder.file("none.json")); });
  check_throws<InputError>("folder", {folder.path(), "folder"}, [&] { read_json(folder.path()); });
}

TEST_CASE("printable: messages carry no control characters") {
  CHECK(printable("abc") == "\"abc\"");
  CHECK(printable("a\"\\") == "\"a\\\"\\\\\"");
  CHECK(printable("\x1b[31m\n\xff") == "\"\\x1b[31m\\x0a\\xff\"");
  CHECK(printable(std::string(1 << 20, 'x')).size() == 85);
}

TEST_CASE("what goes to a terminal keeps its characters and loses its control bytes") {
  CHECK(without_controls("caf\xC3\xA9 \xF0\x9F\xA6\x9C\ta\nb", Lines::Several) ==
        "caf\xC3\xA9 \xF0\x9F\xA6\x9C\ta\nb");
  CHECK(without_controls("a\nb", Lines::One) == "a\\x0ab");
  CHECK(without_controls("\x1b]0;title\x07\r\x7f", Lines::Several) ==
        "\\x1b]0;title\\x07\\x0d\\x7f");
  CHECK(without_controls("\xC2\x9B\x31m \xff\xC3", Lines::Several) == "\\xc2\\x9b1m \\xff\\xc3");
  CHECK(without_controls(std::string_view("\0", 1), Lines::Several) == "\\x00");
}

TEST_CASE("checked integers never wrap") {
  using C = CheckedU64;
  CHECK((C(3) * C(4) + C(5)).equals(17));
  CHECK((C(7) - C(7)).equals(0));
  CHECK(C(33).padded_to(32).equals(64));
  CHECK(C(64).padded_to(32).equals(64));
  CHECK(C(0).padded_to(32).equals(0));
  for (C bad :
       {C(UINT64_MAX) + C(1), C(1) - C(2), C(std::uint64_t{1} << 32) * C(std::uint64_t{1} << 32),
        C(UINT64_MAX - 3).padded_to(32), C(5) / 0}) {
    CHECK(!bad.at_most(UINT64_MAX));
    CHECK(!bad.equals(0));
    CHECK(!bad.is_multiple_of(1));
    CHECK(!(bad * C(0)).equals(0));  // once invalid, always
    CHECK(!(bad + C(1)).at_most(UINT64_MAX));
    CHECK(!(bad - bad).at_most(UINT64_MAX));
    CHECK(!(bad / 2).at_most(UINT64_MAX));
    CHECK(!bad.padded_to(1).at_most(UINT64_MAX));
    CHECK_THROWS_AS(bad.within(UINT64_MAX, [] { return std::string("m"); }), InputError);
  }
  // Raw arithmetic on a number from a file does not compile.
  static_assert(!std::is_convertible_v<C, std::uint64_t> &&
                !std::is_convertible_v<std::uint64_t, C>);
  static_assert(!std::is_constructible_v<std::uint64_t, C>);
}

TEST_CASE("an integer is made of a double only where it has one") {
  CHECK(to_integer(3.9, 0, 10) == 3);
  CHECK(to_integer(-3.9, -10, 10) == -3);
  CHECK(to_integer(10.5, 0, 10) == 10);
  CHECK(to_integer(-0x1p63, INT64_MIN, INT64_MAX) == INT64_MIN);
  for (double x : {11.0, -1.0, 9.3e18, 0x1p63, 1e300, -1e300, std::nan(""), HUGE_VAL, -HUGE_VAL})
    CHECK(!to_integer(x, 0, 10));
  CHECK(!to_integer(0x1p63, INT64_MIN, INT64_MAX));
}
