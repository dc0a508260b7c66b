// Rows that a model is scored on: questions with choices, and prompts with reference answers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/dataset.h"

namespace lk {

enum class EvalKind { Loss, Choices, Generation };

// Tells the kind of a file by the keys of the first row that can be read: {"prompt","choices","answer"} are Choices,
// {"prompt","references"} without a completion Generation, all else rows for the loss. InputError
// for data that hold no rows, unless they are named .txt.
EvalKind detect_eval_kind(const ByteSource& data);

struct ChoiceRow {
  std::vector<Row> choices;              // prompt + choice, the choice's tokens supervised
  std::vector<std::int64_t> characters;  // length of each choice in Unicode code points
  std::size_t answer = 0;                // index of the right choice
};

struct ReferenceRow {
  std::string prompt;
  std::vector<std::int32_t> ids;  // the prompt's tokens
  std::vector<std::string> references;
};

struct EvalRowLimits {
  std::int64_t seq_len = 1024;  // most tokens of prompt + choice, or of prompt + generation
  std::int64_t max_rows = -1;   // only the first rows; -1: all
};

// Reads rows {"prompt": text, "choices": [text, ...], "answer": index from 0, or a choice's text}.
// A choice is put right behind the prompt, so it usually begins with a space; no end-of-text token
// follows. There must be at least two choices, all different. InputError naming file, line and key,
// also for a key that is neither used nor a mere record.
std::vector<ChoiceRow> load_choices(const ByteSource& data, const Tokenizer& tokenizer,
                                    const EvalRowLimits& limits);

// Reads rows {"prompt": text, "references": [text, ...]}; without references, "completion" is the
// only one. `max_new` tokens must fit behind each prompt. InputError naming file, line and key, also
// for a key that is neither used nor a mere record.
std::vector<ReferenceRow> load_references(const ByteSource& data, const Tokenizer& tokenizer,
                                          const EvalRowLimits& limits, std::int64_t max_new);

}  // namespace lk
