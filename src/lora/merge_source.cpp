#include "lora/merge_source.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "cuda/open_device.h"
#include "lora/whole_weights.h"
#include "modelfile/fingerprint.h"
#include "modelfile/load.h"
#include "nn/transformer.h"
#include "tensor/parts.h"
#include "text/tokenizer.h"

namespace lk {

namespace {

constexpr std::string_view kWeight = ".weight";

// Whether the slot is a projection of a block, which adapters may target.
bool is_module(const WeightSlot& slot) { return slot.linear && slot.role != Role::Head; }

std::string module_of(const WeightSlot& slot) {
  return slot.name.substr(0, slot.name.size() - kWeight.size());
}

// English, code and another script: enough to reach every matrix of the model.
constexpr const char* kProbes[] = {
    "The quick brown fox jumps over the lazy dog, and then it rests in the shade of a tree.",
    "Restaurant facts: name : The Vaults | food : Italian | area : riverside\nSentence:",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))  # 5",
    "1, 2, 3, 5, 8, 13, 21, 34; \xc3\xa7"
    "a va bien.",
};

std::int64_t largest_rank(const AdapterFile& file) {
  std::int64_t rank = 0;
  for (const std::string& module : file.config.targets)
    rank = std::max(rank, file.config.shape_of(module).rank);
  return rank;
}

// One adapter that does what all of them do: A stacked, weight * scale * B side by side, each in
// room for its file's largest rank.
std::unique_ptr<Adapter> attach_sum(Transformer& model,
                                    const std::vector<WeightedAdapter>& adapters,
                                    const std::vector<AdapterFile>& files) {
  LoraConfig config;
  std::set<std::string> targets;
  config.shape.rank = 0;
  for (const AdapterFile& file : files) {
    targets.insert(file.config.targets.begin(), file.config.targets.end());
    config.shape.rank += largest_rank(file);
  }
  config.wide_ranks = true;
  config.shape.alpha = static_cast<double>(config.shape.rank);  // makes the scale 1
  config.targets.assign(targets.begin(), targets.end());
  auto adapter = std::make_unique<Adapter>(model, config);
  for (LoraLinear* layer : adapter->layers()) {
    const std::int64_t R = config.shape.rank, in = layer->in_features(),
                       out = layer->out_features();
    std::vector<float> a(static_cast<std::size_t>(R * in)), b(static_cast<std::size_t>(out * R));
    std::int64_t at = 0;  // first rank of this adapter
    for (std::size_t i = 0; i < files.size(); ++i) {
      const std::vector<std::string>& own = files[i].config.targets;
      if (std::find(own.begin(), own.end(), layer->path()) != own.end()) {
        const HostFactors f = read_factors(files[i], layer->path(), out, in);
        std::copy(f.a.begin(), f.a.end(), a.begin() + at * in);
        const auto scale = static_cast<float>(adapters[i].weight * f.scale);
        const std::int64_t r = f.rank;
        for (std::int64_t row = 0; row < out; ++row)
          for (std::int64_t k = 0; k < r; ++k)
            b[static_cast<std::size_t>(row * R + at + k)] =
                scale * f.b[static_cast<std::size_t>(row * r + k)];
      }
      at += largest_rank(files[i]);
    }
    model.backend().upload(layer->a().value(), a.data(), a.size() * sizeof(float));
    model.backend().upload(layer->b().value(), b.data(), b.size() * sizeof(float));
    layer->a().refresh();
    layer->b().refresh();
  }
  return adapter;
}

std::vector<float> probe_logits(const ModelFile& file, const BaseStorage& storage,
                                const Attach& attach) {
  std::unique_ptr<Backend> backend = open_device("cpu");
  const std::unique_ptr<Tokenizer> tokenizer = file.read_tokenizer();
  LoadedModel loaded = load_weights(*backend, file, DType::F32, {.storage = storage});
  const std::int64_t positions = std::min<std::int64_t>(loaded.config.max_position, 64);
  std::vector<std::vector<std::int32_t>> probes;
  for (const char* text : kProbes) {
    std::vector<std::int32_t> ids = tokenizer->encode(text);
    if (std::ssize(ids) > positions) ids.resize(static_cast<std::size_t>(positions));
    if (!ids.empty()) probes.push_back(std::move(ids));
  }
  Transformer model(*backend, loaded.config, std::move(loaded.weights), DType::F32, positions);
  const std::unique_ptr<Method> attached = attach ? attach(model) : nullptr;
  std::vector<float> all;
  for (const std::vector<std::int32_t>& ids : probes) {
    const std::vector<float> logits = to_host<float>(model.logits(make_prompt(*backend, ids, 0)));
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

}  // namespace

void update_rows(std::span<const HostFactors> factors, std::int64_t begin, std::int64_t end,
                 std::span<float> u) {
  std::fill(u.begin(), u.end(), 0.0f);
  constexpr std::int64_t kRowsAtATime = 8;
  for_parts(end - begin, kRowsAtATime, [&](std::int64_t first, std::int64_t last) {
    std::vector<float> product;
    for (std::int64_t row = begin + first; row < begin + last; ++row) {
      for (const HostFactors& f : factors) {
        product.assign(static_cast<std::size_t>(f.in), 0.0f);
        for (std::int64_t k = 0; k < f.rank; ++k) {
          const float b = f.b[static_cast<std::size_t>(row * f.rank + k)];
          const float* a = f.a.data() + k * f.in;
          for (std::int64_t i = 0; i < f.in; ++i) product[static_cast<std::size_t>(i)] += b * a[i];
        }
        const auto scale = static_cast<float>(f.scale);
        float* to = u.data() + (row - begin) * f.in;
        for (std::int64_t i = 0; i < f.in; ++i)
          to[i] += scale * product[static_cast<std::size_t>(i)];
      }
    }
  });
}

// With DoRA, u becomes what its rows change of w: m (w + u) / |w + u| - w, the norm summed in F64.
void rescale_rows(std::span<const float> magnitude, std::int64_t begin, std::int64_t end,
                  std::span<const float> w, std::span<float> u) {
  const std::size_t cols = u.size() / static_cast<std::size_t>(end - begin);
  for_parts(end - begin, 8, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      const std::size_t at = static_cast<std::size_t>(row) * cols;
      double squares = 0;
      for (std::size_t i = at; i < at + cols; ++i) {
        const double x = static_cast<double>(w[i]) + static_cast<double>(u[i]);
        squares += x * x;
      }
      const double m = static_cast<double>(magnitude[static_cast<std::size_t>(begin + row)]),
                   factor = squares > 0 ? m / std::sqrt(squares) : 0;
      for (std::size_t i = at; i < at + cols; ++i)
        u[i] = static_cast<float>(factor * (static_cast<double>(w[i]) + static_cast<double>(u[i])) -
                                  static_cast<double>(w[i]));
    }
  });
}

MergeSource::MergeSource(const std::string& base, const std::vector<WeightedAdapter>& adapters,
                         bool other_base, const BaseStorage& storage)
    : base_(base), adapters_(adapters) {
  std::vector<std::string> doubts;
  for (const WeightedAdapter& adapter : adapters) {
    if (!std::isfinite(adapter.weight))
      throw UsageError(concat("`adapter` ", adapter.folder, ": its weight is not a number"));
    files_.push_back(open_adapter(adapter.folder));
    const AdapterFile& file = files_.back();
    if (file.config.shape.dora && (adapters.size() > 1 || adapter.weight != 1))
      throw UsageError(concat("`adapter` ", adapter.folder,
                              ": DoRA is not a sum of the base and an update: merge it alone and "
                              "without a weight"));
    check_modules(file, base_.config(), base);
    for (const std::string& module : file.config.targets)
      modules_[module].push_back(files_.size() - 1);
    check_whole_weights(file, base_);
    if (other_base) continue;
    try {
      const std::string own = file.base.fingerprint.empty() ? "" : fingerprint();
      if (std::string doubt = check_base(file.folder, file.base, own, base); !doubt.empty())
        doubts.push_back(std::move(doubt));
    } catch (const InputError& e) {
      throw InputError(concat(e.what(), "; `other_base` merges it all the same"));
    }
  }
  std::vector<AdapterBase> trained_on;
  for (const AdapterFile& file : files_) trained_on.push_back({file.folder, file.base});
  held_ = hold_for(base_, storage, trained_on);
  held_.warnings.insert(held_.warnings.begin(), doubts.begin(), doubts.end());
  rows_ = std::make_unique<HeldRows>(base_, held_.storage);
  // Check shapes and values of every factor before anything is written.
  std::vector<bool> moved(files_.size());
  for (const WeightSlot& slot : base_.slots()) {
    if (!is_module(slot) || !modules_.count(module_of(slot))) continue;
    load_factors(slot);
    const std::vector<std::size_t>& owners = modules_.at(module_of(slot));
    for (std::size_t i = 0; i < owners.size(); ++i)
      if (std::any_of(factors_[i].b.begin(), factors_[i].b.end(), [](float v) { return v != 0; }))
        moved[owners[i]] = true;
  }
  for (std::size_t i = 0; i < files_.size(); ++i)
    if (!moved[i]) refuse_untrained(adapters_[i].folder);
}

const std::string& MergeSource::fingerprint() {
  if (fingerprint_.empty()) fingerprint_ = model_fingerprint(base_);
  return fingerprint_;
}

void MergeSource::load_factors(const WeightSlot& slot) {
  const std::string module = module_of(slot);
  if (loaded_ == module) return;
  factors_.clear();
  for (std::size_t i : modules_.at(module)) {
    factors_.push_back(read_factors(files_[i], module, slot.shape[0], slot.shape[1]));
    factors_.back().scale *= adapters_[i].weight;
  }
  loaded_ = module;
}

bool MergeSource::rows(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
                       std::span<float> merged) {
  rows_->read(slot, begin, end, merged.data());
  if (!is_module(slot) || !modules_.count(module_of(slot))) return false;
  load_factors(slot);
  w_.assign(merged.begin(), merged.end());
  u_.resize(merged.size());
  update_rows(factors_, begin, end, u_);
  if (!factors_[0].magnitude.empty()) rescale_rows(factors_[0].magnitude, begin, end, w_, u_);
  for (std::size_t i = 0; i < merged.size(); ++i) merged[i] += u_[i];
  return true;
}

std::unique_ptr<Method> MergeSource::attach(Transformer& model) const {
  if (adapters_.empty()) return nullptr;
  if (adapters_.size() == 1 && adapters_[0].weight == 1)
    return attach_adapter(model, files_[0], files_[0].config, false);
  return attach_sum(model, adapters_, files_);
}

LogitCheck compare_merged(const ModelFile& base, const BaseStorage& storage, const Attach& attach,
                          const std::string& path, const std::string& type, bool rounded) {
  const std::vector<float> wanted = probe_logits(base, storage, attach);
  const std::vector<float> got = probe_logits(ModelFile(path), {}, nullptr);
  check(got.size() == wanted.size(), "merge: the result has other logits than its base");
  auto finite = [](float v) { return std::isfinite(v); };
  if (!std::all_of(wanted.begin(), wanted.end(), finite))
    throw InputError(base.path() + ": with the adapters its logits are not finite");
  require(std::all_of(got.begin(), got.end(), finite), "`type` ", type,
          ": the result's logits are not finite, those of base + adapter are: not written");
  double largest = 0, difference = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(wanted[i])));
    difference = std::max(difference, std::abs(static_cast<double>(got[i]) - wanted[i]));
  }
  // Two ways of computing the same sums in F32 differ by far less.
  check(rounded || difference <= 1e-3 * largest, "merge: the result's logits differ by ",
        difference, " from base + adapter (largest ", largest, "): not written");
  return {largest, difference};
}

}  // namespace lk
