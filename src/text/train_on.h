// TrainOn: which turns of chats are trained, as --train-on says.
#pragma once

#include <string>

namespace lk {

enum class TrainOn {
  Assistant,  // all, in one row; a row each where the template rewrites earlier turns
  All,        // all, a row each: a turn as it is rendered when it is the last
  Last,       // the last of those that are trained at all
};
TrainOn parse_train_on(const std::string& name);  // "assistant", ...; UsageError for another name
const char* train_on_name(TrainOn choice);

}  // namespace lk
