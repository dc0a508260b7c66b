// The programs where the system gives little (stacks, threads, files), and where paths, data and flags
// are not what they should be: a result, or an error that says what to do; never a crash.
#include <algorithm>
#include <filesystem>

#include "harness.h"
#include "run_program.h"
#include "scratch_folder.h"

using namespace lk;
namespace stdfs = std::filesystem;

namespace {

using Result = test::ProgramResult;

// Runs a line of the shell, in which $T stands for the folder of the programs.
Result shell(const std::string& line) {
  return test::run_shell("T=" + std::string(LK_TOOLS) + "; (" + line + ") 2>&1");
}

void ends_with(int status, std::initializer_list<std::string> parts, const std::string& line) {
  const Result r = shell(line);
  CAPTURE(line);
  CAPTURE(r.out);
  CHECK(r.status == status);
  for (const std::string& part : parts) CHECK(r.out.find(part) != std::string::npos);
}

const std::string kGolden = std::string(LK_TEST_DATA) + "/golden/";
const std::string kModel = " --model " + kGolden + "peft/tiny ";
const std::string kSay = "$T/generate --device cpu" + kModel + "--prompt abc ";
const std::string kGenerate = kSay + "--max-tokens 3 ";

struct Folder : test::ScratchFolder {
  std::string rows = write("rows.jsonl", R"({"prompt":"abc ","completion":"def ghi"})"
                                         "\n");
  std::string train(const std::string& more) const {
    return "$T/finetune --device cpu" + kModel + "--data " + rows +
           " --steps 1 --seq-len 64 --lr 0.01 " + more;
  }
};

// On a terminal of its own, whose output it prints.
std::string on_terminal(const std::string& line) {
  return "python3 -c 'import os, pty, sys; "
         "sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))' " +
         line + " </dev/null";
}

}  // namespace

TEST_CASE("a small stack is no reason to fail") {
  Folder f;
  ends_with(0, {}, "ulimit -s 128; " + kGenerate);
  ends_with(0, {}, "ulimit -s 128; " + f.train("--out " + f.file("run")));
}

TEST_CASE("threads that can't be made end with 5 and how many can") {
  ends_with(5, {"threads can be made", "OMP_NUM_THREADS="},
            "ulimit -v 4000000; OMP_NUM_THREADS=3000 " + kGenerate);
}

TEST_CASE("paths that are not UTF-8 work, and are printed as JSON can") {
  Folder f;
  const std::string odd = "$(printf '\\351t\\351')", out = f.path() + "/" + odd;
  ends_with(0, {}, f.train("--out " + f.file("run")));
  ends_with(0, {}, f.train("--out " + out));
  ends_with(0, {"\xEF\xBF\xBDt\xEF\xBF\xBD"},
            "$T/merge" + kModel + "--adapter " + out + " --out " + out + "merged");
  ends_with(0, {"\xEF\xBF\xBDt\xEF\xBF\xBD"},
            "$T/export" + kModel + "--adapter " + f.file("run") + " --out " + out + ".gguf");
  ends_with(3, {"\\xe9t\\xe9.jsonl", "No such file"},
            "$T/evaluate" + kModel + "--data " + out + ".jsonl");
}

TEST_CASE("names longer than a file system takes are refused") {
  Folder f;
  const std::string name(300, 'n'), path = f.file(name);
  for (const std::string& line :
       {"$T/generate --prompt a --model " + path, "$T/evaluate" + kModel + "--data " + path,
        kGenerate + "--adapter " + path,
        "$T/export" + kModel + "--adapter " + path + " --out x.gguf", f.train("--out " + path),
        f.train("--init-adapter " + path + " --out " + f.file("x"))}) {
    const Result r = shell(line);
    CAPTURE(line);
    CAPTURE(r.out);
    CHECK((r.status == 3 || r.status == 4));
  }
}

TEST_CASE("what is no model or adapter of ours is refused by what it is") {
  Folder f;
  ends_with(3, {"HuggingFaceTB/SmolLM2-135M: no such file or folder", "hf download"},
            "$T/generate --prompt a --model HuggingFaceTB/SmolLM2-135M");
  const std::string mlx = f.file("mlx"), pickle = f.file("pickle");
  stdfs::create_directory(mlx);
  f.write("mlx/adapters.safetensors", "");
  f.write("mlx/adapter_config.json", R"({"fine_tune_type":"lora"})");
  ends_with(3, {"adapters.safetensors", "MLX"}, kGenerate + "--adapter " + mlx);
  stdfs::copy(kGolden + "peft/tiny", pickle);
  stdfs::rename(pickle + "/model.safetensors", pickle + "/pytorch_model.bin");
  ends_with(3, {"pytorch_model.bin", "save_pretrained"},
            "$T/generate --device cpu --prompt a --model " + pickle);
}

TEST_CASE("a path that is no model or adapter is refused with what to give instead") {
  Folder f;
  const std::string generate = "$T/generate --device cpu --prompt a --model ";
  ends_with(3, {"hf download org/name --revision v1 --local-dir DIR"}, generate + "org/name@v1");
  ends_with(3, {"hf download org/name --local-dir DIR"},
            generate + "https://huggingface.co/org/name");
  ends_with(3, {"no such file or folder", "hf download ORG/NAME"}, generate + f.file("none"));
  f.write("pytorch_model.bin", "x");
  ends_with(3, {"pickle", "safetensors"}, generate + f.file("pytorch_model.bin"));
  ends_with(3, {"given as its folder", "peft/tiny"},
            generate + kGolden + "peft/tiny/model.safetensors");
  ends_with(3, {"--adapter"}, generate + kGolden + "peft/all_linear.after");
  stdfs::create_directory(f.file("folder"));
  ends_with(3, {"no config.json"}, generate + f.file("folder"));
  f.write("folder/m.gguf", "");
  ends_with(3, {"give that file", "folder/m.gguf"}, generate + f.file("folder"));
  ends_with(3, {"is a whole model, not an adapter"},
            kGenerate + "--adapter " + kGolden + "peft/tiny");
  ends_with(3, {"given as its folder"},
            kGenerate + "--adapter " + kGolden + "peft/all_linear.after/adapter_model.safetensors");
}

TEST_CASE("flags at their edges are refused or obeyed") {
  Folder f;
  const std::string out = "--out " + f.file("run") + " ";
  ends_with(2, {"--dropout"}, f.train(out + "--dropout 0.99999999"));
  ends_with(2, {"lm_head", "frozen"}, f.train(out + "--targets lm_head"));
  ends_with(5, {"needs"}, f.train(out + "--memory-limit 50KB"));
  ends_with(2, {"--batch"}, "$T/plan" + kModel + "--batch 99999999");
  ends_with(2, {"--dropout"}, "$T/plan" + kModel + "--dropout 0.99999999");
  ends_with(0, {}, "$T/plan" + kModel + "--dropout 0.1 --device cuda --batch 4");
  ends_with(2, {"tokens"}, "$T/plan --shape llama3.2-1b --batch 65536 --seq-len 65536");
  ends_with(0, {}, "$T/plan" + kModel + "--batch 65536 --seq-len 256 --grad-accum 65536");
  // A step of more rows than can be gone through is planned as the largest there can be.
  ends_with(0, {"65536 rows"},
            "$T/plan" + kModel + "--batch 65536 --grad-accum 65536 --data " + kGolden +
                "peft/rows.jsonl");
  // The tiny model has 256 positions, fewer than --seq-len has by default.
  ends_with(0, {"perplexity"}, "$T/evaluate --device cpu" + kModel + "--data " + f.rows);
  ends_with(2, {"256 positions"},
            "$T/evaluate --device cpu" + kModel + "--seq-len 257 --data " + f.rows);
}

TEST_CASE("a run that is refused has no plan either, for the same reason in the same words") {
  Folder f;
  const std::string run =
      "$T/finetune --device cpu" + kModel + "--data " + f.rows + " --out " + f.file("run") + " ";
  auto error = [](const std::string& line) {
    const Result r = shell(line);
    CAPTURE(line);
    CHECK_MESSAGE(r.status == 2, r.out);
    const std::size_t at = r.out.find("error: ");
    REQUIRE_MESSAGE(at != std::string::npos, r.out);
    return r.out.substr(at);
  };
  for (const char* flags : {"--seq-len 1000",
                            "--seq-len 1",
                            "--method prompt --seq-len 256",
                            "--method prompt --virtual-tokens 255",
                            "--method prefix --virtual-tokens 0",
                            "--method full --rank 8",
                            "--method full --alpha 8",
                            "--method full --dora",
                            "--method full --layers 1",

                            "--method ia3 --dora",
                            "--method ia3 --dropout 0.1",
                            "--method ia3 --rank-pattern q_proj=2",
                            "--method prefix --targets q_proj",
                            "--method prompt --bottleneck 3",
                            "--method prompt --bottleneck-kind houlsby",
                            "--method bottleneck --bottleneck 0",
                            "--prefix-hidden 8",
                            "--method prefix --adapter-layers 1",
                            "--virtual-tokens 5",
                            "--method full --base-precision nf4",
                            "--method lora,full",
                            "--rank 0",
                            "--alpha 0",
                            "--layers 9",
                            "--dropout 1",
                            "--batch 0",
                            "--grad-accum 0",
                            "--fast-reduce",
                            "--shard-base all",
                            "--offload-base 1",
                            "--offload-base 99",
                            "--recompute offload",
                            "--recompute block:99",
                            "--recompute gate-up,keep-attention:99,block:1",
                            "--dtype f16",
                            "--memory 1GiB --recompute block",
                            "--memory 0",
                            "--base-precision stored",
                            "--keep-dense q_proj",
                            "--fp8-products maybe",
                            "--processes 2 --fast-reduce"})
    CHECK(error("$T/plan --device cpu" + kModel + flags) == error(run + flags));
  const char* const processes = " from 1 to 1024 is expected";
  for (const char* n : {"0", "-1", "1025", "two"})
    for (const std::string& line : {"$T/plan" + kModel, run})
      ends_with(2, {"--processes " + std::string(n), processes}, line + "--processes " + n);
  ends_with(2, {"a single GPU"}, "$T/plan" + kModel + "--device cuda:0 --processes 2");
  ends_with(2, {"never copied back"},
            "$T/plan" + kModel + "--device cuda --method full --offload-base 1");
  ends_with(2, {"--recompute block:31: the model has 30 layers"},
            "$T/plan --shape smollm2-135m --recompute block:31");
  ends_with(2, {"--offload-base 31: the model has 30 layers"},
            "$T/plan --shape smollm2-135m --device cuda --offload-base 31");
  ends_with(0, {}, "$T/plan --shape smollm2-135m --recompute block:30");
  // A shape is sizes alone.
  ends_with(0, {}, "$T/plan --shape llama2-7b --seq-len 8192");
  ends_with(2, {"--method full trains the base's own numbers"},
            "$T/plan --shape llama2-7b --method full --base-precision nf4");
}

TEST_CASE("beside --matrix a flag that would have no effect is refused") {
  const std::string plan = "$T/plan --matrix 100x500 --rank 5 ";
  ends_with(0, {"3,000"}, plan + "--threads 2");
  for (const char* flags : {"--processes 4", "--method full", "--memory 1GiB", "--targets q_proj",
                            "--batch 1", "--dora", "--json"}) {
    const std::string all = flags;
    ends_with(2, {all.substr(0, all.find(' ')) + ": has no effect beside --matrix"}, plan + flags);
  }
}

TEST_CASE("full training of a quantised base is planned as that of a dense one") {
  Folder f;
  const std::string gguf = f.file("x.gguf"), flags = " --method full --json";
  ends_with(0, {}, "$T/merge" + kModel + "--type q8_0 --out " + gguf);
  const Result dense = shell("$T/plan" + kModel + flags);
  CHECK(dense.status == 0);
  CHECK(shell("$T/plan --model " + gguf + flags).out == dense.out);
  ends_with(0, {"frozen"}, "$T/plan --method full --model " + kGolden + "quantised/bnb");
}

TEST_CASE("a limit is printed in a unit in which it is not 0, with the flag that set it") {
  Folder f;
  const std::string run = "--out " + f.file("run") + " ";
  ends_with(5, {"MiB, --memory allows 24 bytes"}, f.train(run + "--memory 24"));
  ends_with(5, {"MiB, --memory allows 24 bytes"}, "$T/plan" + kModel + "--memory 24");
  ends_with(5, {"MiB, --memory-limit allows 1.00 KiB"}, f.train(run + "--memory-limit 1KiB"));
  ends_with(0, {"--memory 64.00 MiB: --recompute none, planned peak"},
            f.train(run + "--memory 64MiB"));
}

TEST_CASE("control bytes of a model's text reach a pipe, and no terminal") {
  auto controls = [](const std::string& text) {  // a terminal ends lines with \r\n
    return std::count_if(text.begin(), text.end(), [](char c) {
      return (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\r' && c != '\t') ||
             c == 0x7f;
    });
  };
  // Hot enough, the tiny model says all of its tokens, among them single bytes.
  const std::string hot = kSay + "--max-tokens 200 --temperature 5 --seed 1 2>/dev/null";
  const Result pipe = shell(hot), terminal = shell(on_terminal(hot));
  CHECK(pipe.status == 0);
  CHECK(controls(pipe.out) > 0);
  CHECK(terminal.status == 0);
  CHECK(terminal.out.find("\\x") != std::string::npos);
  CHECK(controls(terminal.out) == 0);
}

TEST_CASE("a message is one line, and shows what a name would do to a terminal") {
  ends_with(3, {"no\\x1b[31m\\x0asuch: cannot open"},
            "$T/evaluate" + kModel + "--data \"$(printf 'no\\033[31m\\nsuch')\"");
}
