// What quantising a base as it is loaded costs it: its own loss, before anything trains.
#pragma once

#include <optional>
#include <span>

#include "modelfile/model_file.h"
#include "nn/transformer.h"

namespace lk {

// The model's mean loss over the supervised tokens of the first rows, at most kBaseLossRows of them.
// Its device's peaks begin anew.
inline constexpr std::size_t kBaseLossRows = 8;
double base_loss(Transformer& model, std::span<const Row> rows);

// The same of the file's weights in `dtype`, dense. They are gone from the device afterwards, and its
// peaks begin anew. Nothing if they need more than `bytes`.
std::optional<double> dense_base_loss(Backend& backend, const ModelFile& file, DType dtype,
                                      std::int64_t max_position, std::span<const Row> rows,
                                      std::int64_t bytes);

// "base: loss 2.8312 dense, 2.8330 as fp8 x 210 (+0.0018), on 8 rows"
std::string base_loss_text(double dense, double held, const std::string& formats,
                           std::size_t n_rows);

}  // namespace lk
