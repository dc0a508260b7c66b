// A GPT of two layers that reads bytes. All of it is trained on one text (restaurants), then LoRA
// on another (a shop's support desk): the losses on both, and the memory of both from the ledger.
//   05_micro_gpt FOLDER       examples/data
#include "cpu/cpu_backend.h"
#include "gpt.h"
#include "learn.h"
#include "lora/adapter.h"
#include "lora/trainer.h"
#include "methods/full.h"
#include "nn/evaluation.h"

using namespace lk;

namespace {

constexpr std::size_t kTokens = 64;  // of a row
constexpr auto kTags = {Tag::Weights, Tag::Params, Tag::Gradients, Tag::Optimizer};

// Eight rows a step, never of the last 16, which loss_on() reads.
void train(Transformer& model, Method& method, const std::vector<Row>& rows, int steps, double lr) {
  Trainer trainer(model, method, {.schedule = {ScheduleKind::Cosine, lr, 10, steps}});
  for (std::size_t step = 0; step < static_cast<std::size_t>(steps); ++step) {
    std::vector<Row> batch;
    for (std::size_t i = 0; i < 8; ++i)
      batch.push_back(rows[(step * 8 + i) * 7 % (rows.size() - 16)]);
    trainer.step(batch);
  }
  const Ledger& ledger = model.backend().ledger();
  learn::print_tags("", kTags);
  learn::print_live(("bytes, " + method.name()).c_str(), ledger, kTags);
  learn::claim(ledger[Tag::Gradients].live_bytes == 4 * method.n_parameters() &&
                   ledger[Tag::Optimizer].live_bytes == 8 * method.n_parameters(),
               "a gradient of 4 and moments of 8 bytes a trained number, and nothing else");
}

double loss_on(Transformer& model, const std::vector<Row>& rows) {
  return evaluate(model, std::span(rows).last(16), 1024).loss;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string folder = argc > 1 ? argv[1] : "examples/data";
  const auto restaurants = learn::rows_of(folder + "/e2e_train.jsonl", kTokens);
  const auto support = learn::rows_of(folder + "/support.csv", kTokens);
  auto losses = [&](const char* what, Transformer& m) {
    std::printf("%-24s %12.3f %12.3f\n", what, loss_on(m, restaurants), loss_on(m, support));
  };
  std::printf("%-24s %12s %12s\n", "loss a byte", "restaurants", "support");
  auto cpu = make_cpu_backend();
  const ModelConfig config = learn::gpt(128, 64, 2, kTokens);
  ModelWeights trained;
  {
    Transformer model(*cpu, config, random_weights(*cpu, config, DType::F32, 1), DType::F32,
                      kTokens);
    losses("at random", model);
    Full full(model, nullptr);
    train(model, full, restaurants, 300, 3e-3);
    losses("trained on restaurants", model);
    trained = learn::frozen_copy(*cpu, config, full);
  }
  Transformer model(*cpu, config, std::move(trained), DType::F32, kTokens);
  const double before = loss_on(model, support);
  Adapter adapter(model, {.shape = {.rank = 4, .alpha = 8}, .targets = {"all-linear"}});
  train(model, adapter, support, 150, 1e-2);
  losses("and LoRA on support", model);
  learn::claim(loss_on(model, support) < before - 1, "LoRA learns the second text");
  adapter.set_enabled(false);
  losses("the same, LoRA off", model);
  learn::claim(loss_on(model, support) == before, "the base is what it was, to the last bit");
  return learn::broken_claims > 0;
}
