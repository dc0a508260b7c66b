#include "run/methods.h"

#include <algorithm>
#include <array>
#include <map>

#include "io/json.h"
#include "io/paths.h"
#include "lora/adapter_io.h"
#include "lora/rank_patterns.h"
#include "methods/bitfit.h"
#include "methods/bottleneck.h"
#include "methods/ia3.h"
#include "methods/method_set.h"

namespace lk {
namespace {

constexpr std::size_t kMostConfigBytes = std::size_t{16} << 20;

// An AdapterFile (lora/adapter_io.h) as one of the methods' files.
class LoraFile : public MethodFile {
 public:
  explicit LoraFile(const std::string& folder) : file_(open_adapter(folder)) {}
  std::string method() const override { return "lora"; }
  BaseIdentity base() const override { return file_.base; }
  std::string summary() const override { return lk::summary(file_); }
  bool needs_dense_base() const override { return file_.config.shape.dora; }
  std::vector<std::string> disagreements(const ModelConfig& config) const override {
    return lk::disagreements(file_, config);
  }
  std::unique_ptr<Method> attach(Transformer& model) const override {
    return attach_adapter(model, file_, file_.config, false);
  }

 private:
  AdapterFile file_;
};

bool is_peft_type(const Json& config, const char* type) {
  const auto at = config.find("peft_type");
  return at != config.end() && *at == type;
}

constexpr const char* kFull = "full";

// What one method alone can take.
constexpr const char *kProjections = "the projections", *kAttention = "the attention",
                     *kNothing = nullptr;

struct Kind {
  const char* name;
  double rate;        // see rate_of()
  const char* takes;  // of these
  // Whether an adapter_config.json is one of this method's.
  bool (*recognises)(const Json& config);
  std::unique_ptr<Method> (*make)(Transformer& model, const MethodConfig& config);
  std::unique_ptr<MethodFile> (*open)(const std::string& folder);
  std::string (*describe)(const MethodConfig& config);
  // Tokens of the batch before each document, and positions before all of them; null: none.
  std::int64_t (*virtual_tokens)(const MethodConfig& config);
  std::int64_t (*first_position)(const MethodConfig& config);
};

constexpr std::array kKinds = {
    Kind{"lora", 1, kProjections, [](const Json& config) { return is_peft_type(config, "LORA"); },
         [](Transformer& model, const MethodConfig& c) -> std::unique_ptr<Method> {
           return std::make_unique<Adapter>(model, c.lora);
         },
         [](const std::string& folder) -> std::unique_ptr<MethodFile> {
           return std::make_unique<LoraFile>(folder);
         },
         [](const MethodConfig& c) {
           constexpr std::size_t kMost = 8;
           const std::size_t n = c.lora.targets.size();
           std::string targets;
           for (std::size_t i = 0; i < std::min(n, kMost); ++i)
             targets += (i ? ", " : "") + c.lora.targets[i];
           if (n > kMost) targets += concat(" and ", n - kMost, " more");
           if (!c.lora.layers.empty()) targets += " of layers " + layers_text(c.lora.layers);
           return concat(c.lora.shape.dora ? "DoRA, " : "", "rank ", c.lora.shape.rank, " on ",
                         targets);
         },
         nullptr, nullptr},
    Kind{"prompt", 200, kNothing,
         [](const Json& config) { return is_peft_type(config, "PROMPT_TUNING"); },
         [](Transformer& model, const MethodConfig& c) -> std::unique_ptr<Method> {
           return std::make_unique<PromptTuning>(model, c.prompt);
         },
         open_prompt_tuning,
         [](const MethodConfig& c) {
           return concat(c.prompt.virtual_tokens, " virtual tokens that start as ",
                         c.prompt.text.empty() ? "noise" : "a text");
         },
         [](const MethodConfig& c) { return c.prompt.virtual_tokens; }, nullptr},
    Kind{"prefix", 67, kAttention,
         [](const Json& config) { return is_peft_type(config, "PREFIX_TUNING"); },
         [](Transformer& model, const MethodConfig& c) -> std::unique_ptr<Method> {
           return std::make_unique<PrefixTuning>(model, c.prefix);
         },
         open_prefix_tuning,
         [](const MethodConfig& c) {
           std::string text = concat("keys and values of ", c.prefix.virtual_tokens,
                                     " virtual tokens in each layer");
           if (c.prefix.hidden_size > 0)
             text += concat(", made by an MLP of ", c.prefix.hidden_size);
           return text;
         },
         nullptr, [](const MethodConfig& c) { return c.prefix.virtual_tokens; }},
    Kind{"llama-adapter", 20, kAttention,
         [](const Json& config) { return is_peft_type(config, "ADAPTION_PROMPT"); },
         [](Transformer& model, const MethodConfig& c) -> std::unique_ptr<Method> {
           return std::make_unique<LlamaAdapter>(model, c.llama_adapter);
         },
         open_llama_adapter,
         [](const MethodConfig& c) {
           return concat(c.llama_adapter.length, " vectors in ",
                         c.llama_adapter.layers > 0
                             ? concat("each of the top ", c.llama_adapter.layers, " layers")
                             : "each layer but the first two");
         },
         nullptr, nullptr},
    Kind{"bottleneck", 1.0 / 3, kNothing, BottleneckFile::recognises,
         [](Transformer& model, const MethodConfig& c) -> std::unique_ptr<Method> {
           return std::make_unique<Bottleneck>(model, c.bottleneck);
         },
         [](const std::string& folder) -> std::unique_ptr<MethodFile> {
           return std::make_unique<BottleneckFile>(folder);
         },
         [](const MethodConfig& c) { return concat("bottlenecks of ", c.bottleneck.sizes[0]); },
         nullptr, nullptr},
    Kind{"bitfit", 33, kProjections,
         [](const Json& config) {
           return is_peft_type(config, "BEFT") || is_peft_type(config, kOwnBiases);
         },
         [](Transformer& model, const MethodConfig& c) -> std::unique_ptr<Method> {
           return std::make_unique<Bitfit>(model, c.bitfit);
         },
         open_bitfit, [](const MethodConfig&) { return std::string("biases"); }, nullptr, nullptr},
    Kind{"ia3", 10, kProjections, [](const Json& config) { return is_peft_type(config, "IA3"); },
         [](Transformer& model, const MethodConfig& c) -> std::unique_ptr<Method> {
           return std::make_unique<Ia3>(model, c.ia3);
         },
         open_ia3, [](const MethodConfig&) { return std::string("vectors on outputs and inputs"); },
         nullptr, nullptr},
    // Its folder is a model's: none of it is an adapter.
    Kind{kFull, 1.0 / 30, kNothing, [](const Json&) { return false; },
         [](Transformer& model, const MethodConfig& c) -> std::unique_ptr<Method> {
           return std::make_unique<Full>(model, c.base);
         },
         [](const std::string& folder) -> std::unique_ptr<MethodFile> {
           throw InputError(folder + ": a model of which all weights were trained is no adapter");
         },
         [](const MethodConfig&) { return std::string("all weights"); }, nullptr, nullptr},
};

const Kind* find_kind(const std::string& name) {
  const auto at = std::find_if(kKinds.begin(), kKinds.end(),
                               [&](const Kind& kind) { return kind.name == name; });
  return at == kKinds.end() ? nullptr : &*at;
}

std::string known_names() {
  std::string names;
  for (const Kind& kind : kKinds) names += concat(names.empty() ? "" : ", ", kind.name);
  return names;
}

// The files of several methods, which MethodSet::save() wrote.
class MethodSetFile : public MethodFile {
 public:
  explicit MethodSetFile(std::vector<std::unique_ptr<MethodFile>> files)
      : files_(std::move(files)) {}
  std::string method() const override {
    return joined([](const MethodFile& f) { return f.method(); }, ",");
  }
  // All were trained on one base: open_method() has checked it.
  BaseIdentity base() const override { return files_[0]->base(); }
  std::string summary() const override {
    return joined([](const MethodFile& f) { return f.method() + ": " + f.summary(); }, "; ");
  }
  std::int64_t virtual_tokens() const override {
    std::int64_t n = 0;
    for (const auto& f : files_) n += f->virtual_tokens();
    return n;
  }
  std::int64_t first_position() const override {
    std::int64_t n = 0;
    for (const auto& f : files_) n += f->first_position();
    return n;
  }
  bool needs_dense_base() const override {
    return std::any_of(files_.begin(), files_.end(),
                       [](const auto& f) { return f->needs_dense_base(); });
  }
  std::vector<std::string> disagreements(const ModelConfig& config) const override {
    std::vector<std::string> all;
    for (const auto& f : files_)
      for (std::string& line : f->disagreements(config)) all.push_back(std::move(line));
    return all;
  }
  std::unique_ptr<Method> attach(Transformer& model) const override {
    std::vector<std::unique_ptr<Method>> methods;
    for (const auto& f : files_) methods.push_back(f->attach(model));
    return std::make_unique<MethodSet>(std::move(methods));
  }

 private:
  template <class F>
  std::string joined(const F& of, const char* separator) const {
    std::string text;
    for (const auto& f : files_) text += (text.empty() ? "" : separator) + of(*f);
    return text;
  }
  std::vector<std::unique_ptr<MethodFile>> files_;
};

// The names in a MethodSet's list. Throws InputError for anything but two or more known ones.
std::vector<std::string> listed_methods(const std::string& path) {
  const Json list = read_json(path);
  const Json& names = json_at(list, "methods", path);
  std::vector<std::string> all;
  if (!names.is_array() || names.size() < 2)
    throw InputError(path + ": methods: a list of two or more names is expected");
  for (const Json& name : names) {
    if (!name.is_string() || !find_kind(name.get<std::string>()) ||
        std::count(all.begin(), all.end(), name.get<std::string>()) > 0)
      throw InputError(concat(path, ": methods: ", name.dump(-1, ' ', true),
                              " is no method, or stands there twice; there are ", known_names()));
    all.push_back(name.get<std::string>());
  }
  return all;
}

template <class Member>
std::int64_t sum(const MethodConfig& config, Member member) {
  std::int64_t n = 0;
  for (const std::string& name : config.names)
    if (const Kind* kind = find_kind(name); kind && kind->*member) n += (kind->*member)(config);
  return n;
}

}  // namespace

bool MethodConfig::has(const std::string& name) const {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string MethodConfig::text() const {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ",") + name;
  return all;
}

void check_methods(const std::vector<std::string>& names) {
  require(!names.empty(), "`method`: none is given; there are ", known_names());
  for (const std::string& name : names) {
    require(find_kind(name), "`method` ", name, ": there are ", known_names());
    require(std::count(names.begin(), names.end(), name) == 1, "`method` ", name, ": given twice");
    require(name != kFull || names.size() == 1, "`method` ", MethodConfig{names}.text(),
            ": full trains all of the base's weights, which other methods need frozen: give it "
            "alone");
  }
  std::map<std::string, std::string> taken;  // what, by whom
  for (const std::string& name : names) {
    const char* what = find_kind(name)->takes;
    if (!what) continue;
    const auto [by, is_new] = taken.emplace(what, name);
    require(is_new, "`method` ", MethodConfig{names}.text(), ": ", by->second, " and ", name,
            " both take ", what, ": give one of them");
  }
}

std::unique_ptr<Method> make_method(Transformer& model, const MethodConfig& config) {
  check_methods(config.names);
  std::vector<std::unique_ptr<Method>> methods;
  for (const std::string& name : config.names)
    methods.push_back(find_kind(name)->make(model, config));
  if (methods.size() == 1) return std::move(methods[0]);
  return std::make_unique<MethodSet>(std::move(methods));
}

double rate_of(const std::vector<std::string>& names) {
  double rate = 0;
  for (const std::string& name : names)
    if (const Kind* kind = find_kind(name))
      rate = rate > 0 ? std::min(rate, kind->rate) : kind->rate;
  return rate;
}

std::string what_trains(const MethodConfig& config) {
  if (replaces_base(config)) return "all weights";
  if (config.names == std::vector<std::string>{"lora"})
    return config.lora.shape.dora ? "A, B and the magnitudes" : "A and B";
  return concat("what ", config.text(), " trains");
}

std::string describe(const MethodConfig& config) {
  std::string text;
  for (const std::string& name : config.names)
    if (const Kind* kind = find_kind(name))
      text += (text.empty() ? "" : "; ") + kind->describe(config);
  return text;
}

std::unique_ptr<MethodFile> open_method(const std::string& folder) {
  const std::string path = folder + "/" + kAdapterConfig;
  if (exists(path)) {
    const Json config = parse_json(read_json_text(path, kMostConfigBytes), path);
    for (const Kind& kind : kKinds)
      if (config.is_object() && kind.recognises(config)) return kind.open(folder);
  }
  // LoRA's reader says what is wrong with a folder that nobody recognises.
  const std::string list = folder + "/" + kMethodList;
  if (!exists(list)) return std::make_unique<LoraFile>(folder);
  std::vector<std::unique_ptr<MethodFile>> files;
  for (const std::string& name : listed_methods(list))
    files.push_back(find_kind(name)->open(folder + "/" + name));
  for (const auto& file : files)
    if (file->base().fingerprint != files[0]->base().fingerprint)
      throw InputError(concat(folder, ": ", files[0]->method(), " and ", file->method(),
                              " were trained on different bases"));
  return std::make_unique<MethodSetFile>(std::move(files));
}

void require_lora(const std::string& folder, const std::string& setting, const std::string& why) {
  if (!exists(folder + "/" + kAdapterConfig) && !exists(folder + "/" + kMethodList)) return;
  const std::string method = open_method(folder)->method();
  require(method == "lora", setting, ": is of ", method, ", and ", why);
}

bool replaces_base(const MethodConfig& config) { return config.has(kFull); }

std::int64_t virtual_tokens(const MethodConfig& config) {
  return sum(config, &Kind::virtual_tokens);
}

std::int64_t extra_positions(const MethodConfig& config) {
  return virtual_tokens(config) + sum(config, &Kind::first_position);
}

}  // namespace lk
