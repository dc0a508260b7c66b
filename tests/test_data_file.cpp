// Would catch: rows lost or joined at a border of two, a field read as something else, a pipe that
// gives other rows than the file.
#include "text/data_file.h"

#include <sys/stat.h>

#include <thread>

#include "dataset_fixture.h"
#include "harness.h"
#include "io/sha256.h"

using namespace lk;
using Fixture = test::DatasetFixture;

namespace {

struct Seen {
  std::vector<std::string> rows;  // "line: JSON"
  FileRead read;
};

Seen rows_of(const Fixture& f, const std::string& text, const std::string& name) {
  Seen seen;
  const ByteSource source(f.write(name, text));
  seen.read = for_each_raw_row(source, [&](RawRow&& row) {
    seen.rows.push_back(concat(row.line(), ": ", row.parse().dump()));
    return true;
  });
  return seen;
}

std::string failure(const Fixture& f, const std::string& text, const std::string& name) {
  try {
    rows_of(f, text, name);
  } catch (const InputError& e) {
    return e.what();
  }
  return "accepted";
}

using Rows = std::vector<std::string>;
const std::string kMark = "\xef\xbb\xbf";

}  // namespace

TEST_CASE("CSV: quotes, separators and line breaks in fields, CRLF, a byte order mark") {
  Fixture f;
  const Seen seen = rows_of(f,
                            kMark +
                                "prompt,\"completion\"\r\n"
                                "a,b\r\n"
                                "\"x, \"\"y\"\"\",\"two\nlines\"\r\n"
                                "\r\n"
                                ",\"\"\r\n"
                                "it's 5\" wide,\"\"\"\"",
                            "data.csv");
  CHECK(seen.read.container == "CSV");
  CHECK(seen.rows == Rows{R"(2: {"prompt":"a","completion":"b"})",
                          R"(3: {"prompt":"x, \"y\"","completion":"two\nlines"})",
                          R"(6: {"prompt":"","completion":""})",
                          R"(7: {"prompt":"it's 5\" wide","completion":"\""})"});
  CHECK(rows_of(f, "text\nhello\n", "data.csv").rows == Rows{R"(2: {"text":"hello"})"});
  CHECK(rows_of(f, "a\tb\n1, 2\t\"3\t4\"\n", "data.tsv").rows ==
        Rows{R"(2: {"a":"1, 2","b":"3\t4"})"});
  CHECK(failure(f, "a,b\n1\n", "data.csv").find("data.csv:2: ") != std::string::npos);
  CHECK(failure(f, "a,b\n1,2,3\n", "data.csv").find("3 fields") != std::string::npos);
  CHECK(failure(f, "a,a\n1,2\n", "data.csv").find("\"a\"") != std::string::npos);
  CHECK(failure(f, "a,b\n1,2\n3,\"4\n5,6\n", "data.csv").find("data.csv:3: ") != std::string::npos);
  CHECK(failure(f, "a,b\n\"1\"2,3\n", "data.csv").find("closing quote") != std::string::npos);
  CHECK(failure(f, "a,b\n\xff,2\n", "data.csv").find("UTF-8") != std::string::npos);
}

TEST_CASE("CSV: bars separate too, and what does not is named") {
  Fixture f;
  CHECK(rows_of(f, "\"a\"|\"text|\"\n1;2|\"3,\"\n", "data.csv").rows ==
        Rows{R"(2: {"a":"1;2","text|":"3,"})"});
  CHECK(rows_of(f, "prompt|completion\na|b\n", "data").read.container == "CSV");
  const std::string said = failure(f, "\"prompt\"^\"completion\"\n\"a\"^\"b\"\n", "data.csv");
  CHECK_MESSAGE(said.find("data.csv:1: column 1: \"^\" follows a closing quote") != said.npos,
                said);
  CHECK_MESSAGE(said.find("of comma, tab, semicolon and bar") != said.npos, said);
}

TEST_CASE("CSV: what a quoted name holds does not tell what separates the columns") {
  Fixture f;
  for (const char* name : {"data.csv", "data"})
    CHECK(rows_of(f, "\"in, out\";text\n1;2\n", name).rows ==
          Rows{R"(2: {"in, out":"1","text":"2"})"});
  CHECK(rows_of(f, "\"an \"\"x,\"\"\";\"b\n,c\";text\n1;2;3\n", "data.csv").rows ==
        Rows{R"(3: {"an \"x,\"":"1","b\n,c":"2","text":"3"})"});
  CHECK(rows_of(f, "text,\"a\tb;\"\n1,2\n", "data.csv").rows ==
        Rows{R"(2: {"text":"1","a\tb;":"2"})"});
  CHECK(rows_of(f, "5\" wide,text;\n1,2\n", "data.csv").rows ==
        Rows{R"(2: {"5\" wide":"1","text;":"2"})"});
}

TEST_CASE("JSON arrays: elements of any layout, with the lines where they begin") {
  Fixture f;
  const Seen seen = rows_of(f,
                            kMark +
                                " [\r\n {\"a\": \"],[}{\\\"\",\n \"b\": [1, {\"c\": []}]}\n,"
                                "{\"a\":2}, \n\n{}]\n ",
                            "data.json");
  CHECK(seen.read.container == "JSON array");
  CHECK(seen.rows == Rows{R"(2: {"a":"],[}{\"","b":[1,{"c":[]}]})", R"(4: {"a":2})", "6: {}"});
  CHECK(rows_of(f, "[]", "data.json").rows.empty());
  for (const char* text : {"[{}", "[{},", "[{}]x", "[{},]", "[,{}]", "[{} {}]", "[{}}]", "[7]",
                           "[{\"a\":\"]", "[{}]]"})
    CHECK_MESSAGE(failure(f, text, "data.json").find("data.json:1: ") != std::string::npos, text);
  CHECK(failure(f, "[{},\n{},\n{\"a\"}]", "data.json").find("data.json:3: element 3") !=
        std::string::npos);
}

TEST_CASE("the container is found from what the data begin with, then from the name") {
  Fixture f;
  auto container = [&](const std::string& text, const std::string& name) {
    return rows_of(f, text, name).read.container;
  };
  CHECK(container("{\"a\":1}\n", "x") == "JSON lines");
  CHECK(container("{\"a\":1}\n", "x.csv") == "JSON lines");
  CHECK(container("[{\"a\":1}]\n", "x.jsonl") == "JSON array");
  CHECK(container("id,text\n1,b\n", "x") == "CSV");
  CHECK(container("text\nb\n", "x") == "CSV");
  CHECK(container("\"prompt\"\tcompletion\na\tb\n", "x") == "TSV");
  CHECK(container("a,b\n1,2\n", "x.csv") == "CSV");
  CHECK(failure(f, "some text, and more\n", "x").find("x:1: ") != std::string::npos);
}

TEST_CASE("what is called JSON lines and is something else is refused by what it is") {
  Fixture f;
  auto refuses = [&](const std::string& content, const std::string& why) {
    CAPTURE(content);
    CHECK(failure(f, content, "rows.jsonl").find(why) != std::string::npos);
  };
  refuses("prompt,completion\na,b\n", "rows.jsonl: is CSV by its first line: call it .csv");
  refuses("id\ttext\n1\tb\n", "rows.jsonl: is TSV by its first line: call it .tsv");
  for (const char* pretty : {"{\n  \"text\": \"a\"\n}\n", "\n {\r\n\"text\": \"a\"}\n",
                             "{\"text\": \"a\",\n \"id\": 1}\n", "{\"messages\": [\n{}]}\n"})
    refuses(pretty, "rows.jsonl:1: the first object takes several lines");
}

TEST_CASE("a CSV by another name, and spreadsheets, say what to do") {
  Fixture f;
  CHECK(
      failure(f, "question,answer\na,b\n", "rows.jsonl")
          .find("rows.jsonl:1: \"question,answer\" is no JSON; if this is the header of CSV, call "
                "the file .csv") != std::string::npos);
  // A bad first line above good ones is a bad row like any other.
  CHECK(failure(f, "a,b\n{\"text\":\"x\"}\n", "rows.jsonl").find("CSV") == std::string::npos);
  // Names count in any case, and plain text by another name is told how it is read.
  CHECK(rows_of(f, "n\ttext\n1\tb\n", "ROWS.TSV").read.container == "TSV");
  CHECK(is_text_name("a/B.TXT"));
  CHECK(failure(f, "hello there\nmore\n", "notes.md").find("`format` txt") != std::string::npos);
  CHECK(failure(f, "PK\x03\x04...", "rows.xlsx").find("save it as .csv") != std::string::npos);
  CHECK(failure(f, "PK\x03\x04...", "ROWS.XLSX").find("save it as .csv") != std::string::npos);
  CHECK(failure(f, "PK\x03\x04...", "rows.zip").find("unpack it") != std::string::npos);
  CHECK(rows_of(f, "a;b\n1;\"2;3\"\n", "rows.csv").rows == Rows{R"(2: {"a":"1","b":"2;3"})"});
  CHECK(rows_of(f, "a,b;c\n1,2\n", "rows.csv").rows == Rows{R"(2: {"a":"1","b;c":"2"})"});
}

TEST_CASE("pieces of a file join to the rows of the whole") {
  Fixture f;
  std::string lines, array = "[", csv = "n,text\n";
  const std::string filler(700, 'x');
  for (int i = 0; i < 4000; ++i) {  // several chunks of 1 MiB
    const std::string n = std::to_string(i);
    lines += "{\"n\":\"" + n + "\",\"text\":\"" + filler + "\"}\n";
    array += (i > 0 ? ",\n{\"n\":\"" : "{\"n\":\"") + n + "\",\"text\":\"" + filler + "\"}";
    csv += n + ",\"" + filler + "\"\n";
  }
  const Seen a = rows_of(f, lines, "a.jsonl"), b = rows_of(f, array + "]", "a.json"),
             c = rows_of(f, csv, "a.csv");
  REQUIRE(a.rows.size() == 4000);
  CHECK(a.rows == b.rows);
  REQUIRE(c.rows.size() == 4000);
  CHECK(c.rows[3999].substr(6) == a.rows[3999].substr(6));
  CHECK(c.rows[3999].starts_with("4001: "));
  CHECK(c.read.sha256 == sha256_file((f.folder / "a.csv").string()));
}

TEST_CASE("a pipe gives the rows and the hash of the file, as often as they are asked for") {
  Fixture f;
  const std::string text = kMark + "{\"text\":\"one\"}\n{\"text\":\"two\"}\n";
  const Dataset file = f.load(text);
  const std::string fifo = (f.folder / "fifo").string();
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  std::thread writer([&] { std::ofstream(fifo, std::ios::binary) << text; });
  const ByteSource source(fifo);
  writer.join();
  for (int i = 0; i < 2; ++i) {
    const Dataset piped = load_dataset(source, *f.tokenizer, std::nullopt, f.options);
    CHECK(piped.sha256 == file.sha256);
    REQUIRE(piped.rows.size() == 2);
    CHECK(piped.rows[1].ids == file.rows[1].ids);
  }
}
