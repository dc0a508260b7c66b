// Chats as rows to train on: one row of all turns, or a row for each turn.
#pragma once

#include <string>
#include <vector>

#include "text/chat_template.h"
#include "text/train_on.h"

namespace lk {

struct TrainingChat {
  // Each with the ranges to train on in `assistant`; none if no turn is trained.
  std::vector<RenderedChat> rows;
  bool one_a_turn = false;  // each row ends with the one turn it trains
  std::string written;      // all that the template makes of the chat, row after row
};

// `trained`: of each message, whether it is a turn to train on. InputError if the template refuses
// the chat, or its turns can't be told from what stands around them.
TrainingChat render_for_training(const ChatTemplate& chat_template,
                                 const std::vector<Message>& messages,
                                 const std::vector<bool>& trained, TrainOn choice,
                                 const OrderedJson* tools);

}  // namespace lk
