// The programs as a user calls them: flags, exit codes, files. Needs the built programs (LK_TOOLS)
// and a tiny model that the test writes itself.
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "harness.h"
#include "io/input_file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "run_program.h"
#include "scratch_folder.h"

using namespace lk;
namespace stdfs = std::filesystem;

namespace {

using Result = test::ProgramResult;
using test::run_program;

const std::string kNoStderr = " 2>/dev/null";  // stdout alone

Result run(const std::string& arguments, const std::string& redirect = " 2>&1") {
  return run_program(arguments, redirect);
}

const std::string kModel = std::string(LK_TEST_DATA) + "/golden/peft/tiny";

struct Folder {
  test::ScratchFolder scratch;
  Folder() {
    std::ofstream(scratch.file("rows.jsonl")) << R"({"prompt":"abc ","completion":"def ghi"})"
                                                 "\n"
                                              << R"({"prompt":"x","completion":"yz"})"
                                                 "\n"
                                              << R"({"prompt":"hello ","completion":"world"})"
                                                 "\n";
  }
  std::string operator/(const std::string& name) const { return scratch.file(name); }
};

std::string train(const Folder& f, const std::string& more) {
  return "finetune --device cpu --model " + kModel + " --data " + (f / "rows.jsonl") +
         " --batch 2 " + more;
}

}  // namespace

TEST_CASE("a plan names the device and dtype that it is for, and one for a GPU needs none") {
  const std::string plan = "plan --shape smollm2-135m ";
  CHECK(run(plan + "--device cpu").out.find("plan: f32 on cpu, 8 rows of up to 1024 tokens") == 0);
  CHECK(run(plan + "--device cuda").out.find("plan: bf16 on cuda, 8 rows") == 0);
  const Json json = parse_json(run(plan + "--device cuda:7 --dtype f32 --json").out, "plan");
  CHECK(json["device"] == "cuda:7");
  CHECK(json["dtype"] == "f32");
  CHECK(run(plan).out.find("plan: bf16 on cuda, 8 rows") == 0);
  const Result found = run("plan --model " + kModel);
  CHECK(found.status == 0);
  CHECK((found.out.find("f32 on cpu") == std::string::npos) ==
        (found.out.find("--device cuda plans for one") == std::string::npos));
}

TEST_CASE("a plan without data refuses what it would need them for") {
  for (const std::string flag : {"--eval-data x", "--sample-every 5", "--init-adapter x"}) {
    const Result r = run("plan --model " + kModel + " " + flag);
    CHECK_MESSAGE(r.status == 2, r.out);
    CHECK_MESSAGE(
        r.out.find(flag.substr(0, flag.find(' ')) + ": has no effect") != std::string::npos, r.out);
  }
  CHECK(run("plan --shape smollm2-135m --matrix 4x4").out.find("give one of") != std::string::npos);
}

TEST_CASE("plan prints the textbook example") {
  Result r = run("plan --matrix 100x500 --rank 5");
  CHECK(r.status == 0);
  CHECK(r.out.find("50,000") != std::string::npos);
  CHECK(r.out.find("3,000") != std::string::npos);
}

TEST_CASE("a result that stdout does not take ends with 4") {
  const std::string plan = "plan --matrix 100x500 --rank 5";
  for (const std::string& command :
       {plan, std::string("plan --help"), std::string("merge --version"),
        "generate --device cpu --model " + kModel + " --prompt abc --max-tokens 2"})
    for (const char* to : {" 2>/dev/null >/dev/full", " 2>/dev/null >&-"}) {
      CAPTURE(command);
      CAPTURE(to);
      CHECK(run(command, to).status == 4);
    }
  CHECK(run(plan, " 2>&1 >/dev/full").out.find("plan: error: stdout: ") == 0);
}

TEST_CASE("what is printed to a closed descriptor lands in no file of the run") {
  Folder f;
  const Result r = run(train(f, "--steps 2 --seq-len 64 --out " + (f / "run")), " >&- 2>&-");
  CHECK(r.status == 4);
  std::ifstream metrics(f / "run/metrics.jsonl");
  std::string line;
  std::size_t lines = 0;
  for (; std::getline(metrics, line); ++lines) CHECK(line.starts_with("{"));
  CHECK(lines == 2);
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
                            "--device cpu --offload-base all",
                            "--offload-base -1",
                            "--offload-base most",
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
  for (const char* program : {"finetune", "generate", "evaluate", "merge", "export", "plan"}) {
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
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors", "metrics.jsonl",
                           "run.json", "README.md"})
    CHECK(stdfs::exists(out + "/" + name));
  const std::string card = read_file(out + "/README.md", 1 << 20);
  CHECK(card.starts_with("---\nbase_model: \"" + kModel + "\"\n"));
  for (const char* part : {"| rank, alpha, dropout | 4, 8, 0 |", "| evaluation loss | ", "q_proj",
                           "PeftModel.from_pretrained"})
    CHECK_MESSAGE(card.find(part) != std::string::npos, part);
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

TEST_CASE("evaluate: choices and generated text are scored by the rows' keys") {
  Folder f;
  const std::string on = "evaluate --device cpu --seq-len 64 --model " + kModel + " --data ";
  std::ofstream(f / "choices.jsonl") << R"({"prompt":"ab","choices":["cd","ef"],"answer":0})"
                                        "\n"
                                     << R"({"prompt":"ab","choices":["cd","ef"],"answer":"ef"})"
                                        "\n";
  // What stdout holds by itself: one object.
  Result c = run(on + (f / "choices.jsonl") + " 2>/dev/null | cat");
  Json choices = parse_json(c.out, "stdout");
  CHECK(choices["accuracy"] == 0.5);  // both rows ask the same: one answer of two is right
  CHECK(choices["accuracy_norm"] == 0.5);
  CHECK(choices["rows"] == 2);

  std::ofstream(f / "refs.jsonl") << R"({"prompt":"ab","references":["c d e f","g"]})"
                                     "\n";
  Result g = run(on + (f / "refs.jsonl") + " --max-tokens 5 --predictions " + (f / "p.jsonl") +
                 " 2>/dev/null | cat");
  Json scores = parse_json(g.out, "stdout");
  CHECK(scores["rows"] == 1);
  CHECK(scores["bleu"] == 0);  // the tiny model's answer is one word, of another letter
  CHECK(scores["rouge_l"] == 0);
  const Json predicted = parse_json(read_file(f / "p.jsonl", 4096), "p");
  CHECK(predicted["prompt"] == "ab");
  const Json same = {{"prompt", "ab"}, {"references", {"c d e f", predicted["text"]}}};
  std::ofstream(f / "same.jsonl") << same.dump() << "\n";
  Result s = run(on + (f / "same.jsonl") + " --max-tokens 5 2>/dev/null | cat");
  CHECK(parse_json(s.out, "stdout")["rouge_l"] == 1);
  CHECK(run(on + (f / "refs.jsonl") + " --predictions " + (f / "p.jsonl")).status == 2);
  CHECK(run(on + (f / "rows.jsonl") + " --predictions " + (f / "q.jsonl")).status == 2);
  // The target is looked at before the work.
  stdfs::create_symlink("nowhere", f / "link");
  const std::string predict = on + (f / "refs.jsonl") + " --predictions ";
  for (const auto& [target, status] :
       {std::pair{f / "link", 2}, {f.scratch.path(), 2}, {f / "none/q.jsonl", 4}}) {
    const Result r = run(predict + target);
    CHECK(r.status == status);
    CHECK_MESSAGE(r.out.find("rows with references") == std::string::npos, r.out);
  }
  CHECK(run(on + (f / "rows.jsonl") + " --generate --max-tokens 0").status == 2);
  Result loss = run(on + (f / "rows.jsonl") + " --generate --max-tokens 3");
  CHECK_MESSAGE(loss.status == 0, loss.out);  // a completion is a reference
  CHECK(run(on + (f / "choices.jsonl") + " --generate").status == 3);
}

TEST_CASE("finetune leaves a report and, if asked, event files; also when it goes on") {
  Folder f;
  const std::string flags = "--seq-len 64 --lr 1e-2 --save-every 1 --tensorboard --eval-data " +
                            (f / "rows.jsonl") + " --out " + (f / "out");
  auto events = [&] {
    std::ptrdiff_t n = 0;
    for (const auto& entry : stdfs::directory_iterator(f / "out"))
      n += entry.path().filename().string().starts_with("events.out.tfevents.");
    return n;
  };
  REQUIRE(run(train(f, "--steps 3 " + flags)).status == 0);
  std::string page = read_file(f / "out/report.html", 1 << 24);
  CHECK(page.find("hello ") != std::string::npos);  // a sample's prompt
  CHECK(page.find("3 steps done") != std::string::npos);
  CHECK(events() == 1);
  Result more = run(train(f, "--steps 5 --resume --samples 0 " + flags));
  REQUIRE_MESSAGE(more.status == 0, more.out);
  page = read_file(f / "out/report.html", 1 << 24);
  CHECK(page.find("5 steps done") != std::string::npos);
  CHECK(page.find("<h2>Samples</h2>") == std::string::npos);
  CHECK(events() == 2);
  REQUIRE(run(train(f, "--steps 2 --seq-len 64 --lr 1e-2 --out " + (f / "plain"))).status == 0);
  Result far =
      run(train(f, "--steps 2 --seq-len 64 --lr 1e30 --eval-split 0 --out " + (f / "far")));
  CHECK_MESSAGE(far.out.find("warning: the last step's loss was") != std::string::npos, far.out);
  page = read_file(f / "plain/report.html", 1 << 24);
  CHECK(page.find("<h2>Samples</h2>") == std::string::npos);
  CHECK(run(train(f, "--steps 2 --samples 2 --out " + (f / "none"))).status == 2);
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
  Result mixed = run(both + " --json --prompts " + (f / "prompts.jsonl"), kNoStderr);
  REQUIRE_MESSAGE(mixed.status == 0, mixed.out);
  std::vector<Json> rows;
  std::istringstream lines(mixed.out);
  for (std::string line; std::getline(lines, line);) rows.push_back(parse_json(line, "row"));
  REQUIRE(rows.size() == 4);
  CHECK(rows[0]["adapter"] == "b");
  CHECK(!rows[1].contains("adapter"));
  CHECK(rows[1]["ids"] == rows[3]["ids"]);
  auto alone = [&](const std::string& more) {
    Result r = run(base + "--json " + more, kNoStderr);
    REQUIRE_MESSAGE(r.status == 0, r.out);
    return parse_json(r.out, "alone")["ids"];
  };
  CHECK(rows[0]["ids"] == alone("--prompt 'hello ' --adapter " + (f / "two")));
  CHECK(rows[1]["ids"] == alone("--prompt 'hello '"));
  CHECK(rows[2]["ids"] == alone("--prompt abc --adapter " + (f / "one")));
  // A single one answers whatever it is called; of several none is chosen, which is said.
  CHECK(alone("--prompt abc --adapter a=" + (f / "one")) == rows[2]["ids"]);
  stdfs::copy(f / "one", f / "r=1");
  CHECK(alone("--prompt abc --adapter " + (f / "r=1")) == rows[2]["ids"]);
  const std::string said = run(both + " --prompt x").out;
  CHECK(said.find("the base answers") != std::string::npos);
  for (const char* what : {"adapter a: rank ", "adapter b: rank ", " KiB", "memory: weights ",
                           ", key/value cache ", "another adapter for each of 1 prompts takes "})
    CHECK_MESSAGE(said.find(what) != std::string::npos, what, " is not in ", said);

  std::ofstream(f / "unknown.jsonl") << R"({"prompt":"x"})"
                                        "\n"
                                     << R"({"prompt":"x","adapter":"c"})"
                                        "\n";
  Result unknown = run(both + " --prompts " + (f / "unknown.jsonl"));
  CHECK(unknown.status == 3);
  CHECK(unknown.out.find("unknown.jsonl:2") != std::string::npos);
  // A prompt's row may hold what `evaluate` compares with; what would change the answer is refused.
  for (const auto& [more, status] : {std::pair{R"("completion":"y","references":["y"],"id":3)", 0},
                                     {R"("system":"Be brief.")", 3},
                                     {R"("temperature":1)", 3},
                                     {R"("max_tokens":1)", 3}}) {
    std::ofstream(f / "more.jsonl") << R"({"prompt":"x",)" << more << "}\n";
    const Result r = run(base + "--prompts " + (f / "more.jsonl"));
    CHECK_MESSAGE(r.status == status, more, ": ", r.out);
  }
  // A prompt that the model can't take is named by its line, and is the file's fault.
  for (const std::string& prompt : {std::string(), std::string(60'000, '7')}) {
    std::ofstream(f / "more.jsonl") << "{\"prompt\":\"x\"}\n\n{\"prompt\":\"" << prompt << "\"}\n";
    const Result r = run(base + "--prompts " + (f / "more.jsonl"));
    CHECK(r.status == 3);
    CHECK_MESSAGE(r.out.find("more.jsonl:3: ") != std::string::npos, r.out);
  }
  CHECK(run(both + " --adapter a=" + (f / "one") + " --prompt x").status == 2);
  CHECK(run(both + " --adapter " + (f / "one") + " --prompt x").status == 2);
  for (const char* bad : {"--top-p 0", "--min-p 2", "--repetition-penalty 0", "--batch 0",
                          "--stop ''", "--max-tokens 0", "--template chatml", "--adapter ''"})
    CHECK(run(base + "--prompt x " + bad).status == 2);

  const std::string chat = base + "--chat --template chatml ";
  Result once = run(chat + "--prompt hello", kNoStderr);
  REQUIRE_MESSAGE(once.status == 0, once.out);
  std::ofstream(f / "turns.txt") << "hello\n/reset\nhello\n/exit\nnever\n";
  Result turns = run(chat + " < " + (f / "turns.txt"), kNoStderr);
  CHECK(turns.status == 0);
  CHECK(turns.out == once.out + once.out);
  // What a pipe's lines fail by is in the exit code, once the other lines have their answers.
  std::ofstream(f / "turns.txt") << "hello\n/adapter none\n/reset\n\xff\nhello\n";
  turns = run(chat + " < " + (f / "turns.txt"), kNoStderr);
  CHECK(turns.status == 3);
  CHECK(turns.out == once.out + once.out);
  turns = run(chat + " < " + (f / "turns.txt"));
  for (const char* line : {"stdin:2: ", "stdin:4: "})
    CHECK_MESSAGE(turns.out.find(line) != std::string::npos, turns.out);
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
  // One byte short of what `none` needs with the scratch that is kept free (plannable_bytes).
  const std::int64_t budget = (needs - 1 + (std::int64_t{4} << 20)) * 100 / 99;
  const std::string out = go("tight", "--memory " + std::to_string(budget));
  const Json tight = settings("tight");
  const auto chosen = tight["settings"]["recompute"].get<std::string>();
  CHECK(chosen != "none");
  CHECK(out.find("--recompute " + chosen + ", planned peak") != std::string::npos);
  CHECK(tight["planned_peak_bytes"] < needs);
  CHECK(tight["memory"]["peak_bytes"] <= budget);
  go("again", "--recompute " + chosen);
  for (const char* name : {"tight", "again", "enough"})
    CHECK(read_file(f / name + "/adapter_model.safetensors", 1 << 24) ==
          read_file(f / "plain/adapter_model.safetensors", 1 << 24));

  Result r = run(train(f, "--seq-len 64 --steps 3 --memory 100KiB --out " + (f / "none")));
  CHECK_MESSAGE(r.status == 5, r.out);
  CHECK(r.out.find("\nrecompute  ") != std::string::npos);  // the setting that needs least
  Result p = run("plan --shape smollm2-135m --batch 2 --seq-len 64 --memory 100MiB");
  CHECK_MESSAGE(p.status == 5, p.out);
  CHECK(p.out.find("--batch 1") != std::string::npos);
}

TEST_CASE("a run's plan is within 2 % of its peak, whichever of its batches or samples need most") {
  Folder f;
  std::string rows, longer, uneven;
  for (int i = 0; i < 64; ++i) rows += "{\"text\":\"ab\"}\n";
  for (int i = 0; i < 3; ++i)
    longer += "{\"text\":\"" + std::string(static_cast<std::size_t>(100 + i), 'c') + " a b c\"}\n";
  for (std::size_t i = 0; i < 60; ++i)
    uneven += "{\"prompt\":\"" + std::string(5 + i % 17, 'p') + "\",\"completion\":\"" +
              std::string(3 + i * 7 % 60, 'c') + "\"}\n";
  std::ofstream(f / "rows.jsonl") << rows;
  std::ofstream(f / "longer.jsonl") << longer;
  std::ofstream(f / "uneven.jsonl") << uneven;
  int n = 0;
  for (const auto& [data, flags] : std::vector<std::pair<std::string, std::string>>{
           {"rows", "--batch 64"},
           {"rows", "--batch 5 --packing --seq-len 33 --eval-split 0.4 --samples 0"},
           {"rows", "--batch 2 --packing --seq-len 40"},
           {"rows",
            "--batch 2 --recompute block --eval-data '" + f / "longer.jsonl" + "' --samples 0"},
           {"rows", "--batch 1 --eval-data '" + f / "longer.jsonl" + "' --sample-every 1"},
           {"rows", "--batch 4 --method prompt --virtual-tokens 150"},
           {"uneven", "--batch 8 --samples 0"},
           {"uneven", "--batch 1 --sample-every 2"},
           {"uneven", "--batch 1 --sample-every 2 --base-precision nf4"},
           {"uneven", "--batch 2 --grad-accum 3 --eval-split 0"},
           {"longer", "--batch 1 --grad-accum 96 --eval-split 0"},
           {"uneven", "--batch 2 --packing --seq-len 128 --eval-split 0"},
           {"uneven", "--batch 2 --packing --seq-len 128 --no-shuffle --eval-split 0"}})
    for (const char* dtype : {"f32", "bf16"}) {
      CAPTURE(data);
      CAPTURE(flags);
      CAPTURE(dtype);
      const std::string out = f / concat("out", n++);
      const Result r =
          run(concat("finetune --model ", kModel, " --data '", f / (data + ".jsonl"),
                     "' --steps 4 --dtype ", dtype, " --device cpu ", flags, " --out '", out, "'"));
      CHECK_MESSAGE(r.status == 0, r.out);
      const Json run_json = read_json(out + "/run.json");
      CHECK(run_json["planned_peak_bytes"].get<double>() ==
            doctest::Approx(run_json["memory"]["peak_bytes"].get<double>()).epsilon(0.02));
      const Result plan =
          run_program("plan --json --config '" + out + "/run.toml'", " 2>/dev/null");
      CHECK(parse_json(plan.out, "plan")["memory"]["peak_bytes"] == run_json["planned_peak_bytes"]);
    }
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
  // Safetensors are not quantised.
  Result q = run("generate --device cpu --model " + kModel + " --weights quantised --prompt x");
  CHECK(q.status == 2);
  CHECK(q.out.find("no quantised matrix") != std::string::npos);
  CHECK(run("generate --device cpu --model " + kModel + " --weights q4 --prompt x").status == 2);
}

TEST_CASE(
    "rows come from standard input, pipes and CSV; bad and long ones are refused or skipped") {
  Folder f;
  const std::string on = " --device cpu --model " + kModel;
  auto finetune = [&](const std::string& more, const std::string& redirect = "") {
    const std::string length = more.find("--seq-len") == std::string::npos ? " --seq-len 64" : "";
    return run("finetune" + on + length + " --batch 2 --steps 1 --out " + more, redirect + " 2>&1");
  };
  auto hash = [&](const std::string& folder) {
    return read_json((f / folder) + "/run.json")["settings"]["run"]["data_sha256"];
  };
  const std::string rows = f / "rows.jsonl", from_rows = " < " + rows;
  Result r = finetune((f / "a") + " --data " + rows);
  REQUIRE_MESSAGE(r.status == 0, r.out);
  r = finetune((f / "b") + " --data - --eval-data " + rows, from_rows);
  REQUIRE_MESSAGE(r.status == 0, r.out);
  CHECK(r.out.find("standard input: JSON lines, format prompt-completion, 3 rows") !=
        std::string::npos);
  CHECK(hash("a") == hash("b"));
  CHECK(finetune((f / "c") + " --data - --eval-data -", from_rows).status == 2);
  const std::string evaluate = "evaluate" + on + " --seq-len 64 --data ";
  CHECK(run(evaluate + "-", from_rows + kNoStderr).out == run(evaluate + rows, kNoStderr).out);

  std::ofstream(f / "rows.csv") << "id,prompt,completion\r\n1,\"abc, \",\"a\nb\"\r\n2,x\r\n";
  r = finetune((f / "d") + " --data " + (f / "rows.csv"));
  CHECK(r.status == 3);
  CHECK_MESSAGE(r.out.find("rows.csv:4: ") != std::string::npos, r.out);
  r = finetune((f / "d") + " --skip-bad-rows --data " + (f / "rows.csv"));
  REQUIRE_MESSAGE(r.status == 0, r.out);
  CHECK_MESSAGE(r.out.find("CSV, format prompt-completion, 1 rows") != std::string::npos, r.out);
  CHECK_MESSAGE(r.out.find("ignored keys, which only record something: id") != std::string::npos,
                r.out);
  CHECK(read_json((f / "d") + "/run.json")["data"]["rows_bad"] == 1);

  const std::string long_rows = " --seq-len 4 --data " + rows;
  CHECK(finetune((f / "e") + long_rows).status == 3);
  CHECK(finetune((f / "e") + long_rows + " --truncate --long-rows skip").status == 2);
  CHECK(finetune((f / "e") + long_rows + " --long-rows drop").status == 2);
  r = finetune((f / "e") + long_rows + " --long-rows skip");
  CHECK_MESSAGE(r.out.find("too long") != std::string::npos, r.out);
}

TEST_CASE("resume: 3 + 3 steps give the bytes of 6, and a changed setting is refused") {
  Folder f;
  const std::string flags = "--seq-len 64 --lr 1e-2 --schedule constant --out ";
  REQUIRE(run(train(f, "--steps 6 " + flags + (f / "whole"))).status == 0);
  REQUIRE(run(train(f, "--steps 3 " + flags + (f / "parts"))).status == 0);
  Result r = run(train(f, "--steps 6 --resume " + flags + (f / "parts")));
  REQUIRE_MESSAGE(r.status == 0, r.out);
  CHECK(read_file(f / "whole/adapter_model.safetensors", 1 << 28) ==
        read_file(f / "parts/adapter_model.safetensors", 1 << 28));
  Result changed = run(train(f, "--steps 9 --rank 2 --resume " + flags + (f / "parts")));
  CHECK(changed.status == 2);
  CHECK(changed.out.find("rank") != std::string::npos);
  std::string bytes = read_file(f / "parts/checkpoint.safetensors", 1 << 28);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
  std::ofstream(f / "parts/checkpoint.safetensors", std::ios::binary) << bytes;
  const Result damaged = run(train(f, "--steps 9 --resume " + flags + (f / "parts")));
  CHECK(damaged.status == 3);
  CHECK(damaged.out.find("checkpoint.safetensors: is damaged") != std::string::npos);
}

TEST_CASE("an --out that can't be a run's folder ends with 2, a disk that is in the way with 4") {
  Folder f;
  stdfs::create_symlink("/nowhere/at/all", f / "link");
  const Result link = run(train(f, "--seq-len 64 --steps 1 --out " + (f / "link")));
  CHECK(link.status == 2);
  CHECK(link.out.find("is a link") != std::string::npos);
  CHECK(run(train(f, "--seq-len 64 --steps 1 --out " + f.scratch.path())).status == 2);
  CHECK(run(train(f, "--seq-len 64 --steps 1 --out " + (f / "rows.jsonl"))).status == 2);
  CHECK(run(train(f, "--seq-len 64 --steps 1 --out /proc/none/run")).status == 4);
  CHECK(run(train(f, "--seq-len 64 --epochs 9.3e18 --out " + (f / "run"))).status == 2);
}

TEST_CASE("--resume does not start a finished run over") {
  Folder f;
  const std::string flags = "--seq-len 64 --steps 2 --out " + (f / "run");
  REQUIRE(run(train(f, flags)).status == 0);
  const std::string before = read_file(f / "run/adapter_model.safetensors", 1 << 20);
  const Result again = run(train(f, "--rank 2 --resume " + flags));
  CHECK(again.status == 2);
  CHECK(again.out.find("holds a finished run") != std::string::npos);
  REQUIRE(stdfs::remove(f / "run/checkpoint.safetensors"));
  CHECK(run(train(f, "--resume " + flags)).out.find("holds a finished run and no checkpoint") !=
        std::string::npos);
  CHECK(read_file(f / "run/adapter_model.safetensors", 1 << 20) == before);
}

TEST_CASE("--packing fills micro-batches with rows, says how full they are, and resumes exactly") {
  Folder f;
  // A byte is a token here: rows of 6 to 11, so that two or three of them fill a bin of 24.
  std::ofstream rows(f / "rows.jsonl");
  for (int i = 0; i < 40; ++i)
    rows << R"({"text":")" << std::string(static_cast<std::size_t>(5 + i % 6), 'a') << "\"}\n";
  rows.close();
  const std::string flags = "--seq-len 24 --packing --lr 1e-2 --schedule constant --out ";
  Result whole = run(train(f, "--epochs 1 " + flags + (f / "epoch")));
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
    const std::string command = tools + "/" + arguments + " > " + f.scratch.file("log") +
                                " 2>&1 & run=$!; until [ -s " + out +
                                "/metrics.jsonl ] || ! kill -0 $run; do sleep 0.02; done; " +
                                "kill -" + c.signal + " $run; wait $run";
    const int status = std::system(command.c_str());
    CHECK(WEXITSTATUS(status) == c.status);
    Json run_json = read_json(out + "/run.json");
    CHECK(run_json["status"] == "stopped");
    const std::int64_t done = run_json["result"]["steps"].get<std::int64_t>();
    CHECK(done > 0);
    CHECK(stdfs::exists(out + "/checkpoint.safetensors"));
    const std::string log = read_file(f / "log", 1 << 24);
    CHECK(log.find("stopping after this step") != std::string::npos);
    CHECK(log.find("go on with: " LK_TOOLS "/finetune --resume --out " + out) != std::string::npos);
    Result r = run(concat("finetune --resume --out ", out, " --steps ", done + 3));
    CHECK_MESSAGE(r.status == 0, r.out);
    CHECK(read_json(out + "/run.json")["result"]["steps"] == done + 3);
  }
}

TEST_CASE("a signal during the samples leaves them out, and the run is finished") {
  Folder f;
  const std::string out = f / "run", log = f / "log";
  const std::string command = std::string(LK_TOOLS) + "/" +
                              train(f, "--seq-len 64 --steps 1 --lr 1e-2 --eval-data " +
                                           (f / "rows.jsonl") + " --samples 3 --out " + out) +
                              " > " + log + " 2>&1 & run=$!; until grep -q 'writing 3 samples' " +
                              log + " || ! kill -0 $run; do :; done; kill -INT $run; wait $run";
  const int status = std::system(command.c_str());
  const std::string said = read_file(log, 1 << 20);
  CHECK_MESSAGE(WEXITSTATUS(status) == 0, said);
  CHECK(said.find("adapter saved in " + out) != std::string::npos);
  CHECK(said.find("try it: " LK_TOOLS "/generate --model ") != std::string::npos);
  CHECK(read_json(out + "/run.json")["status"] == "finished");
}

TEST_CASE("a run that fails before it begins leaves no folder, and one that goes on is said to") {
  Folder f;
  CHECK(run(train(f, "--seq-len 64 --format messages --out " + (f / "bad"))).status == 3);
  CHECK(!stdfs::exists(f / "bad"));
  REQUIRE(run(train(f, "--seq-len 64 --steps 1 --lr 1e-2 --out " + (f / "run"))).status == 0);
  const Result again = run(train(f, "--seq-len 64 --steps 1 --out " + (f / "run")));
  CHECK(again.status == 2);
  CHECK(again.out.find("--resume goes on from its checkpoint") != std::string::npos);
  stdfs::remove(f / "run/adapter_config.json");
  const Result early =
      run("generate --device cpu --prompt a --model " + kModel + " --adapter " + (f / "run"));
  CHECK(early.status == 3);
  CHECK(early.out.find("no adapter yet") != std::string::npos);
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

TEST_CASE("merge and export: one JSON object on stdout, and exit codes that say what was wrong") {
  Folder f;
  const std::string adapter = std::string(LK_TEST_DATA) + "/golden/peft/all_linear.after";
  const std::string common = " --model " + kModel + " --adapter " + adapter + " --out ";
  Result r = run("merge" + common + (f / "m") + " --type f32", kNoStderr);
  REQUIRE_MESSAGE(r.status == 0, r.out);
  const Json json = parse_json(r.out, "merge");
  CHECK(json["type"] == "F32");
  CHECK(json["verified"] == true);
  CHECK(json["relative_difference"].get<double>() < 1e-5);
  CHECK(json["modules"]["q_proj"]["matrices"] == 2);
  CHECK(run("merge" + common + (f / "m")).status == 2);  // it is there
  CHECK(run("merge" + common + (f / "n") + " --type q4_0").status == 2);
  CHECK(run("merge" + common + (f / "n") + " --unmerge").status == 2);  // no --base
  CHECK(run("merge" + common + (f / "n") + " --adapter x=y").status == 2);
  CHECK(run("merge" + common + (f / "none/n")).status == 4);
  REQUIRE(run(train(f, "--out " + (f / "v") + " --method ia3 --steps 1")).status == 0);
  r = run("merge --model " + kModel + " --adapter " + (f / "v") + " --onto " + kModel + " --out " +
          (f / "n"));
  CHECK(r.status == 2);
  CHECK(r.out.find("--onto: is for adapters of A and B") != std::string::npos);
  r = run("merge" + common + (f / "n") + " --adapter " + (f / "v"));  // vectors behind A and B
  CHECK(r.status == 2);
  CHECK(r.out.find("one folder at a time") != std::string::npos);
  for (const std::string& other :
       {"export --model " + kModel + " --out " + (f / "v.gguf") + " --adapter ",
        "merge --unmerge --base " + kModel + " --model " + kModel + " --out " + (f / "n") +
            " --adapter ",
        train(f, "--out " + (f / "n") + " --init-adapter ")}) {
    r = run(other + (f / "v"));
    CHECK(r.status == 2);
    CHECK(r.out.find("is of ia3, and") != std::string::npos);
  }
  CHECK(run("merge --model " + kModel + " --adapter " + (f / "none") + " --out " + (f / "n"))
            .status == 3);
  CHECK(!stdfs::exists(f / "n"));
  r = run("merge --unmerge --model " + (f / "m") + " --base " + kModel + " --adapter " + adapter +
              " --out " + (f / "back"),
          kNoStderr);
  CHECK_MESSAGE(r.status == 0, r.out);
  CHECK(parse_json(r.out, "unmerge")["exact"] == true);
  r = run("export" + common + (f / "a.gguf"), kNoStderr);
  CHECK_MESSAGE(r.status == 0, r.out);
  CHECK(parse_json(r.out, "export")["modules"] == 14);
  CHECK(run("export" + common + (f / "a.bin")).status == 2);
  CHECK(run("export" + common + (f / "a.gguf")).status == 2);
}

namespace {

// A copy of a golden adapter with one key of its config changed.
std::string edited_adapter(const Folder& f, const std::string& name, const std::string& key,
                           const Json& value) {
  const std::string folder = f / name;
  stdfs::copy(std::string(LK_TEST_DATA) + "/golden/peft/all_linear.after", folder);
  Json config = read_json(folder + "/adapter_config.json");
  config[key] = value;
  std::ofstream(folder + "/adapter_config.json") << config.dump();
  return folder;
}

}  // namespace

TEST_CASE("every program refuses an adapter that changes its base, naming the key") {
  Folder f;
  const std::string adapter = edited_adapter(f, "pissa", "init_lora_weights", "pissa");
  const std::string model = " --model " + kModel, with = " --adapter " + adapter;
  for (const std::string& arguments :
       {"generate --device cpu" + model + with + " --prompt x",
        "generate --device cpu" + model + " --adapter a=" + adapter + " --prompt x",
        "evaluate --device cpu" + model + with + " --data " + (f / "rows.jsonl"),
        "merge" + model + with + " --out " + (f / "merged"),
        "export" + model + with + " --out " + (f / "a.gguf"),
        train(f, "--steps 1 --init-adapter " + adapter + " --out " + (f / "run"))}) {
    CAPTURE(arguments);
    const Result r = run(arguments);
    CHECK(r.status == 3);
    CHECK(r.out.find("adapter_config.json: init_lora_weights") != std::string::npos);
    CHECK(r.out.find("path_initial_model_for_weight_conversion") != std::string::npos);
  }
}

TEST_CASE("an adapter of modules that the model lacks is refused by its file's name") {
  Folder f;
  const std::string adapter =
      edited_adapter(f, "deeper", "target_modules", {"q_proj", "x_proj", "lm_head"});
  const std::string weights = adapter + "/adapter_model.safetensors";
  const std::string model = " --model " + kModel, with = " --adapter " + adapter;
  for (const char* module : {"model.layers.7.self_attn.q_proj", "lm_head"}) {
    write_safetensors(
        weights,
        {{concat("base_model.model.", module, ".lora_A.weight"), {8, 4}, std::vector<float>(32, 1)},
         {concat("base_model.model.", module, ".lora_B.weight"),
          {4, 8},
          std::vector<float>(32, 1)}},
        {{"format", "pt"}});
    for (const std::string& arguments :
         {"evaluate --device cpu" + model + with + " --data " + (f / "rows.jsonl"),
          "merge" + model + with + " --out " + (f / "merged"),
          "export" + model + with + " --out " + (f / "a.gguf"),
          train(f, "--steps 1 --init-adapter " + adapter + " --out " + (f / "run"))}) {
      CAPTURE(arguments);
      const Result r = run(arguments);
      CHECK_MESSAGE(r.status == 3, r.out);
      CHECK_MESSAGE(r.out.find(concat(weights, ": '", module, "'")) != std::string::npos, r.out);
    }
  }
}

TEST_CASE("training goes on from an adapter with alphas of single modules, and keeps them") {
  Folder f;
  const Json pattern = {{"q_proj", 64}};
  const std::string adapter = edited_adapter(f, "start", "alpha_pattern", pattern);
  const std::string flags = "--seq-len 64 --lr 1e-3 --save-every 2 --init-adapter ";
  REQUIRE(run(train(f, flags + adapter + " --steps 4 --out " + (f / "run"))).status == 0);
  const Json config = read_json(f / "run/adapter_config.json");
  CHECK(config["alpha_pattern"] == pattern);
  CHECK(config["lora_alpha"] == 16);
  const Json start = read_json(adapter + "/adapter_config.json");
  CHECK(config["target_modules"].get<std::set<std::string>>() ==
        start["target_modules"].get<std::set<std::string>>());
  CHECK(read_file(f / "run/README.md", 1 << 20).find("other ranks and alphas") !=
        std::string::npos);
  CHECK(run("evaluate --device cpu --seq-len 64 --model " + kModel + " --adapter " + (f / "run") +
            " --data " + (f / "rows.jsonl"))
            .status == 0);
  // Without them it is another run.
  const std::string plain = edited_adapter(f, "plain", "alpha_pattern", Json::object());
  const std::string again = " --steps 4 --resume --out " + (f / "run");
  const Result r = run(train(f, flags + plain + again));
  CHECK(r.status == 2);
  CHECK(r.out.find("--resume: exceptions") != std::string::npos);
}
