#include "lora/own_loss.h"

namespace lk {

LossFunction loss_on_host(std::function<double(const LossRows&)> loss) {
  if (!loss) throw UsageError("loss_on_host: no function given");
  return [loss = std::move(loss)](Tape& tape, const Var& logits, const TokenBatch& batch,
                                  double scale) {
    const auto targets = to_host<std::int32_t>(batch.targets);
    const std::int64_t vocab = logits.value().cols();
    return host_loss(tape, logits, [&](std::span<const double> x, std::span<double> dx) {
      return loss({vocab, targets, x, dx, scale});
    });
  };
}

}  // namespace lk
