#include "roofline.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>

namespace lk::bench {
namespace {

// Inputs (never written) and outputs of n_rows rows, one for each width.
class Buffers {
 public:
  Buffers(Backend& backend, DType dtype) : backend_(backend), dtype_(dtype) {}
  const Tensor& input(std::int64_t rows, std::int64_t cols) {
    Tensor& t = inputs_[{rows, cols}];
    if (!t) t = random_tensor(backend_, dtype_, {rows, cols}, 3);
    return t;
  }
  const Tensor& output(std::int64_t rows, std::int64_t cols) {
    Tensor& t = outputs_[{rows, cols}];
    if (!t) t = backend_.empty(Tag::Workspace, dtype_, {rows, cols});
    return t;
  }

 private:
  using Size = std::pair<std::int64_t, std::int64_t>;
  Backend& backend_;
  DType dtype_;
  std::map<Size, Tensor> inputs_, outputs_;
};

struct Product {
  const Weight* w;
  std::int64_t rows;
  bool backward;
};

// Every product of the frozen limit, in the order of a step.
std::vector<Product> frozen_products(const ModelWeights& weights,
                                     const std::vector<std::string>& adapted,
                                     std::int64_t n_tokens) {
  std::vector<Product> forward, backward;
  bool trainable_before = false;
  for (const LayerWeights& l : weights.layers) {
    // Groups of projections that read the same values, in running order.
    const std::vector<std::vector<Site>> groups = {
        {Site::Qkv, Site::Q, Site::K, Site::V}, {Site::O}, {Site::Gate, Site::Up}, {Site::Down}};
    for (const auto& group : groups) {
      for (Site site : group) {
        const Weight& w = l[site].weight;
        if (!w.defined()) continue;
        forward.push_back({&w, n_tokens, false});
        if (trainable_before) backward.push_back({&w, n_tokens, true});
      }
      for (Site site : group)
        trainable_before |= std::any_of(adapted.begin(), adapted.end(), [&](const std::string& a) {
          return l[site].weight.defined() && l[site].weight.name() == a + ".weight";
        });
    }
  }
  // The head runs in chunks of rows: its product is fast without a gigabyte of logits.
  constexpr std::int64_t kHeadRows = 4096;
  for (std::int64_t begin = 0; begin < n_tokens; begin += kHeadRows) {
    const std::int64_t rows = std::min(kHeadRows, n_tokens - begin);
    forward.push_back({&weights.head, rows, false});
    if (trainable_before) forward.push_back({&weights.head, rows, true});
  }
  forward.insert(forward.end(), backward.rbegin(), backward.rend());
  return forward;
}

}  // namespace

Tensor random_tensor(Backend& backend, DType dtype, Shape shape, unsigned seed) {
  Tensor t = backend.empty(Tag::Workspace, dtype, shape);
  std::mt19937 rng(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> block(65537);  // prime: no two rows of a matrix are alike
  for (float& x : block) x = uniform(rng);
  dispatch_float(dtype, [&]<class T>() {
    std::vector<T> values(static_cast<std::size_t>(t.numel()));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<T>(block[i % block.size()]);
    backend.upload(t, values.data(), values.size() * sizeof(T));
  });
  return t;
}

double median_seconds(Backend& backend, int runs, const std::function<void()>& call) {
  std::unique_ptr<DeviceClock> clock = backend.make_clock();
  call();
  backend.synchronize();
  clock->mark();
  for (int i = 0; i < runs; ++i) {
    call();
    clock->mark();
  }
  std::vector<double> seconds = clock->read();
  std::adjacent_difference(seconds.begin(), seconds.end(), seconds.begin());
  std::sort(seconds.begin() + 1, seconds.end());
  return seconds[1 + (seconds.size() - 1) / 2];
}

Roofs measure_roofs(Backend& backend, DType dtype) {
  const bool cpu = backend.name() == "cpu";
  Roofs roofs;
  {
    const std::int64_t n = cpu ? 2048 : 8192;
    Tensor a = random_tensor(backend, dtype, {n, n}, 1),
           y = random_tensor(backend, dtype, {n, n}, 2);
    // A frozen weight, because the CPU packs those for its fastest product.
    Weight w("roof", random_tensor(backend, dtype, {n, n}, 3));
    backend.prepare_linear(w);
    const double seconds =
        median_seconds(backend, cpu ? 3 : 10, [&] { backend.linear_forward(y, a, w); });
    roofs.flops_per_second = 2 * std::pow(static_cast<double>(n), 3) / seconds;
  }
  {
    const std::int64_t n = cpu ? std::int64_t{1} << 24 : std::int64_t{1} << 28;
    Tensor x = random_tensor(backend, DType::F32, {n}, 1),
           y = backend.empty(Tag::Workspace, DType::F32, {n});
    const double seconds = median_seconds(backend, cpu ? 3 : 10, [&] { backend.copy(y, x); });
    roofs.bytes_per_second = 2 * static_cast<double>(x.bytes()) / seconds;
  }
  return roofs;
}

double nominal_bf16_flops(const std::string& description) {
  // From NVIDIA's data sheets, dense; the first matching name counts. PCIe and NVL cards are
  // slower.
  static constexpr struct {
    const char* name;
    double flops;
  } kCards[] = {{"H100 PCIe", 756e12}, {"H100 NVL", 835e12}, {"H200 NVL", 835e12},
                {"H100", 989e12},      {"H200", 989e12},     {"A100", 312e12}};
  for (const auto& card : kCards)
    if (description.find(card.name) != std::string::npos) return card.flops;
  return 0;
}

double frozen_gemm_seconds(Backend& backend, const ModelWeights& weights, DType dtype,
                           const std::vector<std::string>& adapted, std::int64_t n_tokens,
                           int runs) {
  Buffers buffers(backend, dtype);
  const std::vector<Product> products = frozen_products(weights, adapted, n_tokens);
  return median_seconds(backend, runs, [&] {
    for (const auto& [w, rows, backward] : products) {
      const std::int64_t N = w->shape()[0], K = w->shape()[1];
      if (backward)
        backend.linear_backward_x(buffers.output(rows, K), GradMode::Write, buffers.input(rows, N),
                                  *w);
      else
        backend.linear_forward(buffers.output(rows, N), buffers.input(rows, K), *w);
    }
  });
}

std::int64_t matmul_parameters(const ModelConfig& c) {
  const std::int64_t attention = c.hidden_size * (2 * c.q_size() + 2 * c.kv_size());
  return c.n_layers * (attention + 3 * c.hidden_size * c.intermediate_size) +
         c.vocab_size * c.hidden_size;
}

double useful_flops_per_token(const ModelConfig& c, std::int64_t seq_len) {
  // A product of attention takes 2 * (H D) * seq_len / 2 FLOPs a token.
  const double attention = 6.0 * static_cast<double>(c.n_layers * c.q_size() * seq_len);
  return 4.0 * static_cast<double>(matmul_parameters(c)) + attention;
}

}  // namespace lk::bench
