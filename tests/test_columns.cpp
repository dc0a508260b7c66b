// Would catch: a column read as another, a key that --columns names and nobody reads, a system turn
// that is lost, put twice or put before what is no chat.
#include "text/columns.h"

#include "dataset_fixture.h"
#include "harness.h"
#include "text/eval_rows.h"

using namespace lk;

namespace {

struct Fixture : test::DatasetFixture {
  Fixture() { options.seq_len = 1024; }
  std::string text(const Dataset& data, std::size_t row = 0) const {
    return tokenizer->decode(data.rows.at(row).ids, false);
  }
  void columns(const std::string& text) { options.columns = Columns::parse(text); }
  // The message of what load() throws.
  template <class E>
  std::string why(const std::string& rows, const std::string& name = "data.jsonl") const {
    try {
      load(rows, name);
    } catch (const E& e) {
      return e.what();
    }
    return "accepted";
  }
  void use_template(const std::string& source) {
    const OrderedJson config = {{"eos_token", "<|im_end|>"}, {"chat_template", source}};
    write("tokenizer_config.json", config.dump());
    tokenizer = Tokenizer::from_folder(folder.string());
  }
};

bool says(const std::string& text, const std::string& part) {
  const bool found = text.find(part) != std::string::npos;
  if (!found) MESSAGE(text, " does not say ", part);
  return found;
}

std::string refused(const std::string& columns) {
  try {
    Columns::parse(columns);
  } catch (const UsageError& e) {
    return e.what();
  }
  return "accepted";
}

const std::string kUser = "<|im_start|>user\n", kAssistant = "<|im_start|>assistant\n",
                  kSystem = "<|im_start|>system\n", kEnd = "<|im_end|>\n";

}  // namespace

TEST_CASE("--columns names each key once, ours before the file's") {
  const Columns c = Columns::parse("prompt=a=b,completion=\"c, \"\"d\"\"\"");
  REQUIRE(c.pairs().size() == 2);
  CHECK(c.pairs()[0].ours == "prompt");
  CHECK(c.pairs()[0].theirs == "a=b");
  CHECK(c.pairs()[1].theirs == "c, \"d\"");
  CHECK(c.text() == "prompt=a=b,completion=\"c, \"\"d\"\"\"");
  CHECK(Columns::parse(c.text()).pairs()[1].theirs == "c, \"d\"");

  for (const char* text : {"", "prompt", "prompt=", "=a", "prompt=a,", "prompt=a,,completion=b",
                           "prompt,completion=b", "prompt=\"a", "prompt=\"a\"b"})
    CHECK_MESSAGE(says(refused(text), "`columns` prompt=KEY,completion=KEY"), text);
  CHECK(says(refused("prompt=a,prompt=b"), "prompt stands twice"));
  CHECK(says(refused("prompt=a,completion=a"), "a stands twice"));
  CHECK(says(refused("promt=a"), "did you mean prompt?"));
  CHECK(says(refused("question=prompt"), "did you mean prompt=question?"));
  CHECK(says(refused("question=q"), "question is no key of a row format: these are messages"));
}

TEST_CASE("columns of CSV, TSV and JSON become the keys of a format") {
  Fixture f;
  f.columns("prompt=question,completion=answer");
  const std::string want = "a: b<|im_end|>";
  const Dataset data = f.load("id,question,answer,mood\n1,a:, b,good\n", "data.csv");
  CHECK(data.format == "prompt-completion");
  CHECK(f.text(data) == want);
  CHECK(f.trained(data.rows[0]) == " b<|im_end|>");
  CHECK(data.ignored_keys == std::vector<std::string>{"id", "mood"});
  REQUIRE(data.remarks().size() == 1);
  CHECK(says(data.remarks()[0], "`columns` does not name: id, mood"));
  CHECK(f.text(f.load("question\tanswer\na:\t b\n", "data.tsv")) == want);
  CHECK(f.text(f.load("question;answer\na:; b\n", "data.csv")) == want);
  CHECK(f.text(f.load("answer,question\n b,a:\n", "no-ending")) == want);  // found by the header
  CHECK(f.text(f.load(R"({"question":"a:","answer":" b"})")) == want);
  CHECK(f.text(f.load(R"([{"question":"a:","answer":" b"}])", "data.json")) == want);
}

TEST_CASE("columns of a chat go through the template") {
  Fixture f;
  f.columns("user=question,assistant=answer");
  const Dataset data = f.load("question,answer\nHi,Yo\n", "data.csv");
  CHECK(data.format == "user-assistant");
  CHECK(f.text(data) == kUser + "Hi" + kEnd + kAssistant + "Yo" + kEnd);
  CHECK(f.trained(data.rows[0]) == "Yo<|im_end|>");
  f.options.columns = {};
  CHECK(f.text(f.load(R"({"user":"Hi","assistant":"Yo","system":"S"})")) ==
        kSystem + "S" + kEnd + kUser + "Hi" + kEnd + kAssistant + "Yo" + kEnd);
  f.columns("messages=dialogue");
  CHECK(f.text(f.load(R"({"dialogue":[{"role":"user","content":"Hi"},)"
                      R"({"role":"assistant","content":"Yo"}],"messages":7})")) ==
        kUser + "Hi" + kEnd + kAssistant + "Yo" + kEnd);
  f.columns("output=answer");  // the other keys of the format stand for themselves
  CHECK(f.load("instruction,answer\nHi,Yo\n", "data.csv").format == "alpaca");
}

TEST_CASE("a format that reads what --columns names comes before a more telling one") {
  Fixture f;
  const std::string row =
      R"({"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}],)"
      R"("q":"a","prompt":"p","text":"t","completion":"b"})";
  f.columns("prompt=q");
  const Dataset data = f.load(row);
  CHECK(f.text(data) == "ab<|im_end|>");
  CHECK(data.ignored_keys == std::vector<std::string>{"messages", "text", "prompt"});
  f.columns("prompt=completion,completion=prompt");
  CHECK(f.text(f.load(R"({"prompt":"1","completion":"2"})")) == "21<|im_end|>");
}

TEST_CASE("a column that is not there, or that no format reads, is refused by name") {
  Fixture f;
  f.columns("prompt=question,completion=answer");
  const std::string missing = f.why<InputError>("Question,answer\na,b\n", "data.csv");
  CHECK(says(missing, "data.csv:2: no key question, which `columns` takes as prompt"));
  CHECK(says(missing, "did you mean Question?"));
  CHECK(says(missing, "{Question, answer}"));
  CHECK(says(f.why<InputError>(R"({"question":"a","answer":"b"})"
                               "\n"
                               R"({"question":"a"})"),
             "data.jsonl:2: no key answer"));
  f.columns("instruction=q,output=a,input=context");
  const std::string row = R"({"q":"a","a":"b"})", full = R"({"q":"a","a":"b","context":"c"})";
  CHECK(says(f.why<InputError>(row), "no row has \"context\", which `columns` takes as input"));
  CHECK(f.load(row + "\n" + full).rows.size() == 2);
  f.columns("prompt=q");
  CHECK(says(f.why<InputError>(R"({"q":"a","b":"b"})"), "`columns` may name more of yours"));
  f.columns("text=a,completion=b");
  CHECK(says(f.why<UsageError>("{}"), "no row format reads all of text, completion"));
  f.columns("prompt=a,completion=b");
  f.options.format = "messages";
  CHECK(says(f.why<UsageError>("{}"), "the format messages does not read all of prompt"));
  f.options.format = "auto";
  CHECK(says(f.why<UsageError>("some text", "data.txt"), "`columns`"));
  // What changes the meaning of a row is no mere record, named or not.
  CHECK(says(f.why<InputError>(R"({"a":"x","b":"y","system":"S"})"), "system"));
  f.options.columns = {};
  CHECK(says(f.why<InputError>("question,answer\na,b\n", "data.csv"),
             "`columns` prompt=KEY,completion=KEY"));
}

TEST_CASE("--system begins every chat that has no system turn, and nothing else") {
  Fixture f;
  f.options.system = "Be kind.";
  const std::string turns =
      R"({"role":"user","content":"Hi"},{"role":"assistant","content":"Yo"}]})";
  const Dataset data =
      f.load("{\"messages\":[" + turns +
             "\n{\"messages\":[{\"role\":\"system\",\"content\":\"Own.\"}," + turns);
  const std::string rest = kUser + "Hi" + kEnd + kAssistant + "Yo" + kEnd;
  CHECK(f.text(data, 0) == kSystem + "Be kind." + kEnd + rest);
  CHECK(f.text(data, 1) == kSystem + "Own." + kEnd + rest);
  REQUIRE(data.remarks().size() == 1);
  CHECK(says(data.remarks()[0], "1 chat has a system turn already"));
  for (const char* row : {R"({"text":"a"})", R"({"prompt":"a","completion":"b"})"})
    CHECK(says(f.why<UsageError>(row), "`system`: "));
  CHECK(says(f.why<UsageError>("a", "data.txt"), "`system`: "));
  f.options.system = "";
  CHECK(says(f.why<UsageError>("{}"), "`system`: the text is empty"));
  f.options.system = "\xff";
  CHECK(says(f.why<UsageError>("{}"), "`system`: not valid UTF-8"));
}

TEST_CASE("a system turn that the template leaves out is refused, be it --system's or the row's") {
  Fixture f;
  f.use_template(
      "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
      "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
  auto load = [&](const std::string& rows) {
    return load_dataset(f.write("data.jsonl", rows), *f.tokenizer, std::nullopt, f.options);
  };
  CHECK(load(R"({"user":"Hi","assistant":"Yo"})").rows.size() == 1);
  CHECK_THROWS_WITH_AS(load(R"({"user":"Hi","assistant":"Yo","system":"S"})"),
                       doctest::Contains("does not write"), InputError);
  f.options.system = "S";
  CHECK_THROWS_WITH_AS(load(R"({"user":"Hi","assistant":"Yo"})"),
                       doctest::Contains("`system`: the chat template (own)"), UsageError);
}

TEST_CASE("answers to chats are compared with the assistant's last turn, or with references") {
  Fixture f;
  EvalRowOptions options;
  options.chat_template = "chatml";
  auto load = [&](const std::string& rows, const std::string& name = "data.jsonl") {
    return load_references(f.write(name, rows), *f.tokenizer, options, 4);
  };
  const std::string two =
      R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yo"},)"
      R"({"role":"user","content":"So?"})";
  const std::string prompt =
      kUser + "Hi" + kEnd + kAssistant + "Yo" + kEnd + kUser + "So?" + kEnd + kAssistant;
  std::vector<ReferenceRow> rows = load(two + R"(,{"role":"assistant","content":"Well."}]})");
  CHECK(rows[0].prompt == prompt);
  CHECK(rows[0].references == std::vector<std::string>{"Well."});
  CHECK(f.tokenizer->decode(rows[0].ids, false) == prompt);
  rows = load(two + R"(],"references":["A","B"]})");
  CHECK(rows[0].prompt == prompt);
  CHECK(rows[0].references == std::vector<std::string>{"A", "B"});
  rows = load(R"({"prompt":[{"role":"user","content":"Hi"}],"references":["A"]})");
  CHECK(rows[0].prompt == kUser + "Hi" + kEnd + kAssistant);

  options.system = "S";
  rows = load(R"({"instruction":"Hi","output":"Yo"})");
  CHECK(rows[0].prompt == kSystem + "S" + kEnd + kUser + "Hi" + kEnd + kAssistant);
  CHECK_THROWS_AS(load(R"({"prompt":"a","completion":"b"})"), UsageError);
  options.system = {};
  options.columns = Columns::parse("user=q,assistant=a");
  CHECK(load("q,a\nHi,Yo\n", "data.csv")[0].references == std::vector<std::string>{"Yo"});
  options.columns = Columns::parse("prompt=q,references=r");
  CHECK(load(R"({"q":"Hi","r":["Yo"]})")[0].prompt == "Hi");
  CHECK_THROWS_WITH_AS(load(R"({"Q":"Hi","r":["Yo"]})"), doctest::Contains("did you mean Q?"),
                       InputError);
  options.columns = {};
  for (const auto& [row, why] :
       {std::pair{two + "]}", "references"},
        {std::string(R"({"messages":[{"role":"assistant","content":"a"}]})"), "no turn stands"},
        {std::string(R"({"text":"a"})"), "text"},
        {two + R"(,{"role":"assistant","content":"a"}],"mood":"x"})", "mood"}}) {
    CAPTURE(row);
    CHECK_THROWS_WITH_AS(load(row), doctest::Contains(why), InputError);
    CHECK_THROWS_WITH_AS(load(row), doctest::Contains("data.jsonl:1"), InputError);
  }
}
