// Would catch: a key of a row or a message that vanishes in silence, a turn trained that should not
// be, a chat with tools that the model never sees.
#include <algorithm>
#include <cstdio>
#include <string>

#include "dataset_fixture.h"
#include "harness.h"
#include "io/input_file.h"
#include "io/json.h"
#include "template_chats.h"
#include "text/row_formats.h"
#include "text/tool_turns.h"
#include "text/training_chat.h"

using namespace lk;

namespace {

// What chatml makes of turns, "role|content" each.
std::string chatml(std::initializer_list<std::string> turns) {
  std::string text;
  for (const std::string& turn : turns) {
    const std::size_t bar = turn.find('|');
    text += "<|im_start|>" + turn.substr(0, bar) + "\n" + turn.substr(bar + 1) + "<|im_end|>\n";
  }
  return text;
}

struct Fixture : test::DatasetFixture {
  std::string text(const Dataset& data, std::size_t row = 0) const {
    return tokenizer->decode(data.rows.at(row).ids, false);
  }
  // Gives the model a chat template of its own.
  void use_template(const std::string& source) {
    const OrderedJson config = {{"eos_token", "<|im_end|>"}, {"chat_template", source}};
    write("tokenizer_config.json", config.dump());
    tokenizer = Tokenizer::from_folder(folder.string());
  }
  Dataset load_own(const std::string& rows, const std::string& name = "data.jsonl") const {
    return load_dataset(write(name, rows), *tokenizer, std::nullopt, options);
  }
  std::string own_error(const std::string& rows) const {
    try {
      load_own(rows);
    } catch (const InputError& e) {
      return e.what();
    }
    return "accepted";
  }
  Fixture() { options.seq_len = 1024; }
};

const std::string kTurns =
    R"("messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yo"}])";
const std::string kTools =
    R"("tools":[{"type":"function","function":{"name":"get_weather","description":"of a city",)"
    R"("parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}])";
const std::string kToolTurns =
    R"("messages":[{"role":"user","content":"Weather in Oslo?"},{"role":"assistant","content":null,)"
    R"("tool_calls":[{"id":"call_1","type":"function","function":{"name":"get_weather",)"
    R"("arguments":"{\"city\": \"Oslo\"}"}}]},{"role":"tool","tool_call_id":"call_1",)"
    R"("content":"4"},{"role":"assistant","content":"Cold."}])";

}  // namespace

TEST_CASE("Alpaca's and Dolly's names mean the same") {
  Fixture f;
  const std::string want =
      chatml({"user|Which animal?\nIt has a trunk.", "assistant|An elephant."});
  for (const char* input : {"input", "context"})
    for (const char* output : {"output", "response"}) {
      const Dataset data =
          f.load(concat(R"({"instruction":"Which animal?",")", input, R"(":"It has a trunk.",")",
                        output, R"(":"An elephant.","category":"qa"})"));
      CHECK(data.format == "alpaca");
      CHECK(f.text(data) == want);
      CHECK(f.trained(data.rows[0]) == "An elephant.<|im_end|>");
      CHECK(data.ignored_keys == std::vector<std::string>{"category"});
    }
  CHECK(f.refused(R"({"instruction":"a","input":"b","context":"c","output":"d"})", "context"));
  CHECK(f.refused(R"({"instruction":"a","output":"b","response":"c"})", "response"));
  CHECK(f.text(f.load(R"({"instruction":"a","input":"","context":"c","output":"d"})")) ==
        chatml({"user|a\nc", "assistant|d"}));
}

TEST_CASE("ShareGPT: from and value, in an array file too") {
  Fixture f;
  const std::string row =
      R"({"id":"a0","conversations":[{"from":"system","value":"Be brief."},)"
      R"({"from":"human","value":"How tall?"},{"from":"gpt","value":"Five metres."},)"
      R"({"from":"user","value":"A horse?"},{"from":"assistant","value":""}]})";
  const Dataset data = f.load("[\n" + row + ",\n" + row + "]", "data.json");
  CHECK(data.format == "sharegpt");
  CHECK(data.container == "JSON array");
  CHECK(data.rows.at(1).line == 3);
  CHECK(f.text(data) == chatml({"system|Be brief.", "user|How tall?", "assistant|Five metres.",
                                "user|A horse?", "assistant|"}));
  CHECK(f.trained(data.rows[0]) == "Five metres.<|im_end|><|im_end|>");
  CHECK(f.refused(R"({"conversations":[{"from":"narrator","value":"x"}]})", "narrator"));
  CHECK(f.refused(R"({"conversations":[{"from":"human"}]})", "value"));
  CHECK(
      f.refused(R"({"conversations":[{"from":"human","value":"x","emotion":"sad"}]})", "emotion"));
  CHECK(f.refused(R"({"conversations":[]})", "conversations"));
  // Turns of OpenAI's kind under ShareGPT's key.
  CHECK(f.text(f.load(R"({"conversations":[{"role":"user","content":"a"},)"
                      R"({"role":"assistant","content":"b"}]})")) ==
        chatml({"user|a", "assistant|b"}));
}

TEST_CASE("TRL: prompt and completion as lists of messages; the prompt is not trained") {
  Fixture f;
  const Dataset data = f.load(
      R"({"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},)"
      R"({"role":"user","content":"c"}],"completion":[{"role":"assistant","content":"d"}]})");
  CHECK(data.format == "prompt-completion");
  CHECK(f.text(data) == chatml({"user|a", "assistant|b", "user|c", "assistant|d"}));
  CHECK(f.trained(data.rows[0]) == "d<|im_end|>");
  CHECK(f.refused(R"({"prompt":[{"role":"user","content":"a"}],"completion":"d"})", "completion"));
  CHECK(f.refused(R"({"prompt":"a","completion":[{"role":"assistant","content":"d"}]})",
                  "completion"));
  CHECK(f.refused(R"({"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b",)"
                  R"("weight":1}],"completion":[{"role":"assistant","content":"d"}]})",
                  "prompt[1]: weight"));
}

TEST_CASE("a tool call has a name and arguments, and nothing that no template would write") {
  Fixture f;
  auto with = [](const std::string& answer) {
    return R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null,)" +
           answer + "}]}";
  };
  CHECK(f.error(with(R"("tool_calls":[{"id":"1","type":"function","index":0,)"
                     R"("function":{"name":"f","arguments":"{}"}}])")) == "accepted");
  CHECK(f.refused(with(R"("tool_calls":[{"name":"f","parameters":{"x":1}}])"), "parameters"));
  // An integer that templates can't have is named by its place.
  CHECK(f.refused(with(R"("tool_calls":[{"name":"f","arguments":{"n":[1,18446744073709551615]}}])"),
                  "tool_calls.arguments.n[1]: the integer 18446744073709551615 is too large"));
  CHECK(f.refused(R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":)"
                  R"("b"}],"tools":[{"name":"f","parameters":{"most":9223372036854775808}}]})",
                  "data.jsonl:1: tools[0].function.parameters.most: the integer"));
  CHECK(f.refused(with(R"("tool_calls":[{"name":"f","arguments":"{\"n\":18446744073709551616}"}])"),
                  "tool_calls[0]: arguments: byte 5: an integer of more than 64 bits"));
  CHECK(f.refused(with(R"("tool_calls":[{"function":{"name":"f"},"arguments":{"x":1}}])"),
                  "tool_calls[0]: the key \"arguments\""));
  CHECK(f.refused(with(R"("tool_calls":[{"name":"f"}],"function_call":{"name":"g"})"),
                  "function_call"));
  CHECK(f.refused(R"({"conversations":[{"from":"human","value":"a"},{"from":"function_call",)"
                  R"("value":"{\"name\":\"f\",\"parameters\":{\"x\":1}}"}]})",
                  "parameters"));
}

TEST_CASE("content as parts, null, and weights") {
  Fixture f;
  auto with = [](const std::string& answer) {
    return R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"},)"
           R"({"type":"text","text":"b"}]},{"role":"assistant",)" +
           answer + "}]}";
  };
  CHECK(f.text(f.load(with(R"("content":[{"type":"text","text":"c"}])"))) ==
        chatml({"user|ab", "assistant|c"}));
  for (const char* weight : {"null", "1", "1.0"})
    CHECK(f.trained(f.load(with(concat(R"("content":"c","weight":)", weight))).rows[0]) ==
          "c<|im_end|>");
  for (const char* weight : {"0", "0.0"})
    CHECK(f.refused(with(concat(R"("content":"c","weight":)", weight)), "no token"));
  for (const char* weight : {"0.5", "2", "-1", "\"1\"", "NaN"})
    CHECK(f.refused(with(concat(R"("content":"c","weight":)", weight)), "weight"));
  CHECK(f.refused(with(R"("content":null)"), "content"));
  CHECK(f.refused(with(R"("content":[{"type":"image_url","image_url":{}}])"), "image_url"));
  CHECK(f.refused(R"({"messages":[{"role":"user","content":"a","weight":1},)"
                  R"({"role":"assistant","content":"b"}]})",
                  "weight"));
}

TEST_CASE("parts go to a template that writes parts as they are, and are joined for others") {
  Fixture f;
  auto use = [&](const std::string& content) {
    f.use_template("{% for m in messages %}<|im_start|>{{ m.role }}\n" + content +
                   "<|im_end|>\n{% endfor %}"
                   "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
  };
  const std::string parts =
      "{% for p in m.content %}{% if p.type == 'text' %}[{{ p.text | trim }}]{% endif %}"
      "{% endfor %}";
  const std::string row =
      R"({"messages":[{"role":"system","content":[{"type":"text","text":"s"}]},{"role":"user",)"
      R"("content":[{"type":"text","text":" a "},{"type":"text","text":"b"}]},)"
      R"({"role":"assistant","content":[{"type":"text","text":"c"},{"type":"text","text":"d"}]}]})";
  use("{% if m.content is string %}{{ m.content }}{% else %}" + parts + "{% endif %}");
  const Dataset data = f.load_own(row);
  CHECK(f.text(data) == chatml({"system|[s]", "user|[a][b]", "assistant|[c][d]"}));
  CHECK(f.trained(data.rows[0]) == "[c][d]<|im_end|>");
  use(parts);  // which would write nothing of a text
  CHECK(f.text(f.load_own(row)) == chatml({"system|[s]", "user|[a][b]", "assistant|[c][d]"}));
  use("{% if m.role == 'user' %}" + parts + "{% else %}{{ m.content + '' }}{% endif %}");
  CHECK(f.text(f.load_own(row)) == chatml({"system|s", "user|[a][b]", "assistant|cd"}));
  for (const char* joined : {"{{ m.content }}", "{{ m.content + '' }}", "{{ m.content | trim }}",
                             "{{ m.content if m.content is string else '' }}"}) {
    use(joined);
    CHECK(f.text(f.load_own(row)).find("assistant\ncd<|im_end|>") != std::string::npos);
  }
  use("{{ m.content if m.content is string else m.content[0].text }}");  // not all of them
  CHECK(f.own_error(row).find("the content of message 1 (user)") != std::string::npos);
  // As Jinja2 renders it.
  const ChatTemplate gemma =
      ChatTemplate::choose(test::family_template("gemma3"), "", {"<s>", "</s>", {"<end_of_turn>"}});
  RowContent chat = read_row(parse_row_json(row, "row"), "messages", MereRecords::Known, "row");
  fit_to_template(*chat.chat, find_tool_support(gemma));
  std::vector<Message> messages;
  for (const Turn& turn : chat.chat->turns) messages.push_back(turn.message);
  CHECK(gemma.render(messages, false).text ==
        "<s><start_of_turn>user\ns\n\nab<end_of_turn>\n<start_of_turn>model\ncd<end_of_turn>\n");
}

TEST_CASE("each key is used, a record, or refused by name") {
  Fixture f;
  const Dataset data =
      f.load(R"({"id":7,"source":"web","question_id":"q","meta":{"a":[NaN]},"text":"a","note":NaN})"
             "\n"
             R"({"text":"b","lang":"en","id":8,"unknown":null,"other":""})");
  CHECK(data.ignored_keys ==
        std::vector<std::string>{"id", "source", "question_id", "meta", "note", "lang"});
  CHECK(data.remarks().size() == 1);
  for (const char* key :
       {"system", "context", "tools", "thinking", "rationale", "label", "chosen"}) {
    CHECK(f.refused(concat(R"({"text":"a",")", key, R"(":"b"})"), key));
    CHECK(f.refused(concat(R"({"prompt":"a","completion":"c",")", key, R"(":"b"})"), key));
  }
  for (const char* key : {"reasoning_content", "thinking", "name", "refusal", "prefix"})
    CHECK(f.refused(concat(R"({"messages":[{"role":"user","content":"a"},{"role":"assistant",)",
                           R"("content":"b",")", key, R"(":"why so"}]})"),
                    key));
  CHECK(f.refused("{" + kTurns + R"(,"history":[["a","b"]]})", "history"));
  // Rows of one file may have different keys.
  CHECK(f.error("{\"text\":\"a\"}\n{\"text\":\"b\",\"hint\":\"c\"}").find("data.jsonl:2: ") !=
        std::string::npos);
  // A question beside the messages that they hold, too, says nothing new; another does.
  CHECK(f.load("{\"prompt\":\"Hi\"," + kTurns + "}").rows.size() == 1);
  CHECK(f.refused("{\"prompt\":\"Hi there\"," + kTurns + "}", "prompt"));
}

TEST_CASE("NaN is a missing value, where a value may be missing") {
  Fixture f;
  CHECK(f.text(f.load(R"({"instruction":"a","input":NaN,"output":"b"})")) ==
        chatml({"user|a", "assistant|b"}));
  CHECK(f.refused(R"({"instruction":"a","input":Infinity,"output":"b"})", "input"));
  CHECK(f.refused(R"({"instruction":"a","output":NaN})", "output"));
  CHECK(f.refused(R"({"text":NaN})", "text"));
  CHECK(f.refused("{" + kTurns + R"(,"tools":[{"name":"f","default":NaN}]})", "tools"));
  CHECK(f.refused(R"({"text":"a","id":nan})", "data.jsonl:1"));
}

TEST_CASE("system beside messages is their first turn") {
  Fixture f;
  CHECK(f.text(f.load(R"({"system":"Answer in French.",)" + kTurns + "}")) ==
        chatml({"system|Answer in French.", "user|Hi", "assistant|Yo"}));
  CHECK(f.refused(R"({"system":"a","messages":[{"role":"system","content":"b"},)"
                  R"({"role":"user","content":"c"},{"role":"assistant","content":"d"}]})",
                  "system"));
}

TEST_CASE("tools that the template has no place for are written as text") {
  Fixture f;
  const Dataset data = f.load("{" + kToolTurns + "," + kTools + R"(,"parallel_tool_calls":false})");
  const std::string text = f.text(data);
  CHECK(text.find("<|im_start|>system\n<tools>\n") == 0);
  CHECK(text.find(R"({"type": "function", "function": {"name": "get_weather", "description": )") !=
        std::string::npos);
  CHECK(text.ends_with(chatml({"user|Weather in Oslo?",
                               "assistant|<tool_call>\n{\"name\": \"get_weather\", \"arguments\": "
                               "{\"city\": \"Oslo\"}}\n</tool_call>",
                               "user|<tool_response>\n4\n</tool_response>", "assistant|Cold."})));
  CHECK(data.fitted.size() == 3);
  CHECK(f.trained(data.rows[0]).ends_with("</tool_call><|im_end|>Cold.<|im_end|>"));
  // The same chat as ShareGPT writes it.
  const Dataset share = f.load(
      R"({"conversations":[{"from":"human","value":"Weather in Oslo?"},{"from":"function_call",)"
      R"("value":"{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}"},)"
      R"({"from":"observation","value":"4"},{"from":"gpt","value":"Cold."}],"tools":)"
      R"("[{\"name\": \"get_weather\", \"description\": \"of a city\", \"parameters\": )"
      R"({\"type\": \"object\", \"properties\": {\"city\": {\"type\": \"string\"}}}}]"})");
  CHECK(f.text(share) == text);
  CHECK(f.refused("{" + kTurns + R"(,"tools":[{"type":"function"}]})", "tools[0]"));
  CHECK(f.refused(R"({"messages":[{"role":"user","content":"a","tool_calls":[{"name":"f"}]}]})",
                  "tool_calls"));
}

TEST_CASE("tools go through a template that writes them, in the file's order of keys") {
  Fixture f;
  f.use_template(
      "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
      "{% for c in m.tool_calls or [] %}[{{ c.id }} {{ c.function.name }} "
      "{{ c.function.arguments | tojson }}]{% endfor %}"
      "{{ m.tool_call_id or '' }}<|im_end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
  const Dataset data = f.load_own("{" + kToolTurns + "," + kTools + "}");
  CHECK(f.text(data) ==
        chatml({"system|[{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", "
                "\"description\": \"of a city\", \"parameters\": {\"type\": \"object\", "
                "\"properties\": {\"city\": {\"type\": \"string\"}}}}}]",
                "user|Weather in Oslo?", "assistant|[call_1 get_weather {\"city\": \"Oslo\"}]",
                "tool|4call_1", "assistant|Cold."}));
  CHECK(data.fitted.empty());
  CHECK(f.trained(data.rows[0]) ==
        "[call_1 get_weather {\"city\": \"Oslo\"}]<|im_end|>Cold.<|im_end|>");
}

TEST_CASE("templates print tools and calls as Jinja2 prints them, or are given them as text") {
  const Json golden = read_json(test::kTemplateData + "tools.json");
  const OrderedJson rows =
      parse_row_json(read_file(test::kTemplateData + "tools.json", 1 << 20), "tools.json")
          .at("rows");
  for (const auto& [name, rendered] : golden.at("rendered").items()) {
    const ChatTemplate chat = ChatTemplate::choose(
        test::family_template(name), "", {"<s>", "</s>", {"</s>", "<|im_end|>", "<|eot_id|>"}});
    const ToolSupport support = find_tool_support(chat);
    CHECK(support.tools == (name != "llama3.2"));  // this one reads tools, and writes none
    for (std::size_t i = 0; i < rows.size(); ++i) {
      RowContent row = read_row(rows.at(i), "messages", MereRecords::Known, "row");
      ChatRow& said = *row.chat;
      auto text = [&] {
        std::vector<Message> messages;
        for (const Turn& turn : said.turns) messages.push_back(turn.message);
        return chat.render(messages, true, said.tools.get()).text;
      };
      const Json& want = rendered.at(i);
      if (want.is_null())
        CHECK_THROWS_AS(text(), InputError);
      else
        CHECK_MESSAGE(text() == want.get<std::string>(), name, " row ", i);
      // What a template drops is put into turns that it writes: nothing is lost.
      fit_to_template(said, support);
      try {
        std::vector<Message> messages;
        for (const Turn& turn : said.turns) messages.push_back(turn.message);
        const std::vector<bool> trained(messages.size(), true);
        require_written(
            said,
            render_for_training(chat, messages, trained, TrainOn::Assistant, said.tools.get())
                .written,
            chat.name());
      } catch (const InputError& e) {
        const std::string why = e.what();  // the template's own rules, or a prompt that it rewrites
        CHECK_MESSAGE(why.find("does not write") == std::string::npos, name, " row ", i, ": ", why);
      }
    }
  }
}

TEST_CASE("what a model's template leaves out is refused with the template and the key") {
  Fixture f;
  f.use_template(
      "{% for m in messages %}<|im_start|>{{ m.role }}\n"
      "{{ '<think>' + m.reasoning_content + '</think>' if m.reasoning_content is defined else '' }}"
      "{{ m.content }}<|im_end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
  auto row = [](const char* key) {
    return concat(
        R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b",")", key,
        R"(":"because"}]})");
  };
  CHECK(f.text(f.load_own(row("reasoning_content"))) ==
        chatml({"user|a", "assistant|<think>because</think>b"}));
  const std::string said = f.own_error(row("thinking"));
  CHECK_MESSAGE(said.find("template") != std::string::npos, said);
  CHECK_MESSAGE(said.find("thinking") != std::string::npos, said);
  // A developer's turn is one of its own where the template writes it, else the system's.
  const std::string developer =
      R"({"messages":[{"role":"developer","content":"Be kind."},{"role":"user","content":"a"},)"
      R"({"role":"assistant","content":"b"}]})";
  CHECK(f.text(f.load_own(developer)) == chatml({"developer|Be kind.", "user|a", "assistant|b"}));
  CHECK(f.text(f.load(developer)) == chatml({"system|Be kind.", "user|a", "assistant|b"}));
}

TEST_CASE("a turn that a model's template leaves out or cuts is refused") {
  Fixture f;
  auto use = [&](const std::string& guard, const std::string& content) {
    f.use_template("{% for m in messages %}{% if " + guard + " %}<|im_start|>{{ m.role }}\n{{ " +
                   content +
                   " }}<|im_end|>\n{% endif %}{% endfor %}"
                   "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
  };
  const std::string chat =
      R"({"messages":[{"role":"user","content":"one"},{"role":"assistant","content":"two"},)"
      R"({"role":"system","content":"three"},{"role":"user","content":" four "},)"
      R"({"role":"assistant","content":"<think>\nfive\n</think>\n\nsix"}]})";
  use("true", "m.content | trim");
  CHECK(f.own_error(chat) == "accepted");
  use("loop.first or m.role != 'system'", "m.content");
  CHECK(f.own_error(chat).find("content of message 2 (system)") != std::string::npos);
  use("true", "m.content[:4]");
  CHECK(f.own_error(chat).find("content of message 2 (system)") != std::string::npos);
  use("true", "m.content if m.role != 'assistant' else m.content[:2]");
  CHECK(f.own_error(chat).find("content of message 1 (assistant)") != std::string::npos);
  // A tool's answer may be written as JSON.
  use("true", "m.content | tojson if m.role == 'tool' else m.content");
  CHECK(f.own_error(R"({"messages":[{"role":"user","content":"a"},{"role":"tool","content":)"
                    R"("say \"b\""},{"role":"assistant","content":"c"}]})") == "accepted");
}

TEST_CASE("chats become a row for each trained turn where the template rewrites earlier ones") {
  Fixture f;
  const std::string turn =
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and THOUGHT "
      "%}<t>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  auto with = [&](const std::string& thought) {
    std::string source = turn;
    return source.replace(source.find("THOUGHT"), 7, thought);
  };
  const std::string q1 = R"({"role":"user","content":"a"})",
                    q2 = R"({"role":"user","content":"c"})";
  auto answer = [](const char* text, const char* more = "") {
    return concat(R"({"role":"assistant","content":")", text, "\"", more, "}");
  };
  auto row = [](const std::string& turns) { return R"({"messages":[)" + turns + "]}\n"; };
  const std::string two = q1 + "," + answer("b") + "," + q2 + "," + answer("d") + "," + q1;
  const std::string one = q1 + "," + answer("b");

  f.use_template(with("loop.last"));
  Dataset data = f.load_own(row(two) + row(one));
  REQUIRE(data.rows.size() == 3);
  CHECK(f.text(data, 0) == chatml({"user|a", "assistant|<t>b"}));
  CHECK(f.text(data, 1) == chatml({"user|a", "assistant|b", "user|c", "assistant|<t>d"}));
  CHECK(f.trained(data.rows[0]) == "<t>b<|im_end|>");
  CHECK(f.trained(data.rows[1]) == "<t>d<|im_end|>");
  CHECK(f.trained(data.rows[2]) == "<t>b<|im_end|>");
  CHECK(data.rows[1].line == 1);
  CHECK(data.rows[2].line == 2);
  CHECK(data.rows_read == 2);
  CHECK(data.remarks().at(0).find("1 chat as 2 rows, each ending") == 0);
  // Weights are obeyed; a chat may end up as one row, or none.
  data = f.load_own(row(q1 + "," + answer("b", R"(,"weight":0)") + "," + q2 + "," + answer("d")));
  REQUIRE(data.rows.size() == 1);
  CHECK(f.trained(data.rows[0]) == "<t>d<|im_end|>");
  CHECK(f.own_error(row(q1 + "," + answer("b", R"(,"weight":0)"))).find("no token to train on") !=
        std::string::npos);
  f.options.train_on = TrainOn::Last;
  data = f.load_own(row(two) + row(one));
  REQUIRE(data.rows.size() == 2);
  CHECK(f.trained(data.rows[0]) == "<t>d<|im_end|>");
  CHECK(f.trained(data.rows[1]) == "<t>b<|im_end|>");
  data = f.load_own(row(q1 + "," + answer("b") + "," + q2 + "," + answer("d", R"(,"weight":0)")));
  CHECK(f.trained(data.rows.at(0)) == "<t>b<|im_end|>");

  // One row where the template rewrites nothing, unless each turn's own is asked for.
  f.use_template(with("false"));
  f.options.train_on = TrainOn::Assistant;
  data = f.load_own(row(two));
  REQUIRE(data.rows.size() == 1);
  CHECK(f.trained(data.rows[0]) == "b<|im_end|>d<|im_end|>");
  CHECK(data.remarks().empty());
  f.options.train_on = TrainOn::All;
  data = f.load_own(row(two));
  REQUIRE(data.rows.size() == 2);
  CHECK(f.text(data, 0) == chatml({"user|a", "assistant|b"}));
  CHECK(f.trained(data.rows[1]) == "d<|im_end|>");
  CHECK(f.load(row(two)).rows.size() == 2);  // by a built-in template
  CHECK_THROWS_AS(f.load(R"({"text":"a"})"), UsageError);
  CHECK_THROWS_AS(f.load("a text", "data.txt"), UsageError);
  for (const char* name : {"assistant", "all", "last"})
    CHECK(train_on_name(parse_train_on(name)) == std::string(name));
  CHECK_THROWS_AS(parse_train_on("user"), UsageError);
}

TEST_CASE(
    "a thought that the template drops from earlier turns is not missed, one it never writes is") {
  Fixture f;
  const std::string source =
      "{% for m in messages %}<|im_start|>{{ m.role }}\n"
      "{{ m.reasoning_content if m.reasoning_content is defined and loop.index0 + 2 > "
      "messages|length }}{{ m.content }}<|im_end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  f.use_template(source);
  auto row = [](const char* key, const char* weight) {
    return concat(
        R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b",")", key,
        R"(":"hm","weight":)", weight,
        R"(},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]})");
  };
  const Dataset data = f.load_own(row("reasoning_content", "1"));
  REQUIRE(data.rows.size() == 2);
  CHECK(f.trained(data.rows[0]) == "hmb<|im_end|>");
  CHECK(f.trained(data.rows[1]) == "d<|im_end|>");
  CHECK(f.load_own(row("reasoning_content", "0")).rows.size() == 1);
  CHECK(f.own_error(row("thinking", "1")).find("thinking") != std::string::npos);
}

TEST_CASE("all that {% generation %} encloses of a trained turn is trained, be it many stretches") {
  Fixture f;
  auto turn = [](const char* text, const char* weight) {
    return concat(R"({"role":"user","content":"q"},{"role":"assistant","content":")", text,
                  R"(","weight":)", weight, "}");
  };
  auto row = [](const std::string& turns) { return R"({"messages":[)" + turns + "]}\n"; };
  f.use_template(
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
      "{% if m.content[0] != '-' %}{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>"
      "{% generation %}!{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
      "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}");
  const std::string two = turn("abc", "1"), none = turn("-", "0");
  CHECK(f.trained(f.load_own(row(two + "," + turn("xyz", "1"))).rows[0]) == "abc!xyz!");
  // A turn's stretches are its own, however many the others have.
  CHECK(f.trained(f.load_own(row(none + "," + two)).rows[0]) == "abc!");
  CHECK(f.trained(f.load_own(row(turn("xyz", "0") + "," + two + "," + none)).rows[0]) == "abc!");
  CHECK(f.own_error(row(turn("-", "1") + "," + two)).find("nothing of message 1 in") !=
        std::string::npos);
  // A turn may have another's words: of as many stretches as turns, one has two here and one none.
  CHECK(f.trained(f.load_own(row(two + "," + turn("-", "0"))).rows[0]) == "abc!");
  f.options.train_on = TrainOn::All;
  const Dataset data = f.load_own(row(two + "," + turn("def", "1")));
  REQUIRE(data.rows.size() == 2);
  CHECK(f.trained(data.rows[0]) == "abc!");
  CHECK(f.trained(data.rows[1]) == "def!");
}

TEST_CASE("a turn of a chat costs no rendering of its own where {% generation %} tells it") {
  Fixture f;
  f.use_template(
      "{% if 1 < messages | length < 8 %}{{ raise_exception('a beginning') }}{% endif %}"
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
      "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}"
      "<|im_end|>{% endif %}\n{% endfor %}");
  const auto chat = [](const std::string& last) {
    std::string turns;
    for (const std::string& said : {std::string("ab"), std::string("cd"), std::string("ef"), last})
      turns += concat(turns.empty() ? "" : ",", R"({"role":"user","content":"q"},)",
                      R"({"role":"assistant","content":")", said, R"("})");
    return R"({"messages":[)" + turns + "]}\n";
  };
  CHECK(f.load_own(chat("gh")).chats == 1);
  // A turn that says nothing leaves open whose the stretches are.
  CHECK(f.own_error(chat("")).find("a beginning") != std::string::npos);
}

TEST_CASE(
    "thoughts that a template leaves out of trained turns are counted, or refused if all are") {
  Fixture f;
  auto use = [&](const std::string& content) {
    f.use_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ " +
        content +
        " }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
  };
  const std::string user = R"({"messages":[{"role":"user","content":"a"},)";
  auto row = [&](const char* weight) {
    return user + R"({"role":"assistant","content":"<think>\nhm\n</think>\n\nb","weight":)" +
           weight + R"(},{"role":"user","content":"c"},)" +
           R"({"role":"assistant","content":"well</think>d"}]})" + "\n";
  };
  const std::string plain =
      user + R"({"role":"assistant","content":"<think>\n\n</think>\n\nb"}]})" + "\n";
  use("m.content");
  CHECK(f.load_own(row("1")).remarks().empty());
  use("m.content if loop.last else m.content.split('</think>')[-1]");
  const Dataset data = f.load_own(plain + row("1") + row("0"));
  CHECK(data.thoughts == 3);
  CHECK(data.thoughts_lost == 1);
  REQUIRE(data.remarks().size() == 1);
  const std::string said = data.remarks()[0];
  CHECK_MESSAGE(said.find("of 1 of 3 trained turns") != std::string::npos, said);
  CHECK_MESSAGE(said.find("data.jsonl:2:") != std::string::npos, said);
  f.options.train_on = TrainOn::All;
  CHECK(f.load_own(row("1")).thoughts_lost == 0);
  f.options.train_on = TrainOn::Assistant;
  use("m.content.split('</think>')[-1]");
  CHECK(f.own_error(plain + row("1")).find("data.jsonl:2: the chat template leaves out the ") !=
        std::string::npos);
  CHECK(f.own_error(plain) == "accepted");
}

TEST_CASE("a template that takes too long is given up at once") {
  const std::string loop = "{% for i in range(99999) %}";
  const std::string source = loop + loop + "{% endfor %}{% endfor %}";
  CHECK_THROWS_AS(find_tool_support(ChatTemplate::choose(source)), InputError);
}

TEST_CASE("bad rows are skipped and counted where that is asked for") {
  Fixture f;
  f.options.skip_bad_rows = true;
  const std::string good = R"({"text":"good"})";
  const Dataset data = f.load("{broken\n" + good + "\n" + R"({"text":7})" + "\n" +
                              R"({"text":"a","hint":"b"})" + "\n" + R"({"text":""})" + "\n" + good);
  CHECK(data.format == "text");
  CHECK(data.rows.size() == 2);
  CHECK(data.rows[1].line == 6);
  CHECK(data.rows_bad == 4);
  CHECK(data.rows_read == 6);
  CHECK(data.first_left_out.find("data.jsonl:1: ") != std::string::npos);
  CHECK(f.refused("{broken\n{broken", "no rows"));
}

TEST_CASE("long rows: refused, cut or skipped, and what is cut to nothing is counted") {
  Fixture f;
  f.options.seq_len = 6;
  const std::string rows =
      R"({"prompt":"a ","completion":"b"})"
      "\n"
      R"({"prompt":"one two three four five six seven eight nine","completion":"x"})"
      "\n"
      R"({"prompt":"a ","completion":"one two three four five six seven eight nine"})";
  CHECK(f.refused(rows, "data.jsonl:2: "));
  f.options.skip_bad_rows = true;
  CHECK(f.refused(rows, "data.jsonl:2: "));  // a long row is no bad row
  f.options.long_rows = LongRows::Truncate;
  const Dataset cut = f.load(rows);
  CHECK(cut.rows.size() == 2);
  CHECK(cut.rows_truncated == 1);
  CHECK(cut.rows_cut_to_nothing == 1);
  CHECK(cut.rows_bad == 0);
  f.options.long_rows = LongRows::Skip;
  const Dataset skipped = f.load(rows);
  CHECK(skipped.rows.size() == 1);
  CHECK(skipped.rows_too_long == 2);
  for (const char* name : {"error", "truncate", "skip"})
    CHECK(long_rows_name(parse_long_rows(name)) == std::string(name));
  CHECK_THROWS_AS(parse_long_rows("drop"), UsageError);
}

TEST_CASE("a format that is named makes records of the other formats' keys") {
  Fixture f;
  f.options.format = "text";
  const Dataset data = f.load("{\"text\":\"a\"," + kTurns + ",\"prompt\":\"b\"}");
  CHECK(data.format == "text");
  CHECK(data.ignored_keys == std::vector<std::string>{"messages", "prompt"});
  CHECK(f.refused(R"({"text":"a","hint":"b"})", "hint"));
}
