// Runs on several processes: the same bytes for any number of them, whatever a step is made of, also
// when a run goes on with another number; and one end for all, whatever ends one.
#include <filesystem>

#include "cuda/open_device.h"
#include "harness.h"
#include "io/safetensors.h"
#include "run_folders.h"

using namespace lk;
using namespace lk::test;
namespace stdfs = std::filesystem;

namespace {

const std::string kSteps = "--steps 6 --lr 1e-2 --samples 0 --seq-len 64 --eval-every 3 ";
// Long enough to be ended before its end, with checkpoints on the way.
const std::string kLong =
    "--steps 30000 --save-every 20 --lr 1e-3 --samples 0 --seq-len 64 --eval-every 0 "
    "--grad-accum 2 ";

// Shell functions: `ranks DIR` waits until the program $P has two processes that train in DIR, and
// prints their numbers; `running` says of each of the numbers that still runs.
const std::string kShell =
    "ranks() { for i in $(seq 300); do W=$(cat /proc/$P/task/*/children); "
    "[ $(echo $W | wc -w) = 2 ] && [ -s $1/checkpoint.safetensors ] && break; sleep 0.1; done; "
    "echo $W; }\n"
    "running() { for w in $*; do grep -qs '^State:.[^Z]' /proc/$w/status && echo ORPHAN $w; done; "
    "true; }\n";

std::vector<float> values_of(const SafetensorsFile& file, const std::string& name) {
  const Shape shape = file.shape(name);
  std::vector<float> values(static_cast<std::size_t>(shape.numel()));
  file.read_rows(name, 0, shape.rank() <= 1 ? 1 : shape[0], values.data());
  return values;
}

// Checks that two runs' checkpoints have the same numbers: what else is in them says how long it took.
void check_same_state(const std::string& a, const std::string& b) {
  const SafetensorsFile one(a + "/checkpoint.safetensors"), other(b + "/checkpoint.safetensors");
  CHECK(one.names() == other.names());
  for (const std::string& name : one.names()) {
    CAPTURE(name);
    CHECK(one.shape(name) == other.shape(name));
    CHECK(values_of(one, name) == values_of(other, name));
  }
}

}  // namespace

TEST_CASE("any number of processes leaves the same bytes, whatever a step is made of") {
  Sweeps f;
  int n = 0;
  for (const char* more :
       {"--grad-accum 1", "--grad-accum 2 --dropout 0.1", "--grad-accum 5 --packing",
        "--grad-accum 4 --dtype bf16 --clip 0.1", "--grad-accum 3 --method full",
        "--grad-accum 3 --method prefix,bitfit", "--grad-accum 2 --dora --recompute block",
        "--grad-accum 4 --loraplus-ratio 8 --weight-decay 0.1"}) {
    CAPTURE(more);
    std::string first;
    for (const char* processes : {"1", "2", "3", "4", "6"}) {
      CAPTURE(processes);
      const std::string out = concat("run", n, "-", processes);
      const auto r = f.run(out, kSteps + more + " --processes " + processes);
      REQUIRE_MESSAGE(r.status == 0, r.out);
      if (first.empty()) {
        first = out;
        continue;
      }
      CHECK(timeless_metrics(f / out) == timeless_metrics(f / first));
      for (const auto& entry : stdfs::recursive_directory_iterator(f / first))
        if (entry.path().extension() == ".safetensors" && entry.path().stem() != "checkpoint") {
          const auto name = stdfs::relative(entry.path(), f / first).string();
          CHECK(slurp(f / (out + "/" + name)) == slurp(entry.path().string()));
        }
      check_same_state(f / out, f / first);
    }
    ++n;
  }
}

TEST_CASE("any number of GPUs leaves the same bytes") {
  if (n_gpus() < 2) LK_SKIP("fewer than two GPUs");
  Sweeps f;
  for (const char* more : {"--dtype bf16", "--dtype f32 --dropout 0.1 --recompute block"}) {
    CAPTURE(more);
    std::string first;
    for (int processes = 1; processes <= n_gpus() && processes <= 4; ++processes) {
      const std::string out = concat(more, " on ", processes);
      const auto r =
          run_program(concat("finetune --device cuda --model ", kTinyModel, " --data ", kTinyRows,
                             " --batch 2 --eval-split 0.2 ", kSteps, "--grad-accum 5 ", more,
                             " --processes ", processes, " --out '", f / out, "'"));
      REQUIRE_MESSAGE(r.status == 0, r.out);
      if (first.empty()) first = out;
      CHECK(slurp(f / (out + "/adapter_model.safetensors")) ==
            slurp(f / (first + "/adapter_model.safetensors")));
      CHECK(timeless_metrics(f / out) == timeless_metrics(f / first));
    }
  }
}

TEST_CASE("cuda: a base in parts on the processes' GPUs leaves the same bytes") {
  if (n_gpus() < 2) LK_SKIP("fewer than two GPUs");
  Sweeps f;
  for (const char* more : {"--dtype bf16 --recompute block", "--dtype f32 --dropout 0.1",
                           "--dtype bf16 --base-precision nf4"}) {
    CAPTURE(more);
    auto run = [&](const std::string& out, const std::string& how) {
      const auto r =
          run_program(concat("finetune --device cuda --model ", kTinyModel, " --data ", kTinyRows,
                             " --batch 2 --eval-split 0.2 ", kSteps, "--grad-accum 3 ", more, " ",
                             how, " --out '", f / (more + out), "'"));
      REQUIRE_MESSAGE(r.status == 0, r.out);
      return slurp(f / (more + out + "/adapter_model.safetensors"));
    };
    const std::string want = run("whole", "--processes 2");
    CHECK(run("all", "--processes 2 --shard-base all") == want);
    CHECK(run("one", "--processes 2 --shard-base 1") == want);
  }
}

TEST_CASE("a base in parts needs processes with GPUs") {
  Sweeps f;
  for (const char* more : {"--shard-base all", "--shard-base all --processes 2"}) {
    CAPTURE(more);
    const auto r = f.run("refused", kSteps + more);
    CHECK(r.status == 2);
    CHECK(r.out.find("--shard-base") != std::string::npos);
  }
  // Before anything is started or written.
  for (const char* more : {"--processes 1", "--processes 2 --sweep 'rank=2,4'"}) {
    CAPTURE(more);
    const auto r = f.run("refused", concat(kSteps, "--shard-base all ", more));
    CHECK(r.status == 2);
    CHECK_MESSAGE(r.out.find("--shard-base: is for several processes") != std::string::npos, r.out);
    CHECK(!stdfs::exists(f / "refused"));
    const auto plan = run_program(
        concat("plan --shape smollm2-135m --device cuda --shard-base all --processes 1"));
    CHECK(plan.status == 2);
    CHECK(plan.out.find("--shard-base: is for several processes") != std::string::npos);
  }
}

TEST_CASE("with one micro-batch a step the bytes are those of a run without --processes") {
  Sweeps f;
  REQUIRE(f.run("alone", kSteps).status == 0);
  REQUIRE(f.run("two", kSteps + "--processes 2").status == 0);
  CHECK(slurp(f / "two/adapter_model.safetensors") == slurp(f / "alone/adapter_model.safetensors"));
  CHECK(timeless_metrics(f / "two") == timeless_metrics(f / "alone"));
}

TEST_CASE("with --fast-reduce each number of processes has bytes of its own, and repeats them") {
  Sweeps f;
  const std::string many = kSteps + "--dropout 0.1 --grad-accum 5 ";
  REQUIRE(f.run("alone", many).status == 0);
  REQUIRE(f.run("in-order", many + "--processes 3").status == 0);
  REQUIRE(f.run("one", many + "--processes 1 --fast-reduce").status == 0);
  REQUIRE(f.run("three", many + "--processes 3 --fast-reduce").status == 0);
  REQUIRE(f.run("again", many + "--processes 3 --fast-reduce").status == 0);
  const auto adapter = [&](const char* run) {
    return slurp(f / (std::string(run) + "/adapter_model.safetensors"));
  };
  CHECK(adapter("one") == adapter("alone"));
  CHECK(timeless_metrics(f / "one") == timeless_metrics(f / "alone"));
  check_same_run(f / "again", f / "three");
  check_same_state(f / "again", f / "three");
  CHECK(adapter("three") != adapter("in-order"));
  CHECK(adapter("three") != adapter("one"));
  const Json run = read_json(f / "three/run.json");
  CHECK(run["settings"]["run"]["fast_reduce"] == true);
  CHECK(toml_without_out(f / "three").find("fast-reduce = true\n") != std::string::npos);
  // No process has two of a step's micro-batches.
  const std::string few = kSteps + "--dropout 0.1 --grad-accum 2 --processes 3 ";
  REQUIRE(f.run("few", few).status == 0);
  REQUIRE(f.run("few-fast", few + "--fast-reduce").status == 0);
  CHECK(adapter("few-fast") == adapter("few"));
  CHECK(timeless_metrics(f / "few-fast") == timeless_metrics(f / "few"));
}

TEST_CASE("a run with --fast-reduce goes on as one, to the bytes of the same number of processes") {
  Sweeps f;
  const std::string more =
      "--lr 1e-2 --schedule constant --samples 0 --seq-len 64 --eval-every 0 --keep last "
      "--grad-accum 5 ";
  const std::string fast = more + "--fast-reduce ";
  REQUIRE(f.run("whole", fast + "--steps 8 --processes 2").status == 0);
  REQUIRE(f.run("parts", fast + "--steps 4 --processes 2").status == 0);
  const auto otherwise = f.run("parts", more + "--steps 8 --processes 2 --resume");
  CHECK_MESSAGE(otherwise.status == 2, otherwise.out);
  CHECK_MESSAGE(otherwise.out.find("fast_reduce was true, now it is unset") != std::string::npos,
                otherwise.out);
  REQUIRE(f.run("parts", fast + "--steps 8 --processes 2 --resume").status == 0);
  CHECK(slurp(f / "parts/adapter_model.safetensors") ==
        slurp(f / "whole/adapter_model.safetensors"));
  check_same_state(f / "parts", f / "whole");
  const auto three = f.run("parts", fast + "--steps 9 --processes 3 --resume");
  CHECK_MESSAGE(three.status == 0, three.out);
  CHECK(three.out.find("resumed at step 8") != std::string::npos);
  const auto in_order = f.run("in-order", more + "--steps 2 --processes 2");
  REQUIRE(in_order.status == 0);
  CHECK(f.run("in-order", fast + "--steps 4 --processes 2 --resume").status == 2);
}

TEST_CASE("a run goes on with another number of processes to the same bytes") {
  Sweeps f;
  const std::string more =
      "--lr 1e-2 --schedule constant --samples 0 --seq-len 64 --eval-every 0 --keep last "
      "--grad-accum 3 ";
  REQUIRE(f.run("whole", more + "--steps 12 --processes 2").status == 0);
  const std::string numbers[] = {"2", "4", "3", "1"};  // the slices of the moments are cut anew
  for (int i = 0; i < 4; ++i) {
    const auto r = f.run("parts", more + concat("--steps ", 3 * (i + 1), i ? " --resume" : "",
                                                " --processes ", numbers[i]));
    REQUIRE_MESSAGE(r.status == 0, r.out);
  }
  CHECK(slurp(f / "parts/adapter_model.safetensors") ==
        slurp(f / "whole/adapter_model.safetensors"));
  check_same_state(f / "parts", f / "whole");
  const Json run = read_json(f / "parts/run.json");
  CHECK(run["settings"]["processes"] == 1);
}

TEST_CASE("a plan counts what several processes add, and a run takes no more") {
  Sweeps f;
  auto plan = [](const std::string& more) {
    const auto r = run_program(
        "plan --device cpu --model " + kTinyModel + " --dtype f32 --batch 2 --seq-len 64 --json " +
            (more.find("--grad-accum") == more.npos ? "--grad-accum 4 " : "") + more,
        " 2>/dev/null");
    REQUIRE(r.status == 0);
    return parse_json(r.out, "plan");
  };
  const Json alone = plan(""), three = plan("--processes 3");
  const auto numel = alone["trainable_parameters"].get<std::int64_t>();
  const auto peak = [](const Json& of) { return of["memory"]["peak_bytes"].get<std::int64_t>(); };
  const auto moments = [](const Json& of) {
    return of["memory"]["tags"]["optimizer"]["peak_bytes"].get<std::int64_t>();
  };
  // The first process has the most; borders lie where the CPU's pieces of 8192 numbers or a parameter
  // begin.
  CHECK(moments(alone) == 8 * numel);
  CHECK(moments(three) >= 8 * (numel / 3));
  CHECK(moments(three) <= 8 * (numel / 3 + 8192));
  CHECK(moments(plan("--processes 1")) == 8 * numel);
  // Of four micro-batches, a slice of their sum waits for the fourth.
  const std::int64_t saved = moments(alone) - moments(three);
  // One process alone has the inputs of all four there, as if it had so much more beside two.
  const std::int64_t inputs = peak(alone) - peak(plan("--grad-accum 2"));
  CHECK(inputs > 0);
  CHECK(peak(three) - peak(alone) + inputs + saved >= 4 * numel / 3 * 9 / 10);
  CHECK(peak(three) - peak(alone) + inputs + saved <= 4 * numel / 3 * 11 / 10);
  CHECK(peak(three) <= peak(plan("--processes 1")));
  CHECK(peak(plan("--processes 4")) <= peak(alone));  // all in one round: nothing waits
  CHECK(peak(plan("--processes 8")) <= peak(alone));
  CHECK(three["processes"] == 3);
  CHECK(three["sent_bytes_per_step"] == 3 * 2 * (numel / 3) * 4);
  // With --fast-reduce nothing waits: a process adds its second in place, and sends once.
  const Json fast = plan("--processes 3 --fast-reduce");
  CHECK(peak(fast) <= peak(alone) - saved);
  CHECK(peak(plan("--processes 1 --fast-reduce")) <= peak(alone));
  CHECK(fast["sent_bytes_per_step"] == 2 * 2 * (numel / 3) * 4);
  CHECK(moments(fast) == moments(three));
  CHECK(fast["fast_reduce"] == true);
  CHECK(three["fast_reduce"] == false);
  for (const char* more : {"", " --fast-reduce"}) {
    const std::string out = concat("run", *more ? "-fast" : "");
    REQUIRE(f.run(out, kSteps + "--grad-accum 4 --dtype f32 --processes 3" + more).status == 0);
    const Json run = read_json(f / (out + "/run.json"));
    CHECK(run["memory"]["peak_bytes"] <= run["planned_peak_bytes"]);
  }
  const Json run = read_json(f / "run/run.json");
  CHECK(run["memory"]["tags"]["optimizer"]["peak_bytes"] == moments(three));
  CHECK(run["memory"]["tags"]["workspace"]["live_bytes"] == 0);
  CHECK(run_program("plan --shape smollm2-135m --processes -1").status == 2);
  for (const char* more : {"--grad-accum 4", "--processes 2"}) {
    const auto r = run_program(concat("plan --shape smollm2-135m --fast-reduce ", more));
    CHECK(r.status == 2);
    CHECK_MESSAGE(r.out.find("--fast-reduce: is for") != std::string::npos, r.out);
  }
}

TEST_CASE("what is wrong is said once, with the code that it has alone") {
  Sweeps f;
  auto refused = [&](const std::string& more, int status, const std::string& says) {
    CAPTURE(more);
    const auto r = f.run("out", "--processes 2 " + more);
    CHECK_MESSAGE(r.status == status, r.out);
    CHECK_MESSAGE(r.out.find(says) != std::string::npos, r.out);
    CHECK(r.out.find("error: ") == r.out.rfind("error: "));
    CHECK(!stdfs::exists(f / "out"));
  };
  refused("--steps 1 --rank 0", 2, "--rank");
  refused("--steps 1 --rank 999", 2, "rank");
  refused("--steps 1 --memory-limit 1KiB", 5, "");
  refused("--steps 1 --init-adapter " + f / "none", 3, "none");
  refused("--steps 1 --fast-reduce", 2, "--fast-reduce: is for the micro-batches of a step");
  refused("--fast-reduce --grad-accum 4 --sweep 'rank=2,4'", 2, "--fast-reduce: is for");
  const auto unshared = f.run("out", "--steps 1 --fast-reduce --grad-accum 4");
  CHECK_MESSAGE(unshared.status == 2, unshared.out);
  CHECK(unshared.out.find("(--processes, and no sweep)") != std::string::npos);
  const auto pipe = f.run("out", "--processes 2 --steps 1 --data -");
  CHECK_MESSAGE(pipe.status == 2, pipe.out);
  const auto idle = f.run("idle", kSteps + "--processes 3 --grad-accum 2");
  CHECK(idle.status == 0);
  CHECK(idle.out.find("1 of them compute nothing") != std::string::npos);
}

TEST_CASE("samples may take longer than the others' patience") {
  Sweeps f;
  const std::string rows = f / "rows.jsonl";
  for (int i = 0; i < 40; ++i) std::ofstream(rows, std::ios::app) << slurp(kTinyRows);
  const auto r = run_program(concat("finetune --model ", kTinyModel, " --data '", rows,
                                    "' --eval-data '", rows,
                                    "' --batch 2 --seq-len 64 --steps 2 --eval-every 0 --samples "
                                    "450 --sample-every 1 --keep last --device cpu "
                                    "--grad-accum 2 --processes 2 --peer-timeout 1 --out '",
                                    f / "out", "'"));
  CHECK_MESSAGE(r.status == 0, r.out);
}

TEST_CASE("numbers that are not finite end all processes with 6") {
  Sweeps f;
  std::string first;
  for (const char* processes : {"1", "2", "3"}) {
    const auto r = f.run(concat("out", processes), concat("--steps 8 --lr 1e38 --samples 0 "
                                                          "--grad-accum 3 --processes ",
                                                          processes));
    CHECK_MESSAGE(r.status == 6, r.out);
    const auto at = r.out.find("steps in a row were not finite");
    REQUIRE(at != std::string::npos);
    const std::string says =
        r.out.substr(at, r.out.find('\n', at) - at);  // with a parameter's name
    if (first.empty()) first = says;
    CHECK(says == first);
  }
}

TEST_CASE("a process that is killed ends the run with 4, and it goes on") {
  Sweeps f;
  for (const char* victim : {"1", "2"}) {  // rank 0 and the other
    CAPTURE(victim);
    const std::string out = concat("out", victim);
    const auto r = run_shell(
        kShell + f.begin(out, "--processes 2 " + kLong) + "W=$(ranks " + f / out +
        "); kill -KILL $(echo $W | cut -d' ' -f" + victim +
        "); T=$(date +%s); wait $P; S=$?; [ $(($(date +%s) - T)) -le 5 ] || echo SLOW; running $W; "
        "exit $S");
    CHECK_MESSAGE(r.status == 4, r.out);
    CHECK_MESSAGE(r.out.find("was ended by signal 9") != std::string::npos, r.out);
    CHECK_MESSAGE(r.out.find("ORPHAN") == std::string::npos, r.out);
    CHECK_MESSAGE(r.out.find("SLOW") == std::string::npos, r.out);
    const auto more = run_shell(kShell + f.begin(out, "--processes 2 --resume " + kLong) +
                                "sleep 1; kill -INT $P; wait $P");
    CHECK_MESSAGE(more.status == 130, more.out);
    CHECK_MESSAGE(more.out.find("resumed at step") != std::string::npos, more.out);
  }
}

TEST_CASE("a process that hangs is given up after --peer-timeout") {
  Sweeps f;
  const auto r = run_shell(kShell + f.begin("out", "--processes 2 --peer-timeout 1 " + kLong) +
                           "W=$(ranks " + f / "out" +
                           "); kill -STOP $(echo $W | cut -d' ' -f2); wait $P; S=$?; running $W; "
                           "exit $S");
  CHECK_MESSAGE(r.status == 4, r.out);
  CHECK_MESSAGE(r.out.find("process 1 of 2 was silent for 1 s") != std::string::npos, r.out);
  CHECK_MESSAGE(r.out.find("process 1 of 2 did not end within") != std::string::npos, r.out);
  CHECK_MESSAGE(r.out.find("ORPHAN") == std::string::npos, r.out);
}

TEST_CASE("a signal to any of the processes stops all after the same step, which is saved") {
  Sweeps f;
  int n = 0;
  for (const char* whom : {"$P", "$(echo $W | cut -d' ' -f1)", "$(echo $W | cut -d' ' -f2)"}) {
    CAPTURE(whom);
    const std::string out = concat("out", n++);
    const auto r =
        run_shell(kShell + f.begin(out, "--processes 2 " + kLong) + "W=$(ranks " + f / out +
                  "); kill -TERM " + whom + "; wait $P; S=$?; running $W; exit $S");
    CHECK_MESSAGE(r.status == 143, r.out);
    CHECK_MESSAGE(r.out.find("ORPHAN") == std::string::npos, r.out);
    const Json run = read_json(f / (out + "/run.json"));
    CHECK(run["status"] == "stopped");
    const auto steps = run["result"]["steps"].get<std::int64_t>();
    const auto rest =
        f.run(out, concat("--processes 1 --resume ", kLong.substr(kLong.find("--save")),
                          " --steps ", steps + 3));
    CHECK_MESSAGE(rest.status == 0, rest.out);
    CHECK(rest.out.find(concat("resumed at step ", steps)) != std::string::npos);
  }
}

// Some of the processes listen to signals already, others don't yet, and die.
TEST_CASE("a signal at any moment of the start ends all processes at once") {
  Sweeps f;
  for (int ms = 2; ms <= 40; ms += 2) {
    CAPTURE(ms);
    const auto r = run_shell(
        kShell + f.begin(concat("out", ms), "--processes 4 --peer-timeout 20 " + kLong) +
        "T=$(date +%s); sleep 0.0" + (ms < 10 ? "0" : "") + std::to_string(ms) +
        "; kill -TERM $P; wait $P; S=$?; [ $(($(date +%s) - T)) -le 9 ] || echo SLOW; exit $S");
    CHECK_MESSAGE(r.status == 143, r.out);
    CHECK_MESSAGE(r.out.find("SLOW") == std::string::npos, r.out);
  }
}

TEST_CASE("when the program is killed its processes end too") {
  Sweeps f;
  const auto r = run_shell(kShell + f.begin("out", "--processes 2 " + kLong) + "W=$(ranks " +
                           f / "out" + "); kill -KILL $P; sleep 0.5; running $W");
  CHECK_MESSAGE(r.out.find("ORPHAN") == std::string::npos, r.out);
}

TEST_CASE("processes that another launcher starts find each other") {
  Sweeps f;
  REQUIRE(f.run("own", kSteps + "--grad-accum 3 --processes 2").status == 0);
  const std::string port = std::to_string(21000 + ::getpid() % 20000);
  const auto environment = [&](int rank) {
    return concat("OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 OMPI_COMM_WORLD_RANK=", rank,
                  " OMPI_COMM_WORLD_LOCAL_RANK=", rank, " MASTER_ADDR=127.0.0.1 MASTER_PORT=", port,
                  " ");
  };
  const std::string flags = kSteps + "--grad-accum 3 ";
  const auto r = run_shell(environment(1) + f.begin("other", flags) + environment(0) +
                           f.begin("other", flags) + "wait $P");
  CHECK_MESSAGE(r.status == 0, r.out);
  check_same_run(f / "own", f / "other");
  // Told apart: another --lr in one of them.
  const auto apart = run_shell(environment(1) + f.begin("apart", flags + "--clip 0.5 ") +
                               environment(0) + f.begin("apart", flags) + "wait $P");
  CHECK_MESSAGE(apart.status == 2, apart.out);
  CHECK_MESSAGE(apart.out.find("process 1 of 2 has not what process 0 has") != std::string::npos,
                apart.out);
  const auto named = run_shell(environment(1) + f.begin("named", flags + "--memory-limit 4GiB ") +
                               environment(0) + f.begin("named", flags) + "wait $P");
  CHECK_MESSAGE(named.status == 2, named.out);
  CHECK_MESSAGE(named.out.find("settings.memory-limit was unset, now it is ") != std::string::npos,
                named.out);
  const auto wrong = f.run("wrong", flags + "--processes 3", environment(0));
  CHECK_MESSAGE(wrong.status == 2, wrong.out);
}
