// The programs as a user calls them: flags, exit codes, files. Needs the built programs (LK_TOOLS)
// and a tiny model that the test writes itself.
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "harness.h"
#include "io/durable.h"
#include "io/json.h"

using namespace lk;
namespace stdfs = std::filesystem;

namespace {

struct Result {
  int status = -1;
  std::string out;  // stdout and stderr together, or stdout alone
};

Result run(const std::string& arguments, const char* errors = "2>&1") {
  const std::string command = std::string(LK_TOOLS) + "/" + arguments + " " + errors;
  FILE* pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe);
  Result r;
  std::array<char, 4096> buffer;
  while (std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe))
    r.out.append(buffer.data(), n);
  int status = ::pclose(pipe);
  r.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return r;
}

const std::string kModel = std::string(LK_TEST_DATA) + "/golden/peft/tiny";

struct Folder {
  stdfs::path path = stdfs::temp_directory_path() / "lorikeet-test-cli";
  Folder() {
    stdfs::remove_all(path);
    stdfs::create_directories(path);
    std::ofstream(path / "rows.jsonl") << R"({"prompt":"abc ","completion":"def ghi"})"
                                          "\n"
                                       << R"({"prompt":"x","completion":"yz"})"
                                          "\n"
                                       << R"({"prompt":"hello ","completion":"world"})"
                                          "\n";
  }
  ~Folder() { stdfs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

std::string train(const Folder& f, const std::string& more) {
  return "finetune --device cpu --model " + kModel + " --data " + (f / "rows.jsonl") +
         " --batch 2 " + more;
}

}  // namespace

TEST_CASE("plan prints the textbook example") {
  Result r = run("plan --matrix 100x500 --rank 5");
  CHECK(r.status == 0);
  CHECK(r.out.find("50,000") != std::string::npos);
  CHECK(r.out.find("3,000") != std::string::npos);
}

TEST_CASE("usage errors end with 2 before any file is touched") {
  Folder f;
  for (const char* flags : {"--steps 2 --epochs 1",
                            "--steps 0",
                            "--rank 0",
                            "--rank 8x",
                            "--rank 0x10",
                            "--lr nan",
                            "--lr 1e400",
                            "--lr -1",
                            "--lr ''",
                            "--steps 3 --steps 4",
                            "--batch -1",
                            "--dropout 1",
                            "--schedule sine",
                            "--dtype f16",
                            "--device tpu",
                            "--device cuda:99",
                            "--bogus",
                            "--seed",
                            "--targets ''",
                            "--targets q_proj,,v_proj",
                            "--memory-limit 3XB",
                            "--memory 3XB",
                            "--memory 0GiB",
                            "--memory -1MiB",
                            "--memory 1GiB --recompute block",
                            "--memory 1GiB --memory-limit 1GiB",
                            "--recompute blocks",
                            "--recompute block:0",
                            "--recompute offload",
                            "--eval-every 5",
                            "--seq-len 64 --warmup 9999999 --steps 3",
                            "--seq-len 99999999",
                            "--clip -1",
                            "--alpha 0"}) {
    CAPTURE(flags);
    Result r = run(train(f, std::string("--out ") + (f / "out") + " " + flags));
    CHECK_MESSAGE(r.status == 2, r.out);
    CHECK(r.out.find("error") != std::string::npos);
  }
  for (const char* program : {"finetune", "generate", "evaluate", "plan"}) {
    CHECK(run(std::string(program) + " --help").status == 0);
    CHECK(run(std::string(program) + " --nonsense").status == 2);
  }
  CHECK(run("plan --matrix 100x500 --rank 101").status == 2);
  CHECK(run("plan --matrix 100by500").status == 2);
}

TEST_CASE("finetune writes what it promises, and nothing over what is there") {
  Folder f;
  const std::string out = f / "out";
  Result r =
      run(train(f,
                "--seq-len 64 --lr 1e-2 --steps 5 --targets all-linear --rank 4 --alpha 8 "
                "--no-shuffle --out " +
                    out + " --eval-data " + (f / "rows.jsonl") + " --eval-rows 2 --eval-every 2"));
  REQUIRE_MESSAGE(r.status == 0, r.out);
  CHECK(r.out.find("gradients") != std::string::npos);
  for (const char* name :
       {"adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "run.json"})
    CHECK(stdfs::exists(out + "/" + name));
  Json run_json = read_json(out + "/run.json");
  CHECK(run_json["status"] == "finished");
  CHECK(run_json["weight_gradient_matmuls_per_micro_step"] == run_json["adapter_matrices"]);
  const std::int64_t trainable = run_json["parameters"]["trainable"].get<std::int64_t>();
  CHECK(run_json["memory"]["tags"]["gradients"]["peak_bytes"] == 4 * trainable);
  CHECK(run_json["memory"]["tags"]["optimizer"]["peak_bytes"] == 8 * trainable);
  std::ifstream metrics(out + "/metrics.jsonl");
  std::string line;
  int steps = 0, evals = 0;
  while (std::getline(metrics, line)) {
    Json j = parse_json(line, "metrics");
    if (j.contains("eval_loss")) {
      ++evals;
    } else {
      ++steps;
      for (const char* key : {"step", "loss", "lr", "grad_norm", "tokens", "supervised_tokens",
                              "seconds", "tokens_per_second"})
        CHECK(j.contains(key));
    }
  }
  CHECK(steps == 5);
  CHECK(evals == 4);  // before, at 2 and 4, after
  Result again = run(train(f, "--seq-len 64 --steps 1 --out " + out));
  CHECK(again.status == 2);
  CHECK(again.out.find(out) != std::string::npos);

  Result g = run("generate --device cpu --model " + kModel + " --adapter " + out +
                 " --prompt 'abc ' --max-tokens 5 --json");
  CHECK_MESSAGE(g.status == 0, g.out);
  Result e = run("evaluate --device cpu --model " + kModel + " --adapter " + out + " --data " +
                 (f / "rows.jsonl") + " --seq-len 64");
  CHECK_MESSAGE(e.status == 0, e.out);
  CHECK(e.out.find("\"perplexity\"") != std::string::npos);
}

TEST_CASE("generate: rows name their adapters, unknown names are input errors, --chat converses") {
  Folder f;
  const std::string flags = "--seq-len 64 --lr 1e-2 --no-shuffle --out ";
  REQUIRE(run(train(f, "--steps 3 --rank 2 " + flags + (f / "one"))).status == 0);
  REQUIRE(run(train(f, "--steps 6 --rank 5 --targets all-linear " + flags + (f / "two"))).status ==
          0);
  const std::string base = "generate --device cpu --model " + kModel + " --max-tokens 8 ";
  const std::string both = base + "--adapter a=" + (f / "one") + " --adapter b=" + (f / "two");
  std::ofstream(f / "prompts.jsonl") << R"({"prompt":"hello ","adapter":"b"})"
                                        "\n"
                                     << R"({"prompt":"hello "})"
                                        "\n"
                                     << R"({"prompt":"abc","adapter":"a"})"
                                        "\n"
                                     << R"({"prompt":"hello ","adapter":null})"
                                        "\n";
  Result mixed = run(both + " --json --prompts " + (f / "prompts.jsonl"), "2>/dev/null");
  REQUIRE_MESSAGE(mixed.status == 0, mixed.out);
  std::vector<Json> rows;
  std::istringstream lines(mixed.out);
  for (std::string line; std::getline(lines, line);) rows.push_back(parse_json(line, "row"));
  REQUIRE(rows.size() == 4);
  CHECK(rows[0]["adapter"] == "b");
  CHECK(!rows[1].contains("adapter"));
  CHECK(rows[1]["ids"] == rows[3]["ids"]);
  auto alone = [&](const std::string& more) {
    Result r = run(base + "--json " + more, "2>/dev/null");
    REQUIRE_MESSAGE(r.status == 0, r.out);
    return parse_json(r.out, "alone")["ids"];
  };
  CHECK(rows[0]["ids"] == alone("--prompt 'hello ' --adapter " + (f / "two")));
  CHECK(rows[1]["ids"] == alone("--prompt 'hello '"));
  CHECK(rows[2]["ids"] == alone("--prompt abc --adapter " + (f / "one")));
  CHECK(run(both + " --prompt x").out.find("KiB") != std::string::npos);

  std::ofstream(f / "unknown.jsonl") << R"({"prompt":"x"})"
                                        "\n"
                                     << R"({"prompt":"x","adapter":"c"})"
                                        "\n";
  Result unknown = run(both + " --prompts " + (f / "unknown.jsonl"));
  CHECK(unknown.status == 3);
  CHECK(unknown.out.find("unknown.jsonl:2") != std::string::npos);
  CHECK(run(both + " --adapter a=" + (f / "one") + " --prompt x").status == 2);
  CHECK(run(both + " --adapter " + (f / "one") + " --prompt x").status == 2);
  for (const char* bad : {"--top-p 0", "--min-p 2", "--repetition-penalty 0", "--batch 0",
                          "--stop ''", "--max-tokens 0"})
    CHECK(run(base + "--prompt x " + bad).status == 2);

  const std::string chat = base + "--chat --template chatml ";
  Result once = run(chat + "--prompt hello", "2>/dev/null");
  REQUIRE_MESSAGE(once.status == 0, once.out);
  std::ofstream(f / "turns.txt") << "hello\n/reset\nhello\n/exit\nnever\n";
  Result turns = run(chat + " < " + (f / "turns.txt"), "2>/dev/null");
  CHECK(turns.status == 0);
  CHECK(turns.out == once.out + once.out);
}

TEST_CASE("a run in which nothing moves fails with 7; out of memory with 5 and the plan") {
  Folder f;
  Result r = run(train(f, "--seq-len 64 --steps 2 --lr 0 --out " + (f / "zero")));
  CHECK_MESSAGE(r.status == 7, r.out);
  CHECK(!stdfs::exists(f / "zero/adapter_model.safetensors"));
  Result m = run(train(f, "--seq-len 64 --steps 2 --memory-limit 100KiB --out " + (f / "small")));
  CHECK_MESSAGE(m.status == 5, m.out);
  CHECK(m.out.find("weights") != std::string::npos);
}

TEST_CASE("a memory budget chooses what is made again, says so, and changes no bit of the result") {
  Folder f;
  auto go = [&](const std::string& name, const std::string& flags) {
    Result r = run(train(f, "--seq-len 64 --steps 3 --targets all-linear --no-shuffle --lr 1e-2 " +
                                flags + " --out " + (f / name)));
    CHECK_MESSAGE(r.status == 0, r.out);
    return r.out;
  };
  auto settings = [&](const std::string& name) { return read_json(f / name + "/run.json"); };
  go("plain", "");
  const Json plain = settings("plain");
  CHECK(plain["settings"]["recompute"] == "none");
  CHECK(plain["settings"]["memory"].is_null());
  const auto needs = plain["planned_peak_bytes"].get<std::int64_t>();

  CHECK(go("enough", "--memory 64MiB").find("--recompute none") != std::string::npos);
  const std::string out = go("tight", "--memory " + std::to_string(needs - 1));
  const Json tight = settings("tight");
  const auto chosen = tight["settings"]["recompute"].get<std::string>();
  CHECK(chosen != "none");
  CHECK(out.find("--recompute " + chosen + ", planned peak") != std::string::npos);
  CHECK(tight["planned_peak_bytes"] < needs);
  CHECK(tight["memory"]["peak_bytes"] < needs);
  go("again", "--recompute " + chosen);
  for (const char* name : {"tight", "again", "enough"})
    CHECK(read_file(f / name + "/adapter_model.safetensors", 1 << 24) ==
          read_file(f / "plain/adapter_model.safetensors", 1 << 24));

  Result r = run(train(f, "--seq-len 64 --steps 3 --memory 100KiB --out " + (f / "none")));
  CHECK_MESSAGE(r.status == 5, r.out);
  CHECK(r.out.find("recompute             block") != std::string::npos);
  Result p = run("plan --shape smollm2-135m --batch 2 --seq-len 64 --memory 100MiB");
  CHECK_MESSAGE(p.status == 5, p.out);
  CHECK(p.out.find("--batch 1") != std::string::npos);
}

TEST_CASE("bad input ends with 3 and names file and line") {
  Folder f;
  std::ofstream(f / "bad.jsonl") << R"({"prompt":"a","completion":"b"})"
                                    "\n"
                                 << R"({"prompt":"a"})"
                                    "\n";
  Result r = run("finetune --device cpu --model " + kModel + " --data " + (f / "bad.jsonl") +
                 " --out " + (f / "o1") + " --seq-len 64");
  CHECK_MESSAGE(r.status == 3, r.out);
  CHECK(r.out.find("bad.jsonl:2") != std::string::npos);
  std::ofstream(f / "m.gguf") << "GGUFxxxx";
  CHECK(run("generate --model " + (f / "m.gguf") + " --prompt x").status == 3);
  CHECK(run("generate --model " + kModel + " --adapter " + (f / "none") + " --prompt x").status >=
        3);
}

TEST_CASE("resume: 3 + 3 steps give the bytes of 6, and a changed setting is refused") {
  Folder f;
  const std::string flags = "--seq-len 64 --lr 1e-2 --schedule constant --save-every 1 --out ";
  REQUIRE(run(train(f, "--steps 6 " + flags + (f / "whole"))).status == 0);
  REQUIRE(run(train(f, "--steps 3 " + flags + (f / "parts"))).status == 0);
  Result r = run(train(f, "--steps 6 --resume " + flags + (f / "parts")));
  REQUIRE_MESSAGE(r.status == 0, r.out);
  CHECK(read_file(f / "whole/adapter_model.safetensors", 1 << 28) ==
        read_file(f / "parts/adapter_model.safetensors", 1 << 28));
  Result changed = run(train(f, "--steps 9 --rank 2 --resume " + flags + (f / "parts")));
  CHECK(changed.status == 2);
  CHECK(changed.out.find("rank") != std::string::npos);
}

TEST_CASE("--packing fills micro-batches with rows, says how full they are, and resumes exactly") {
  Folder f;
  // A byte is a token here: rows of 6 to 11, so that two or three of them fill a bin of 24.
  std::ofstream rows(f / "rows.jsonl");
  for (int i = 0; i < 40; ++i)
    rows << R"({"text":")" << std::string(static_cast<std::size_t>(5 + i % 6), 'a') << "\"}\n";
  rows.close();
  const std::string flags = "--seq-len 24 --packing --lr 1e-2 --schedule constant --out ";
  Result whole = run(train(f, flags + (f / "epoch")));
  REQUIRE_MESSAGE(whole.status == 0, whole.out);
  CHECK(whole.out.find("packing: ") != std::string::npos);
  Json run_json = read_json(f / "epoch/run.json");
  CHECK(run_json["settings"]["run"]["packing"] == true);
  const Json packing = run_json["data"]["packing"];
  const std::int64_t bins = packing["bins"].get<std::int64_t>();
  CHECK(bins < 20);
  CHECK(packing["full"].get<double>() > 0.8);
  CHECK(packing["full"].get<double>() <= 1.0);
  CHECK(packing["rows_per_bin"] == 40.0 / static_cast<double>(bins));
  CHECK(run_json["result"]["steps"] == (bins + 1) / 2);

  // 23 steps: more than two epochs.
  REQUIRE(run(train(f, "--steps 23 --save-every 1 " + flags + (f / "long"))).status == 0);
  REQUIRE(run(train(f, "--steps 11 --save-every 1 " + flags + (f / "parts"))).status == 0);
  Result r = run(train(f, "--steps 23 --save-every 1 --resume " + flags + (f / "parts")));
  REQUIRE_MESSAGE(r.status == 0, r.out);
  CHECK(read_file(f / "long/adapter_model.safetensors", 1 << 28) ==
        read_file(f / "parts/adapter_model.safetensors", 1 << 28));
  Result changed = run(train(f,
                             "--steps 23 --seq-len 24 --schedule constant --lr 1e-2 --resume "
                             "--out " +
                                 (f / "parts")));
  CHECK(changed.status == 2);
  CHECK(changed.out.find("packing") != std::string::npos);
  CHECK(run(train(f, "--no-shuffle --steps 2 " + flags + (f / "order"))).status == 0);
}

TEST_CASE("SIGTERM and SIGINT: the step ends, the state is saved, the run goes on with --resume") {
  Folder f;
  const std::string tools = LK_TOOLS;
  struct Case {
    const char* signal;
    int status;
  };
  for (Case c : {Case{"TERM", 143}, Case{"INT", 130}}) {
    const std::string out = f / c.signal;
    const std::string flags = " --seq-len 64 --lr 1e-3 --schedule constant --out " + out;
    std::string arguments = train(f, "--steps 1000000" + flags);
    // Once the first step is on disk. One signal only: a second SIGINT means "at once".
    const std::string command = tools + "/" + arguments +
                                " > /dev/null 2>&1 & run=$!; until [ -s " + out +
                                "/metrics.jsonl ] || ! kill -0 $run; do sleep 0.02; done; " +
                                "kill -" + c.signal + " $run; wait $run";
    const int status = std::system(command.c_str());
    CHECK(WEXITSTATUS(status) == c.status);
    Json run_json = read_json(out + "/run.json");
    CHECK(run_json["status"] == "stopped");
    const std::int64_t done = run_json["result"]["steps"].get<std::int64_t>();
    CHECK(done > 0);
    CHECK(stdfs::exists(out + "/checkpoint.safetensors"));
    Result r = run(train(f, concat("--resume --steps ", done + 3, flags)));
    CHECK_MESSAGE(r.status == 0, r.out);
    CHECK(read_json(out + "/run.json")["result"]["steps"] == done + 3);
  }
}

TEST_CASE("two runs may not share an output folder") {
  Folder f;
  const std::string out = f / "shared";
  const std::string command = "timeout -s KILL 10 " + std::string(LK_TOOLS) + "/" +
                              train(f, "--seq-len 64 --steps 1000000 --out " + out) +
                              " > /dev/null 2>&1 & until [ -s " + out +
                              "/run.json ]; do sleep 0.02; done";
  REQUIRE(std::system(command.c_str()) == 0);
  Result r = run(train(f, "--seq-len 64 --steps 1 --resume --out " + out));
  CHECK_MESSAGE(r.status == 2, r.out);
}
