#include "run/base_loss.h"

#include <algorithm>
#include <cstdio>

#include "modelfile/load.h"
#include "nn/evaluation.h"

namespace lk {
namespace {

constexpr std::int64_t kBatchTokens = 4096;

}  // namespace

double base_loss(Transformer& model, std::span<const Row> rows) {
  const double loss =
      evaluate(model, rows.first(std::min(rows.size(), kBaseLossRows)), kBatchTokens).loss;
  model.backend().trim();
  model.backend().reset_peaks();
  return loss;
}

std::optional<double> dense_base_loss(Backend& backend, const ModelFile& file, DType dtype,
                                      std::int64_t max_position, std::span<const Row> rows,
                                      std::int64_t bytes) {
  const std::int64_t weights =
      file.config().n_parameters() * static_cast<std::int64_t>(dtype_size(dtype));
  if (weights + weights / 4 > bytes)
    return std::nullopt;  // a quarter for what a forward pass needs
  std::optional<double> loss;
  try {
    LoadedModel loaded = load_weights(backend, file, dtype, {});
    Transformer model(backend, loaded.config, std::move(loaded.weights), dtype, max_position);
    loss = base_loss(model, rows);
  } catch (const OutOfMemoryError&) {  // a forward pass took more
  }
  backend.trim();
  backend.reset_peaks();
  return loss;
}

std::string base_loss_text(double dense, double held, const std::string& formats,
                           std::size_t n_rows) {
  char text[160];
  std::snprintf(text, sizeof text, "base: loss %.4f dense, %.4f as %s (%+.4f), on %zu rows", dense,
                held, formats.c_str(), held - dense, std::min(n_rows, kBaseLossRows));
  return text;
}

}  // namespace lk
