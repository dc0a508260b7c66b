#include "text/eval_rows.h"

#include <algorithm>

#include "tensor/error.h"
#include "text/data_file.h"
#include "text/row_keys.h"

namespace lk {
namespace {

std::vector<std::string> strings(const Json& row, const std::string& key, std::size_t least,
                                 const std::string& where) {
  const Json& list = json_at(row, key, where);
  std::vector<std::string> out;
  if (list.is_array())
    for (const Json& text : list)
      if (text.is_string()) out.push_back(text.get<std::string>());
  if (!list.is_array() || out.size() != list.size() || out.size() < least)
    throw InputError(concat(where, ": ", key, ": expected an array of at least ", least,
                            least == 1 ? " text" : " texts"));
  return out;
}

std::size_t answer_index(const Json& row, const std::vector<std::string>& choices,
                         const std::string& where) {
  const Json& answer = json_at(row, "answer", where);
  if (!answer.is_string())
    return static_cast<std::size_t>(json_int(row, "answer", 0, std::ssize(choices) - 1, where));
  const auto found = std::find(choices.begin(), choices.end(), answer.get<std::string>());
  if (found == choices.end())
    throw InputError(where + ": answer: is none of the choices, letter for letter");
  return static_cast<std::size_t>(found - choices.begin());
}

std::int64_t code_points(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

void require_fits(std::size_t tokens, const EvalRowLimits& limits, const std::string& what) {
  if (static_cast<std::int64_t>(tokens) > limits.seq_len)
    throw InputError(concat(what, " has ", tokens, " tokens, --seq-len is ", limits.seq_len));
}

// Adds the place in the file to an error about the text itself.
template <class F>
auto at(const std::string& where, const F& f) {
  try {
    return f();
  } catch (const InputError& e) {
    throw InputError(where + ": " + e.what());
  }
}

}  // namespace

EvalKind detect_eval_kind(const ByteSource& data) {
  if (data.name().ends_with(".txt")) return EvalKind::Loss;
  EvalKind kind = EvalKind::Loss;
  for_each_raw_row(data, [&](RawRow&& raw) {
    try {
      const OrderedJson row = raw.parse();
      if (row.contains("choices")) kind = EvalKind::Choices;
      if (row.contains("references") && !row.contains("completion")) kind = EvalKind::Generation;
      return false;
    } catch (const InputError&) {
      return true;  // whoever reads the rows says what is wrong, or skips it
    }
  });
  return kind;
}

std::vector<ChoiceRow> load_choices(const ByteSource& data, const Tokenizer& tokenizer,
                                    const EvalRowLimits& limits) {
  std::vector<ChoiceRow> rows;
  for_each_json_row(data, [&](const Json& json, const std::string& where) {
    refuse_unused_keys(OrderedJson(json), {"prompt", "choices", "answer"}, "a row with choices",
                       where);
    const std::string prompt = json_string(json, "prompt", where);
    const std::vector<std::string> choices = strings(json, "choices", 2, where);
    ChoiceRow row;
    row.answer = answer_index(json, choices, where);
    for (std::size_t i = 0; i < choices.size(); ++i) {
      const std::string here = concat(where, ": choices[", i, "]");
      if (std::count(choices.begin(), choices.end(), choices[i]) > 1)
        throw InputError(here + ": appears twice");
      row.choices.push_back(
          at(here, [&] { return make_row(tokenizer, prompt, choices[i], false); }));
      row.characters.push_back(code_points(choices[i]));
      if (row.choices.back().n_supervised() == 0)
        throw InputError(here + ": has no token of its own behind the prompt");
      require_fits(row.choices.back().ids.size(), limits, here + ": with its prompt it");
    }
    rows.push_back(std::move(row));
    return std::ssize(rows) != limits.max_rows;
  });
  if (rows.empty()) throw InputError(data.name() + ": no rows");
  return rows;
}

std::vector<ReferenceRow> load_references(const ByteSource& data, const Tokenizer& tokenizer,
                                          const EvalRowLimits& limits, std::int64_t max_new) {
  std::vector<ReferenceRow> rows;
  for_each_json_row(data, [&](const Json& json, const std::string& where) {
    refuse_unused_keys(OrderedJson(json), {"prompt", "references", "completion"},
                       "a row with references", where);
    ReferenceRow row;
    row.prompt = json_string(json, "prompt", where);
    if (!json.contains("references") && json.contains("completion"))
      row.references = {json_string(json, "completion", where)};
    else
      row.references = strings(json, "references", 1, where);
    row.ids = at(where + ": prompt", [&] { return tokenizer.encode_prompt(row.prompt).ids; });
    if (row.ids.empty()) throw InputError(where + ": prompt: has no tokens");
    require_fits(row.ids.size() + static_cast<std::size_t>(max_new), limits,
                 concat(where, ": prompt: with --max-tokens ", max_new, " it"));
    rows.push_back(std::move(row));
    return std::ssize(rows) != limits.max_rows;
  });
  if (rows.empty()) throw InputError(data.name() + ": no rows");
  return rows;
}

}  // namespace lk
