// Sweeps: trials are the runs that they would be alone, whatever came before them in memory; what is
// wrong is refused before anything is loaded; a sweep goes on where it ended.
#include <filesystem>

#include "harness.h"
#include "run/chart.h"
#include "run/sweep.h"
#include "run_folders.h"

using namespace lk;
using namespace lk::test;
namespace stdfs = std::filesystem;

namespace {

std::vector<std::string> names(const std::string& text) {
  std::vector<std::string> all;
  for (const SweepTrial& t : sweep_trials(parse_sweep(text))) all.push_back(t.name);
  return all;
}

}  // namespace

TEST_CASE("a sweep's trials are all combinations, and each has a folder's name of its own") {
  CHECK(names("rank=1,2;lr=1e-4,5e-4") ==
        std::vector<std::string>{"rank=1_lr=1e-4", "rank=1_lr=5e-4", "rank=2_lr=1e-4",
                                 "rank=2_lr=5e-4"});
  CHECK(names("targets=a/b,a:b") == std::vector<std::string>{"targets=a_b", "targets=a_b-2"});
  for (const char* bad : {"", "rank", "rank=", "rank=1,,2", "=1", "rank=1;", "rank=1;rank=2",
                          "rank=1,1", ";", "--=1"})
    CHECK_THROWS_AS(parse_sweep(bad), UsageError);
  CHECK_THROWS_AS(names("a=1,2,3,4,5,6,7,8,9,0;b=1,2,3,4,5,6,7,8,9,0;c=1,2,3,4,5,6,7,8,9,0;"
                        "d=1,2,3,4,5,6,7,8,9,0;e=1,2"),
                  UsageError);
}

TEST_CASE("each trial is the run that it is alone, byte for byte") {
  Sweeps f;
  const std::string more = "--steps 4 --eval-every 2 --samples 0 ";
  const auto r = f.run(
      "sweep", more + "--sweep 'lora_r=2,5;--seq-len=64,128;targets=q_proj+v_proj,all-linear'");
  REQUIRE_MESSAGE(r.status == 0, r.out);
  const Json trials = f.record("sweep")["trials"];
  REQUIRE(trials.size() == 8);
  std::size_t n = 0;
  for (const char* rank : {"2", "5"})
    for (const char* seq_len : {"64", "128"})
      for (const char* targets : {"q_proj,v_proj", "all-linear"}) {
        const std::string name = trials[n]["name"];
        CHECK(trials[n]["state"] == "finished");
        const std::string alone = concat("alone", n);
        const auto single = f.run(
            alone, more + concat("--rank ", rank, " --seq-len ", seq_len, " --targets ", targets));
        REQUIRE_MESSAGE(single.status == 0, single.out);
        check_same_run(f / ("sweep/" + name), f / alone);
        const Json own = read_json(f / ("sweep/" + name + "/run.json")),
                   other = read_json(f / (alone + "/run.json"));
        CHECK(own["memory"]["tags"] == other["memory"]["tags"]);
        CHECK(own["base"] == other["base"]);
        CHECK(trials[n]["result"]["peak_bytes"] == own["memory"]["peak_bytes"]);
        ++n;
      }
  // The base was read once, and the table has the lowest evaluation loss first.
  CHECK(r.out.find("loaded ") == r.out.rfind("loaded "));
  const std::string html = slurp(f / "sweep/sweep.html");
  for (const Json& t : trials) {
    CHECK(html.find(t["name"].get<std::string>() + "/report.html") != std::string::npos);
    CHECK(r.out.find(short_number(t["result"]["eval_loss"].get<double>())) != std::string::npos);
  }
  CHECK(html.find("<script") == std::string::npos);
  // Done is done: nothing runs again.
  const std::string before = slurp(f / "sweep/sweep.json");
  const auto again =
      f.run("sweep",
            more + "--resume --sweep 'rank=2,5;seq-len=64,128;targets=q_proj+v_proj,all-linear'");
  CHECK_MESSAGE(again.status == 0, again.out);
  CHECK(again.out.find("loaded ") == std::string::npos);
  CHECK(slurp(f / "sweep/sweep.json") == before);
  CHECK(f.run("sweep", more + "--sweep rank=2").status == 2);           // not empty
  CHECK(f.run("sweep", more + "--resume --sweep rank=2").status == 2);  // another sweep
}

TEST_CASE("what a sweep can't be is refused by name before anything is loaded") {
  Sweeps f;
  auto refused = [&](const std::string& sweep, const std::string& says,
                     const std::string& more = "") {
    const auto r = f.run("out", "--steps 1 " + more + " --sweep '" + sweep + "'");
    CHECK_MESSAGE(r.status == 2, r.out);
    CHECK_MESSAGE(r.out.find(says) != std::string::npos, r.out);
    CHECK(!stdfs::exists(f / "out"));
  };
  refused("rnk=1,2", "did you mean --rank?");
  refused("bananas=1", "--bananas");
  for (const char* fixed :
       {"out", "resume", "config", "sweep", "data", "eval-data", "model", "dtype"})
    refused(concat(fixed, "=x"), concat("--", fixed, " is the same for all trials"));
  refused("packing=true", "--packing takes no value");
  refused("rank=1;lora-r=2", "--rank is given twice");
  refused("rank=1,1", "given twice");
  refused("rank=1,2;lr=1e-3,0.001", "rank=1_lr=1e-3 and rank=1_lr=0.001 have the same settings");
  refused("rank=", "empty value");
  refused("", "--sweep: the value is empty");
  refused("rank", "FLAG=VALUE");
  refused("rank=1,x", "'x' is not a whole number");
  refused("rank=1,0", "must be at least 1");
  refused("rank=1,2", "--rank is also given alone", "--rank 3");
  refused("train-on=assistant,nobody", "nobody");
}

TEST_CASE(
    "a trial that fails is recorded, the others are done, and the worst gives the exit code") {
  Sweeps f;
  const std::string sweep =
      "--steps 5 --samples 0 --seq-len 64 --sweep 'memory-limit=1KiB,8GiB;lr=1e-3,1e38;rank=2,999'";
  const auto r = f.run("sweep", sweep);
  CHECK_MESSAGE(r.status == 6, r.out);
  const Json trials = f.record("sweep")["trials"];
  REQUIRE(trials.size() == 8);
  auto state = [&](std::size_t i, const char* want, int code) {
    CAPTURE(trials[i].dump());
    CHECK(trials[i]["state"] == want);
    CHECK(trials[i]["exit_code"] == code);
  };
  state(0, "failed", 5), state(1, "failed", 2), state(2, "failed", 5), state(3, "failed", 2);
  state(4, "finished", 0), state(5, "failed", 2), state(6, "failed", 6), state(7, "failed", 2);
  const auto alone =
      f.run("alone", "--steps 5 --samples 0 --seq-len 64 --memory-limit 8GiB --lr 1e-3 --rank 2");
  REQUIRE_MESSAGE(alone.status == 0, alone.out);
  check_same_run(f / ("sweep/" + trials[4]["name"].get<std::string>()), f / "alone");
  CHECK(slurp(f / "sweep/sweep.html").find("Failures") != std::string::npos);
  const auto again = f.run("sweep", sweep + " --resume");
  CHECK_MESSAGE(again.status == 6, again.out);
  CHECK(f.record("sweep")["trials"][6]["error"] == trials[6]["error"]);
}

TEST_CASE("a sweep that was stopped or lost a trial goes on to what it would have been") {
  Sweeps f;
  const std::string more =
      "--steps 300 --save-every 20 --samples 0 --seq-len 64 --sweep 'rank=1,2'";
  const auto whole = f.run("whole", more);
  REQUIRE_MESSAGE(whole.status == 0, whole.out);
  f.run("cut", more, "timeout -s INT 1 ");
  f.run("cut", more + " --resume", "timeout -s KILL 2 ");
  const auto rest = f.run("cut", more + " --resume");
  REQUIRE_MESSAGE(rest.status == 0, rest.out);
  for (const char* trial : {"rank=1", "rank=2"})
    check_same_run(f / concat("cut/", trial), f / concat("whole/", trial));
  stdfs::remove_all(f / "cut/rank=1");
  const std::string kept = slurp(f / "cut/rank=2/run.json");
  const auto repaired =
      f.run("cut", more.substr(0, more.size() - 1) + ",3' --resume");  // and one more value
  REQUIRE_MESSAGE(repaired.status == 0, repaired.out);
  check_same_run(f / "cut/rank=1", f / "whole/rank=1");
  CHECK(slurp(f / "cut/rank=2/run.json") == kept);
  CHECK(f.record("cut")["trials"].size() == 3);
  const auto other =
      f.run("cut", "--resume --steps 301 --samples 0 --seq-len 64 --sweep 'rank=1,2,3'");
  CHECK_MESSAGE(other.status == 2, other.out);
  f.scratch.write("cut/sweep.json", "[]");
  const auto damaged = f.run("cut", more + " --resume");
  CHECK_MESSAGE(damaged.status == 3, damaged.out);
  CHECK_MESSAGE(damaged.out.find("sweep.json: ") != std::string::npos, damaged.out);
}
