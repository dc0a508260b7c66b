#include "text/training_chat.h"

#include <algorithm>

#include "tensor/error.h"

namespace lk {

namespace {

constexpr std::pair<TrainOn, const char*> kTrainOn[] = {
    {TrainOn::Assistant, "assistant"}, {TrainOn::All, "all"}, {TrainOn::Last, "last"}};

// Leaves the ranges of trained turns in a chat that has those of all turns.
void keep_trained(const std::vector<Message>& messages, const std::vector<bool>& trained,
                  RenderedChat& chat) {
  std::vector<std::pair<std::size_t, std::size_t>> kept;
  auto turn = chat.ranges_of_turn.begin();
  auto range = chat.assistant.begin();
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != "assistant") continue;
    const auto end = range + static_cast<std::ptrdiff_t>(*turn++);
    if (trained[i] && range == end) throw InputError(nothing_generated(i));
    if (trained[i]) kept.insert(kept.end(), range, end);
    range = end;
  }
  chat.assistant = std::move(kept);
}

}  // namespace

TrainOn parse_train_on(const std::string& name) {
  for (const auto& [choice, text] : kTrainOn)
    if (name == text) return choice;
  throw UsageError(concat("`train_on` ", name, ": one of assistant, all, last"));
}

const char* train_on_name(TrainOn choice) {
  return kTrainOn[static_cast<std::size_t>(choice)].second;
}

TrainingChat render_for_training(const ChatTemplate& chat_template,
                                 const std::vector<Message>& messages,
                                 const std::vector<bool>& trained, TrainOn choice,
                                 const OrderedJson* tools) {
  TrainingChat out;
  if (choice == TrainOn::Assistant) {
    RenderedChat whole = chat_template.render(messages, false, tools);
    out.written = whole.text;
    if (!whole.rewrites) {
      keep_trained(messages, trained, whole);
      if (!whole.assistant.empty()) out.rows.push_back(std::move(whole));
      return out;
    }
  }
  out.one_a_turn = true;
  const auto last = std::find(trained.rbegin(), trained.rend(), true);
  const auto from = choice == TrainOn::Last ? static_cast<std::size_t>(trained.rend() - last) : 0;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != "assistant") continue;
    if (trained[i] && i + 1 >= from) {
      out.rows.push_back(chat_template.render_turn(messages, i, tools));
      out.written += out.rows.back().text;
    } else {  // a later row may leave out what this turn says
      const std::vector<Message> so_far(messages.begin(), messages.begin() + 1 + std::ptrdiff_t(i));
      out.written += chat_template.render(so_far, true, tools).text;
    }
  }
  return out;
}

}  // namespace lk
