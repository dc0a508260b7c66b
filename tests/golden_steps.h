// Steps as the makers of golden numbers take them: three rows a step in file order, AdamW at a
// constant rate.
#pragma once

#include <vector>

#include "io/json.h"
#include "lora/trainer.h"

namespace lk::test {

// [[ids, where supervision begins], ...]
inline std::vector<Row> rows_of(const Json& rows) {
  std::vector<Row> all;
  for (const Json& r : rows) {
    Row& row = all.emplace_back();
    row.ids = r[0].get<std::vector<std::int32_t>>();
    for (std::size_t i = 0; i < row.ids.size(); ++i)
      row.supervised.push_back(i >= r[1].get<std::size_t>());
  }
  return all;
}

// With the rate and the decay of `json`, without clipping.
inline TrainerConfig at_constant_rate(const Json& json) {
  TrainerConfig config;
  config.adamw.weight_decay = json["weight_decay"].get<float>();
  config.schedule = {ScheduleKind::Constant, json["lr"].get<double>(), 0, 10};
  config.clip = 0;
  return config;
}

// The loss of step k, counted from 0.
inline double step(Trainer& trainer, const std::vector<Row>& rows, std::size_t k) {
  std::vector<std::vector<const Row*>> micro(1);
  for (std::size_t i = 0; i < 3; ++i) micro[0].push_back(&rows[(3 * k + i) % rows.size()]);
  return trainer.step(micro).loss;
}

}  // namespace lk::test
