// The programs' flags: other tools' names, near misses, files of flags.
#include <fstream>

#include "hostile.h"
#include "io/json.h"
#include "run_program.h"
#include "scratch_folder.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kModel = std::string(LK_TEST_DATA) + "/golden/peft/tiny";

struct Rows {
  ScratchFolder scratch;
  std::string path = scratch.write("rows.jsonl",
                                   "{\"prompt\":\"abc \",\"completion\":\"def ghi\"}\n"
                                   "{\"prompt\":\"x\",\"completion\":\"yz\"}\n");
  std::string train(const std::string& out, const std::string& more) const {
    return "finetune --device cpu --model " + kModel + " --data " + path + " --out " +
           scratch.file(out) + " " + more;
  }
};

}  // namespace

TEST_CASE("flags have the names that other tools give them") {
  Rows f;
  const auto ours = run_program(f.train(
      "ours", "--lr 1e-3 --rank 4 --alpha 8 --seq-len 64 --batch 2 --steps 2 --dropout 0.1"));
  const auto theirs =
      run_program(f.train("theirs",
                          "--learning_rate 1e-3 --lora-r=4 --lora_alpha=8 --max-seq-length 64 "
                          "--per_device_train_batch_size 2 --max_steps 2 --lora-dropout 0.1"));
  CHECK_MESSAGE(ours.status == 0, ours.out);
  CHECK_MESSAGE(theirs.status == 0, theirs.out);
  CHECK(slurp(f.scratch.file("ours/adapter_model.safetensors")) ==
        slurp(f.scratch.file("theirs/adapter_model.safetensors")));
  const auto asked = run_program("generate --device cpu --model " + kModel +
                                 " --prompt abc --max_new_tokens 2 --temp 0");
  CHECK_MESSAGE(asked.status == 0, asked.out);
}

TEST_CASE("a flag that there is not is answered with the one that was probably meant") {
  Rows f;
  check_says(run_program(f.train("a", "--epoch 2")), 2, "did you mean --epochs?");
  check_says(run_program(f.train("a", "--learnig-rate 2")), 2, "--learnig-rate");
  check_says(run_program(f.train("a", "--eval-evry 2")), 2, "did you mean --eval-every?");
  check_says(run_program(f.train("a", "--sched linear")), 2, "did you mean --schedule?");
  const auto none = run_program(f.train("a", "--bananas 2"));
  CHECK(none.status == 2);
  CHECK(none.out.find("did you mean") == std::string::npos);
  check_says(run_program(f.train("a", "--grad_accum 0")), 2, "--grad-accum must be in 1 .. 65536");
}

TEST_CASE("a misspelt flag is named although a required one is missing, without its value") {
  Rows f;
  const std::string rest = " --data " + f.path + " --out " + f.scratch.file("a");
  check_says(run_program("finetune --modle " + kModel + rest), 2,
             "there is no flag --modle; did you mean --model?");
  check_says(run_program(f.train("a", "--ephocs 2")), 2,
             "there is no flag --ephocs; did you mean --epochs?");
  check_says(run_program("finetune" + rest), 2, "--model is required");
  // What is near in letters may be far in meaning.
  check_says(run_program(f.train("a", "--warmup_ratio 0.1")), 2,
             "--warmup takes a number of steps");
  check_says(run_program(f.train("a", "--load-in-4bit")), 2, "--base-precision nf4");
  check_says(run_program("evaluate --model " + kModel + " --data " + f.path + " --eval-rows 2"), 2,
             "--rows takes the first N rows");
}

TEST_CASE("--threads sets how many there are, and waiting threads spin for a short time") {
  const std::string show = "env -u GOMP_SPINCOUNT -u OMP_WAIT_POLICY -u OMP_NUM_THREADS ";
  auto shown = [&](const std::string& more, const std::string& flags) {
    return run_shell(show + more + " OMP_DISPLAY_ENV=VERBOSE " + LK_TOOLS + "/plan --matrix 4x4 " +
                     "--rank 1 " + flags + " 2>&1");
  };
  check_says(shown("", "--threads 3"), 0, "OMP_NUM_THREADS = '3'");
  check_says(shown("OMP_NUM_THREADS=1", "--threads=3"), 0, "OMP_NUM_THREADS = '3'");
  check_says(shown("", ""), 0, "GOMP_SPINCOUNT = '1000'");
  check_says(shown("GOMP_SPINCOUNT=7", ""), 0, "GOMP_SPINCOUNT = '7'");
  const auto active = shown("OMP_WAIT_POLICY=ACTIVE", "");
  CHECK(active.out.find("GOMP_SPINCOUNT = '1000'") == std::string::npos);
  for (const char* wrong : {"0", "-1", "5000", "two"})
    check_says(run_program(std::string("plan --matrix 4x4 --rank 1 --threads ") + wrong), 2,
               "--threads");
  Rows f;
  const std::string file = f.scratch.write("threads.toml", "threads = 1\n");
  check_says(run_program("plan --matrix 4x4 --rank 1 --config " + file), 0, "A (4x1)");
}

TEST_CASE("--config gives flags, the command line wins, and run.toml repeats a run") {
  Rows f;
  const std::string file =
      f.scratch.write("mine.toml",
                      "rank = 4\nlr = 1e-3\nseq-len = 64\nbatch = 2\nsteps = 3\n"
                      "no-shuffle = true\ntargets = \"q_proj,v_proj\"\n");
  const auto first = run_program(f.train("first", "--steps 2 --config " + file));
  CHECK_MESSAGE(first.status == 0, first.out);
  const Json run = read_json(f.scratch.file("first/run.json"));
  CHECK(run["result"]["steps"] == 2);
  CHECK(run["settings"]["run"]["rank"] == 4);
  CHECK(run["settings"]["run"]["shuffle"] == false);

  const auto again = run_program("finetune --config " + f.scratch.file("first/run.toml") +
                                 " --out " + f.scratch.file("again"));
  CHECK_MESSAGE(again.status == 0, again.out);
  CHECK(slurp(f.scratch.file("again/adapter_model.safetensors")) ==
        slurp(f.scratch.file("first/adapter_model.safetensors")));

  check_says(run_program(f.train("a", "--config " + f.scratch.file("none.toml"))), 2, "none.toml");
  const std::string wrong = f.scratch.write("wrong.toml", "learnig-rate = 1\n");
  check_says(run_program(f.train("a", "--config " + wrong)), 2, "wrong.toml:1");
  check_says(run_program(f.train("a", "--config " + wrong)), 2, "learnig-rate");
  const std::string bad = f.scratch.write("bad.toml", "rank = \"many\"\n");
  check_says(run_program(f.train("a", "--config " + bad)), 2, "rank");
  const std::string plan = f.scratch.write("plan.toml", "matrix = \"100x500\"\nrank = 5\n");
  check_says(run_program("plan --config " + plan), 0, "3,000");
}

TEST_CASE(
    "LoRA's variants: run.toml repeats them, a resume refuses another, the files are PEFT's") {
  Rows f;
  const std::string common = "--steps 4 --batch 2 --seq-len 64 --lr 1e-2 --rank 4 --clip 0 ";
  struct Variant {
    std::string name, flags, key;
    Json value;
    std::string other;  // a flag that makes another run
  };
  const Variant variants[] = {
      {"rslora", "--rslora", "use_rslora", true, ""},
      {"layers", "--layers 1", "layers_to_transform", {1}, "--layers 0"},
      {"patterns",
       "--targets q_proj,v_proj --rank-pattern v_proj=2 --alpha-pattern layers.0.*=6",
       "rank_pattern",
       {{"model.layers.0.self_attn.v_proj", 2}, {"model.layers.1.self_attn.v_proj", 2}},
       "--rank-pattern v_proj=3"},
      {"regex",
       "--targets 'regex:.*layers\\.1\\..{1,30}(q|up)_proj'",
       "target_modules",
       {"model.layers.1.mlp.up_proj", "model.layers.1.self_attn.q_proj"},
       "--targets q_proj"},
      {"gaussian", "--init gaussian", "init_lora_weights", "gaussian", "--init kaiming"},
      {"pissa", "--init pissa", "r", 8, "--init olora"},
      {"olora", "--init olora --rslora", "init_lora_weights", true, "--init pissa"},
      {"plus", "--loraplus-ratio 8", "r", 4, "--loraplus-ratio 4"},
      {"dora", "--dora --dropout 0.1", "use_dora", true, ""},
  };
  const std::string file = "/adapter_model.safetensors";
  for (const Variant& v : variants) {
    CAPTURE(v.name);
    const auto whole = run_program(f.train(v.name, common + v.flags));
    CHECK_MESSAGE(whole.status == 0, whole.out);
    const std::string folder = f.scratch.file(v.name);
    const Json config = parse_json(slurp(folder + "/adapter_config.json"), "config");
    CHECK(config[v.key] == v.value);
    // Again from run.toml, in two parts.
    const std::string again =
        "finetune --config " + folder + "/run.toml --out " + f.scratch.file(v.name + "2") + " ";
    CHECK(run_program(again + "--steps 2").status == 0);
    if (!v.other.empty()) check_says(run_program(again + "--resume " + v.other), 2, "was");
    CHECK(run_program(again + "--resume").status == 0);
    CHECK(slurp(folder + file) == slurp(f.scratch.file(v.name + "2") + file));
  }
  const std::string model = " --device cpu --dtype f32 --model " + kModel,
                    with = " --adapter " + f.scratch.file("dora");
  const auto loss = [&](const std::string& arguments) {
    const auto r = run_program("evaluate" + arguments + " --data " + f.path, " 2>/dev/null");
    REQUIRE(r.status == 0);
    return parse_json(r.out, "evaluate")["loss"].get<double>();
  };
  const auto merged = run_program("merge --type f32 --model " + kModel + with + " --out " +
                                  f.scratch.file("merged"));
  CHECK_MESSAGE(merged.status == 0, merged.out);
  CHECK(loss(" --device cpu --dtype f32 --model " + f.scratch.file("merged")) ==
        doctest::Approx(loss(model + with)).epsilon(1e-6));
  CHECK(run_program("generate" + model + with + " --prompt abc --max-tokens 3").status == 0);
  check_says(run_program("export --model " + kModel + with + " --out " + f.scratch.file("a.gguf")),
             3, "use_dora");
  check_says(run_program("generate" + model + " --adapter a=" + f.scratch.file("dora") +
                         " --prompts " + f.scratch.write("p.jsonl", R"({"prompt": "abc"})")),
             3, "use_dora");
  check_says(run_program("merge --model " + kModel + with + "=0.5 --out " + f.scratch.file("half")),
             2, "DoRA");
}

TEST_CASE("LoRA's variants: what can't be is refused before anything is read, by its flag") {
  Rows f;
  const std::pair<const char*, const char*> wrong[] = {
      {"--layers 0,9", "--layers 9"},
      {"--layers 0 --targets 'regex:.*q_proj'", "--layers: goes with names"},
      {"--targets 'regex:.*[qv_proj'", "--targets"},
      {"--layers x", "--layers"},
      {"--layers 3-1", "--layers"},
      {"--rank-pattern bananas=4", "--rank-pattern"},
      {"--rank-pattern q_proj", "--rank-pattern"},
      {"--rank-pattern q_proj=0", "--rank-pattern"},
      {"--rank-pattern q_proj=4000", "--rank-pattern"},
      {"--rank-pattern q_proj=4,q_proj=5", "--rank-pattern"},
      {"--alpha-pattern [q=4", "--alpha-pattern"},
      {"--alpha-pattern q_proj=-1", "--alpha-pattern"},
      {"--loraplus-ratio 0", "--loraplus-ratio"},
      {"--loraplus-ratio -4", "--loraplus-ratio"},
      {"--init pisa", "--init"},
      {"--dora --init pissa", "--dora"},
      {"--rslora --init-adapter x", "--init-adapter"},
      {"--targets q_proj --init-adapter x", "--init-adapter"},
      {"--method lora,ia3", "--method lora,ia3"},
      {"--method bitfit,prompt,lora", "--method bitfit,prompt,lora"},
      {"--method prefix,llama-adapter", "--method prefix,llama-adapter"},
      {"--init-adapter ''", "--init-adapter"},
      {"--template ''", "--template"},
  };
  for (const auto& [flags, part] : wrong) {
    CAPTURE(flags);
    check_says(run_program(f.train("a", flags)), 2, part);
  }
  CHECK(run_program(f.train("a", "--use_dora --steps 1")).status != 2);
  check_says(run_program(f.train("b", "--rslor --steps 1")), 2, "did you mean --rslora?");
}

TEST_CASE("methods leave the same files in whatever order they are named") {
  Rows f;
  const std::string more = " --steps 2 --seq-len 64 --rank 2";
  const auto files = [&](const std::string& names) {
    const ProgramResult r = run_program(f.train(names, "--method " + names + more));
    CHECK_MESSAGE(r.status == 0, r.out);
    return slurp(f.scratch.file(names + "/lora/adapter_model.safetensors")) +
           slurp(f.scratch.file(names + "/llama-adapter/adapter_model.safetensors"));
  };
  CHECK(files("llama-adapter,lora") == files("lora,llama-adapter"));
}

TEST_CASE(
    "an array in a settings file is the list of a flag that takes one, and refused elsewhere") {
  Rows f;
  auto plan = [&](const std::string& toml) {
    const std::string file = f.scratch.write("plan.toml", toml);
    return run_program("plan --shape smollm2-135m --config " + file);
  };
  const auto text = plan("targets = \"q_proj,v_proj\"\nrecompute = \"gate-up,block:4\"\n");
  const auto array = plan(
      "# of attention alone\n'targets' = [\n  \"q_proj\",  # queries\n  'v_proj',\n]\n"
      "recompute = [\"gate-up\", \"block:4\"]\n");
  CHECK_MESSAGE(text.status == 0, text.out);
  CHECK(array.out == text.out);
  CHECK(array.status == 0);
  const auto other = plan("grad_accum = 4\nbatch_size = 3\n"),
             own = plan("grad-accum = 4\nbatch = 3\n");
  CHECK(other.status == 0);
  CHECK(other.out == own.out);
  const std::pair<const char*, std::vector<const char*>> refused[] = {
      {"rank = [4]\n", {"plan.toml:1", "rank", "one value"}},
      {"\nrank = [4, 8]\n", {"plan.toml:2", "rank", "one value"}},
      {"targets = []\n", {"targets", "empty array"}},
      {"targets = [\"\"]\n", {"targets", "empty item"}},
      {"targets = [\"q_proj,v_proj\"]\n", {"targets", "comma"}},
      {"targets = [\"q_proj\" \"v_proj\"]\n", {"targets", "comma or ]"}},
      {"targets = [[\"q_proj\"]]\n", {"targets", "within"}},
      {"targets = [\"q_proj\"\n", {"targets", "comma or ]"}},
      {"targets = [\"q_proj\"] x\n", {"targets", "behind the value"}},
      {"targets = \"q_proj\n", {"targets", "closing quote"}},
      {"targets = \"\"\"q_proj\"\"\"\n", {"targets", "several lines"}},
      {"targets = \"\\q\"\n", {"targets", "escape"}},
      {"targets = q_proj v_proj\n", {"targets", "behind the value"}},
      {"targets = {a = 1}\n", {"targets", "a value is expected"}},
      {"targets =\n", {"targets", "a value is expected"}},
      {"rank = 4\nrank = 8\n", {"plan.toml:2", "rank", "line 1"}},
      {"[training]\nrank = 4\n", {"plan.toml:1", "table"}},
      {"rank = 4\nlora_rank = 8\n", {"plan.toml:2", "rank", "line 1"}},
      {"rank = 4\nrnk = 8\n", {"plan.toml:2", "--rnk", "did you mean --rank"}},
      {"nothing = [1]\n", {"nothing"}}};
  for (const auto& [toml, parts] : refused)
    for (const char* part : parts) check_says(plan(toml), 2, part);
}

TEST_CASE("run.toml holds any text, and gives it back as it was") {
  Rows f;
  const std::string system = "Say \"#1\", it's\na back\\slash, \xC3\xA9.";
  const std::string chats = f.scratch.write("it is #1.jsonl",
                                            "{\"user\":\"abc\",\"assistant\":\"def ghi\"}\n"
                                            "{\"user\":\"x\",\"assistant\":\"yz\"}\n");
  const auto first = run_program("finetune --device cpu --steps 1 --template smollm2 --model " +
                                 kModel + " --data '" + chats + "' --out " + f.scratch.file("one") +
                                 " --system 'Say \"#1\", it'\\''s\na back\\slash, \xC3\xA9.'");
  CHECK_MESSAGE(first.status == 0, first.out);
  const auto again = run_program("finetune --config " + f.scratch.file("one/run.toml") + " --out " +
                                 f.scratch.file("two"));
  CHECK_MESSAGE(again.status == 0, again.out);
  for (const char* run : {"one", "two"})
    CHECK(read_json(f.scratch.file(std::string(run) + "/run.json"))["settings"]["run"]["system"] ==
          system);
  CHECK(slurp(f.scratch.file("one/adapter_model.safetensors")) ==
        slurp(f.scratch.file("two/adapter_model.safetensors")));
}
