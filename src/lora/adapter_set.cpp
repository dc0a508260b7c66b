#include "lora/adapter_set.h"

#include <algorithm>
#include <chrono>
#include <map>

namespace lk {

// A frozen projection with the factors of all variants on it.
class AdapterSet::Site : public LinearMap {
 public:
  Site(Backend& backend, std::string path, std::unique_ptr<FrozenLinear> base)
      : backend_(backend), path_(std::move(path)), base_(std::move(base)) {}

  Var apply(Tape& tape, const Var& x, const ForwardMode& mode, Output output) override {
    Var y = base_->apply(tape, x, mode, output);
    adapt(tape, y.value(), x.value(), mode);
    return y;
  }
  void adapt(Tape& tape, const Tensor& y, const Tensor& x, const ForwardMode& mode) override {
    if (!mode.variants || table_.max_rank == 0) return;
    check(!tape.recording(), "an adapter set has no backward");
    AdapterKernels* kernels = backend_.adapter_kernels();
    check(kernels != nullptr, path_, ": ", backend_.name(), " has no kernels for adapter sets");
    kernels->lora_segments(y, x, table_, *mode.documents, *mode.variants);
  }
  std::int64_t variants() const override { return std::ssize(table_.host); }
  std::int64_t in_features() const override { return base_->in_features(); }
  std::int64_t out_features() const override { return base_->out_features(); }
  FrozenLinear& frozen() override { return *base_; }

  const std::string& path() const { return path_; }
  // The table with one variant more, to be set once those of all sites are made.
  LoraTable with(LoraFactors factors) const {
    std::vector<LoraFactors> all = table_.host;
    all.push_back(std::move(factors));
    return make_lora_table(backend_, std::move(all));
  }
  void set_table(LoraTable table) noexcept { table_ = std::move(table); }
  std::unique_ptr<FrozenLinear> release_base() { return std::move(base_); }

 private:
  Backend& backend_;
  std::string path_;
  std::unique_ptr<FrozenLinear> base_;
  LoraTable table_;
};

AdapterSet::AdapterSet(Transformer& model) : model_(model) {
  // All sites are made, on copies of the handles to the weights, before the first takes its place.
  std::vector<std::unique_ptr<LinearMap>> made;
  model.visit_sites(
      [&](const std::string& path, std::size_t, lk::Site, std::unique_ptr<LinearMap>& map) {
        const auto* frozen = dynamic_cast<const FrozenLinear*>(map.get());
        require(frozen, path, " already carries an adapter");
        auto site =
            std::make_unique<Site>(model.backend(), path, std::make_unique<FrozenLinear>(*frozen));
        sites_.push_back(site.get());
        places_.push_back(&map);
        made.push_back(std::move(site));
      });
  for (std::size_t i = 0; i < made.size(); ++i) *places_[i] = std::move(made[i]);
}

AdapterSet::~AdapterSet() {
  for (std::size_t i = 0; i < sites_.size(); ++i) *places_[i] = sites_[i]->release_base();
}

std::int32_t AdapterSet::find(const std::string& name) const {
  auto found = std::find_if(infos_.begin(), infos_.end(),
                            [&](const Info& info) { return info.name == name; });
  return found == infos_.end() ? -1 : static_cast<std::int32_t>(found - infos_.begin());
}

std::int32_t AdapterSet::add(const std::string& name, const AdapterFile& file) {
  if (name.empty()) throw UsageError("`adapter`: an adapter's name must not be empty");
  if (find(name) >= 0) throw UsageError(concat("`adapter`: two adapters are called '", name, "'"));
  // Read and check everything before changing anything.
  std::map<std::string, LoraFactors> factors = load_factors(model_, file);
  Info info{name, 0, std::ssize(factors), 0};
  std::vector<LoraTable> tables;
  for (const Site* site : sites_) {
    auto found = factors.find(site->path());
    LoraFactors f = found == factors.end() ? LoraFactors{} : found->second;
    if (f.a.defined()) {
      info.rank = std::max(info.rank, f.a.shape()[0]);
      info.bytes += static_cast<std::int64_t>(f.a.bytes() + f.b_t.bytes());
    }
    tables.push_back(site->with(std::move(f)));
  }
  infos_.push_back(std::move(info));
  for (std::size_t i = 0; i < sites_.size(); ++i) sites_[i]->set_table(std::move(tables[i]));
  return static_cast<std::int32_t>(infos_.size()) - 1;
}

double AdapterSet::switch_seconds(std::int64_t n) {
  Backend& backend = model_.backend();
  const std::vector<std::int32_t> which(static_cast<std::size_t>(n), 0);
  Tensor indices = to_device(backend, Tag::Workspace, which);
  backend.synchronize();
  const auto start = std::chrono::steady_clock::now();
  backend.upload(indices, which.data(), which.size() * sizeof(std::int32_t));
  backend.synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace lk
