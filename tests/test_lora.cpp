// The LoRA layer and its attachment: would catch a wrong scale, a transposed factor, a mask that
// differs between forward and backward, a target that silently matches nothing.
#include "autograd/gradcheck.h"
#include "cpu/cpu_backend.h"
#include "lora/joined.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

// W + s B A as a dense weight, computed on the host in double.
std::vector<double> merged(const LoraLinear& layer) {
  std::vector<double> w = to_host_f64(layer.base().weight().values());
  std::vector<double> a = to_host_f64(layer.a().value()), b = to_host_f64(layer.b().value());
  const std::int64_t n = layer.out_features(), k = layer.in_features(), r = layer.shape().rank;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < k; ++j)
      for (std::int64_t t = 0; t < r; ++t)
        w[static_cast<std::size_t>(i * k + j)] += layer.shape().scale() *
                                                  b[static_cast<std::size_t>(i * r + t)] *
                                                  a[static_cast<std::size_t>(t * k + j)];
  return w;
}

}  // namespace

TEST_CASE("lora_linear equals the dense map W + s B A") {
  auto backend = make_cpu_backend(CpuMode::Reference);
  auto model = tiny_transformer(*backend, DType::F64);
  Adapter adapter(*model, tiny_lora({"mlp.down_proj"}));
  randomize_b(adapter, 11, 1.0);
  LoraLinear& layer = *adapter.layers()[1];
  Tensor x = random_tensor(*backend, DType::F64, {5, layer.in_features()}, 2);
  Tape tape(*backend, Tape::Mode::NoGrad);
  Var y = layer.apply(tape, Var(x), {});
  Weight dense("dense", tensor_from(*backend, DType::F64,
                                    {layer.out_features(), layer.in_features()}, merged(layer)));
  Tensor want = backend->empty(Tag::Workspace, DType::F64, {5, layer.out_features()});
  backend->linear_forward(want, x, dense);
  check_close(to_host_f64(y.value()), to_host_f64(want), 1e-12, {1e-12}, "lora vs dense");
}

TEST_CASE("a fresh adapter leaves every logit bit-equal to the base") {
  for (DType dtype : {DType::F32, DType::BF16}) {
    auto backend = make_cpu_backend();
    auto model = tiny_transformer(*backend, dtype);
    std::vector<Row> rows = random_rows({9, 17, 1, 30}, 5);
    TokenBatch batch = make_batch(*backend, pointers(rows));
    std::vector<double> base = to_host_f64(model->logits(batch));
    Adapter adapter(*model, tiny_lora());
    CHECK(to_host_f64(model->logits(batch)) == base);
    randomize_b(adapter, 1);
    CHECK(to_host_f64(model->logits(batch)) != base);
    adapter.set_enabled(false);
    CHECK(to_host_f64(model->logits(batch)) == base);
  }
}

TEST_CASE("an adapter that ends leaves the base, and its place to another") {
  for (bool joined : {false, true}) {
    auto backend = make_cpu_backend(CpuMode::Reference);
    auto model = tiny_transformer(*backend, DType::F32);
    const std::vector<Row> rows = random_rows({9, 17}, 5);
    auto logits = [&] { return to_host_f64(model->logits(make_batch(*backend, pointers(rows)))); };
    const std::vector<double> base = logits();
    for (int life = 0; life < 2; ++life) {
      Adapter adapter(*model, tiny_lora());
      if (joined) REQUIRE(join_projections(*model, adapter));
      randomize_b(adapter, 1);
      CHECK(logits() != base);
    }
    CHECK(logits() == base);
    model->visit_sites([](const std::string& path, std::size_t, Site, auto& map) {
      CHECK_MESSAGE(dynamic_cast<FrozenLinear*>(map.get()), path);
    });
  }
}

TEST_CASE("an adapter that finds no memory leaves the model as it was, at whichever allocation") {
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::BF16);
  const std::vector<Row> rows = random_rows({9}, 5);
  auto logits = [&] { return to_host_f64(model->logits(make_batch(*backend, pointers(rows)))); };
  const std::vector<double> base = logits();
  auto live = [&] { return backend->ledger().total().live_bytes; };
  const std::int64_t before = live();
  int refusals = 0;
  for (std::int64_t room = 1;; room += 1000) {
    backend->set_memory_limit(before + room);
    try {
      const Adapter adapter(*model, tiny_lora());
      break;
    } catch (const OutOfMemoryError&) {
      ++refusals;
    }
    backend->set_memory_limit(0);
    REQUIRE(live() == before);
    model->visit_sites([](const std::string& path, std::size_t, Site, auto& map) {
      REQUIRE_MESSAGE(dynamic_cast<FrozenLinear*>(map.get()), path);
    });
  }
  CHECK(refusals > 20);
  backend->set_memory_limit(0);
  CHECK(live() == before);
  CHECK(logits() == base);
  LoraConfig absurd = tiny_lora();
  absurd.wide_ranks = true;
  absurd.shape.rank = INT64_MAX / 2;
  CHECK_THROWS_AS(Adapter(*model, absurd), UsageError);
  CHECK(logits() == base);
}

TEST_CASE("PiSSA that finds no memory puts back what it took out of the base") {
  for (DType dtype : {DType::F32, DType::BF16}) {
    auto backend = make_cpu_backend();
    auto model = tiny_transformer(*backend, dtype);
    const std::vector<Row> rows = random_rows({9}, 5);
    auto logits = [&] { return to_host_f64(model->logits(make_batch(*backend, pointers(rows)))); };
    const std::vector<double> base = logits();
    const std::int64_t before = backend->ledger().total().live_bytes;
    LoraConfig config = tiny_lora();
    config.init = LoraInit::Pissa;
    std::int64_t whole = 0;  // what an adapter takes, over what the model had
    {
      auto other = tiny_transformer(*backend, dtype);
      const std::int64_t live = backend->ledger().total().live_bytes;
      const Adapter adapter(*other, config);
      whole = backend->ledger().total().live_bytes - live;
    }
    int refusals = 0;
    for (std::int64_t room = whole / 2;; room += 500) {
      backend->set_memory_limit(before + room);
      try {
        const Adapter adapter(*model, config);
        break;
      } catch (const OutOfMemoryError&) {
        ++refusals;
      }
      backend->set_memory_limit(0);
      REQUIRE(backend->ledger().total().live_bytes == before);
      REQUIRE(logits() == base);
    }
    CHECK(refusals > 5);
    backend->set_memory_limit(0);
    CHECK(logits() != base);  // W - s B A is left where it found room
  }
}

TEST_CASE("A is Kaiming-uniform, B is zero, and the seed decides") {
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  Adapter adapter(*model, tiny_lora());
  auto other = tiny_transformer(*backend, DType::F32);
  Adapter same(*other, tiny_lora());
  REQUIRE(adapter.layers().size() == 14);
  for (std::size_t i = 0; i < adapter.layers().size(); ++i) {
    LoraLinear* layer = adapter.layers()[i];
    const double bound = 1.0 / std::sqrt(static_cast<double>(layer->in_features()));
    std::vector<double> a = to_host_f64(layer->a().value());
    double largest = 0, sum = 0;
    for (double v : a) largest = std::max(largest, std::abs(v)), sum += v;
    CHECK(largest <= bound);
    CHECK(largest > 0.8 * bound);
    CHECK(std::abs(sum / static_cast<double>(a.size())) < 0.3 * bound);
    CHECK(a == to_host_f64(same.layers()[i]->a().value()));
    if (i > 0) CHECK(a != to_host_f64(adapter.layers()[i - 1]->a().value()));
    for (double v : to_host_f64(layer->b().value())) CHECK(v == 0);
  }
  CHECK(adapter.untouched().size() == 14);
}

TEST_CASE("targets match as in PEFT, and a target that matches nothing is refused") {
  CHECK(target_matches("model.layers.0.self_attn.q_proj", "q_proj"));
  CHECK(target_matches("model.layers.0.self_attn.q_proj", "self_attn.q_proj"));
  CHECK(!target_matches("model.layers.0.self_attn.q_proj", "_proj"));
  CHECK(!target_matches("model.layers.10.mlp.up_proj", "layers.0.mlp.up_proj"));
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  CHECK_THROWS_WITH_AS(Adapter(*model, tiny_lora({"q_proj", "query"})), doctest::Contains("query"),
                       UsageError);
  LoraConfig wide = tiny_lora();
  wide.shape.rank = 1000;
  CHECK_THROWS_AS(Adapter(*model, wide), UsageError);
  Adapter some(*model, tiny_lora({"v_proj", "layers.1.mlp.up_proj"}));
  CHECK(some.layers().size() == 3);
  CHECK(some.n_parameters() == 2 * 4 * (24 + 16) + 4 * (24 + 40));
  CHECK_THROWS_AS(Adapter(*model, tiny_lora({"v_proj"})), Error);  // already has one
}

TEST_CASE("lora_linear's gradients pass the F64 check") {
  for (float dropout : {0.0f, 0.4f}) {
    auto backend = make_cpu_backend(CpuMode::Reference);
    const std::int64_t T = 5, K = 7, N = 6, R = 3;
    Weight w("w", random_tensor(*backend, DType::F64, {N, K}, 1));
    Weight bias("bias", random_tensor(*backend, DType::F64, {N}, 2));
    Parameter a("a", random_tensor(*backend, DType::F64, {R, K}, 3), DType::F64);
    Parameter b("b", random_tensor(*backend, DType::F64, {N, R}, 4), DType::F64);
    RandomKey key{9, 4, 2};
    auto f = [&](Tape& tape, const std::vector<Var>& in) {
      return lora_linear(tape, in[0], w, &bias, a, b, 1.7, dropout, key);
    };
    GradcheckResult r =
        gradcheck(*backend, f, {random_tensor(*backend, DType::F64, {T, K}, 5)}, {&a, &b});
    CHECK_MESSAGE(r.ok, r.message);
  }
}
