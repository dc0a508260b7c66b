// The library in a few lines, as README.md shows it: one step of LoRA on one row.
//   readme    (in a folder with model.gguf; writes adapters/mine)
#include <lorikeet/lorikeet.h>

#include <cstdio>

int main() try {
  // region: the library
  lk::InferenceModel m = lk::open_inference({.model = "model.gguf"});
  lk::Adapter adapter(*m.model, {.shape = {.rank = 8, .alpha = 16}, .targets = {"all-linear"}});
  adapter.lay_out_for_training();  // optional: faster steps on a GPU
  lk::Trainer trainer(*m.model, adapter, {});
  std::vector<lk::Row> rows{lk::make_row(*m.tokenizer, "2 + 2 =", " 4")};
  lk::StepReport report = trainer.step(rows);
  lk::save_adapter("adapters/mine", adapter, "model.gguf", lk::model_fingerprint("model.gguf"));
  // endregion
  std::printf("loss %.4f\n", report.loss);
} catch (const lk::Error& e) {
  std::fprintf(stderr, "error: %s\n", e.what());
  return static_cast<int>(e.code());
}
