// Data as people have it, and adapters that others open, by the programs: columns, system turns, the
// base's name, and what is said of an adapter whose base can't be checked.
#include <algorithm>
#include <filesystem>
#include <fstream>

#include "harness.h"
#include "io/input_file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "run_program.h"
#include "scratch_folder.h"
#include "tensor_file.h"

using namespace lk;
using test::ProgramResult;
using test::read_all;
using test::run_program;
namespace stdfs = std::filesystem;

namespace {

const std::string kModel = std::string(LK_TEST_DATA) + "/golden/peft/tiny";
const std::string kRows = std::string(LK_TEST_DATA) + "/../examples/data/support.csv";
const std::string kFlags = " --device cpu --seq-len 256 --batch 2 --lr 1e-2 --steps 1";
const std::string kChat = " --template chatml --columns user=question,assistant=answer";

struct Folder {
  test::ScratchFolder scratch;
  std::string operator/(const std::string& name) const { return scratch.file(name); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(scratch.file(name), std::ios::binary) << text;
    return scratch.file(name);
  }
};

bool says(const ProgramResult& r, const std::string& part) {
  const bool found = r.out.find(part) != std::string::npos;
  if (!found) MESSAGE(r.out, " does not say ", part);
  return found;
}

ProgramResult finetune(const std::string& arguments) {
  return run_program("finetune" + kFlags + arguments);
}

// A copy of the tiny model in `folder`, its config.json with `key` set.
void copy_model(const std::string& folder, const std::string& key, const std::string& value) {
  stdfs::create_directories(folder);
  for (const auto& file : stdfs::directory_iterator(kModel)) stdfs::copy(file.path(), folder);
  Json config = read_json(folder + "/config.json");
  config[key] = value;
  std::ofstream(folder + "/config.json") << config.dump();
}

std::string named_base(const std::string& adapter) {
  return read_json(adapter + "/adapter_config.json")["base_model_name_or_path"];
}

}  // namespace

TEST_CASE("a CSV of questions and answers is trained on, evaluated and answered by its columns") {
  Folder f;
  const std::string data = " --model " + kModel + " --data " + kRows,
                    system = " --system 'Be kind.'";
  ProgramResult r = finetune(data + kChat + system + " --show-rows 1 --out " + (f / "run"));
  REQUIRE_MESSAGE(r.status == 0, r.out);
  CHECK(says(r, "CSV, format user-assistant, 60 rows"));
  CHECK(says(r, "<|im_start|>system\\nBe kind.<|im_end|>\\n<|im_start|>user\\nHow do I reset"));
  const Json identity = read_json(f / "run/run.json")["settings"];
  CHECK(read_file(f / "run/run.toml", 1 << 20)
            .find("columns = \"user=question,assistant=answer\"\nsystem = \"Be kind.\"\n") !=
        std::string::npos);
  // The same run from its own settings, and none from another system turn.
  REQUIRE(
      run_program("finetune --config " + (f / "run/run.toml") + " --out " + (f / "again")).status ==
      0);
  CHECK(read_file(f / "run/adapter_model.safetensors", 1 << 24) ==
        read_file(f / "again/adapter_model.safetensors", 1 << 24));

  const std::string evaluate = "evaluate --device cpu --seq-len 256 --rows 2" + data;
  CHECK(run_program(evaluate + kChat + system).status == 0);
  r = run_program(evaluate + kChat + system + " --generate --max-tokens 2 --predictions " +
                  (f / "p.jsonl"));
  CHECK_MESSAGE(r.status == 0, r.out);
  CHECK(says(r, "\"bleu\""));
  CHECK(read_file(f / "p.jsonl", 1 << 20).find("system\\nBe kind.<|im_end|>") != std::string::npos);
  const std::string ask = "generate --device cpu --max-tokens 2 --prompt a --model " + kModel;
  CHECK(run_program(ask + " --chat --template chatml" + system).status == 0);
  CHECK(run_program(ask + system).status == 2);
  const std::string all = "generate --device cpu --max-tokens 1 --json --model " + kModel +
                          " --prompts " + kRows + " --columns ";
  r = run_program(all + "prompt=question", " 2>/dev/null");
  CHECK(r.status == 0);
  CHECK(std::count(r.out.begin(), r.out.end(), '\n') == 60);
  CHECK(run_program(all + "prompt=frage").status == 3);
  CHECK(run_program(all + "text=question").status == 2);

  for (const auto& [flags, status, why] :
       {std::tuple{std::string(), 3, "--columns prompt=KEY,completion=KEY"},
        {std::string(" --columns prompt=Question,completion=answer"), 3, "did you mean question?"},
        {std::string(" --columns promt=question"), 2, "did you mean prompt?"},
        {" --columns prompt=question,completion=answer" + system, 2, "--system"},
        {std::string(" --template chatml --columns prompt=question,completion=answer"), 2,
         "--template"},
        {kChat + " --system ''", 2, "--system"}}) {
    CAPTURE(flags);
    r = finetune(data + flags + " --out " + (f / "refused"));
    CHECK(r.status == status);
    CHECK(says(r, why));
    r = run_program(evaluate + flags);
    CHECK(r.status == status);
    CHECK(says(r, why));
  }
}

TEST_CASE("an adapter of chats says how to be asked, and warns where it is asked otherwise") {
  Folder f;
  const std::string data = " --model " + kModel + " --data " + kRows;
  const ProgramResult r = finetune(data + kChat + " --system 'Be kind.' --out " + (f / "chats"));
  REQUIRE_MESSAGE(r.status == 0, r.out);
  const std::string flags = " --chat --template chatml --system 'Be kind.'";
  CHECK(says(r, "--adapter " + (f / "chats") + flags + " --prompt"));
  CHECK(read_file(f / "chats/README.md", 1 << 20).find(flags + " --prompt") != std::string::npos);
  REQUIRE(finetune(data + " --columns prompt=question,completion=answer --out " + (f / "text"))
              .status == 0);
  const std::string ask =
      "generate --device cpu --max-tokens 1 --model " + kModel + " --prompt a --adapter ";
  auto warns = [&](const std::string& arguments) {
    const ProgramResult said = run_program(arguments);
    CHECK_MESSAGE(said.status == 0, said.out);
    return said.out.find("was trained on") == std::string::npos ? std::string() : said.out;
  };
  CHECK(warns(ask + (f / "chats")).find("add" + flags) != std::string::npos);
  CHECK(warns(ask + (f / "chats") + " --chat --template chatml").find("these have none") !=
        std::string::npos);
  CHECK(warns(ask + (f / "chats") + flags) == "");
  CHECK(warns(ask + "c=" + (f / "chats") + flags + " --adapter t=" + (f / "text"))
            .find("adapter t=" + (f / "text") + " was trained on plain text") != std::string::npos);
  CHECK(warns(ask + (f / "text")) == "");
  const std::string evaluate =
      "evaluate --device cpu --seq-len 256 --rows 2" + data + " --adapter ";
  const std::string plain = " --columns prompt=question,completion=answer";
  for (const char* generate : {"", " --generate --max-tokens 1"}) {
    CHECK(warns(evaluate + (f / "chats") + plain + generate).find("plain text") !=
          std::string::npos);
    CHECK(warns(evaluate + (f / "chats") + kChat + generate).find("--system 'Be kind.'") !=
          std::string::npos);
    CHECK(warns(evaluate + (f / "chats") + kChat + " --system 'Be kind.'" + generate) == "");
    CHECK(warns(evaluate + (f / "text") + plain + generate) == "");
  }
}

TEST_CASE(
    "markers of a template that are no tokens of the model are told wherever chats are read") {
  Folder f;
  const std::string rows = f.write("rows.csv", "question,answer\nA?,a\nB?,b\nC?,c\n");
  const std::string data = " --model " + kModel + " --data " + rows,
                    columns = " --columns user=question,assistant=answer";
  const std::string evaluate = "evaluate --device cpu --seq-len 256 --rows 2" + data + columns;
  const std::string ask = "generate --device cpu --max-tokens 1 --prompt a --model " + kModel;
  const std::string marker = "<|start_header_id|>, which is no token of the model";
  for (const std::string& command :
       {"finetune" + kFlags + data + columns + " --out " + (f / "run"), evaluate,
        evaluate + " --generate --max-tokens 1", ask + " --chat"}) {
    CAPTURE(command);
    CHECK(says(run_program(command + " --template llama3"), "--template llama3 writes " + marker));
    CHECK(run_program(command + " --template chatml").out.find("no token of") == std::string::npos);
  }
}

TEST_CASE("an adapter calls its base by --base-name, or as the model's files say") {
  Folder f;
  const std::string rows = " --data " + f.write("rows.jsonl", R"({"text":"abcdef"})"
                                                              "\n");
  auto base_of = [&](const std::string& model, const std::string& flags = "") {
    stdfs::remove_all(f / "run");
    const ProgramResult r = finetune(rows + " --model " + model + flags + " --out " + (f / "run"));
    REQUIRE_MESSAGE(r.status == 0, r.out);
    const std::string name = named_base(f / "run");
    CHECK(says(r, name));
    CHECK(
        read_file(f / "run/README.md", 1 << 20).starts_with("---\nbase_model: \"" + name + "\"\n"));
    return name;
  };
  CHECK(base_of(kModel) == kModel);
  CHECK(base_of(kModel, " --base-name tiny-org/Tiny-1.5_x") == "tiny-org/Tiny-1.5_x");
  const std::string cached = f / "hub/models--tiny-org--Tiny/snapshots/0123";
  copy_model(cached, "_name_or_path", "other/Parent");
  CHECK(base_of(cached) == "tiny-org/Tiny");
  copy_model(f / "named", "_name_or_path", "tiny-org/Named");
  CHECK(base_of(f / "named") == "tiny-org/Named");
  copy_model(f / "local", "_name_or_path", "/home/somebody/tiny");
  CHECK(base_of(f / "local") == (f / "local"));
  // A folder of the base, relative or not, is kept as it is given; another model's is refused.
  copy_model(f / "base", "_name_or_path", "tiny-org/Tiny");
  CHECK(base_of(kModel, " --base-name " + (f / "base")) == (f / "base"));
  stdfs::create_directories(f / "empty");
  stdfs::copy(std::string(LK_TEST_DATA) + "/golden/models/tied_gqa", f / "other");
  for (const auto& [name, why] : {std::pair{f / "empty", "config.json"},
                                  {f / "other", "another model"},
                                  {f / "none", "a Hugging Face folder"}}) {
    const ProgramResult r = finetune(rows + " --model " + kModel + " --base-name " + name +
                                     " --out " + (f / "refused"));
    CHECK(r.status == 2);
    CHECK_MESSAGE(says(r, why), r.out);
  }
  for (const char* name : {"tiny", "a/b/c", "a--b/c", "a/b..c", "-a/b", "a/b.gguf", "a/ b", "''"}) {
    const ProgramResult r = finetune(rows + " --model " + kModel + " --base-name '" + name +
                                     "' --out " + (f / "refused"));
    CHECK_MESSAGE((r.status == 2 || std::string(name) == "''"), name);
  }
}

TEST_CASE("an adapter that does not say what it was trained on is used with a warning") {
  Folder f;
  const std::string rows = f.write("rows.jsonl", R"({"text":"abcdef"})"
                                                 "\n");
  const std::string model = " --model " + kModel;
  REQUIRE(finetune(model + " --data " + rows + " --out " + (f / "own")).status == 0);
  auto edited = [&](const std::string& name, const std::string& fingerprint) {
    stdfs::create_directories(f / name);
    stdfs::copy_file(f / "own/adapter_config.json", (f / name) + "/adapter_config.json");
    const SafetensorsFile file(f / "own/adapter_model.safetensors");
    std::vector<SafetensorsEntry> tensors;
    for (const std::string& tensor : file.names())
      tensors.push_back({tensor, file.shape(tensor), read_all(file, tensor)});
    std::map<std::string, std::string> metadata{{"format", "pt"}};
    if (!fingerprint.empty()) metadata["lorikeet_base_sha256"] = fingerprint;
    write_safetensors((f / name) + "/adapter_model.safetensors", tensors, metadata);
    return f / name;
  };
  const std::string none = edited("none", ""), other = edited("other", "00");
  int n = 0;
  for (const std::string& with : {f / "own", none, other}) {
    const std::string out = f / std::to_string(n++), use = model + " --adapter " + with;
    for (const std::string& arguments :
         {"generate --device cpu --max-tokens 1 --prompt a" + use,
          "generate --device cpu --max-tokens 1 --prompt a" + model + " --adapter a=" + with,
          "evaluate --device cpu --data " + rows + use, "merge" + use + " --out " + out,
          "export" + use + " --out " + out + ".gguf",
          "finetune" + kFlags + model + " --data " + rows + " --init-adapter " + with + " --out " +
              out + "run"}) {
      CAPTURE(arguments);
      const ProgramResult r = run_program(arguments);
      // What export writes is the same for any base of these shapes.
      const bool refused = with == other && !arguments.starts_with("export");
      CHECK_MESSAGE(r.status == (refused ? 3 : 0), r.out);
      const std::string warning = "no fingerprint of its base";
      const std::size_t first = r.out.find("warning: " + with + ": " + warning);
      CHECK((first != std::string::npos) == (with == none));
      CHECK(r.out.find("warning: " + with, first == std::string::npos ? 0 : first + 1) ==
            std::string::npos);
      if (refused) CHECK(says(r, "trained on another base model"));
    }
  }
}
