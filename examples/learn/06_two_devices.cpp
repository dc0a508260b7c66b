// One LoRA step on the CPU and on a GPU. What is drawn or copied has equal bits. What is summed has
// not, because each device adds in its own order; but each device repeats its own bits. Without a
// GPU the program shows the CPU's half and says so (exit code 77: skipped).
#include <algorithm>
#include <cmath>
#include <map>

#include "cuda/open_device.h"
#include "learn.h"
#include "lora/lora_linear.h"
#include "nn/adamw.h"
#include "tensor/sample.h"

using namespace lk;

namespace {
constexpr std::int64_t T = 64, K = 96, N = 80, R = 8;
using Results = std::map<std::string, std::vector<double>>;  // an F32 number is exact as a double

Results step(Backend& backend) {
  Results results;
  auto keep = [&](const char* name, const Tensor& t) { results[name] = to_host_f64(t); };
  const Tensor x = random_tensor(backend, DType::F32, {T, K}, 1);
  const Weight w("w", random_tensor(backend, DType::F32, {N, K}, 2, 0.1));
  Parameter a("A", backend.empty(Tag::Params, DType::F32, {R, K}), DType::F32);
  Parameter b("B", backend.empty(Tag::Params, DType::F32, {N, R}), DType::F32);
  backend.uniform(a.value(), 0.1f, {7, 0, 1});
  backend.uniform(b.value(), 0.1f, {7, 0, 2});
  keep("1 A drawn", a.value());
  const RandomKey key{7, 0, 3};
  Tensor dropped = backend.empty(Tag::Workspace, DType::F32, {T, K});
  backend.dropout(dropped, GradMode::Write, x, 0.25f, key);
  keep("2 dropout(x)", dropped);

  AdamW optimizer({&a, &b}, {});
  Tape tape(backend);
  Var y = lora_linear(tape, Var(x), w, nullptr, a, b, 2.0, 0.25f, key);
  Var loss = host_loss(tape, y, [](std::span<const double> value, std::span<double> dy) {
    double sum = 0;
    for (std::size_t i = 0; i < value.size(); ++i) sum += value[i] * value[i] / 2, dy[i] = value[i];
    return sum;
  });
  keep("3 y", y.value()), keep("4 loss", loss.value());
  tape.backward(loss);
  keep("5 dA", a.grad()), keep("6 dB", b.grad());
  optimizer.step(1e-3f, 1.0f, optimizer.grad_norm_sq());
  keep("7 A after AdamW", a.value());
  return results;
}

}  // namespace

int main() {
  auto cpu = open_device("cpu");
  const Results here = step(*cpu);
  learn::claim(here == step(*cpu), "the CPU repeats its bits");
  if (n_gpus() == 0) {
    std::printf("SKIPPED: there is no GPU to compare with\n");
    return learn::broken_claims > 0 ? 1 : 77;
  }
  auto gpu = open_device("cuda:0");
  const Results there = step(*gpu);
  learn::claim(there == step(*gpu), "the GPU repeats its bits");
  bool drawn = true, near = true;
  for (const auto& [name, values] : here) {
    double largest = 0, difference = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      largest = std::max(largest, std::abs(values[i]));
      difference = std::max(difference, std::abs(values[i] - there.at(name)[i]));
    }
    if (name < "3") drawn &= difference == 0;
    near &= difference <= 8 * K * 0x1p-24 * largest;  // a sum of K products, each rounded to F32
    std::printf("%-16s %-12s largest difference %.1e of the largest value\n", name.c_str(),
                difference == 0 ? "equal bits" : "nearly equal", difference / largest);
  }
  learn::claim(drawn, "what Philox draws has equal bits on both");
  learn::claim(near, "what is summed differs by rounding");
  return learn::broken_claims > 0;
}
