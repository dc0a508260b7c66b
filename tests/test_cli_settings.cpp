// The programs' settings: what contradicts itself or would do nothing is refused by its flag, wherever it
// stands, and what is there is not overwritten.
#include <fstream>

#include "hostile.h"
#include "io/json.h"
#include "run_program.h"
#include "scratch_folder.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kModel = std::string(LK_TEST_DATA) + "/golden/peft/tiny";
const std::string kRows = std::string(LK_TEST_DATA) + "/golden/peft/rows.jsonl";

struct Folder {
  ScratchFolder scratch;
  std::string train(const std::string& out, const std::string& more) const {
    return "finetune --device cpu --model " + kModel + " --data " + kRows + " --batch 2 --out " +
           scratch.file(out) + " " + more;
  }
};

}  // namespace

TEST_CASE("settings without effect are refused by their flags") {
  Folder f;
  for (auto [flags, part] : std::initializer_list<std::pair<const char*, const char*>>{
           {"--targets q_proj,q_proj", "--targets: q_proj stands there twice"},
           {"--fp8-products on", "--fp8-products on: no matrix of the base is in FP8"},
           {"--peer-timeout 5", "--peer-timeout: is for several --processes"},
           {"--sample-every 1 --samples 0", "--sample-every and --samples 0"},
           {"--seed -1", "--seed: '-1' is not a whole number from 0"}})
    check_says(run_program(f.train("a", std::string("--steps 1 ") + flags)), 2, part);
  check_says(run_program("generate --model " + kModel + " --prompt a --max-tokens 2 --top-p 0.5"),
             0, "warning: --top-p: without effect");
}

TEST_CASE("merge refuses what would do nothing") {
  Folder f;
  const std::string merge = "merge --model " + kModel + " --out " + f.scratch.file("m");
  check_says(run_program(merge + ".GGUF"), 2, "ends in .gguf, in small letters");
  check_says(run_program(merge + ".gguf --shard-size 1KB"), 2, "--shard-size: is for a folder's");
  check_says(run_program(merge + " --onto " + kModel), 2, "there is no adapter to merge into it");
  for (const char* flag : {"--type f32", "--no-verify", "--shard-size 1MB"})
    check_says(run_program(merge + " --unmerge --base " + kModel + " " + flag), 2,
               "has no effect beside --unmerge");
}

TEST_CASE("--eval-rows takes the first rows of a file, and limits those that are split off") {
  Folder f;
  check_says(run_program(f.train("a", "--steps 1 --eval-split 0.4 --eval-rows 2")), 0,
             "evaluation: 2 of the 23 rows are kept for it");
  check_says(run_program(f.train("b", "--steps 1 --eval-split 0.4 --eval-rows 100")), 0,
             "evaluation: 9 of the 23 rows are kept for it");
  check_says(run_program(f.train("c", "--steps 1 --eval-rows 2")), 2,
             "need rows to evaluate on: --eval-data or --eval-split");
}

TEST_CASE("a seed of 64 bits is a run's, and the run goes on with it") {
  Folder f;
  const std::string most = "18446744073709551615";
  check_says(run_program(f.train("a", "--eval-split 0 --steps 2 --seed " + most)), 0, "adapter: ");
  CHECK(slurp(f.scratch.file("a/run.toml")).find("seed = " + most) != std::string::npos);
  check_says(run_program("finetune --resume --steps 3 --out " + f.scratch.file("a")), 0, "3 steps");
}

TEST_CASE("what a settings file says and the command line does not is named with the file") {
  Folder f;
  const std::string flags =
      "rank = 4\nwarmup = 10\nlong-rows = \"skip\"\nsteps = 20\neval-split = 0\n";
  const std::string file = f.scratch.write("mine.toml", flags);
  check_says(run_program(f.train("a", "--config " + file + " --steps 5")), 2,
             "--warmup 10: the run has 5 steps (--warmup stands in " + file + ")");
  check_says(run_program(f.train("a", "--config " + file + " --method ia3")), 2,
             "(--rank stands in " + file + ")");
  const auto own = run_program(f.train("a", "--config " + file + " --steps 5 --warmup 6"));
  check_says(own, 2, "--warmup 6: the run has 5 steps");
  CHECK(own.out.find("stands in") == std::string::npos);
  // One that excludes a flag of the file is the command line's word against it.
  check_says(run_program(f.train("b", "--config " + file + " --truncate")), 0, "adapter: ");
  CHECK(slurp(f.scratch.file("b/run.toml")).find("long-rows = \"truncate\"") != std::string::npos);
}

TEST_CASE("--resume alone goes on with the folder's run, and says where there is none") {
  Folder f;
  const std::string none = f.scratch.file("none"), some = f.scratch.file("some");
  check_says(run_program("finetune --resume --out " + none), 2,
             "--resume: " + none + " holds no run to go on with");
  REQUIRE(run_program(f.train("some", "--eval-split 0 --steps 2")).status == 0);
  check_says(run_program("finetune --resume --data " + kRows + " --steps 3 --out " + some), 0,
             "3 steps");
}

TEST_CASE("compare replaces a page of its own and nothing else") {
  Folder f;
  for (const char* out : {"a", "b"})
    REQUIRE(run_program(f.train(out, "--eval-split 0 --steps 1")).status == 0);
  const std::string runs = "compare " + f.scratch.file("a") + " " + f.scratch.file("b") + " --out ";
  const std::string adapter = f.scratch.file("b/adapter_model.safetensors"),
                    before = slurp(adapter);
  for (const std::string& taken : {adapter, f.scratch.file("a/report.html")})
    check_says(run_program(runs + taken), 2, taken + ": exists already");
  CHECK(slurp(adapter) == before);
  for (int time = 0; time < 2; ++time)
    CHECK(run_program(runs + f.scratch.file("page.html")).status == 0);
}

TEST_CASE("a run is saved on the way; under nohup it outlives its terminal, and ends for SIGINT") {
  Folder f;
  const auto r = run_shell(
      std::string("nohup ") + LK_TOOLS + "/" + f.train("a", "--eval-split 0 --steps 100000") +
      " >/dev/null 2>" + f.scratch.file("log") + " & P=$!; until [ -e " +
      f.scratch.file("a/checkpoint.safetensors") +
      " ]; do sleep 0.05; done; kill -HUP $P; sleep 0.3; kill -0 $P && echo alive; "
      "kill -INT $P; wait $P; echo ended $?");
  CHECK_MESSAGE(r.out.find("alive\nended 130") != std::string::npos, r.out);
}

TEST_CASE("a file whose lines end in carriage returns alone is refused for that") {
  Folder f;
  const std::string file = f.scratch.write("old.csv", "prompt,completion\r\"a\",b\r");
  check_says(run_program("finetune --device cpu --steps 1 --model " + kModel + " --data " + file +
                         " --out " + f.scratch.file("a")),
             3, file + ":1: a carriage return that ends no line");
}
