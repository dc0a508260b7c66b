// A conversation with a model, as README.md shows it.
//   chat      (in a folder with model.gguf)
#include <lorikeet/lorikeet.h>

#include <cstdio>

int main() try {
  // region: a chat
  lk::InferenceModel m = lk::open_inference({.model = "model.gguf", .weights = "auto"});
  lk::Conversation chat(*m.model, *m.tokenizer, lk::ChatTemplate::choose(*m.tokenizer),
                        {.stop_ids = m.tokenizer->stop_ids()}, 0, "Be brief.");
  lk::Generation answer = chat.reply("What is a lorikeet?", {});
  // endregion
  std::printf("%s\n", answer.text.c_str());
} catch (const lk::Error& e) {
  std::fprintf(stderr, "error: %s\n", e.what());
  return static_cast<int>(e.code());
}
