// Compares GPU and CPU where more than one op is involved: loading, and a loss on the host.
#include "autograd/ops.h"
#include "modelfile/load.h"
#include "modelfile/named_shapes.h"
#include "modelfile/weight_hash.h"
#include "parity.h"

using namespace lk;
using namespace lk::test;

namespace {
const std::string kModels = std::string(LK_TEST_DATA) + "/golden/models/";
}

TEST_CASE("cuda: a model's weights on a GPU are those on the CPU, whatever way they take") {
  if (n_gpus() == 0) LK_SKIP("no GPU");
  auto cpu = make_cpu_backend();
  for (const char* name : {"mqa", "gpt2", "gemma3", "tied_gqa.q8_0.gguf", "llama3_rope.bf16.gguf"})
    for (DType t : {DType::F32, DType::BF16}) {
      CAPTURE(name);
      const ModelWeights a = load_weights(*cpu, ModelFile(kModels + name), t).weights;
      const ModelWeights b = load_weights(gpu(), ModelFile(kModels + name), t).weights;
      CHECK(weights_sha256(a) == weights_sha256(b));
    }
  ModelConfig c = named_shape("smollm2-135m");
  c.n_layers = 2;
  CHECK(weights_sha256(random_weights(*cpu, c, DType::BF16, 7)) ==
        weights_sha256(random_weights(gpu(), c, DType::BF16, 7)));
}

TEST_CASE("cuda: a loss on the host has the CPU's value and gradient") {
  if (n_gpus() == 0) LK_SKIP("no GPU");
  for (DType dtype : {DType::F32, DType::BF16})
    for (auto [rows, cols] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 7}, {33, 131}}) {
      auto run = [&, rows = rows, cols = cols](Backend& backend, DType t) {
        Tensor value =
            tensor_from(backend, t, {rows, cols}, rounded(random_values(rows * cols, 5), dtype));
        Tape tape(backend);
        Var x = tape.leaf(value);
        Var loss = host_loss(tape, x, [](std::span<const double> v, std::span<double> dv) {
          double sum = 0;
          for (std::size_t i = 0; i < v.size(); ++i) {
            const double weight = 0.1 * static_cast<double>(i % 13 + 1);
            sum += weight * std::sin(v[i]);
            dv[i] = weight * std::cos(v[i]);
          }
          return sum;
        });
        tape.backward(loss);
        return std::pair(to_host_f64(loss.value()), to_host_f64(tape.gradient(x)));
      };
      auto [loss, dx] = run(gpu(), dtype);
      auto [want, want_dx] = run(oracle(), DType::F64);
      CHECK(std::abs(loss[0] - want[0]) <= 0x1p-23 * std::abs(want[0]));
      check_close(dx, want_dx, 2 * unit_roundoff(dtype), {0}, "host_loss gradient");
    }
}
