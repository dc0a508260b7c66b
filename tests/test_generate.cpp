// Generation: would catch a KV cache off by one, positions that restart, sampling that ignores its
// seed.
#include "nn/generate.h"
#include "tensor/cpu/cpu_backend.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

TEST_CASE("logits with a KV cache equal the logits of the whole sequence, F64") {
  auto backend = make_cpu_backend(CpuMode::Reference);
  auto model = tiny_transformer(*backend, DType::F64);
  std::vector<Row> rows = random_rows({23}, 9);
  std::vector<double> whole = to_host_f64(model->logits(make_batch(*backend, pointers(rows))));
  KvCache cache(*backend, model->config(), DType::F64, 23);
  const auto& ids = rows[0].ids;
  const std::size_t V = 61;
  auto row = [&](std::size_t i) {
    return std::vector<double>(whole.begin() + static_cast<std::ptrdiff_t>(i * V),
                               whole.begin() + static_cast<std::ptrdiff_t>((i + 1) * V));
  };
  // A prompt of 10, then three tokens at once, then one at a time.
  std::size_t at = 0;
  for (std::size_t n : {10, 3, 1, 1, 1, 7}) {
    std::span<const std::int32_t> part(ids.data() + at, n);
    Tensor logits =
        model->next_logits(make_prompt(*backend, part, static_cast<std::int64_t>(at)), cache);
    at += n;
    check_close(to_host_f64(logits), row(at - 1), 1e-12, {1e-12}, "cached logits");
  }
  CHECK(cache.length() == 23);
  CHECK_THROWS_AS(
      model->next_logits(make_prompt(*backend, std::vector<std::int32_t>{1}, 23), cache), Error);
}

TEST_CASE("greedy generation follows the largest logit and stops where told") {
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  std::vector<std::int32_t> prompt{1, 2, 3};
  SamplingSettings settings;
  settings.max_tokens = 20;
  Generation g = generate(*model, prompt, settings);
  REQUIRE(g.ids.size() == 20);
  CHECK(!g.stopped);
  std::vector<std::int32_t> text = prompt;
  for (std::int32_t id : g.ids) {  // the slow way: the whole sequence each time
    TokenBatch b = make_prompt(*backend, text, 0);
    std::vector<double> logits = to_host_f64(model->logits(b));
    auto last = logits.end() - 61;
    CHECK(id == std::max_element(last, logits.end()) - last);
    text.push_back(id);
  }
  settings.stop_ids = {g.ids[5]};
  Generation stopped = generate(*model, prompt, settings);
  CHECK(stopped.stopped);
  CHECK(stopped.ids.size() <= 5);
  CHECK_THROWS_AS(generate(*model, {}, settings), UsageError);
  CHECK_THROWS_AS(generate(*model, std::vector<std::int32_t>(256, 1), settings), UsageError);
}

TEST_CASE("sampling obeys temperature, top-k, top-p and its seed") {
  std::vector<float> logits{0, 1, 2, 3, 4, -50};
  SamplingSettings s;
  CHECK(sample_token(logits, s, 0) == 4);
  s.temperature = 1;
  std::vector<int> counts(6);
  for (int i = 0; i < 20000; ++i) ++counts[static_cast<std::size_t>(sample_token(logits, s, i))];
  double z = 0;
  for (float l : logits) z += std::exp(l);
  for (std::size_t i = 0; i < 6; ++i) {
    double p = std::exp(logits[i]) / z;
    CHECK(std::abs(counts[i] - 20000 * p) < 5 * std::sqrt(20000 * p * (1 - p)) + 1);
  }
  s.top_k = 2;
  for (int i = 0; i < 200; ++i) CHECK(sample_token(logits, s, i) >= 3);
  s.top_k = 0;
  s.top_p = 0.5;  // the largest alone has 0.64
  for (int i = 0; i < 200; ++i) CHECK(sample_token(logits, s, i) == 4);
  s.top_p = 1;
  bool differs = false;
  SamplingSettings other = s;
  other.seed = 1;
  for (int i = 0; i < 50; ++i) {
    CHECK(sample_token(logits, s, i) == sample_token(logits, s, i));
    differs = differs || sample_token(logits, s, i) != sample_token(logits, other, i);
  }
  CHECK(differs);
  std::vector<float> bad{std::nanf(""), std::nanf("")};
  CHECK_THROWS_AS(sample_token(bad, s, 0), NonFiniteError);
}
