// The golden runs of golden/peft/: their settings and results, their initial adapters, and their
// steps.
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "io/json.h"
#include "lora/adapter.h"
#include "lora/trainer.h"
#include "text/dataset.h"
#include "text/sampler.h"

namespace lk::test {

inline const std::string kGolden = std::string(LK_TEST_DATA) + "/golden/peft/";

// A named case: settings and PEFT's results.
struct Golden {
  Json json;
  explicit Golden(const std::string& name)
      : json(Json::parse(std::ifstream(kGolden + name + ".json"))) {}
  explicit Golden(const char* name) : Golden(std::string(name)) {}
  explicit Golden(Json one) : json(std::move(one)) {}
  template <class T>
  T get(const char* key) const {
    return json.at(key).get<T>();
  }
  std::vector<double> numbers(const char* key) const { return get<std::vector<double>>(key); }
};

// Element i of parameter n in (-1, 1), exact in float: the formula of make_peft_golden.py.
inline float formula_value(std::uint64_t n, std::uint64_t i) {
  std::uint64_t z = (n << 32) + i + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return static_cast<float>((2.0 * static_cast<double>(z >> 40) + 1.0) / 16777216.0 - 1.0);
}

inline std::vector<float> values(const Parameter& p) {
  std::vector<float> v(static_cast<std::size_t>(p.numel()));
  p.value().backend().download(v.data(), p.value(), v.size() * sizeof(float));
  return v;
}

// The initial adapter of a case, by formula.
inline void fill_by_formula(Adapter& adapter, double b_bound) {
  std::vector<Parameter*> parameters = adapter.parameters();
  std::sort(parameters.begin(), parameters.end(),
            [](const Parameter* a, const Parameter* b) { return a->name() < b->name(); });
  for (std::size_t n = 0; n < parameters.size(); ++n) {
    Parameter& p = *parameters[n];
    if (p.shape().rank() == 1) continue;  // DoRA's magnitude stays the norms of W's rows
    const bool is_a = p.name().find("lora_A") != std::string::npos;
    const double bound = is_a ? 1.0 / std::sqrt(static_cast<double>(p.shape()[1])) : b_bound;
    std::vector<float> v(static_cast<std::size_t>(p.numel()));
    for (std::size_t i = 0; i < v.size(); ++i)
      v[i] = formula_value(n, i) * static_cast<float>(bound);
    p.value().backend().upload(p.value(), v.data(), v.size() * sizeof(float));
    p.refresh();
  }
}

inline TrainerConfig training(const Golden& golden) {
  TrainerConfig config;
  config.adamw.weight_decay = golden.get<float>("weight_decay");
  config.schedule = {parse_schedule_kind(golden.get<std::string>("schedule")),
                     golden.get<double>("lr"), golden.get<std::int64_t>("warmup"),
                     golden.get<std::int64_t>("steps")};
  config.clip = golden.get<double>("clip");
  return config;
}

// Step number `step`, counted from 0: the next rows in file order.
inline StepReport train_step(Trainer& trainer, const Golden& golden, const Dataset& data,
                             std::int64_t step) {
  const auto accum = golden.get<std::int64_t>("grad_accum");
  Sampler sampler(std::ssize(data.rows), golden.get<std::int64_t>("batch"), false, 0);
  std::vector<std::vector<const Row*>> micro;
  for (std::int64_t g = 0; g < accum; ++g) {
    micro.emplace_back();
    for (std::int64_t i : sampler.batch(step * accum + g))
      micro.back().push_back(&data.rows[static_cast<std::size_t>(i)]);
  }
  return trainer.step(micro);
}

inline std::vector<Row> last_rows(const Dataset& data, const Golden& golden) {
  return {data.rows.end() - golden.get<std::ptrdiff_t>("eval_rows"), data.rows.end()};
}

}  // namespace lk::test
