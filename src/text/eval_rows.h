// Rows that a model is scored on: questions with choices, and prompts with reference answers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "text/dataset.h"

namespace lk {

enum class EvalKind { Loss, Choices, Generation };

// Tells the kind of a file by the keys of the first row that can be read: {"prompt","choices",
// "answer"} are Choices, "references" beside what is no row to train on Generation, all else rows
// for the loss. InputError for data that hold no rows, unless they are named .txt.
EvalKind detect_eval_kind(const ByteSource& data, const Columns& columns = {});

struct ChoiceRow {
  std::vector<Row> choices;              // prompt + choice, the choice's tokens supervised
  std::vector<std::int64_t> characters;  // length of each choice in Unicode code points
  std::size_t answer = 0;                // index of the right choice
};

struct ReferenceRow {
  std::string prompt;             // as the model reads it
  std::vector<std::int32_t> ids;  // the prompt's tokens
  std::vector<std::string> references;
  bool is_chat = false;
};

struct EvalRowOptions {
  std::int64_t seq_len = 1024;  // most tokens of prompt + choice, or of prompt + generation
  std::int64_t max_rows = -1;   // only the first rows of the file; -1: all
  Columns columns = {};         // which keys of the file stand for ours
  // Of chats: the template as ChatTemplate::choose() takes it, the system turn of those without.
  std::optional<std::string> chat_template = {}, system = {};
};

// Reads rows {"prompt": text, "choices": [text, ...], "answer": index from 0, or a choice's text}.
// A choice is put right behind the prompt, so it usually begins with a space; no end-of-text token
// follows. There must be at least two choices, all different. InputError naming file, line and key,
// also for a key that is neither used nor a mere record (all are that options.columns leaves out).
std::vector<ChoiceRow> load_choices(const ByteSource& data, const Tokenizer& tokenizer,
                                    const EvalRowOptions& options);

// Reads prompts and the texts that answers are compared with: {"prompt": text, "references":
// [text, ...]}, or rows to train on. A plain prompt's only reference is its completion. A chat's
// prompt is all that stands before the last turn of the assistant, through the chat template, and
// that turn is the only reference; "references" replace either, and a chat that ends in a user's
// turn needs them. Rows that share a prompt are one, with the references of all. `max_new` tokens must fit behind each prompt. InputError naming file, line and
// key, also for a key that is neither used nor a mere record; UsageError for a system turn where the
// rows are no chats.
std::vector<ReferenceRow> load_references(const ByteSource& data, const Tokenizer& tokenizer,
                                          const EvalRowOptions& options, std::int64_t max_new);

}  // namespace lk
