// AdapterUse: how an adapter wants to be used, by what it was trained on. The run.json beside an adapter
// says it; PEFT's files have no place for it.
#pragma once

#include <optional>
#include <string>

#include "io/json.h"

namespace lk {

struct AdapterUse {
  bool chats = false;  // trained on chats, else on plain text
  std::optional<std::string> chat_template,
      system = {};  // of the chats: --template; the system turn
                    // that all of them began with
};

// What a run's record (run.json) says of it; nothing if the rows were a program's own.
std::optional<AdapterUse> adapter_use(const Json& run);
// The same of the run.json in an adapter's folder; nothing if there is none that can be read.
std::optional<AdapterUse> read_adapter_use(const std::string& folder);

// The text as one word of a shell.
std::string shell_word(const std::string& text);
// What `generate` needs to say what the adapter learnt to: " --chat --system 'Be kind.'", or "".
std::string use_flags(const AdapterUse& use);

// How `use` differs from a prompt's, for a warning; empty if it does not, as far as is known.
std::string use_doubt(const AdapterUse& use, const AdapterUse& prompts);

}  // namespace lk
