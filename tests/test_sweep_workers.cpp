// Sweeps on several processes: the same folders as one after the other, faults that stay with their
// trial, and nobody left running.
#include <filesystem>

#include "harness.h"
#include "run_folders.h"

using namespace lk;
using namespace lk::test;
namespace stdfs = std::filesystem;

namespace {

const std::string kSweep = " --samples 0 --seq-len 64 --sweep 'rank=1,2,4;lr=1e-3,2e-3' ";
const std::string kLong = "--steps 20000 --save-every 50 --eval-every 0" + kSweep;

// What a sweep's record says but for what a clock does.
Json timeless(Json record) {
  for (Json& trial : record["trials"])
    for (const char* key : {"seconds", "tokens_per_second"})
      if (trial["result"].is_object()) trial["result"].erase(key);
  return record;
}

// Shell functions: `workers DIR` waits until the program $P has two processes that train in DIR, and
// prints their numbers; `running` says of each of the numbers that still runs.
const std::string kShell =
    "workers() { for i in $(seq 300); do W=$(cat /proc/$P/task/*/children); N=$(ls -d "
    "$1/rank*/metrics.jsonl "
    "2>/dev/null | wc -l); [ $(echo $W | wc -w) = 2 ] && [ $N -ge 2 ] && break; sleep 0.1; done; "
    "echo $W; }\n"
    "running() { for w in $*; do grep -qs '^State:.[^Z]' /proc/$w/status && echo ORPHAN $w; done; "
    "true; }\n";

}  // namespace

TEST_CASE("a sweep on several processes leaves what one after the other does") {
  Sweeps f;
  const std::string more = "--steps 8 --eval-every 2" + kSweep;
  const auto alone = f.run("alone", more);
  REQUIRE_MESSAGE(alone.status == 0, alone.out);
  for (const char* processes : {"1", "2", "5"}) {
    CAPTURE(processes);
    const std::string out = concat("on", processes);
    const auto r = f.run(out, more + " --processes " + processes);
    REQUIRE_MESSAGE(r.status == 0, r.out);
    CHECK(timeless(f.record(out)) == timeless(f.record("alone")));
    const Json trials = f.record("alone")["trials"];
    for (const Json& trial : trials) {
      const std::string name = trial["name"];
      check_same_run(f / concat(out, "/", name), f / concat("alone/", name));
    }
    CHECK(slurp(f / concat(out, "/sweep.html")).find("rank=4_lr=2e-3") != std::string::npos);
  }
}

namespace {

// One trial of the record failed with its process, for this reason, which the sweep said; the others are
// done.
void check_one_lost(const Json& record, const std::string& why, const std::string& said) {
  int failed = 0;
  for (const Json& trial : record["trials"]) {
    if (trial["state"] == "finished") continue;
    ++failed;
    CHECK(trial["state"] == "failed");
    CHECK(trial["exit_code"] == 4);
    CHECK(trial["error"] == why);
    const std::string says =
        concat("trial ", trial["name"].get<std::string>(), " failed: its process");
    CHECK_MESSAGE(said.find(says) != std::string::npos, said);
  }
  CHECK(failed == 1);
}

}  // namespace

TEST_CASE("a trial that fails fails alone, with the code that it has alone") {
  Sweeps f;
  const auto r = f.run("sweep",
                       "--processes 2 --steps 5 --samples 0 --seq-len 64 --sweep "
                       "'lr=1e-3,1e38;rank=2,999'");
  CHECK_MESSAGE(r.status == 6, r.out);
  const Json trials = f.record("sweep")["trials"];
  const int codes[] = {0, 2, 6, 2};
  for (std::size_t i = 0; i < 4; ++i) CHECK(trials[i]["exit_code"] == codes[i]);
  CHECK(trials[2]["error"].get<std::string>().find("not finite") != std::string::npos);
}

TEST_CASE("a worker that is killed fails its trial by name, the others are done, and it goes on") {
  Sweeps f;
  const std::string more =
      "--steps 600 --save-every 50 --eval-every 0 --samples 0 --seq-len 64 --sweep 'rank=1,2,4' ";
  const auto r =
      run_shell(kShell + f.begin("sweep", "--processes 2 " + more) + "for w in $(workers " +
                f / "sweep" + "); do kill -KILL $w; break; done; wait $P");
  CHECK_MESSAGE(r.status == 4, r.out);
  check_one_lost(f.record("sweep"), "its process was ended by signal 9", r.out);
  const auto rest = f.run("sweep", "--processes 2 --resume " + more);
  REQUIRE_MESSAGE(rest.status == 0, rest.out);
  REQUIRE(f.run("alone", more).status == 0);
  for (const char* trial : {"rank=1", "rank=2", "rank=4"})
    check_same_run(f / concat("sweep/", trial), f / concat("alone/", trial));
}

TEST_CASE("a signal to one worker fails its trial alone, and another process takes its place") {
  Sweeps f;
  const std::string more =
      "--steps 3000 --save-every 50 --eval-every 0 --samples 0 --seq-len 64 "
      "--processes 2 --sweep 'rank=1,2,4' ";
  const auto r = run_shell(kShell + f.begin("sweep", more) + "for w in $(workers " + f / "sweep" +
                           "); do kill -TERM $w; break; done; wait $P");
  CHECK_MESSAGE(r.status == 4, r.out);
  check_one_lost(f.record("sweep"), "its process was told to stop by a signal", r.out);
  const auto rest = f.run("sweep", "--resume " + more);
  CHECK_MESSAGE(rest.status == 0, rest.out);
}

TEST_CASE("Ctrl-C ends all processes of a sweep, and it goes on") {
  Sweeps f;
  const std::string out = f / "sweep";
  for (const char* signal : {"INT", "TERM"}) {
    CAPTURE(signal);
    const bool again = stdfs::exists(out);
    const auto r = run_shell(
        kShell + f.begin("sweep", "--processes 2 " + kLong + (again ? " --resume" : "")) +
        "W=$(workers " + out + "); kill -" + signal + " $P; wait $P; S=$?; running $W; exit $S");
    CHECK_MESSAGE(r.status == (signal == std::string("INT") ? 130 : 143), r.out);
    CHECK_MESSAGE(r.out.find("ORPHAN") == std::string::npos, r.out);
    const Json trials = f.record("sweep")["trials"];
    CHECK(trials[0]["state"] == "stopped");
    CHECK(trials[1]["state"] == "stopped");
    CHECK(trials[2]["state"] == "waiting");
    CHECK(stdfs::exists(out + "/rank=1_lr=1e-3/checkpoint.safetensors"));
  }
}

TEST_CASE("when the process of a sweep is killed its workers end too") {
  Sweeps f;
  const std::string out = f / "sweep";
  const auto r = run_shell(kShell + f.begin("sweep", "--processes 2 " + kLong) + "W=$(workers " +
                           out + "); kill -KILL $P; sleep 0.5; running $W");
  CHECK_MESSAGE(r.out.find("ORPHAN") == std::string::npos, r.out);
}

TEST_CASE("a number of processes that can't be is refused before anything is written") {
  Sweeps f;
  for (const char* bad : {"0", "-1", "x", "1.5", "all", "99999"}) {
    CAPTURE(bad);
    const auto r = f.run("out", concat("--steps 1 --processes ", bad, kSweep));
    CHECK_MESSAGE(r.status == 2, r.out);
    CHECK_MESSAGE(r.out.find("--processes") != std::string::npos, r.out);
    CHECK(!stdfs::exists(f / "out"));
  }
  CHECK(f.run("out", "--steps 1 --sweep processes=1,2").status == 2);
}
