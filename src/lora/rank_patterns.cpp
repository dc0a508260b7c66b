#include "lora/rank_patterns.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <set>

#include "io/printable.h"
#include "modelfile/path_pattern.h"
#include "nn/family.h"

namespace lk {
namespace {

constexpr std::int64_t kMostLayers = 100'000;

// The number of a module's layer: the first segment of its path that is one.
std::int64_t layer_of(const std::string& path) {
  for (std::size_t dot = path.find('.'); dot != path.npos; dot = path.find('.', dot + 1)) {
    std::int64_t number = -1;
    const char* end = path.data() + path.size();
    const auto [rest, error] = std::from_chars(path.data() + dot + 1, end, number);
    if (error == std::errc() && rest != end && *rest == '.') return number;
  }
  return -1;
}

// All projections of a model.
std::vector<std::string> projections(const ModelConfig& model) {
  std::vector<std::string> modules;
  ModelWeights weights;
  for (const WeightSlot& slot : weight_slots(model, weights))
    if (slot.linear && slot.role != Role::Head)
      modules.push_back(slot.name.substr(0, slot.name.rfind('.')));
  return modules;
}

PathPattern pattern_of(const std::string& text, PathPattern::Match match, const std::string& flag) {
  try {
    return PathPattern(text, match, flag);
  } catch (const InputError& e) {
    throw UsageError(e.what());
  }
}

std::vector<std::string> shortened(std::set<std::string> targets, const ModelConfig& model) {
  std::map<std::string, std::vector<std::string>> named;  // by last name
  for (const std::string& path : projections(model))
    named[path.substr(path.rfind('.') + 1)].push_back(path);
  for (const auto& [name, paths] : named) {
    if (!std::all_of(paths.begin(), paths.end(),
                     [&](const std::string& path) { return targets.count(path) > 0; }))
      continue;
    for (const std::string& path : paths) targets.erase(path);
    targets.insert(name);
  }
  return {targets.begin(), targets.end()};
}

// The modules that `config` puts an adapter on.
std::vector<std::string> adapted(const LoraConfig& config, const ModelConfig& model) {
  LoraConfig filled = config;
  if (filled.targets.empty()) filled.targets = default_targets(model);
  const std::vector<std::string>& targets = filled.targets;
  std::vector<std::string> modules;
  for (const std::string& path : projections(model))
    if (std::any_of(targets.begin(), targets.end(), [&](const std::string& target) {
          return filled.selects(target, path, layer_of(path));
        }))
      modules.push_back(path);
  return modules;
}

// Calls set(module, value) for every module and the first key that matches it.
template <class T, class Set>
void apply(const ByPattern<T>& patterns, const std::vector<std::string>& modules,
           const std::string& name, const Set& set) {
  std::set<std::string> taken;
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    const auto& [key, value] = patterns[i];
    const std::string where = concat("`", name, "`");
    for (std::size_t j = 0; j < i; ++j)
      require(patterns[j].first != key, where, ": ", printable(key), " is given twice");
    const PathPattern pattern = pattern_of(key, PathPattern::Match::Tail, where);
    bool matches = false;
    for (const std::string& module : modules) {
      if (!pattern.matches(module)) continue;
      matches = true;
      if (taken.insert(module).second) set(module, value);
    }
    require(matches, where, ": ", printable(key),
            " matches none of the adapter's modules, such as ",
            modules.empty() ? "" : modules.front());
  }
}

// Splits at commas that are not within brackets.
std::vector<std::string> split_items(const std::string& text) {
  std::vector<std::string> items(1);
  int depth = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\\' && i + 1 < text.size()) {
      items.back() += c;
      items.back() += text[++i];
      continue;
    }
    if (c == '(' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == ']' || c == '}') --depth;
    if (c == ',' && depth <= 0)
      items.emplace_back();
    else
      items.back() += c;
  }
  return items;
}

template <class T>
ByPattern<T> parse(const std::string& text, const std::string& flag, const char* example) {
  ByPattern<T> patterns;
  for (const std::string& item : split_items(text)) {
    const std::size_t mark = item.rfind('=');
    T value{};
    const char* end = item.data() + item.size();
    const bool good = mark != item.npos && mark > 0 && [&] {
      const auto [rest, error] = std::from_chars(item.data() + mark + 1, end, value);
      return error == std::errc() && rest == end;
    }();
    require(good, flag, " ", printable(item), ": KEY=", example, " is expected");
    patterns.emplace_back(item.substr(0, mark), value);
  }
  return patterns;
}

std::string number_text(std::int64_t x) { return std::to_string(x); }
std::string number_text(double x) {
  char text[32];
  return {text, std::to_chars(text, std::end(text), x).ptr};
}

template <class T>
std::string text_of(const ByPattern<T>& patterns) {
  std::string text;
  for (const auto& [key, value] : patterns)
    text += concat(text.empty() ? "" : ",", key, "=", number_text(value));
  return text;
}

}  // namespace

void shorten_targets(LoraConfig& config, const ModelConfig& model) {
  config.targets = shortened({config.targets.begin(), config.targets.end()}, model);
}

std::vector<std::string> expand_targets(const std::vector<std::string>& targets,
                                        const ModelConfig& model) {
  const auto is_expression = [](const std::string& t) { return t.starts_with(kTargetExpression); };
  const auto found = std::find_if(targets.begin(), targets.end(), is_expression);
  if (found == targets.end()) return targets;
  require(targets.size() == 1, "`targets`: ", printable(*found),
          " stands alone: an expression says all");
  const std::string text = found->substr(std::string(kTargetExpression).size());
  const PathPattern pattern = pattern_of(text, PathPattern::Match::Whole, "`targets`");
  for (Role role : {Role::Embedding, Role::Head})
    require(!pattern.matches(module_path(family_of(model), role)), "`targets`: ", printable(*found),
            " matches the model's vocabulary, ", module_path(family_of(model), role),
            ", which stays frozen");
  std::set<std::string> paths;
  const std::vector<std::string> all = projections(model);
  for (const std::string& path : all)
    if (pattern.matches(path)) paths.insert(path);
  require(!paths.empty(), "`targets`: ", printable(*found), " matches no module; there are ",
          all.front(), " to ", all.back());
  return shortened(std::move(paths), model);
}

void apply_patterns(LoraConfig& config, const ModelConfig& model,
                    const ByPattern<std::int64_t>& ranks, const ByPattern<double>& alphas) {
  if (ranks.empty() && alphas.empty()) return;
  for (const auto& [key, rank] : ranks)
    require(rank >= 1, "`rank_pattern`: ", printable(key), ": rank ", rank, ": must be at least 1");
  for (const auto& [key, alpha] : alphas)
    require(std::isfinite(alpha) && alpha > 0, "`alpha_pattern`: ", printable(key), ": alpha ",
            alpha, ": must be positive");
  const std::vector<std::string> modules = adapted(config, model);
  std::map<std::string, RankAlpha> own;
  for (const std::string& module : modules) own[module] = {config.shape.rank, config.shape.alpha};
  apply(ranks, modules, "rank_pattern",
        [&](const std::string& module, std::int64_t rank) { own[module].rank = rank; });
  apply(alphas, modules, "alpha_pattern",
        [&](const std::string& module, double alpha) { own[module].alpha = alpha; });
  for (const auto& [module, its] : own)
    if (!(its == RankAlpha{config.shape.rank, config.shape.alpha})) config.exceptions[module] = its;
}

ByPattern<std::int64_t> parse_rank_pattern(const std::string& text, const std::string& flag) {
  return parse<std::int64_t>(text, flag, "RANK");
}

ByPattern<double> parse_alpha_pattern(const std::string& text, const std::string& flag) {
  return parse<double>(text, flag, "ALPHA");
}

std::vector<std::int64_t> parse_layers(const std::string& text, const std::string& flag) {
  std::set<std::int64_t> layers;
  auto number = [&](const std::string& part) {
    std::int64_t n = -1;
    const char* end = part.data() + part.size();
    const auto [rest, error] = std::from_chars(part.data(), end, n);
    require(!part.empty() && error == std::errc() && rest == end && n >= 0 && n < kMostLayers, flag,
            " ", printable(text), ": numbers of layers and ranges are expected, like 0-3,7");
    return n;
  };
  for (const std::string& item : split_items(text)) {
    const std::size_t dash = item.find('-', 1);
    const std::int64_t first = number(item.substr(0, dash)),
                       last = dash == item.npos ? first : number(item.substr(dash + 1));
    require(first <= last, flag, " ", item, ": the range is empty");
    for (std::int64_t layer = first; layer <= last; ++layer) layers.insert(layer);
  }
  return {layers.begin(), layers.end()};
}

std::string pattern_text(const ByPattern<std::int64_t>& ranks) { return text_of(ranks); }
std::string pattern_text(const ByPattern<double>& alphas) { return text_of(alphas); }

std::string layers_text(const std::vector<std::int64_t>& layers) {
  std::string text;
  for (std::size_t i = 0; i < layers.size();) {
    std::size_t last = i;
    while (last + 1 < layers.size() && layers[last + 1] == layers[last] + 1) ++last;
    text += concat(text.empty() ? "" : ",", layers[i]);
    if (last > i) text += concat("-", layers[last]);
    i = last + 1;
  }
  return text;
}

}  // namespace lk
