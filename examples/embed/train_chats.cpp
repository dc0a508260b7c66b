// Training on chats that the program has in memory, hearing of each step, and asking the result, as
// README.md shows it.
//   train_chats    (in a folder with model.gguf; makes the folder greeter)
#include <lorikeet/lorikeet.h>

#include <atomic>
#include <cstdio>

namespace {

// region: a listener
struct Progress : lk::FinetuneListener {
  void stepped(const lk::StepReport& step, const lk::StepProgress& run) override {
    std::printf("step %lld: loss %.3f, %.0f s left\n", static_cast<long long>(step.step), step.loss,
                run.seconds_left);
  }
};
// endregion

}  // namespace

int main() try {
  // region: training on chats
  auto tokenizer = lk::open_tokenizer("model.gguf");
  const auto chat_template = lk::ChatTemplate::choose(*tokenizer);
  lk::FinetuneRows rows{.chats = true, .system = "You greet."};
  for (const char* name : {"Ada", "Grace", "Edsger"})
    for (lk::Row& row : lk::make_chat_rows(*tokenizer, chat_template,
                                           {{"system", "You greet."},
                                            {"user", std::string("I am ") + name + "."},
                                            {"assistant", std::string("Hello ") + name + "!"}}))
      rows.train.push_back(std::move(row));
  lk::FinetuneSettings settings{.model = "model.gguf", .out = "greeter", .steps = 4};
  Progress progress;
  std::atomic<int> stop = 0;  // another number ends the run after a checkpoint
  lk::finetune(settings, rows, progress, stop);

  lk::InferenceModel m = lk::open_inference({.model = "model.gguf", .adapter = "greeter"});
  lk::Conversation chat(*m.model, *m.tokenizer, chat_template,
                        {.stop_ids = m.tokenizer->stop_ids()}, 0, "You greet.");
  lk::Generation answer = chat.reply("I am Barbara.", {});
  // endregion
  std::printf("%s\n", answer.text.c_str());
} catch (const lk::Error& e) {
  std::fprintf(stderr, "error: %s\n", e.what());
  return static_cast<int>(e.code());
}
