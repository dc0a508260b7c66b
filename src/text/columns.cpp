#include "text/columns.h"

#include <algorithm>

#include "io/nearest.h"
#include "io/printable.h"
#include "tensor/error.h"
#include "text/row_formats.h"

namespace lk {

namespace {

[[noreturn]] void refuse_columns(const std::string& text, const std::string& why) {
  throw UsageError(concat("`columns` ", text, ": ", why,
                          "; it is written as `columns` prompt=KEY,completion=KEY, our key first"));
}

// Takes the name that begins at `at`, up to the comma behind it or the end.
std::string take_name(const std::string& text, std::size_t& at) {
  if (at >= text.size() || text[at] != '"') {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::string name = text.substr(at, end - at);
    at = end;
    return name;
  }
  std::string name;
  for (++at; at < text.size(); ++at) {
    if (text[at] != '"') {
      name += text[at];
    } else if (at + 1 < text.size() && text[at + 1] == '"') {
      name += text[++at];
    } else {
      if (++at < text.size() && text[at] != ',')
        refuse_columns(text, "a comma is expected behind the closing quote");
      return name;
    }
  }
  refuse_columns(text, "the quote is never closed");
}

std::string quoted(const std::string& name) {
  if (name.find(',') == std::string::npos && !name.starts_with('"')) return name;
  std::string out = "\"";
  for (const char c : name) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

// A name as it is if that shows what it is, else in quotes.
std::string shown(const std::string& name) {
  const std::string safe = printable(name);
  const bool plain = safe.size() == name.size() + 2 && !name.empty() && name.front() != ' ' &&
                     name.back() != ' ' && name.find(',') == std::string::npos;
  return plain ? name : safe;
}

void refuse_unknown(const std::string& text, const Columns::Pair& pair) {
  const std::vector<std::string> known = row_format_keys();
  auto is_known = [&](const std::string& key) {
    return std::find(known.begin(), known.end(), key) != known.end();
  };
  if (is_known(pair.ours)) return;
  std::string meant = nearest_name(pair.ours, known);
  if (meant.empty() && is_known(pair.theirs)) meant = pair.theirs + "=" + pair.ours;
  std::string all;
  for (const std::string& key : known) all += (all.empty() ? "" : ", ") + key;
  refuse_columns(text, concat(shown(pair.ours), " is no key of a row format",
                              meant.empty() ? "" : concat(" (did you mean ", meant, "?)"),
                              ": these are ", all));
}

}  // namespace

Columns Columns::parse(const std::string& text) {
  Columns columns;
  for (std::size_t at = 0;;) {
    const std::size_t equals = text.find('=', at);
    if (equals == std::string::npos || text.find(',', at) < equals)
      refuse_columns(text, "a pair has no =");
    Pair pair{text.substr(at, equals - at), ""};
    at = equals + 1;
    pair.theirs = take_name(text, at);
    if (pair.ours.empty() || pair.theirs.empty())
      refuse_columns(text, "a name is missing beside the =");
    refuse_unknown(text, pair);
    for (const Pair& other : columns.pairs_)
      if (other.ours == pair.ours || other.theirs == pair.theirs)
        refuse_columns(text, concat(shown(other.ours == pair.ours ? pair.ours : pair.theirs),
                                    " stands twice"));
    columns.pairs_.push_back(std::move(pair));
    if (at == text.size()) return columns;
    ++at;  // behind the comma
  }
}

std::string Columns::text() const {
  std::string text;
  for (const Pair& pair : pairs_)
    text += (text.empty() ? "" : ",") + pair.ours + "=" + quoted(pair.theirs);
  return text;
}

std::vector<std::string> Columns::theirs() const {
  std::vector<std::string> names;
  for (const Pair& pair : pairs_) names.push_back(pair.theirs);
  return names;
}

OrderedJson Columns::rename(const OrderedJson& row, std::vector<std::string>& ignored) const {
  if (empty()) return row;
  OrderedJson renamed = OrderedJson::object();
  for (const auto& [key, value] : row.items()) {
    auto named = [&](auto member) {
      return std::find_if(pairs_.begin(), pairs_.end(),
                          [&](const Pair& pair) { return pair.*member == key; });
    };
    if (const auto pair = named(&Pair::theirs); pair != pairs_.end())
      renamed[pair->ours] = value;
    else if (named(&Pair::ours) == pairs_.end())
      renamed[key] = value;
    else
      ignored.push_back(key);
  }
  return renamed;
}

std::string Columns::missing(const Pair& pair, const OrderedJson& row) const {
  std::vector<std::string> there;
  for (const auto& [key, value] : row.items()) there.push_back(key);
  const std::string meant = nearest_name(pair.theirs, there);
  return concat("no key ", shown(pair.theirs), ", which `columns` takes as ", pair.ours,
                meant.empty() ? "" : concat("; did you mean ", shown(meant), "?"), "; the row has ",
                listed_keys(row));
}

std::string listed_keys(const OrderedJson& row) {
  std::string keys;
  for (const auto& [key, value] : row.items()) keys += (keys.empty() ? "" : ", ") + shown(key);
  return "{" + keys + "}";
}

}  // namespace lk
