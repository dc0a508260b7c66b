#include "run/adapter_use.h"

#include <algorithm>

#include "io/paths.h"
#include "run/page.h"
#include "tensor/error.h"

namespace lk {
namespace {

std::optional<std::string> text_at(const Json& run, const char* pointer) {
  const Json value = at(run, pointer);
  return value.is_string() ? std::optional(value.get<std::string>()) : std::nullopt;
}

}  // namespace

std::optional<AdapterUse> adapter_use(const Json& run) {
  const Json chats = at(run, "data/chats");
  if (!chats.is_number()) return std::nullopt;
  AdapterUse use{chats.get<double>() > 0, {}, {}};
  if (!use.chats) return use;
  use.chat_template = text_at(run, "settings/run/template");
  use.system = text_at(run, "data/system");
  return use;
}

std::optional<AdapterUse> read_adapter_use(const std::string& folder) {
  const std::string path = folder + "/run.json";
  try {
    if (exists(path)) return adapter_use(read_json(path));
  } catch (const InputError&) {  // it is a record for people: the adapter is used without it
  } catch (const IoError&) {
  }
  return std::nullopt;
}

std::string shell_word(const std::string& text) {
  const bool plain = !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("/._-+=:,@%").find(c) != std::string_view::npos;
  });
  if (plain) return text;
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string use_flags(const AdapterUse& use) {
  if (!use.chats) return "";
  std::string flags = " --chat";
  if (use.chat_template) flags += " --template " + shell_word(*use.chat_template);
  if (use.system) flags += " --system " + shell_word(*use.system);
  return flags;
}

std::string use_doubt(const AdapterUse& use, const AdapterUse& prompts) {
  if (use.chats && !prompts.chats) return "was trained on chats, and this is plain text";
  if (!use.chats && prompts.chats) return "was trained on plain text, and these are chats";
  if (!use.chats) return "";
  if (use.system && !prompts.system)
    return "was trained on chats with a system turn, and these have none";
  if (use.system && use.system != prompts.system)
    return "was trained on chats with another system turn";
  if (use.chat_template && use.chat_template != prompts.chat_template)
    return "was trained on chats of another template";
  return "";
}

}  // namespace lk
