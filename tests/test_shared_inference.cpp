// Evaluation and generation by several processes: the same bytes for any number of them, whatever rows
// and batches are; one end for all, whatever ends one, and no part of an output.
#include <filesystem>

#include "run_folders.h"

using namespace lk;
using namespace lk::test;
namespace stdfs = std::filesystem;

namespace {

const std::string kChats =
    R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]})"
    "\n";

// Shell functions: `ranks N` waits until the program $P has N processes, of which `out` has some
// output, and prints their numbers; `running` says of each of the numbers that still runs.
const std::string kShell =
    "ranks() { for i in $(seq 300); do W=$(cat /proc/$P/task/*/children); "
    "[ $(echo $W | wc -w) = $1 ] && [ -s out ] && break; sleep 0.05; done; echo $W; }\n"
    "running() { for w in $*; do grep -qs '^State:.[^Z]' /proc/$w/status && echo ORPHAN $w; done; "
    "true; }\n";

struct Folder {
  ScratchFolder scratch;
  std::string operator/(const std::string& name) const { return scratch.file(name); }
  std::string in() const { return "cd '" + scratch.file(".") + "' && "; }
  std::string program(const std::string& arguments) const {
    return std::string(LK_TOOLS) + "/" + arguments + " --device cpu --model " + kTinyModel + " ";
  }
  // What a program prints on stdout.
  ProgramResult run(const std::string& arguments) const {
    return run_shell(in() + program(arguments) + "2>errors");
  }
  std::string errors() const { return slurp(scratch.file("errors")); }
  // Checks that any number of processes prints the same and leaves the same file, if it is one.
  std::string check_same(const std::string& arguments, const std::string& file = "") const {
    CAPTURE(arguments);
    std::string printed, left;
    for (const char* processes : {"", "1", "2", "3"}) {
      CAPTURE(processes);
      const std::string flag = *processes ? std::string(" --processes ") + processes : "";
      const ProgramResult r = run(arguments + flag);
      REQUIRE_MESSAGE(r.status == 0, errors());
      const std::string now = file.empty() ? "" : slurp(*this / file);
      if (!file.empty()) stdfs::remove(*this / file);
      if (printed.empty()) printed = r.out, left = now;
      CHECK(r.out == printed);
      CHECK(now == left);
    }
    return printed;
  }
};

// Rows that differ in length.
std::string uneven_rows(int n, const std::string& rest) {
  std::string rows;
  for (int i = 0; i < n; ++i)
    rows += concat(R"({"prompt":"row )", i, std::string(static_cast<std::size_t>(i * 7 % 23), 'x'),
                   "\"", rest, "}\n");
  return rows;
}

std::string rank_environment(int rank, const std::string& port) {
  return concat("OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 OMPI_COMM_WORLD_RANK=", rank,
                " OMPI_COMM_WORLD_LOCAL_RANK=", rank, " MASTER_ADDR=127.0.0.1 MASTER_PORT=", port,
                " ");
}

}  // namespace

TEST_CASE("any number of processes prints the same scores") {
  Folder f;
  f.scratch.write("choices.jsonl", uneven_rows(7, R"(,"choices":["a","bcd","ef gh"],"answer":1)"));
  for (const char* rows : {"1", "2", "5", "23"})
    f.check_same(concat("evaluate --seq-len 64 --rows ", rows, " --data ", kTinyRows));
  f.check_same("evaluate --seq-len 40 --data choices.jsonl");
  const std::string generate =
      "evaluate --generate --max-tokens 6 --predictions answers --data " + kTinyRows;
  for (const char* more : {" --batch 2", " --batch 3 --beams 3", " --rows 1"})
    f.check_same(generate + more, "answers");
}

TEST_CASE("any number of processes continues prompts with the same bytes, in their order") {
  Folder f;
  f.scratch.write("prompts.jsonl", uneven_rows(11, ""));
  for (const char* more :
       {"--batch 1", "--batch 4 --temperature 1.5 --seed 7", "--batch 16 --stop x",
        "--batch 2 --temperature 1 --top-p 0.9 --repetition-penalty 1.2", "--batch 4 --beams 2"})
    f.check_same(concat("generate --max-tokens 9 --prompts prompts.jsonl ", more));
  // But for clocks, objects are the same too.
  auto objects = [&](const std::string& processes) {
    const ProgramResult r =
        f.run("generate --max-tokens 5 --batch 3 --json --prompts prompts.jsonl --processes " +
              processes);
    REQUIRE_MESSAGE(r.status == 0, f.errors());
    std::vector<Json> all;
    std::istringstream lines(r.out);
    for (std::string line; std::getline(lines, line);) {
      all.push_back(parse_json(line, "generate"));
      all.back().erase("prefill_tokens_per_second"), all.back().erase("tokens_per_second");
    }
    return all;
  };
  CHECK(objects("1").size() == 11);
  CHECK(objects("1") == objects("3"));
}

TEST_CASE("processes without a group of prompts are named; what can't be shared is refused") {
  Folder f;
  f.scratch.write("prompts.jsonl", uneven_rows(3, ""));
  REQUIRE(f.run("generate --max-tokens 2 --prompts prompts.jsonl --processes 3 --batch 2").status ==
          0);
  CHECK(f.errors().find("2 groups for 3 processes: 1 of them compute nothing") !=
        std::string::npos);
  f.scratch.write("chats.jsonl", kChats);
  f.scratch.write("answers", "");
  auto refused = [&](const std::string& arguments, int status, const std::string& says) {
    CAPTURE(arguments);
    CHECK(f.run(arguments + " --processes 2").status == status);
    const std::string errors = f.errors();
    CHECK_MESSAGE(errors.find(says) != std::string::npos, errors);
    CHECK(errors.find("error: ") == errors.rfind("error: "));
  };
  refused("generate --prompt abc", 2, "--processes 2: they share the rows of --prompts; --prompt");
  refused("generate --chat", 2, "a conversation");
  refused("generate --prompts -", 2, "pipe");
  refused("evaluate --data -", 2, "pipe");
  refused("evaluate --data none", 3, "none");
  refused("generate --prompts chats.jsonl", 3, "\"messages\"");
  refused("evaluate --generate --predictions answers --data " + kTinyRows, 2, "answers");
  for (const char* flag : {"--batch 2", "--max-tokens 2"})
    refused(concat("evaluate ", flag, " --data ", kTinyRows), 2, "nothing is generated");
  for (const char* flag : {"--truncate", "--long-rows skip", "--skip-bad-rows"})
    refused(concat("evaluate --generate ", flag, " --data ", kTinyRows), 2, "loss is computed");
  refused("evaluate --adapter '' --data " + kTinyRows, 2, "--adapter: the value is empty");
  f.scratch.write("long.jsonl",
                  "{\"prompt\":\"a\"}\n\n" + uneven_rows(1, "") + "{\"prompt\":\"\"}");
  refused("generate --prompts long.jsonl", 3, "long.jsonl:4: ");
  refused("evaluate --peer-timeout 0 --data " + kTinyRows, 2, "--peer-timeout");
}

TEST_CASE("processes whose output nobody reads any more end as one alone does, without a word") {
  Folder f;
  f.scratch.write("prompts.jsonl", uneven_rows(40, ""));
  for (const char* processes : {"", " --processes 2"}) {
    CAPTURE(processes);
    run_shell(f.in() + "{ " +
              f.program("generate --prompts prompts.jsonl --max-tokens 300 --batch 2") + processes +
              " 2>errors; echo $? >code; } | head -c 1");
    CHECK(slurp(f / "code") == "141\n");
    CHECK(f.errors().find("error") == std::string::npos);
    CHECK(f.errors().find("process") == std::string::npos);
  }
}

TEST_CASE("processes that another launcher starts share rows, if they have the same") {
  Folder f;
  const std::string port = std::to_string(22000 + ::getpid() % 20000);
  f.scratch.write("rows.jsonl", uneven_rows(5, R"(,"completion":"abc")"));
  for (const char* folder : {"none", "other", "changed"}) stdfs::create_directory(f / folder);
  for (const char* folder : {"none", "other"})
    stdfs::create_directory_symlink("../tiny", f / (std::string(folder) + "/tiny"));
  f.scratch.write("other/rows.jsonl", uneven_rows(5, R"(,"completion":"abd")"));
  stdfs::copy(kTinyModel, f / "tiny");
  stdfs::copy(kTinyModel, f / "changed/tiny", stdfs::copy_options::recursive);
  std::string weights = slurp(f / "changed/tiny/model.safetensors");
  weights[weights.size() - 1] ^= 1;  // the last number's exponent
  f.scratch.write("changed/tiny/model.safetensors", weights);
  f.scratch.write("changed/rows.jsonl", slurp(f / "rows.jsonl"));
  // Process 1 runs in `folder`, with `more`; what process 0 prints.
  auto two = [&](const std::string& folder, const std::string& more = "") {
    const std::string command =
        LK_TOOLS "/evaluate --device cpu --peer-timeout 20 --model tiny --data rows.jsonl ";
    return run_shell(f.in() + "(cd " + folder + " && " + rank_environment(1, port) + command +
                     more + ") >of1 2>&1 & P=$!; cd '" + f / "." + "' && " +
                     rank_environment(0, port) + command +
                     " 2>&1; S=$?; wait $P; [ $? = $S ] || echo APART; exit $S");
  };
  const ProgramResult alone = f.run("evaluate --data rows.jsonl");
  const ProgramResult both = two(".");
  CHECK_MESSAGE(both.status == 0, both.out);
  CHECK(both.out.ends_with(alone.out));
  CHECK(slurp(f / "of1").empty());
  auto refused = [&](const std::string& folder, const std::string& more, int status,
                     const std::string& says) {
    const ProgramResult r = two(folder, more);
    CHECK_MESSAGE(r.status == status, r.out);
    CHECK_MESSAGE(r.out.find(says) != std::string::npos, r.out);
    CHECK_MESSAGE(r.out.find("APART") == std::string::npos, r.out);
  };
  refused("none", "", 3, "process 1 of 2: rows.jsonl: ");
  refused("other", "", 2, "settings.rows was ");
  refused(".", "--seq-len 64", 2, "settings.--seq-len was unset, now it is");
  refused("changed", "", 2, "loss of a few tokens was ");
}

TEST_CASE("when a process is killed or hangs, all end with 4 and leave no part of a file") {
  Folder f;
  f.scratch.write("prompts.jsonl", uneven_rows(20000, R"(,"completion":"abc")"));
  const std::string long_work =
      " --batch 2 --max-tokens 100 --processes 3 --peer-timeout 1 >out 2>&1 & P=$!\n";
  const std::string evaluate =
      f.program("evaluate --generate --data prompts.jsonl --predictions answers") + long_work;
  const std::string generate = f.program("generate --prompts prompts.jsonl") + long_work;
  auto ends = [&](const std::string& program, const std::string& how, int status,
                  const std::string& says) {
    CAPTURE(how);
    const ProgramResult r = run_shell(
        kShell + f.in() + "rm -f out\n" + program + "W=$(ranks 3); " + how +
        "; T=$(date +%s); wait $P; S=$?; [ $(($(date +%s) - T)) -le 5 ] || echo SLOW; running $W; "
        "[ ! -e answers ] || echo PART; exit $S");
    CHECK_MESSAGE(r.status == status, r.out);
    CHECK_MESSAGE(r.out.empty(), r.out);
    CHECK_MESSAGE(slurp(f / "out").find(says) != std::string::npos, slurp(f / "out"));
  };
  ends(evaluate, "kill -KILL $(echo $W | cut -d' ' -f1)", 4, "was ended by signal 9");
  ends(generate, "kill -KILL $(echo $W | cut -d' ' -f3)", 4, "was ended by signal 9");
  ends(evaluate, "kill -STOP $(echo $W | cut -d' ' -f2)", 4, "process 1 of 3 was silent for 1 s");
  ends(generate, "kill -TERM $P", 143, "");
}
