// A run that is stopped, killed, refused by its disk or continued: it is the same run, or another
// one is refused by name.
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <sstream>

#include "gptq_tiny.h"
#include "harness.h"
#include "heard_run.h"
#include "hostile.h"
#include "io/input_file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "lora/adapter_io.h"
#include "run/checkpoint.h"
#include "run/finetune.h"
#include "run/run_identity.h"
#include "tensor_file.h"

using namespace lk;
using namespace lk::test;
namespace stdfs = std::filesystem;

namespace {

const std::string kTiny = std::string(LK_TEST_DATA) + "/golden/peft/tiny";

struct Runs {
  ScratchFolder scratch;
  std::string said;  // by the last run
  std::string model = scratch.file("model"), rows = scratch.file("rows.jsonl");

  Runs() {
    stdfs::copy(kTiny, model);
    std::ofstream(rows) << R"({"prompt":"abc ","completion":"def ghi"})"
                           "\n"
                        << R"({"prompt":"x","completion":"yz"})"
                           "\n"
                        << R"({"prompt":"hello ","completion":"world"})"
                           "\n";
  }
  FinetuneSettings settings(const std::string& out, std::int64_t steps) const {
    FinetuneSettings s;
    s.model = model, s.data = rows, s.out = scratch.file(out);
    s.device = "cpu", s.dtype = "f32";
    s.batch = 2, s.seq_len = 64, s.rank = 2, s.lr = 1e-2, s.steps = steps;
    return s;
  }
  FinetuneResult run(const FinetuneSettings& s, std::int64_t stop_after = -1) {
    return hear_run(s, stop_after, said);
  }
  FinetuneResult resume(FinetuneSettings s, std::int64_t stop_after = -1) {
    s.resume = true;
    return run(s, stop_after);
  }
  std::string adapter(const std::string& out) const {
    return slurp(scratch.file(out) + "/adapter_model.safetensors");
  }
  // The lines of metrics.jsonl without what time they took.
  std::vector<std::string> metrics(const std::string& out) const {
    std::vector<std::string> lines;
    std::istringstream in(slurp(scratch.file(out) + "/metrics.jsonl"));
    for (std::string line; std::getline(in, line);) {
      Json j = parse_json(line, "metrics");
      j.erase("seconds"), j.erase("tokens_per_second");
      lines.push_back(j.dump());
    }
    return lines;
  }
};

void edit(const std::string& path, const std::function<void(Json&)>& change) {
  Json json = read_json(path);
  change(json);
  std::ofstream(path) << json.dump();
}

// A disk that refuses what would change it: call `n` (from 1) and the `more` that follow.
class FullDisk : public Fs {
 public:
  FullDisk(int n, int more) : n_(n), more_(more) {}
  bool fired() const { return calls_ >= n_; }

  int open(const char* path, int flags, mode_t mode) override {
    return (flags & O_CREAT) != 0 && fails() ? -1 : Fs::open(path, flags, mode);
  }
  ssize_t write(int fd, const void* src, std::size_t n) override {
    return fails() ? -1 : Fs::write(fd, src, n);
  }
  int fsync(int fd) override { return fails() ? -1 : Fs::fsync(fd); }
  int rename(const char* a, const char* b) override { return fails() ? -1 : Fs::rename(a, b); }
  int mkdir(const char* p, mode_t m) override { return fails() ? -1 : Fs::mkdir(p, m); }

 private:
  bool fails() {
    if (++calls_ < n_ || calls_ > n_ + more_) return false;
    errno = ENOSPC;
    return true;
  }
  int n_, more_, calls_ = 0;
};

}  // namespace

TEST_CASE("a finished run goes on with more steps, and is then the longer run from the start") {
  Runs f;
  auto settings = [&](const std::string& out, std::int64_t steps) {
    FinetuneSettings s = f.settings(out, steps);
    s.eval_data = f.rows, s.eval_every = 2, s.samples = 0;
    return s;
  };
  const FinetuneResult whole = f.run(settings("whole", 7));
  const FinetuneResult part = f.run(settings("parts", 3));
  const FinetuneResult rest = f.resume(settings("parts", 7));
  CHECK(f.adapter("parts") == f.adapter("whole"));
  CHECK(rest.steps == 7);
  CHECK(rest.first_loss == whole.first_loss);
  CHECK(rest.tokens == whole.tokens);
  CHECK(rest.seconds > part.seconds);
  REQUIRE(rest.eval_before);
  CHECK(rest.eval_before->loss == whole.eval_before->loss);
  CHECK(rest.eval_after->loss == whole.eval_after->loss);
  // The end of the first part was evaluated too: one line more.
  std::vector<std::string> lines = f.metrics("parts");
  const auto extra = std::find_if(lines.begin(), lines.end(), [](const std::string& line) {
    return line.find("eval_loss") != std::string::npos && line.find("\"step\":3") != line.npos;
  });
  REQUIRE(extra != lines.end());
  lines.erase(extra);
  CHECK(lines == f.metrics("whole"));
  const std::string card = slurp(f.scratch.file("parts/README.md"));
  CHECK(card.find("in the first step") != std::string::npos);

  // It is finished again: not started over, and its files stay.
  CHECK_THROWS_WITH_AS(f.resume(settings("parts", 7)),
                       doctest::Contains("holds a finished run of 7"), UsageError);
  CHECK_THROWS_WITH_AS(f.resume(settings("parts", 5)), doctest::Contains("7 are done"), UsageError);
  CHECK(slurp(f.scratch.file("parts/README.md")) == card);
  CHECK(f.adapter("parts") == f.adapter("whole"));
}

TEST_CASE("a schedule that ends goes on with the new end, and says so; fewer steps are refused") {
  Runs f;
  FinetuneSettings s = f.settings("run", 4);
  s.schedule = "cosine";
  f.run(s);
  s.steps = 8;
  CHECK(f.resume(s).steps == 8);
  CHECK(f.said.find("`schedule` cosine: the first 4 steps had the learning rates of a run of 4") !=
        std::string::npos);
  FinetuneSettings shorter = f.settings("short", 8);
  shorter.schedule = "linear";
  f.run(shorter, 3);
  shorter.steps = 6;
  CHECK_THROWS_WITH_AS(f.resume(shorter), doctest::Contains("steps was 8, now it is 6"),
                       UsageError);
}

TEST_CASE("an interrupted run has the whole run's records, each evaluation once") {
  Runs f;
  auto settings = [&](const std::string& out) {
    FinetuneSettings s = f.settings(out, 6);
    s.eval_data = f.rows, s.eval_every = 2, s.samples = 0, s.save_every = 2;
    return s;
  };
  const FinetuneResult whole = f.run(settings("whole"));
  CHECK(f.run(settings("parts"), 2).signal == 15);
  CHECK(f.resume(settings("parts"), 5).signal == 15);
  // A line that can't be read says nothing of the checkpoint.
  std::ofstream(f.scratch.file("parts/metrics.jsonl"), std::ios::app) << "{\"step\":4,\n";
  const FinetuneResult rest = f.resume(settings("parts"));
  CHECK(f.said.find("metrics.jsonl:") != std::string::npos);
  CHECK(f.said.find("left out") != std::string::npos);
  CHECK(rest.first_loss == whole.first_loss);
  CHECK(f.metrics("parts") == f.metrics("whole"));
  CHECK(f.adapter("parts") == f.adapter("whole"));
}

TEST_CASE("a resumed run says which of its earlier steps are in no record") {
  Runs f;
  f.run(f.settings("whole", 4));
  CHECK(f.run(f.settings("run", 4), 2).signal == 15);
  std::filesystem::remove(f.scratch.file("run/metrics.jsonl"));
  f.resume(f.settings("run", 4));
  CHECK(f.said.find("metrics.jsonl: has 0 of the 2 steps") != std::string::npos);
  CHECK(f.adapter("run") == f.adapter("whole"));
}

TEST_CASE("whatever shapes model, rows or training is the run's identity, and is refused by name") {
  Runs f;
  FinetuneSettings base = f.settings("run", 4);
  base.save_every = 2, base.eval_data = f.rows, base.samples = 0;
  f.run(base, 2);
  const std::string before = f.adapter("run");
  auto refused = [&](const std::string& field, const FinetuneSettings& s) {
    INFO(field);
    CHECK_THROWS_WITH_AS(f.resume(s), doctest::Contains(("`resume`: " + field + " was ").c_str()),
                         UsageError);
    CHECK(f.adapter("run") == before);
  };
  using Change = std::function<void(FinetuneSettings&)>;
  const std::pair<const char*, Change> settings[] = {
      {"rank", [](auto& s) { s.rank = 3, s.alpha = 2; }},
      {"alpha", [](auto& s) { s.alpha = 3; }},
      {"dropout", [](auto& s) { s.dropout = 0.1; }},
      {"targets", [](auto& s) { s.targets = {"o_proj"}; }},
      {"batch", [](auto& s) { s.batch = 1; }},
      {"grad_accum", [](auto& s) { s.grad_accum = 2; }},
      {"seq_len", [](auto& s) { s.seq_len = 63; }},
      {"lr", [](auto& s) { s.lr = 2e-2; }},
      {"schedule", [](auto& s) { s.schedule = "linear"; }},
      {"warmup", [](auto& s) { s.warmup = 1; }},
      {"weight_decay", [](auto& s) { s.weight_decay = 0.1; }},
      {"clip", [](auto& s) { s.clip = 0.5; }},
      {"seed", [](auto& s) { s.seed = 1; }},
      {"dtype", [](auto& s) { s.dtype = "bf16"; }},
      {"shuffle", [](auto& s) { s.shuffle = false; }},
      {"packing", [](auto& s) { s.packing = true; }},
      {"long_rows", [](auto& s) { s.long_rows = LongRows::Skip; }},
      {"skip_bad_rows", [](auto& s) { s.skip_bad_rows = true; }},
      {"template", [](auto& s) { s.chat_template = "chatml"; }},
      {"eval_rows_sha256", [](auto& s) { s.eval_rows = 1; }}};
  for (const auto& [field, change] : settings) {
    FinetuneSettings s = base;
    change(s);
    refused(field, s);
  }
  // Files, each put back afterwards.
  auto with = [&](const std::string& field, const std::string& path, const Change& change) {
    const std::string old = stdfs::exists(path) ? slurp(path) : "";
    FinetuneSettings s = base;
    change(s);
    refused(field, s);
    stdfs::remove(path);
    if (!old.empty()) std::ofstream(path) << old;
  };
  const std::string in = f.model + "/";
  with("config.rope_theta", in + "config.json", [&](auto&) {
    edit(in + "config.json", [](Json& j) { j["rope_parameters"]["rope_theta"] = 5e5; });
  });
  with("config.rms_eps", in + "config.json",
       [&](auto&) { edit(in + "config.json", [](Json& j) { j["rms_norm_eps"] = 1e-6; }); });
  with("model_files.tokenizer.json", in + "tokenizer.json", [&](auto&) {
    edit(in + "tokenizer.json", [](Json& j) {
      Json& merges = j["model"]["merges"];
      std::swap(merges[0], merges[1]);
    });
  });
  with("model_files.chat_template.jinja", in + "chat_template.jinja",
       [&](auto&) { std::ofstream(in + "chat_template.jinja") << "{{ messages[0].content }}"; });
  with("base_sha256", in + "model.safetensors", [&](auto&) {
    std::string bytes = slurp(in + "model.safetensors");
    bytes[bytes.size() - 2] = static_cast<char>(bytes[bytes.size() - 2] ^ 1);
    std::ofstream(in + "model.safetensors", std::ios::binary) << bytes;
  });
  with("data_sha256", f.rows, [&](auto& s) {
    stdfs::copy_file(f.rows, f.scratch.file("more.jsonl"));
    std::ofstream(f.scratch.file("more.jsonl"), std::ios::app)
        << "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
    s.data = f.scratch.file("more.jsonl");
  });
  // What only says where things lie or what is recorded may differ.
  FinetuneSettings other = base;
  stdfs::rename(f.model, f.scratch.file("moved"));
  other.model = f.scratch.file("moved");
  other.eval_every = 1, other.save_every = 0, other.verify_base = false;
  CHECK(f.resume(other).steps == 4);
}

TEST_CASE("which matrices of a quantised base stay dense is part of a run's identity") {
  Runs f;
  FinetuneSettings s = f.settings("run", 4);
  s.save_every = 2, s.samples = 0;
  s.base_precision = BasePrecision::Nf4, s.keep_dense = {"k_proj", "q_proj"};
  f.run(s, 2);
  const std::string before = f.adapter("run");
  s.keep_dense = {"k_proj", "o_proj"};  // as many
  CHECK_THROWS_WITH_AS(f.resume(s), doctest::Contains("`resume`: keep_dense was "), UsageError);
  CHECK(f.adapter("run") == before);
  s.keep_dense = {"q_proj", "k_proj"};
  CHECK(f.resume(s).steps == 4);
}

TEST_CASE("the version of GPTQ, which config.json alone tells, is part of a run's identity") {
  Runs f;
  const Json one = {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 16}};
  Json two = one;
  two["checkpoint_format"] = "gptq_v2";
  write_gptq_tiny(f.model, one);
  FinetuneSettings s = f.settings("run", 4);
  s.save_every = 2, s.samples = 0;
  f.run(s, 2);
  const std::string before = f.adapter("run");
  write_gptq_tiny(f.model, two);
  CHECK_THROWS_WITH_AS(
      f.resume(s),
      doctest::Contains("quantization_config.checkpoint_format was unset, now it is \"gptq_v2\""),
      UsageError);
  CHECK(f.adapter("run") == before);
  FinetuneSettings from = f.settings("from", 2);
  from.init_adapter = s.out;
  CHECK_THROWS_WITH_AS(f.run(from), doctest::Contains("another base model"), InputError);
  write_gptq_tiny(f.model, one);
  CHECK(f.resume(s).steps == 4);
}

TEST_CASE("the adapter that a run starts from is part of its identity") {
  Runs f;
  f.run(f.settings("one", 2));
  FinetuneSettings other = f.settings("two", 2);
  other.seed = 3;
  f.run(other);
  FinetuneSettings s = f.settings("run", 4);
  s.init_adapter = f.scratch.file("one");
  f.run(s, 2);
  s.init_adapter = f.scratch.file("two");
  CHECK_THROWS_WITH_AS(f.resume(s), doctest::Contains("`resume`: init_adapter_sha256 was "),
                       UsageError);
  s.init_adapter = f.scratch.file("one");
  CHECK(f.resume(s).steps == 4);
  s.init_adapter = s.out;
  CHECK_THROWS_WITH_AS(f.resume(s), doctest::Contains("folder of `init_adapter`"), UsageError);
}

TEST_CASE("a flipped bit anywhere in a checkpoint is an input error") {
  Runs f;
  f.run(f.settings("run", 2));
  const std::string path = f.scratch.file("run") + "/" + kCheckpoint, sound = slurp(path);
  CHECK_NOTHROW(Checkpoint(f.scratch.file("run")));
  std::uint64_t header = 0;
  std::memcpy(&header, sound.data(), sizeof header);
  std::mt19937 rng(7);
  for (int i = 0; i < 400; ++i) {
    // Half of them in the header, where a parser could look away.
    const std::size_t size = i % 2 == 0 ? sound.size() : header + 8;
    const std::size_t at = rng() % size;
    const int bit = static_cast<int>(rng() % 8);
    std::string bytes = sound;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << bit));
    std::ofstream(path, std::ios::binary) << bytes;
    INFO("bit ", bit, " of byte ", at);
    CHECK_THROWS_AS(Checkpoint(f.scratch.file("run")), InputError);
  }
  std::ofstream(path, std::ios::binary) << sound.substr(0, sound.size() / 2);
  CHECK_THROWS_AS(f.resume(f.settings("run", 4)), InputError);
  stdfs::remove(path);
  stdfs::create_symlink("nowhere", path);
  CHECK_THROWS_WITH_AS(f.resume(f.settings("run", 4)), doctest::Contains(kCheckpoint), InputError);
}

TEST_CASE("flipped bits of an adapter or of run.json end in an input error or change nothing") {
  Runs f;
  f.run(f.settings("run", 2));
  const std::string out = f.scratch.file("run");
  std::mt19937 rng(8);
  for (const char* name : {"/adapter_model.safetensors", "/adapter_config.json"}) {
    const std::string sound = slurp(out + name);
    for (int i = 0; i < 100; ++i) {
      std::string bytes = sound;
      char& byte = bytes[rng() % bytes.size()];
      byte = static_cast<char>(byte ^ (1 << rng() % 8));
      std::ofstream(out + name, std::ios::binary) << bytes;
      try {
        open_adapter(out);
      } catch (const InputError&) {
      }
    }
    std::ofstream(out + name, std::ios::binary) << sound;
  }
  for (const char* status : {"{\"status\": \"finish", "[]", "{\"status\": 3}", ""}) {
    std::ofstream(out + "/run.json") << status;
    CHECK(f.resume(f.settings("run", 2)).steps == 2);  // its end is reached once more
    CHECK(read_json(out + "/run.json")["status"] == "finished");
  }
}

TEST_CASE("a disk that is full for a while costs no step and no record") {
  Runs f;
  auto settings = [&](const std::string& out) {
    FinetuneSettings s = f.settings(out, 3);
    s.save_every = 1;
    return s;
  };
  f.run(settings("whole"));
  const std::string whole = f.adapter("whole");
  int went_on = 0, ended = 0;
  for (int n = 1; n < 500; n += 5) {
    const std::string out = concat("out", n);
    FullDisk disk(n, 2);
    INFO("call ", n);
    bool threw = false;
    {
      FsOverride in_use(disk);
      try {
        f.run(settings(out));
      } catch (const IoError&) {
        threw = true;
      }
    }
    ++(threw ? ended : went_on);
    if (threw) {
      const bool kept = stdfs::exists(f.scratch.file(out));
      CHECK((kept ? f.resume(settings(out)) : f.run(settings(out))).steps == 3);
    }
    CHECK(f.adapter(out) == whole);
    CHECK(f.metrics(out) == f.metrics("whole"));
    if (!disk.fired()) break;
    CHECK(n + 5 < 500);
  }
  CHECK(went_on > ended);  // only its beginning and its end need the disk
}

TEST_CASE("a file that can't be looked at is not an absent one: a run never starts over for it") {
  Runs f;
  FinetuneSettings s = f.settings("run", 4);
  f.run(f.settings("whole", 4));
  f.run(s, 2);
  const std::string stopped = f.scratch.file("stopped");
  stdfs::copy(s.out, stopped);
  class Blinking : public Fs {  // can't answer question n about a path
   public:
    int n = 0, asked = 0;
    int stat(const char* p, struct stat* to) override { return fails() ? -1 : Fs::stat(p, to); }
    int lstat(const char* p, struct stat* to) override { return fails() ? -1 : Fs::lstat(p, to); }
    int fstat(int fd, struct stat* to) override { return fails() ? -1 : Fs::fstat(fd, to); }
    int list(const char* p, std::vector<std::string>& names) override {
      return fails() ? -1 : Fs::list(p, names);
    }

   private:
    bool fails() {
      if (++asked != n) return false;
      errno = EIO;
      return true;
    }
  } blinking;
  for (int n = 1; n == 1 || blinking.asked >= blinking.n; n += n < 20 ? 1 : 13) {
    INFO("question ", n);
    stdfs::remove_all(s.out);
    stdfs::copy(stopped, s.out);
    blinking.n = n, blinking.asked = 0;
    bool threw = false;
    {
      FsOverride in_use(blinking);
      try {
        f.resume(s);
      } catch (const IoError&) {
        threw = true;
      }
    }
    CHECK(f.said.find("starting at step 0") == std::string::npos);
    if (threw) f.resume(s);
    CHECK(f.adapter("run") == f.adapter("whole"));
    if (n > 2000) FAIL("never came to an end");
  }
}

TEST_CASE("whatever ends a run, its folder says that it failed") {
  Runs f;
  struct Thrower : FinetuneListener {
    void stepped(const StepReport& r, const StepProgress&) override {
      if (r.step == 2) throw std::bad_alloc();
    }
  } thrower;
  CHECK_THROWS_AS(finetune(f.settings("run", 3), thrower, std::atomic<int>{0}), std::bad_alloc);
  CHECK(read_json(f.scratch.file("run") + "/run.json")["status"] == "failed");
}

TEST_CASE("a run of which no step is finite is not one whose `lr` is too small, however short") {
  Runs f;
  const auto reader = open_safetensors_model(kTiny);
  std::vector<SafetensorsEntry> tensors;
  for (const std::string& name : reader->names()) {
    tensors.push_back({name, reader->shape(name), read_all(*reader, name)});
    if (name == "model.norm.weight")
      for (float& gain : tensors.back().values) gain = 3e38f;
  }
  write_safetensors(f.model + "/model.safetensors", tensors, {{"format", "pt"}});
  for (const std::int64_t steps : {1, 2, 3}) {
    FinetuneSettings s = f.settings(concat("run", steps), steps);
    s.eval_split = 0;
    CHECK_THROWS_WITH_AS(f.run(s), doctest::Contains("not finite"), NonFiniteError);
    CHECK(read_json(s.out + "/run.json")["status"] == "failed");
    CHECK(!stdfs::exists(s.out + "/adapter_model.safetensors"));
  }
}

TEST_CASE("an adapter that can't be written at the end is an IoError, and a resume repairs it") {
  Runs f;
  f.run(f.settings("whole", 3));
  // Finds the call after which nothing but the end is written.
  FullDisk disk(40, 1 << 20);
  {
    FsOverride in_use(disk);
    CHECK_THROWS_AS(f.run(f.settings("run", 3)), IoError);
  }
  CHECK(f.resume(f.settings("run", 3)).steps == 3);
  CHECK(f.adapter("run") == f.adapter("whole"));
}

TEST_CASE(
    "--out is a run's own folder: those of its inputs and of others are refused before work") {
  Runs f;
  FinetuneSettings s = f.settings("run", 1);
  for (bool resume : {false, true}) {
    s.resume = resume;
    for (const std::string& out : {f.model, f.scratch.path(), f.model + "/../model"}) {
      s.out = out;
      CHECK_THROWS_WITH_AS(f.run(s), doctest::Contains("is the folder of `"), UsageError);
    }
    s.out = f.rows;
    CHECK_THROWS_WITH_AS(f.run(s), doctest::Contains("not a folder"), UsageError);
    stdfs::remove(f.scratch.file("link"));
    stdfs::create_symlink("model", f.scratch.file("link"));
    s.out = f.scratch.file("link");
    CHECK_THROWS_WITH_AS(f.run(s), doctest::Contains("is the folder of `"), UsageError);
    stdfs::remove(f.scratch.file("link"));
    stdfs::create_symlink("/nowhere", f.scratch.file("link"));
    CHECK_THROWS_WITH_AS(f.run(s), doctest::Contains("is a link"), UsageError);
    s.out = f.scratch.file("notes");
    stdfs::create_directory(s.out);
    std::ofstream(s.out + "/README.md") << "mine";
    CHECK_THROWS_WITH_AS(f.run(s), doctest::Contains("README.md"), UsageError);
    CHECK(slurp(s.out + "/README.md") == "mine");
    CHECK(f.said.empty());  // nothing was read
  }
}

TEST_CASE("more steps than can be counted are refused") {
  Runs f;
  FinetuneSettings s = f.settings("run", 1);
  s.steps = std::nullopt;
  for (double epochs : {9.3e18, 1e300, 3e9}) {
    s.epochs = epochs;
    CHECK_THROWS_WITH_AS(f.run(s), doctest::Contains("`epochs`"), UsageError);
  }
  s = f.settings("run", std::int64_t{1} << 40);
  CHECK_THROWS_WITH_AS(f.run(s), doctest::Contains("`steps`"), UsageError);
}
