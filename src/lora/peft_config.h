// PeftConfig: what adapter_config.json of a LoRA adapter says, read as PEFT 0.21 means it.
//
// Note [Obey or refuse]. A key that changes what the adapter computes is obeyed or refused by name.
// Keys known to change nothing form a closed list, and any other key must hold a value that means
// "off" (null, false, or empty): a key of a later PEFT is then refused, not overlooked.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/json_fwd.h"
#include "lora/adapter.h"
#include "modelfile/path_pattern.h"

namespace lk {

class PeftConfig {
 public:
  // Reads the file at `path`; a UTF-8 byte order mark at its start is skipped. Throws InputError
  // naming file and key for anything that is not LoRA, is malformed, or can't be obeyed:
  // biases, patterns that PathPattern can't read, and initialisations that change the base on
  // loading (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ), with the way to convert them.
  explicit PeftConfig(const std::string& path);

  // Whether the adapter is on module `path`: target_modules (names or one pattern), less
  // exclude_modules, in layers_to_transform.
  bool selects(const std::string& path) const;
  // Rank and alpha of module `path`: rank_pattern's and alpha_pattern's first key that matches, or
  // r and lora_alpha.
  RankAlpha rank_alpha(const std::string& path) const;

  // Of modules that no pattern names.
  const LoraShape& shape() const { return shape_; }
  // target_modules as listed, a pattern as the only one; empty where the config names none, and selects
  // what PEFT does then: q_proj and v_proj, of a family with q, k and v in one projection c_attn.
  const std::vector<std::string>& target_modules() const { return target_modules_; }
  // Modules whose whole weights lie in the adapter's file.
  const std::vector<std::string>& modules_to_save() const { return modules_to_save_; }
  const std::string& base_model() const { return base_model_; }
  // In folders of earlier versions: Note [Where the base is named] in modelfile/base_identity.h.
  const std::string& base_fingerprint() const { return base_fingerprint_; }

 private:
  // Module names, or a pattern.
  struct Modules {
    std::vector<std::string> names;
    std::optional<PathPattern> pattern;
    bool match(const std::string& path) const;
  };
  template <class T>
  using Patterns = std::vector<std::pair<PathPattern, T>>;  // in the file's order

  void read_shape(const Json& config);
  void read_modules(const Json& config);
  void read_layers(const Json& config);
  void read_patterns(const Json& config, const std::string& text);
  Modules modules(const Json& config, const char* key) const;
  bool in_layers(const std::string& path) const;

  std::string path_;
  LoraShape shape_;
  std::string base_model_, base_fingerprint_;
  std::vector<std::string> target_modules_, modules_to_save_;
  bool all_ = false;  // target_modules is "all-linear"
  Modules targets_, excluded_;
  std::vector<std::int64_t> layers_;         // layers_to_transform; empty: all
  std::vector<PathPattern> layers_pattern_;  // empty: any list of layers
  Patterns<std::int64_t> ranks_;
  Patterns<double> alphas_;
};

}  // namespace lk
