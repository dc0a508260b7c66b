// Loading models: every weight bit for bit, from every format; wrong files refused; memory bounded.
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "cpu/cpu_backend.h"
#include "cpu/fast/quantised_linear.h"
#include "harness.h"
#include "io/fs.h"
#include "io/ggml_encode.h"
#include "io/gguf.h"
#include "io/input_file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/sha256.h"
#include "modelfile/base_identity.h"
#include "modelfile/config.h"
#include "modelfile/family_files.h"
#include "modelfile/fingerprint.h"
#include "modelfile/load.h"
#include "modelfile/named_shapes.h"
#include "modelfile/weight_hash.h"
#include "scratch_folder.h"
#include "smollm2.h"
#include "split_gguf.h"
#include "tensor_file.h"
#include "text/tokenizer.h"
#include "tiny_gguf.h"

namespace lk {
namespace {

namespace files = std::filesystem;

const std::string kModels = std::string(LK_TEST_DATA) + "/golden/models/";

// All weights by name, as stored on the device.
std::map<std::string, std::vector<float>> all_weights(const ModelWeights& weights) {
  std::map<std::string, std::vector<float>> out;
  visit_weights(weights, [&](const Weight& w) {
    std::vector<double> values = to_host_f64(w.values());
    out[w.name()] = std::vector<float>(values.begin(), values.end());
  });
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), 4 * a.size()) == 0;
}

// A copy of the tiny tied model's folder whose tensors can be tampered with.
class Folder {
 public:
  explicit Folder(const std::string& model) {
    config = read_json(kModels + model + "/config.json");
    auto reader = open_safetensors_model(kModels + model);
    for (const std::string& name : reader->names())
      tensors[name] = {name, reader->shape(name), test::read_all(*reader, name)};
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::string& write() const {
    std::ofstream(scratch_.file("config.json")) << config.dump();
    std::vector<SafetensorsEntry> entries;
    for (const auto& [name, entry] : tensors) entries.push_back(entry);
    write_safetensors(scratch_.file("model.safetensors"), entries, {{"format", "pt"}});
    return scratch_.path();
  }
  // The message with which loading fails; empty if it succeeds. Nothing may stay allocated.
  std::string refusal() const {
    auto backend = make_cpu_backend();
    std::string message;
    try {
      load_weights(*backend, ModelFile(write()), DType::F32);
    } catch (const InputError& e) {
      message = e.what();
    }
    CHECK(backend->ledger().total().live_bytes == 0);
    return message;
  }

  Json config;
  std::map<std::string, SafetensorsEntry> tensors;

 private:
  test::ScratchFolder scratch_;
};

// The most memory this process ever held at once, in bytes (Linux's VmHWM).
std::int64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
  return 0;
}

// tokenizer.json of a byte-level BPE without merges: 256 tokens, one per byte, and "<|end|>".
void write_byte_tokenizer(const std::string& folder) {
  Json vocab = Json::object();
  int shifted = 256;
  for (int byte = 0; byte < 256; ++byte) {
    bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    int code = printable ? byte : shifted++;
    std::string text = code < 128 ? std::string(1, static_cast<char>(code))
                                  : std::string{static_cast<char>(0xC0 | code >> 6),
                                                static_cast<char>(0x80 | (code & 63))};
    vocab[text] = byte;
  }
  Json tokenizer = {
      {"version", "1.0"},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"added_tokens",
       {{{"id", 256}, {"content", "<|end|>"}, {"special", true}, {"normalized", false}}}}};
  std::ofstream(folder + "/tokenizer.json") << tokenizer.dump();
}

// Fails the n-th open, stat, fstat or read (counted from 0) and, if persistent, all that follow.
class FailingFs : public Fs {
 public:
  FailingFs(int n, bool persistent) : n_(n), persistent_(persistent) {}
  int open(const char* path, int flags, mode_t mode) override {
    return fails(EMFILE) ? -1 : Fs::open(path, flags, mode);
  }
  int stat(const char* path, struct stat* out) override {
    return fails(EIO) ? -1 : Fs::stat(path, out);
  }
  int fstat(int fd, struct stat* out) override { return fails(EIO) ? -1 : Fs::fstat(fd, out); }
  ssize_t pread(int fd, void* dst, std::size_t bytes, off_t offset) override {
    return fails(EIO) ? -1 : Fs::pread(fd, dst, bytes, offset);
  }
  bool fired() const { return calls_ > n_; }

 private:
  bool fails(int error) {
    int call = calls_++;
    if (call != n_ && !(persistent_ && call > n_)) return false;
    errno = error;
    return true;
  }
  int n_;
  bool persistent_;
  std::atomic<int> calls_ = 0;  // weights are read by several threads
};

bool mentions(const std::string& message, const std::string& word) {
  return message.find(word) != std::string::npos;
}

}  // namespace

TEST_CASE("load: folders, bit for bit") {
  auto backend = make_cpu_backend();
  for (const char* name : {"tied_gqa", "mqa", "biases", "llama3_rope", "mistral_linear", "qwen2",
                           "mistral_window", "qwen2_window", "qwen3", "qwen3_odd"}) {
    CAPTURE(name);
    LoadedModel model = load_weights(*backend, ModelFile(kModels + name), DType::F32);
    auto reader = open_safetensors_model(kModels + name);
    auto weights = all_weights(model.weights);
    CHECK(weights.size() == reader->names().size());
    for (const std::string& tensor : reader->names()) {
      REQUIRE_MESSAGE(weights.count(tensor), tensor);
      CHECK_MESSAGE(same_bits(weights[tensor], test::read_all(*reader, tensor)), tensor);
    }
    CHECK(model.config.n_layers == static_cast<std::int64_t>(model.weights.layers.size()));
    CHECK(backend->ledger()[Tag::Weights].live_bytes == 4 * model.config.n_parameters());
    CHECK(model.weights.tied() == model.config.tie_embeddings);
    CHECK(model.weights.head.shape() == model.weights.embedding.shape());
    CHECK(model.weights.layers[0][Site::Q].bias.defined() == model.config.attention_bias);
    CHECK(model.weights.layers[0][Site::O].bias.defined() == model.config.attention_output_bias);
  }
  CHECK(backend->ledger().total().live_bytes == 0);
}

// Tensors that Hugging Face stores differently from how we hold them.
TEST_CASE("load: Gemma's gains get the 1 that is not stored, GPT-2's projections are turned") {
  auto backend = make_cpu_backend();
  for (const char* name : {"gemma3", "gpt2", "gpt2_odd"}) {
    CAPTURE(name);
    LoadedModel model = load_weights(*backend, ModelFile(kModels + name), DType::F32);
    auto reader = open_safetensors_model(kModels + name);
    auto weights = all_weights(model.weights);
    CHECK(weights.size() == reader->names().size());
    int changed = 0;
    for (const std::string& tensor : reader->names()) {
      std::vector<float> want = test::read_all(*reader, tensor);
      const Shape shape = reader->shape(tensor);
      if (tensor.find("norm") != std::string::npos) {
        for (float& v : want) v += 1.0f;
        ++changed;
      }
      if (tensor.find(".c_") != std::string::npos && shape.rank() == 2) {
        std::vector<float> turned;
        for (std::int64_t j = 0; j < shape[1]; ++j)
          for (std::int64_t i = 0; i < shape[0]; ++i)
            turned.push_back(want[static_cast<std::size_t>(i * shape[1] + j)]);
        want = turned;
        ++changed;
      }
      REQUIRE_MESSAGE(weights.count(tensor), tensor);
      CHECK_MESSAGE(same_bits(weights[tensor], want), tensor);
    }
    CHECK(changed == (name[1] == 'e' ? 7 * 6 + 1 : 2 * 4));
    CHECK(backend->ledger()[Tag::Weights].live_bytes == 4 * model.config.n_parameters());
    CHECK(model.weights.tied());
  }
}

TEST_CASE("load: GPT-2's first files lack a prefix and carry masks") {
  Folder old("gpt2");
  auto backend = make_cpu_backend();
  const std::string want =
      weights_sha256(load_weights(*backend, ModelFile(kModels + "gpt2"), DType::F32).weights);
  std::map<std::string, SafetensorsEntry> renamed;
  for (auto& [name, entry] : old.tensors) {
    entry.name = name.substr(std::string("transformer.").size());
    renamed[entry.name] = entry;
  }
  old.tensors = renamed;
  for (int layer = 0; layer < 2; ++layer) {
    const std::string mask = concat("h.", layer, ".attn.bias");
    old.tensors[mask] = {mask, {1, 1, 4, 4}, std::vector<float>(16, 1.0f)};
  }
  CHECK(weights_sha256(load_weights(*backend, ModelFile(old.write()), DType::F32).weights) == want);
  old.tensors["h.0.attn.c_attn.weight"].shape = {48, 16};
  CHECK(mentions(old.refusal(), "h.0.attn.c_attn.weight"));
}

TEST_CASE("load: GGUF twins give the same weights, q and k rows put back") {
  auto backend = make_cpu_backend();
  for (const char* twin : {"tied_gqa.bf16", "biases.f16", "llama3_rope.bf16", "qwen2.f32",
                           "qwen3.bf16", "gemma3.bf16", "gpt2.bf16"}) {
    CAPTURE(twin);
    std::string name = twin;
    LoadedModel gguf = load_weights(*backend, ModelFile(kModels + name + ".gguf"), DType::F32);
    LoadedModel folder =
        load_weights(*backend, ModelFile(kModels + name.substr(0, name.find('.'))), DType::F32);
    auto a = all_weights(gguf.weights), b = all_weights(folder.weights);
    CHECK(a.size() == b.size());
    for (const auto& [tensor, values] : b) CHECK_MESSAGE(same_bits(a[tensor], values), tensor);
    CHECK(weights_sha256(gguf.weights) == weights_sha256(folder.weights));
  }
  // Quantised: each block of 32 is off by at most half a step of its scale (plus f16's rounding of
  // it).
  LoadedModel q8 = load_weights(*backend, ModelFile(kModels + "tied_gqa.q8_0.gguf"), DType::F32);
  LoadedModel exact = load_weights(*backend, ModelFile(kModels + "tied_gqa"), DType::F32);
  auto a = all_weights(q8.weights), b = all_weights(exact.weights);
  for (const auto& [tensor, values] : b) {
    const std::vector<float>& got = a[tensor];
    REQUIRE(got.size() == values.size());
    for (std::size_t block = 0; block < values.size(); block += 32) {
      float largest = 0;
      for (std::size_t i = block; i < block + 32; ++i)
        largest = std::max(largest, std::abs(values[i]));
      float step = largest / 127 * (1 + 127 * 0x1p-10f);
      for (std::size_t i = block; i < block + 32; ++i)
        REQUIRE_MESSAGE(std::abs(got[i] - values[i]) <= 0.5f * step, tensor, " ", i);
    }
  }
}

TEST_CASE("load: matrices that stay quantised hold the same values in their file's size") {
  if (cpu::quantised_tiles().empty()) LK_SKIP("no kernels for quantised weights");
  const std::string path = kModels + "tied_gqa.q8_0.gguf";
  for (CpuMode mode : {CpuMode::Fast, CpuMode::Reference}) {
    auto backend = make_cpu_backend(mode);
    LoadedModel dense = load_weights(*backend, ModelFile(path), DType::F32);
    const std::int64_t dense_bytes = backend->ledger()[Tag::Weights].live_bytes;
    std::int64_t announced = 0;
    LoadedModel kept = load_weights(*backend, ModelFile(path), DType::F32,
                                    {.progress = [&](std::int64_t, std::int64_t total,
                                                     const std::string&) { announced = total; },
                                     .storage = {BasePrecision::Auto},
                                     .pack = true});
    const std::int64_t bytes = backend->ledger()[Tag::Weights].live_bytes - dense_bytes;
    CHECK(kept.weights.tied());
    auto want = all_weights(dense.weights);
    std::int64_t quantised = 0, vectors = 0, padding = 0;
    visit_weights(kept.weights, [&](const Weight& w) {
      CAPTURE(w.name());
      CHECK((w.quantised() != nullptr) == (w.shape().rank() == 2));
      if (!w.quantised()) {
        CHECK(same_bits(want[w.name()], to_host<float>(w.values())));
        vectors += 4 * w.numel();
        return;
      }
      CHECK_THROWS_AS(w.values(), Error);
      std::vector<float> values(static_cast<std::size_t>(w.numel()));
      for (std::int64_t n = 0; n < w.shape()[0]; ++n)
        cpu::quantised_row(w, n, values.data() + n * w.shape()[1]);
      CHECK(same_bits(want[w.name()], values));
      quantised += w.numel() / 32 * 34;
      padding += (15 - (w.shape()[0] + 15) % 16) * w.shape()[1] / 32 * 34;
    });
    CHECK(announced == quantised + vectors);
    CHECK(bytes >= quantised + vectors);
    CHECK(bytes <= quantised + vectors + (mode == CpuMode::Fast ? padding : 0));
  }
}

TEST_CASE("load: a file of a model that the system won't show is an error, never an absent one") {
  const test::ScratchFolder scratch;
  const std::string path = scratch.file("model");
  files::copy(std::string(LK_TEST_DATA) + "/golden/peft/tiny", path);
  class Hiding : public Fs {  // fails where a file of the model is asked for
   public:
    std::string name;
    int error = 0;
    int stat(const char* p, struct stat* s) override {
      if (!std::string(p).ends_with(name)) return Fs::stat(p, s);
      return errno = error, -1;
    }
  } hiding;
  for (const char* name : {"generation_config.json", "tokenizer_config.json", "chat_template.jinja",
                           "model.safetensors"})
    for (int error : {EIO, EACCES, ESTALE, ENOMEM}) {
      CAPTURE(name);
      hiding.name = name, hiding.error = error;
      FsOverride in_use(hiding);
      CHECK_THROWS_WITH_AS((ModelFile(path).side_files(), ModelFile(path).read_tokenizer(),
                            ModelFile(path).reader()),
                           doctest::Contains(name), IoError);
    }
  files::remove(path + "/generation_config.json");
  files::create_symlink("nowhere", path + "/generation_config.json");
  CHECK_THROWS_WITH_AS(ModelFile(path).side_files(), doctest::Contains("link to nothing"),
                       InputError);
}

TEST_CASE("load: every compute dtype rounds once") {
  auto backend = make_cpu_backend();
  Folder folder("mqa");
  for (auto& [name, entry] : folder.tensors)
    for (float& v : entry.values) v *= 1.00390625f + 1e-4f;  // not representable in bf16
  folder.write();
  std::string path = folder.write();
  LoadedModel single = load_weights(*backend, ModelFile(path), DType::F32);
  LoadedModel brain = load_weights(*backend, ModelFile(path), DType::BF16);
  LoadedModel twice = load_weights(*backend, ModelFile(path), DType::F64);
  auto a = all_weights(single.weights), b = all_weights(brain.weights),
       c = all_weights(twice.weights);
  for (const auto& [name, values] : a) {
    CHECK(same_bits(c[name], values));
    for (std::size_t i = 0; i < values.size(); ++i)
      REQUIRE(b[name][i] == static_cast<float>(bf16(values[i])));
  }
  CHECK(brain.weights.layers[0].attn_norm.dtype() == DType::BF16);
}

TEST_CASE(
    "a model file needs no tensors for its config, opens them once, and names what is wrong") {
  Folder f("mqa");
  const std::string path = f.write();
  files::remove(path + "/model.safetensors");
  const ModelFile config_only(path);
  CHECK(config_only.config().n_layers > 0);
  CHECK(config_only.gguf() == nullptr);
  CHECK_THROWS_WITH_AS(config_only.reader(), doctest::Contains("model.safetensors"), InputError);

  const ModelFile whole(f.write());
  REQUIRE(whole.weight_files().size() == 1);
  CHECK(whole.weight_files()[0]->path() == path + "/model.safetensors");
  const std::string before = sha256_file(path + "/model.safetensors");
  CHECK(whole.side_files().front().first == "config.json");
  CHECK(whole.slots().size() == f.tensors.size());
  const TensorReader* reader = &whole.reader();
  files::remove(path + "/model.safetensors");  // what is open stays open
  CHECK(&whole.reader() == reader);
  std::ofstream(path + "/model.safetensors") << "another model's weights";
  CHECK(model_fingerprint(whole) == before);  // what is hashed is what is read
  for (const WeightSlot& slot : whole.slots()) {
    std::vector<float> rows(static_cast<std::size_t>(slot.shape.numel()));
    whole.read_rows(slot, 0, slot.shape.rows(), rows.data());
    CHECK_MESSAGE(rows == f.tensors.at(slot.name).values, slot.name);
  }

  const ModelFile gguf(kModels + "tied_gqa.q8_0.gguf");
  REQUIRE(gguf.gguf() != nullptr);
  REQUIRE(gguf.weight_files().size() == 1);
  CHECK(gguf.weight_files()[0]->path() == kModels + "tied_gqa.q8_0.gguf");
  CHECK(gguf.side_files().empty());
  CHECK_THROWS_AS(ModelFile(kModels + "absent"), InputError);
}

TEST_CASE("load: fingerprints and progress") {
  auto backend = make_cpu_backend();
  LoadedModel model = load_weights(*backend, ModelFile(kModels + "tied_gqa"), DType::F32);
  CHECK(model_fingerprint(kModels + "tied_gqa") ==
        sha256_file(kModels + "tied_gqa/model.safetensors"));
  CHECK(model_fingerprint(kModels + "tied_gqa.q8_0.gguf") ==
        sha256_file(kModels + "tied_gqa.q8_0.gguf"));

  std::string lines;
  for (int i = 1; i <= 3; ++i) {
    std::string name = concat("model-0000", i, "-of-00003.safetensors");
    lines += sha256_file(kModels + "mistral_linear/" + name) + "  " + name + "\n";
  }
  Sha256 all;
  all.update(lines.data(), lines.size());
  std::int64_t last = 0, total = 0, calls = 0;
  model =
      load_weights(*backend, ModelFile(kModels + "mistral_linear"), DType::F32,
                   {.progress = [&](std::int64_t done, std::int64_t of, const std::string& name) {
                     CHECK(done > last);
                     CHECK(!name.empty());
                     last = done;
                     total = of;
                     ++calls;
                   }});
  CHECK(model_fingerprint(kModels + "mistral_linear") == all.hex());
  CHECK(last == total);
  CHECK(total == 4 * model.config.n_parameters());
  CHECK(calls == 3 + 9 * model.config.n_layers);
}

TEST_CASE("load: a split GGUF file's fingerprint is of its parts, not of their names") {
  const test::ScratchFolder scratch;
  const std::string file = kModels + "qwen2.f32.gguf",
                    one = test::split_gguf(file, scratch.file("one")),
                    two = test::split_gguf(file, scratch.file("two"));
  CHECK(model_fingerprint(one) == model_fingerprint(two));
  CHECK(model_fingerprint(one) != model_fingerprint(file));
  CHECK(earlier_fingerprint(one) != model_fingerprint(one));
  CHECK(earlier_fingerprint(one) != earlier_fingerprint(two));
  CHECK(earlier_fingerprint(file) == "");
  CHECK(earlier_fingerprint(kModels + "mistral_linear") == "");
  // An adapter of an earlier version.
  CHECK(check_base("adapter", {"name", earlier_fingerprint(one)}, model_fingerprint(one), one) ==
        "");
  CHECK_THROWS_AS(
      check_base("adapter", {"name", earlier_fingerprint(two)}, model_fingerprint(one), one),
      InputError);
  // Other bytes.
  const std::string second = scratch.file("two-00002-of-00002.gguf");
  std::string bytes = test::slurp(second);
  bytes[bytes.size() - 2] = static_cast<char>(bytes[bytes.size() - 2] ^ 1);
  std::ofstream(second, std::ios::binary) << bytes;
  CHECK(model_fingerprint(one) != model_fingerprint(two));
}

TEST_CASE("load: a missing, extra or misshapen tensor is refused by name") {
  {
    Folder f("tied_gqa");
    CHECK(f.refusal() == "");
    f.tensors.erase("model.layers.1.mlp.up_proj.weight");  // S33
    CHECK(mentions(f.refusal(), "model.layers.1.mlp.up_proj.weight is missing"));
  }
  {
    Folder f("tied_gqa");  // S34
    f.tensors["model.layers.2.mlp.up_proj.weight"] = {
        "model.layers.2.mlp.up_proj.weight", {1}, {0}};
    CHECK(mentions(f.refusal(), "model.layers.2.mlp.up_proj.weight"));
  }
  {
    Folder f("tied_gqa");  // a bias that the config does not speak of
    f.tensors["model.layers.0.self_attn.q_proj.bias"] = {
        "model.layers.0.self_attn.q_proj.bias", {32}, std::vector<float>(32)};
    CHECK(mentions(f.refusal(), "model.layers.0.self_attn.q_proj.bias"));
  }
  {
    Folder f("tied_gqa");  // S32
    SafetensorsEntry& k = f.tensors["model.layers.0.self_attn.k_proj.weight"];
    k.shape = Shape{k.shape[1], k.shape[0]};
    std::string message = f.refusal();
    CHECK(mentions(message, "model.layers.0.self_attn.k_proj.weight"));
    CHECK(mentions(message, "(32,16)"));
    CHECK(mentions(message, "(16,32)"));
  }
  {
    Folder f("tied_gqa");  // more than the file holds: refused before any allocation
    f.config["hidden_size"] = 1 << 19;
    f.config["vocab_size"] = 1 << 23;
    f.config["num_hidden_layers"] = 1000;
    CHECK(mentions(f.refusal(), "model.embed_tokens.weight"));
  }
  {
    Folder f("tied_gqa");
    f.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {
        "model.layers.0.self_attn.rotary_emb.inv_freq", {4}, {1, 2, 3, 4}};
    CHECK(f.refusal() == "");  // a buffer of old files
  }
  {
    Folder f("gpt2");  // TensorFlow's names of a norm's tensors
    const std::string norm = "transformer.h.0.ln_1.";
    for (const auto& [name, old] : {std::pair{"bias", "beta"}, {"weight", "gamma"}}) {
      auto entry = f.tensors.extract(norm + name);
      entry.key() = entry.mapped().name = norm + old;
      f.tensors.insert(std::move(entry));
      CHECK(mentions(f.refusal(), concat(norm, name, " is missing")));
      CHECK(mentions(f.refusal(), concat(norm, old, " is there")));
    }
    f.tensors[norm + "scales"] = {norm + "scales", {1}, {0}};
    CHECK_FALSE(mentions(f.refusal(), "quantising"));
  }
  {
    Folder f("mqa");
    f.tensors.erase("lm_head.weight");
    CHECK(mentions(f.refusal(), "lm_head.weight"));
  }
}

TEST_CASE("load: tied embeddings with a head in the file") {  // C9
  Folder f("tied_gqa");
  SafetensorsEntry head = f.tensors["model.embed_tokens.weight"];
  head.name = "lm_head.weight";
  f.tensors["lm_head.weight"] = head;
  CHECK(f.refusal() == "");  // the same numbers: nothing to decide
  f.tensors["lm_head.weight"].values.back() += 0.5f;
  std::string message = f.refusal();
  CHECK(mentions(message, "lm_head.weight"));
  CHECK(mentions(message, "tie_word_embeddings"));
  // The same file untied is a fine model.
  f.config["tie_word_embeddings"] = false;
  auto backend = make_cpu_backend();
  LoadedModel model = load_weights(*backend, ModelFile(f.write()), DType::F32);
  CHECK_FALSE(model.weights.tied());
}

TEST_CASE("load: a tied model whose only table is called the head") {
  auto backend = make_cpu_backend();
  for (const char* name : {"tied_gqa", "mistral_linear", "qwen2", "qwen3", "gemma3", "gpt2"}) {
    CAPTURE(name);
    Folder f(name);
    f.config["tie_word_embeddings"] = true;
    f.tensors.erase("lm_head.weight");
    const ModelFile usual(f.write());
    const std::string table = usual.slots()[0].name;
    const std::string want = weights_sha256(load_weights(*backend, usual, DType::F32).weights);
    auto entry = f.tensors.extract(table);
    entry.key() = entry.mapped().name = "lm_head.weight";
    f.tensors.insert(std::move(entry));
    const LoadedModel model = load_weights(*backend, ModelFile(f.write()), DType::F32);
    CHECK(model.weights.tied());
    CHECK(weights_sha256(model.weights) == want);
    f.config["tie_word_embeddings"] = false;
    CHECK(mentions(f.refusal(), table + " is missing"));
    f.config["tie_word_embeddings"] = true;
    f.tensors["lm_head.weight"].shape = {1, 2};
    f.tensors["lm_head.weight"].values.resize(2);
    CHECK(mentions(f.refusal(), "lm_head.weight has shape"));
    f.tensors.erase("lm_head.weight");
    CHECK(mentions(f.refusal(), table + " is missing"));
  }
}

TEST_CASE("load: numbers that are not finite are refused") {  // G26
  auto backend = make_cpu_backend();
  test::TinyGguf b;
  b.string("general.architecture", "llama")
      .u32("llama.context_length", 16)
      .u32("llama.embedding_length", 4)
      .u32("llama.block_count", 1)
      .u32("llama.feed_forward_length", 4)
      .u32("llama.attention.head_count", 2)
      .f32("llama.attention.layer_norm_rms_epsilon", 1e-5f)
      .tensor("token_embd.weight", {3, 4}, std::vector<float>(12, 1.0f))
      .tensor("output_norm.weight", {4}, std::vector<float>(4, 1.0f));
  for (const char* name :
       {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"})
    b.tensor(concat("blk.0.", name, ".weight"), {4, 4}, std::vector<float>(16, 0.5f));
  for (const char* name : {"attn_norm", "ffn_norm"})
    b.tensor(concat("blk.0.", name, ".weight"), {4}, std::vector<float>(4, 1.0f));
  const test::ScratchFolder scratch;
  const std::string path = scratch.file("model.gguf");
  b.write(path);
  CHECK_NOTHROW(load_weights(*backend, ModelFile(path), DType::F32));
  std::vector<float> bad(16, 0.5f);
  bad[13] = std::nanf("");
  b.tensor("blk.0.ffn_up.weight", {4, 4}, bad).write(path);
  CHECK_THROWS_WITH_AS(load_weights(*backend, ModelFile(path), DType::F32),
                       doctest::Contains("blk.0.ffn_up.weight"), InputError);
  bad[13] = 1;
  b.tensor("blk.0.ffn_up.weight", {4, 4}, bad);
  b.tensor("blk.0.attn_norm.weight", {4}, {1, HUGE_VALF, 1, 1}).write(path);
  CHECK_THROWS_WITH_AS(load_weights(*backend, ModelFile(path), DType::F32),
                       doctest::Contains("blk.0.attn_norm.weight"), InputError);
  b.tensor("blk.0.attn_norm.weight", {4}, {1, 1, 1, 1});
  b.tensor("blk.0.attn_q_norm.weight", {2}, {1, 1}).write(path);
  CHECK_THROWS_WITH_AS(load_weights(*backend, ModelFile(path), DType::F32),
                       doctest::Contains("blk.0.attn_q_norm.weight"), InputError);
  CHECK(backend->ledger().total().live_bytes == 0);
}

TEST_CASE("load: a BF16 file goes to the device as it is stored, and is checked there too") {
  auto backend = make_cpu_backend();
  Folder folder("mqa");
  const std::string path = folder.write();
  // Writes the same tensors in BF16, with the given bits at `poison` of one matrix.
  auto write = [&](std::int64_t poison, std::uint16_t bits) {
    std::vector<EncodedTensor> tensors;
    for (const auto& [name, entry] : folder.tensors)
      tensors.push_back({name, entry.shape, find_ggml_encoder("BF16")});
    SafetensorsWriter::sort_as_reference(tensors);
    SafetensorsWriter file(path + "/model.safetensors", {}, tensors);
    for (const EncodedTensor& t : tensors) {
      std::vector<bf16> values;
      for (float v : folder.tensors[t.name].values) values.push_back(bf16(v));
      if (t.name == "model.layers.1.mlp.up_proj.weight" && poison >= 0)
        values[static_cast<std::size_t>(poison)].bits = bits;
      file.append(values.data(), values.size() * sizeof(bf16));
    }
    file.commit();
  };
  write(-1, 0);
  SafetensorsFile file(path + "/model.safetensors");
  CHECK(file.plain_type("model.layers.1.mlp.up_proj.weight") == DType::BF16);
  auto stored = all_weights(load_weights(*backend, ModelFile(path), DType::BF16).weights);
  auto widened = all_weights(load_weights(*backend, ModelFile(path), DType::F32).weights);
  CHECK(stored.size() == widened.size());
  for (const auto& [name, values] : widened) CHECK_MESSAGE(same_bits(stored[name], values), name);
  write(5, 0x7f7f);  // the largest number
  CHECK_NOTHROW(load_weights(*backend, ModelFile(path), DType::BF16));
  for (std::uint16_t bits : {0x7f80, 0xff80, 0x7fc0, 0xff81})  // infinities and NaNs
    for (std::int64_t at : {0, 17}) {
      write(at, bits);
      for (DType t : {DType::BF16, DType::F32})
        CHECK_THROWS_WITH_AS(load_weights(*backend, ModelFile(path), t),
                             doctest::Contains("model.layers.1.mlp.up_proj.weight"), InputError);
    }
  CHECK(backend->ledger().total().live_bytes == 0);
}

TEST_CASE("load: out of memory and absent files leave nothing behind") {
  auto backend = make_cpu_backend();
  backend->set_memory_limit(20000);
  CHECK_THROWS_AS(load_weights(*backend, ModelFile(kModels + "mqa"), DType::F32), OutOfMemoryError);
  CHECK(backend->ledger().total().live_bytes == 0);
  backend->set_memory_limit(0);
  CHECK_NOTHROW(load_weights(*backend, ModelFile(kModels + "mqa"), DType::F32));
  CHECK_THROWS_AS(load_weights(*backend, ModelFile(kModels + "absent.gguf"), DType::F32), Error);
  CHECK_THROWS_AS(load_weights(*backend, ModelFile(kModels + "mqa/config.json"), DType::F32),
                  InputError);
  CHECK_THROWS_AS(load_weights(*backend, ModelFile(kModels), DType::F32), Error);
}

TEST_CASE("load: a failing disk at any point is an error that leaves nothing behind") {  // R5
  for (bool persistent : {false, true}) {
    for (const char* model : {"mistral_linear", "tied_gqa.q8_0.gguf"}) {
      const LoadOptions options{
          .storage = {persistent ? BasePrecision::Auto : BasePrecision::Dense}, .pack = persistent};
      for (int n = 0;; ++n) {
        REQUIRE(n < 1000);
        auto backend = make_cpu_backend();
        FailingFs failing(n, persistent);
        bool failed = false;
        {
          FsOverride in_use(failing);
          try {
            load_weights(*backend, ModelFile(kModels + model), DType::F32, options);
          } catch (const IoError&) {
            failed = true;
          }
        }
        CHECK(failed == failing.fired());
        CHECK(backend->ledger().total().live_bytes == 0);
        if (!failing.fired()) {
          CHECK(n > 20);
          break;
        }
      }
    }
  }
}

TEST_CASE("load: a memory limit at any point is an error that leaves nothing behind") {  // M4
  for (bool pack : {false, true}) {
    auto backend = make_cpu_backend();
    const LoadOptions options{.storage = {pack ? BasePrecision::Auto : BasePrecision::Dense},
                              .pack = pack};
    const std::string path = kModels + (pack ? "tied_gqa.q8_0.gguf" : "biases");
    load_weights(*backend, ModelFile(path), DType::F32, options);
    const std::int64_t needed = backend->ledger().total().peak_bytes;
    for (std::int64_t limit = 1; limit < needed; limit += needed / 50) {
      backend->set_memory_limit(limit);
      CHECK_THROWS_AS(load_weights(*backend, ModelFile(path), DType::F32, options),
                      OutOfMemoryError);
      CHECK(backend->ledger().total().live_bytes == 0);
    }
    backend->set_memory_limit(needed);
    CHECK_NOTHROW(load_weights(*backend, ModelFile(path), DType::F32, options));
  }
}

TEST_CASE("load: a token beyond the vocabulary is refused where it occurs") {  // C4, I5
  Folder f("tied_gqa");
  write_byte_tokenizer(f.write());
  auto backend = make_cpu_backend();
  CHECK_THROWS_WITH_AS(ModelFile(f.write()).read_tokenizer()->encode("<|end|>"),
                       doctest::Contains("256"), InputError);
  // A padded vocabulary is fine: ids without a token are never used.
  SafetensorsEntry& embedding = f.tensors["model.embed_tokens.weight"];
  embedding.shape = Shape{300, 32};
  embedding.values.resize(300 * 32);
  f.config["vocab_size"] = 300;
  const ModelFile file(f.write());
  CHECK_NOTHROW(load_weights(*backend, file, DType::F32));
  const std::unique_ptr<Tokenizer> tokenizer = file.read_tokenizer();
  CHECK(tokenizer->n_tokens() == 257);
  CHECK(tokenizer->encode("hi<|end|>") == std::vector<std::int32_t>{'h', 'i', 256});
  CHECK(tokenizer->chat_template() == "");
  files::remove(f.write() + "/tokenizer.json");
  CHECK_THROWS_AS(ModelFile(f.write()).read_tokenizer(), Error);
}

TEST_CASE("weights_sha256 sees every byte and name") {
  auto backend = make_cpu_backend();
  LoadedModel model = load_weights(*backend, ModelFile(kModels + "mqa"), DType::F32);
  std::string before = weights_sha256(model.weights);
  CHECK(before == weights_sha256(model.weights));
  CHECK(before !=
        weights_sha256(load_weights(*backend, ModelFile(kModels + "mqa"), DType::BF16).weights));
  const Tensor& down = model.weights.layers.back()[Site::Down].weight.values();
  std::vector<float> values = to_host<float>(down);
  values.back() = std::nextafter(values.back(), 10.0f);
  backend->upload(down, values.data(), down.bytes());
  CHECK(before != weights_sha256(model.weights));
}

TEST_CASE("weights hashed as they are read are what the device holds") {
  auto backend = make_cpu_backend();
  for (const auto& entry : std::filesystem::directory_iterator(kModels)) {
    if (!entry.is_directory() && entry.path().extension() != ".gguf") continue;
    CAPTURE(entry.path());
    for (DType dtype : {DType::F32, DType::BF16}) {
      LoadedModel model = load_weights(*backend, ModelFile(entry.path()), dtype, {.hash = true});
      CHECK(model.sha256 == weights_sha256(model.weights));
      CHECK(load_weights(*backend, ModelFile(entry.path()), dtype).sha256.empty());
    }
  }
  CHECK_THROWS_AS(load_weights(*backend, ModelFile(kModels + "tied_gqa.q8_0.gguf"), DType::F32,
                               {.storage = {BasePrecision::Auto}, .pack = true, .hash = true}),
                  Error);
}

TEST_CASE("tensor_sha256: of the rows' hashes, wherever the rows lie") {
  auto backend = make_cpu_backend();
  std::vector<float> values(7 * 5);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const Tensor all = backend->empty(Tag::Workspace, DType::F32, {7, 5});
  backend->upload(all, values.data(), all.bytes());
  Sha256 rows;
  for (std::size_t i = 0; i < 7; ++i) {
    Sha256 row;
    row.update(values.data() + 5 * i, 3 * sizeof(float));
    const Sha256::Digest digest = row.digest();
    rows.update(digest.data(), digest.size());
  }
  CHECK(tensor_sha256(all.slice_cols(0, 3)) == rows.hex());
  CHECK(tensor_sha256(dense(all.slice_cols(0, 3))) == tensor_sha256(all.slice_cols(0, 3)));
  CHECK(tensor_sha256(all) != tensor_sha256(all.reshape({5, 7})));
  CHECK(tensor_sha256(backend->empty(Tag::Workspace, DType::F32, {0, 5})) == Sha256().hex());
}

TEST_CASE("random weights are a function of shape and seed") {
  auto backend = make_cpu_backend();
  ModelConfig c = named_shape("smollm2-135m");
  c.n_layers = 1;
  c.vocab_size = 1001;
  ModelWeights a = random_weights(*backend, c, DType::F32, 7);
  CHECK(weights_sha256(a) == weights_sha256(random_weights(*backend, c, DType::F32, 7)));
  CHECK(weights_sha256(a) != weights_sha256(random_weights(*backend, c, DType::F32, 8)));
  CHECK(a.tied());
  double sum = 0, squares = 0;
  std::vector<float> values = to_host<float>(a.embedding.values());
  for (float v : values) sum += v, squares += static_cast<double>(v) * v;
  double n = static_cast<double>(values.size());
  CHECK(std::abs(sum / n) < 1e-4);
  CHECK(std::sqrt(squares / n) == doctest::Approx(0.02).epsilon(0.01));
  CHECK(to_host<float>(a.final_norm.values()) == std::vector<float>(576, 1.0f));
  std::int64_t count = 0;
  visit_weights(a, [&](const Weight& w) { count += w.numel(); });
  CHECK(count == c.n_parameters());
}

TEST_CASE("load: SmolLM2-135M from Q4_1, every tensor as transformers dequantises it") {
  std::string path = test::smollm2_path();
  if (path.empty()) LK_SKIP("no SmolLM2-135M-Instruct GGUF (set LORIKEET_SMOLLM2)");
  for (DType dtype : {DType::BF16, DType::F32}) {
    auto backend = make_cpu_backend();
    std::int64_t before = peak_resident_bytes();
    auto start = std::chrono::steady_clock::now();
    const ModelFile file(path);
    const std::unique_ptr<Tokenizer> tokenizer = file.read_tokenizer();
    LoadedModel model = load_weights(*backend, file, dtype);
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::int64_t after = peak_resident_bytes();
    const Ledger& ledger = backend->ledger();
    std::printf(
        "SmolLM2 as %s: %.2f s; ledger: weights %lld MiB, total peak %lld MiB; VmHWM %lld -> %lld "
        "MiB\n",
        dtype_name(dtype), seconds.count(),
        static_cast<long long>(ledger[Tag::Weights].live_bytes >> 20),
        static_cast<long long>(ledger.total().peak_bytes >> 20),
        static_cast<long long>(before >> 20), static_cast<long long>(after >> 20));
    std::int64_t bytes = model.config.n_parameters() * static_cast<std::int64_t>(dtype_size(dtype));
    CHECK(ledger[Tag::Weights].live_bytes == bytes);
    CHECK(ledger[Tag::Weights].peak_bytes == bytes);
    CHECK(after <= before + ledger.total().live_bytes + (256 << 20));
    ModelConfig published = named_shape("smollm2-135m");
    published.bos_id = model.config.bos_id;
    published.eos_ids = model.config.eos_ids;
    published.stored_dtype = model.config.stored_dtype;
    CHECK(config_to_json(model.config) == config_to_json(published));
    CHECK(tokenizer->n_tokens() == 49152);
    CHECK(tokenizer->chat_template().find("<|im_start|>") != std::string::npos);
    if (dtype != DType::F32) continue;
    Json digests = read_json(kModels + "smollm2.tensors.json");
    std::size_t seen = 0;
    visit_weights(model.weights, [&](const Weight& w) {
      std::vector<float> values = to_host<float>(w.values());
      Sha256 hash;
      hash.update(values.data(), values.size() * sizeof(float));
      CHECK_MESSAGE(hash.hex() == digests.value(w.name(), ""), w.name());
      ++seen;
    });
    CHECK(seen == digests.size());
  }
}

TEST_CASE("load: SmolLM2-135M quantised takes its file's size") {
  std::string path = test::smollm2_path();
  if (path.empty()) LK_SKIP("no SmolLM2-135M-Instruct GGUF (set LORIKEET_SMOLLM2)");
  if (cpu::quantised_tiles().empty()) LK_SKIP("no kernels for quantised weights");
  auto backend = make_cpu_backend();
  auto start = std::chrono::steady_clock::now();
  LoadedModel model = load_weights(*backend, ModelFile(path), DType::F32,
                                   {.storage = {BasePrecision::Auto}, .pack = true});
  std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const std::int64_t bytes = backend->ledger()[Tag::Weights].live_bytes;
  std::printf("SmolLM2 quantised: %.2f s, %lld MiB\n", seconds.count(),
              static_cast<long long>(bytes >> 20));
  // 106 M numbers in Q4_1 (20 bytes a block of 32), 28 M in Q8_0 (34), the norms' gains in F32.
  CHECK(bytes == 106168320 / 32 * 20 + 28311552 / 32 * 34 + 61 * 576 * 4);
}

TEST_CASE("GGUF names") {
  const Family &llama = *find_family("llama"), &gemma = *find_family("gemma3_text"),
               &gpt2 = *find_family("gpt2");
  CHECK(gguf_name("model.layers.12.self_attn.o_proj.weight", llama) == "blk.12.attn_output.weight");
  CHECK(gguf_name("model.layers.0.mlp.gate_proj.bias", llama) == "blk.0.ffn_gate.bias");
  CHECK(gguf_name("lm_head.weight", llama) == "output.weight");
  CHECK_THROWS_AS(gguf_name("model.layers.0.self_attn.rotary_emb.inv_freq", llama), Error);
  CHECK(gguf_name("model.layers.3.post_attention_layernorm.weight", gemma) ==
        "blk.3.post_attention_norm.weight");
  CHECK(gguf_name("model.layers.3.pre_feedforward_layernorm.weight", gemma) ==
        "blk.3.ffn_norm.weight");
  CHECK(gguf_name("transformer.h.11.attn.c_attn.bias", gpt2) == "blk.11.attn_qkv.bias");
  CHECK(gguf_name("transformer.wpe.weight", gpt2) == "position_embd.weight");
  CHECK_THROWS_AS(gguf_name("model.layers.", llama), Error);
}

}  // namespace lk
