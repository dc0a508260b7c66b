#include "lora/lora_init.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numbers>
#include <utility>

#include "lora/lora_linear.h"
#include "lora/svd.h"
#include "nn/streamed_base.h"
#include "nn/transformer.h"
#include "tensor/parts.h"

namespace lk {
namespace {

constexpr std::pair<LoraInit, const char*> kNames[] = {{LoraInit::Kaiming, "kaiming"},
                                                       {LoraInit::Gaussian, "gaussian"},
                                                       {LoraInit::Pissa, "pissa"},
                                                       {LoraInit::Olora, "olora"}};

// A step of its own keeps these draws apart from LoraLinear's and from those of dropout masks.
constexpr std::uint64_t kGaussianStep = (std::uint64_t{1} << 40) - 2;

// Normal numbers by Box and Muller's transform (1958), a pair from two words of Philox.
std::vector<float> normal_values(std::int64_t n, double deviation, const RandomKey& key) {
  std::vector<float> values;
  values.reserve(static_cast<std::size_t>(n + 3));
  for (std::uint64_t draw = 0; std::ssize(values) < n; ++draw) {
    const Philox4 words = philox_at(key, draw);
    for (int pair = 0; pair < 2; ++pair) {
      auto unit = [](std::uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; };
      const double radius = deviation * std::sqrt(-2 * std::log(unit(words.v[2 * pair]))),
                   angle = 2 * std::numbers::pi * unit(words.v[2 * pair + 1]);
      values.push_back(static_cast<float>(radius * std::cos(angle)));
      values.push_back(static_cast<float>(radius * std::sin(angle)));
    }
  }
  values.resize(static_cast<std::size_t>(n));
  return values;
}

void set_values(Parameter& p, const std::vector<float>& values) {
  upload_rounded(p.value().backend(), p.value(), values);
  p.refresh();
}

// A layer, where it is in the model, its W and what becomes of it.
struct Split {
  LoraLinear* layer;
  std::size_t number;
  Site site;
  std::vector<float> w;  // W, then the rest of it
  StartingFactors start;
  std::vector<std::byte> before;  // W's bytes once the base is changed, to undo it
};

// W = s B A + rest, with A and B as `init` says, rounded to F32 before the rest is computed.
void split(Split& one, LoraInit init) {
  const LoraShape& shape = one.layer->shape();
  const std::int64_t rows = one.layer->out_features(), cols = one.layer->in_features(),
                     rank = shape.rank;
  const double s = shape.scale();
  ThinProduct part = init == LoraInit::Pissa ? largest_terms(one.w, rows, cols, rank)
                                             : leading_qr(one.w, rows, cols, rank);
  // PiSSA's s B A is the part itself. OLoRA takes s times Q's and R's part.
  const double factor = init == LoraInit::Pissa ? 1 / std::sqrt(s) : 1;
  auto rounded = [&](const std::vector<double>& values) {
    std::vector<float> out;
    for (double v : values) out.push_back(static_cast<float>(factor * v));
    return out;
  };
  one.start = {rounded(part.right), rounded(part.left)};
  std::vector<double> row(static_cast<std::size_t>(cols));
  for (std::int64_t n = 0; n < rows; ++n) {
    std::fill(row.begin(), row.end(), 0.0);
    for (std::int64_t r = 0; r < rank; ++r) {
      const double b = s * static_cast<double>(one.start.b[static_cast<std::size_t>(n * rank + r)]);
      const float* a = one.start.a.data() + r * cols;
      for (std::int64_t k = 0; k < cols; ++k)
        row[static_cast<std::size_t>(k)] += b * static_cast<double>(a[k]);
    }
    float* w = one.w.data() + n * cols;
    for (std::int64_t k = 0; k < cols; ++k)
      w[k] = static_cast<float>(static_cast<double>(w[k]) - row[static_cast<std::size_t>(k)]);
  }
}

// Undoes what replace_weights() did to a layer. It writes over the rest of W, so that on a device it
// needs no memory that may not be there.
void put_back(Transformer& model, const Split& one) {
  Tensor w = one.layer->base().weight().values();
  Weight original(one.layer->base().weight().name(), w);
  model.backend().upload(w, one.before.data(), one.before.size());
  model.move_weight(one.number, one.site, original);
  model.backend().prepare_linear(original);
  model.move_weight(one.number, one.site, original);
}

void replace_weights(Transformer& model, std::vector<Split>& splits, LoraInit init) {
  Backend& backend = model.backend();
  // A few at a time: the host holds their W in F32, and the bytes of all that are replaced.
  const std::int64_t at_a_time = 4 * part_threads();
  for (std::int64_t begin = 0; begin < std::ssize(splits); begin += at_a_time) {
    const std::int64_t end = std::min(begin + at_a_time, std::ssize(splits));
    const std::span<Split> group(splits.data() + begin, static_cast<std::size_t>(end - begin));
    for (Split& one : group) {
      const std::vector<double> values = to_host_f64(one.layer->base().weight().values());
      one.w.assign(values.begin(), values.end());
    }
    for_parts(end - begin, 1, [&](std::int64_t first, std::int64_t) {
      split(group[static_cast<std::size_t>(first)], init);
    });
    for (Split& one : group) {
      const Weight w = one.layer->base().weight();
      std::vector<std::byte> before(w.values().bytes());
      backend.download(before.data(), w.values(), before.size());
      Tensor rest = backend.empty(Tag::Weights, w.dtype(), w.shape());
      upload_rounded(backend, rest, one.w);
      Weight changed(w.name(), std::move(rest));
      backend.prepare_linear(changed);
      model.move_weight(one.number, one.site, changed);
      one.before = std::move(before);
      set_values(one.layer->a(), one.start.a);
      set_values(one.layer->b(), one.start.b);
      one.layer->set_start(std::move(one.start));
      one.w = {};
    }
  }
}

void take_out_of_base(Transformer& model, const std::vector<LoraLinear*>& layers, LoraInit init) {
  std::vector<Split> splits;
  model.visit_sites(
      [&](const std::string&, std::size_t number, Site site, std::unique_ptr<LinearMap>& map) {
        for (LoraLinear* layer : layers)
          if (layer == map.get()) splits.push_back({layer, number, site, {}, {}, {}});
      });
  require(
      !is_streamed(model.weights()), "`init` ", lora_init_name(init),
      ": changes the base's own numbers, which `offload_base` and `shard_base` never copy back");
  for (const Split& one : splits)
    require(one.layer->base().weight().quantised() == nullptr, "`init` ", lora_init_name(init),
            ": ", one.layer->path(),
            " is quantised, and what is left of it would be rounded again");
  try {
    replace_weights(model, splits, init);
  } catch (...) {
    for (Split& one : splits)
      if (!one.before.empty()) put_back(model, one);
    throw;
  }
  model.backend().reset_peaks();
}

}  // namespace

void StartingFactors::add_to(const Tensor& y, const Tensor& x, double scale) const {
  Backend& backend = x.backend();
  auto factor = [&](const std::vector<float>& values, const Shape& shape) {
    Tensor t = backend.empty(Tag::Workspace, x.dtype(), shape);
    upload_rounded(backend, t, values);
    return t;
  };
  const std::int64_t rank = std::ssize(a) / x.cols();
  Tensor s = backend.empty(Tag::Workspace, x.dtype(), {x.rows(), rank});
  backend.matmul_nt(s, GradMode::Write, 1.0, x, factor(a, {rank, x.cols()}));
  backend.matmul_nt(y, GradMode::Add, scale, s, factor(b, {y.cols(), rank}));
}

LoraInit parse_lora_init(const std::string& name) {
  std::string known;
  for (const auto& [init, its_name] : kNames) {
    if (name == its_name) return init;
    known += (known.empty() ? "" : ", ") + std::string(its_name);
  }
  throw UsageError(concat("`init` ", name, ": one of ", known));
}

const char* lora_init_name(LoraInit init) {
  for (const auto& [one, name] : kNames)
    if (one == init) return name;
  throw UsageError("`init`: no such value");
}

void initialise(Transformer& model, const std::vector<LoraLinear*>& layers, LoraInit init,
                std::uint64_t seed) {
  if (changes_base(init)) take_out_of_base(model, layers, init);
  if (init != LoraInit::Gaussian) return;
  for (LoraLinear* layer : layers)
    set_values(layer->a(),
               normal_values(layer->a().numel(), 1 / static_cast<double>(layer->shape().rank),
                             {seed, kGaussianStep, layer->site()}));
}

}  // namespace lk
