// Lorikeet inside another program: ten steps of LoRA on the program's own rows, with a custom loss.
//   embed MODEL    (a .gguf file or a Hugging Face folder)
#include <lorikeet/lorikeet.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace {

// Cross-entropy with label smoothing: a tenth of the target's probability is spread over the
// vocabulary. Returns the loss and fills its gradient, for the logits of every supervised token.
double smoothed(const lk::LossRows& rows) {
  constexpr double kSmoothing = 0.1;
  double loss = 0;
  const double share = kSmoothing / static_cast<double>(rows.vocab);
  for (std::size_t i = 0; i < rows.targets.size(); ++i) {
    const std::span<const double> x = rows.logits_of(i);
    const std::span<double> dx = rows.gradient_of(i);
    const auto target = static_cast<std::size_t>(rows.targets[i]);
    const double top = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double value : x) sum += std::exp(value - top);
    for (std::size_t v = 0; v < x.size(); ++v) {
      const double wanted = share + (v == target ? 1 - kSmoothing : 0);
      const double log_p = x[v] - top - std::log(sum);
      loss -= rows.scale * wanted * log_p;
      dx[v] = rows.scale * (std::exp(log_p) - wanted);
    }
  }
  return loss;
}

std::string answer(lk::InferenceModel& m, const std::string& prompt) {
  lk::SamplingSettings sampling;
  sampling.max_tokens = 12;
  sampling.stop_ids = m.tokenizer->stop_ids();
  return m.tokenizer->decode(
      lk::generate(*m.model, m.tokenizer->encode_prompt(prompt).ids, sampling).ids);
}

void run(const std::string& model) {
  lk::InferenceSettings settings;
  settings.model = model;
  settings.device = "cpu";
  settings.log = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  lk::InferenceModel m = lk::open_inference(settings);

  const std::string prompt = "The colour of a lorikeet is";
  std::vector<lk::Row> rows;
  for (const char* completion : {" green, blue and red.", " never grey."})
    rows.push_back(lk::make_row(*m.tokenizer, prompt, completion));

  lk::Adapter adapter(*m.model, {.shape = {.rank = 4, .alpha = 8}, .targets = {"all-linear"}});
  adapter.lay_out_for_training();  // optional: faster steps on a GPU
  lk::TrainerConfig config;
  config.schedule.lr = 2e-3;
  config.loss = lk::loss_on_host(smoothed);
  lk::Trainer trainer(*m.model, adapter, config);
  std::printf("before: %s\n", answer(m, prompt).c_str());
  for (int step = 0; step < 10; ++step) {
    const lk::StepReport report = trainer.step(rows);
    std::printf("step %2d  loss %.4f\n", static_cast<int>(report.step), report.loss);
  }
  std::printf("after: %s\n", answer(m, prompt).c_str());
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) throw lk::UsageError("usage: embed MODEL");
  run(argv[1]);
} catch (const lk::Error& e) {  // it names what and where; code() is the kind of error
  std::fprintf(stderr, "error: %s\n", e.what());
  return static_cast<int>(e.code());
}
