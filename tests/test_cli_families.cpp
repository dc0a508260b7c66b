// Every program on a tiny model of each family, as a user runs them one after the other.
#include <sys/wait.h>

#include <array>
#include <cstdio>

#include "family_models.h"

using namespace lk;
using namespace lk::test;

namespace {

// stdout of a program of build/tools/, which must end with 0.
std::string run(const std::string& arguments, int wanted = 0) {
  static const std::string errors =
      (std::filesystem::temp_directory_path() / concat("lk-cli-families-", ::getpid())).string();
  FILE* pipe = ::popen((std::string(LK_TOOLS) + "/" + arguments + " 2>" + errors).c_str(), "r");
  REQUIRE(pipe);
  std::string out;
  std::array<char, 4096> buffer;
  while (std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe))
    out.append(buffer.data(), n);
  const int status = ::pclose(pipe);
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  CHECK_MESSAGE(code == wanted, arguments, ": ", code, "\n", slurp(errors));
  std::filesystem::remove(errors);
  return out;
}

double loss_of(const std::string& evaluation) {
  return parse_json(evaluation, "evaluate").at("loss").get<double>();
}

}  // namespace

TEST_CASE("plan, finetune, evaluate, generate, merge and export, one after the other") {
  for (const std::string name :
       {"tied_gqa", "mistral_window", "qwen2", "qwen3", "gemma3", "gpt2"}) {
    CAPTURE(name);
    ScratchFolder scratch;
    const std::string model = runnable_model(scratch, name), adapter = scratch.file("run"),
                      merged = scratch.file("merged");
    std::string rows;
    for (int i = 0; i < 6; ++i)
      rows += Json{{"prompt", concat("row ", i, ": ")}, {"completion", "the same answer to all"}}
                  .dump() +
              "\n";
    const std::string data = scratch.write("rows.jsonl", rows), on = " --model " + model + " ",
                      with = " --adapter " + adapter, cpu = " --device cpu";
    // Default targets are PEFT's for the family.
    const Json plan =
        parse_json(run("plan" + on + "--rank 3 --batch 3 --seq-len 64 --dtype f32 --json"), "plan");
    run("finetune" + on + "--data " + data + " --out " + adapter +
        " --rank 3 --batch 3 --seq-len 64 --steps 8 --lr 2e-2 --dtype f32 --recompute block" + cpu);
    const Json config = read_json(adapter + "/adapter_config.json"),
               report = read_json(adapter + "/run.json");
    CHECK(config["target_modules"] == (name == "gpt2" ? Json{"c_attn"} : Json{"q_proj", "v_proj"}));
    CHECK(config["fan_in_fan_out"] == (name == "gpt2"));
    CHECK(plan["trainable_parameters"] == report["parameters"]["trainable"]);
    CHECK(plan["base_parameters"] == report["parameters"]["base"]);

    const std::string evaluate = "evaluate --seq-len 64 --data " + data + cpu;
    const double before = loss_of(run(evaluate + on + "--dtype f32")),
                 after = loss_of(run(evaluate + on + "--dtype f32" + with));
    MESSAGE(name << ": loss " << before << " to " << after);
    CHECK(after < before - 0.05);
    // BF16 on the same files; test_transformer says how near.
    CHECK(loss_of(run(evaluate + on + "--dtype bf16" + with)) ==
          doctest::Approx(after).epsilon(0.05));

    const std::string generate = "generate --prompt 'row 3: ' --max-tokens 20 --json --dtype f32";
    const Json adapted = parse_json(run(generate + on + with + cpu), "generate");
    CHECK(adapted["ids"].size() > 0);
    run("merge" + on + with + " --out " + merged + " --type f32");
    CHECK(loss_of(run(evaluate + " --dtype f32 --model " + merged)) ==
          doctest::Approx(after).epsilon(1e-5));
    CHECK(parse_json(run(generate + " --model " + merged + cpu), "generate")["ids"] ==
          adapted["ids"]);
    const bool gguf = name != "mistral_window";  // GGUF knows no window there
    run("merge" + on + with + " --out " + merged + ".gguf --type f32", gguf ? 0 : 2);
    if (gguf)
      CHECK(parse_json(run(generate + " --model " + merged + ".gguf" + cpu), "generate")["ids"] ==
            adapted["ids"]);
    run("merge --unmerge --model " + merged + " --base " + model + with + " --out " +
        scratch.file("base"));
    CHECK(slurp(scratch.file("base") + "/model.safetensors") ==
          slurp(model + "/model.safetensors"));
    run("export" + on + with + " --out " + scratch.file("lora.gguf"));

    // All projections; going on after a stop.
    const std::string all = "finetune" + on + "--data " + data + " --out " + scratch.file("all") +
                            " --targets all-linear --rank 2 --batch 2 --seq-len 64 --save-every 2 "
                            "--dtype bf16" +
                            cpu;
    run(all + " --steps 2");
    run(all + " --steps 4 --resume");
    // What the family does not have is refused with the names of what it has.
    run("finetune" + on + "--data " + data + " --out " + scratch.file("no") + " --seq-len 64" +
            cpu + " --targets " + (name == "gpt2" ? "q_proj" : "c_attn"),
        2);
    CHECK(!std::filesystem::exists(scratch.file("no") + "/adapter_model.safetensors"));
  }
}
