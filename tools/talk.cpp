#include "talk.h"

#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "program.h"
#include "run/conversation.h"

namespace lk::program {
namespace {

// Handles one line of the user; returns false to end the conversation.
bool answer(InferenceModel& m, Conversation& chat, const std::string& line) {
  if (line == "/exit") return false;
  if (line == "/reset") {
    chat.reset();
  } else if (line == "/adapter" || line.starts_with("/adapter ")) {
    chat.set_variant(find_adapter(m, line.size() > 9 ? line.substr(9) : "", "/adapter"));
  } else if (!line.empty()) {
    chat.reply(line, write);
    write("\n");
  }
  return true;
}

}  // namespace

ExitCode talk(InferenceModel& m, const SamplingSettings& sampling, const std::string& chat_template,
              const std::optional<std::string>& system) {
  Conversation chat(*m.model, *m.tokenizer, ChatTemplate::choose(*m.tokenizer, chat_template),
                    sampling, 0, system);
  const bool terminal = ::isatty(STDIN_FILENO) != 0;
  ExitCode code = ExitCode::Done;
  auto failed = [&](std::size_t line, const Error& e) {
    message(terminal ? e.what() : concat("stdin:", line, ": ", e.what()));
    if (!terminal) code = ExitCode::BadInput;
  };
  std::string line;
  for (std::size_t n = 1;; ++n) {
    if (terminal) std::fputs("> ", stderr);
    if (!std::getline(std::cin, line)) break;
    try {
      if (!answer(m, chat, line)) break;
    } catch (const UsageError& e) {  // the conversation is full: say so and go on
      failed(n, e);
    } catch (const InputError& e) {  // not UTF-8, or an unknown adapter
      failed(n, e);
    }
  }
  return code;
}

}  // namespace lk::program
