// Every program on a tiny model of each family, as a user runs them one after the other.
#include <sys/wait.h>

#include <array>
#include <cstdio>

#include "family_models.h"
#include "gemma_tokenizer.h"

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

// What "all-linear", the default, means in the family.
Json every_projection(const std::string& name) {
  if (name == "gpt2") return {"c_attn", "c_fc", "c_proj"};
  return {"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"};
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
    const Json plan =
        parse_json(run("plan" + on + "--rank 3 --batch 3 --seq-len 64 --dtype f32 --json"), "plan");
    run("finetune" + on + "--data " + data + " --out " + adapter +
        " --rank 3 --batch 3 --seq-len 64 --steps 8 --lr 2e-2 --dtype f32 --recompute block" + cpu);
    const Json config = read_json(adapter + "/adapter_config.json"),
               report = read_json(adapter + "/run.json");
    CHECK(config["target_modules"] == every_projection(name));
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

TEST_CASE("a model by its name on the hub, from the hub's cache, and its adapter names it") {
  ScratchFolder scratch;
  const std::string model = runnable_model(scratch, "qwen2"),
                    own = scratch.file("cache/models--org--tiny"),
                    snapshot = own + "/snapshots/" + std::string(40, 'a');
  for (const std::string& folder : {own + "/refs", own + "/blobs", snapshot})
    std::filesystem::create_directories(folder);
  std::ofstream(own + "/refs/main") << std::string(40, 'a');
  for (const auto& file : std::filesystem::directory_iterator(model)) {  // as the hub's tools do
    const std::string name = file.path().filename();
    std::filesystem::copy(file.path(), own + "/blobs/" + name);
    std::filesystem::create_symlink("../../blobs/" + name, snapshot + "/" + name);
  }
  const std::string data = scratch.write("rows.jsonl", Json{{"text", "some text"}}.dump());
  ::setenv("HF_HUB_CACHE", scratch.file("cache").c_str(), 1);
  run("finetune --model org/tiny --data " + data + " --out " + scratch.file("run") +
      " --steps 1 --batch 1 --dtype f32 --device cpu");
  CHECK(read_json(scratch.file("run/adapter_config.json"))["base_model_name_or_path"] ==
        "org/tiny");
  CHECK(run("evaluate --dtype f32 --device cpu --model org/tiny@main --data " + data) ==
        run("evaluate --dtype f32 --device cpu --model " + model + " --data " + data));
  run("plan --model org/tiny");
  run("evaluate --model org/other --data " + data, 3);
  ::unsetenv("HF_HUB_CACHE");
}

TEST_CASE("what no supervised token reads stays as it was, and the rest is trained and written") {
  ScratchFolder scratch;
  const std::string model = runnable_model(scratch, "mistral_window", [](Json& c) {
    c["sliding_window"] = 12;  // the last layer's prefix is out of every answer's reach
  });
  const std::string data = scratch.write(
      "rows.jsonl", Json{{"prompt", "a long question: "}, {"completion", "yes"}}.dump());
  run("finetune --model " + model + " --data " + data + " --out " + scratch.file("run") +
      " --method prefix --virtual-tokens 3 --steps 2 --lr 1e-2 --dtype f32 --device cpu");
  CHECK(std::filesystem::exists(scratch.file("run/adapter_model.safetensors")));
  CHECK(read_json(scratch.file("run/run.json"))["status"] == "finished");
}

TEST_CASE("Gemma with a tokenizer of its kind: the same losses and text in each format") {
  ScratchFolder scratch;
  const std::string model = runnable_model(scratch, "gemma3",
                                           [](Json&c) {
                                             c["bos_token_id"] = 2;
                                             c["eos_token_id"] = {1, 4};
                                           }),
                    run_folder = scratch.file("run"), gguf = scratch.file("merged.gguf"),
                    folder = scratch.file("merged"), again = scratch.file("again"),
                    with = " --adapter " + run_folder;
  GemmaLike tokenizer;
  tokenizer.pieces.pop_back();
  for (const auto& [name, content] : gemma_files(tokenizer.file()))
    write_file_durably(model + "/" + name, content);
  std::string rows;
  for (const char* prompt : {"hello  ab\n\n", "<b>a</b>    b\n", "\t\tx \xc3\xa9 "})
    rows += Json{{"prompt", prompt}, {"completion", "ab  hello\n\n\nbab"}}.dump() + "\n";
  const std::string data = scratch.write("rows.jsonl", rows);
  run("finetune --model " + model + " --data " + data + " --out " + run_folder +
      " --rank 2 --batch 3 --seq-len 64 --steps 4 --lr 1e-2 --dtype f32 --device cpu");
  run("merge --type f32 --model " + model + with + " --out " + folder);
  run("merge --type f32 --model " + model + with + " --out " + gguf);
  run("merge --type f32 --other-base --no-verify --model " + gguf + with + "=0 --out " + again);
  auto evaluate = [&](const std::string& of) {
    return loss_of(
        run("evaluate --seq-len 64 --dtype f32 --device cpu --data " + data + " --model " + of));
  };
  auto generate = [&](const std::string& of) {
    return parse_json(run("generate --prompt 'hello  ab' --max-tokens 12 --json --dtype f32 "
                          "--device cpu --model " +
                          of),
                      "generate")["ids"];
  };
  const double loss = evaluate(model + with);
  const Json ids = generate(model + with);
  CHECK(ids.size() > 0);
  for (const std::string& merged : {folder, gguf, again}) {
    CAPTURE(merged);
    CHECK(evaluate(merged) == doctest::Approx(loss).epsilon(1e-5));
    CHECK(generate(merged) == ids);
  }
  CHECK(read_json(again + "/generation_config.json")["eos_token_id"] == Json{1, 4});
  run("export --model " + gguf + with + " --out " + scratch.file("lora.gguf"));
}

TEST_CASE("merged vectors are read back as A and B are, unless --no-verify says otherwise") {
  struct Case {
    const char *name, *method;
  };
  for (const auto& [name, method] :
       {Case{"tied_gqa", "ia3"}, Case{"gpt2", "ia3"}, Case{"qwen2", "bitfit"}}) {
    CAPTURE(name);
    ScratchFolder scratch;
    const std::string model = runnable_model(scratch, name), vectors = scratch.file("run"),
                      data = scratch.write("rows.jsonl", R"({"prompt": "a", "completion": "b"})");
    run("finetune --model " + model + " --data " + data + " --out " + vectors + " --method " +
        method + " --steps 2 --seq-len 64 --dtype f32 --device cpu");
    const std::string merge = "merge --model " + model + " --adapter " + vectors + " --out ";
    for (const char* out : {"merged", "merged.gguf", "merged.nf4 --type nf4"}) {
      CAPTURE(out);
      const Json r = parse_json(run(merge + scratch.file(out)), "merge");
      CHECK(r.at("verified") == true);
      CHECK(r.at("largest_logit") > 0);
      if (r.at("type") == "F32") CHECK(r.at("relative_difference") < 1e-5);
      CHECK((r.at("type") == "F32" || r.at("relative_difference") > 0));
    }
    const Json r = parse_json(run(merge + scratch.file("quick") + " --no-verify"), "merge");
    CHECK(r.at("verified") == false);
    CHECK(!r.contains("largest_logit"));
  }
}
