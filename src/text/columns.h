// Columns: which keys of a file's rows stand for the keys of a row format, as --columns says.
#pragma once

#include <string>
#include <vector>

#include "io/json.h"

namespace lk {

class Columns {
 public:
  struct Pair {
    std::string ours;    // a key of a row format, "prompt"
    std::string theirs;  // the key or column of the file that stands for it, "question"
  };

  Columns() = default;  // every key stands for itself
  // Parses "prompt=question,completion=answer", ours=theirs. A name with a comma stands in double
  // quotes, in which a quote is written twice: prompt="a, b". UsageError naming --columns for a pair
  // without a name on either side, a key of ours that is not known, and a name that stands twice.
  static Columns parse(const std::string& text);
  std::string text() const;  // as parse() reads it

  const std::vector<Pair>& pairs() const { return pairs_; }
  bool empty() const { return pairs_.empty(); }
  std::vector<std::string> theirs() const;  // the names in the file

  // The row with its keys renamed, in its order. A key that bears one of our names, but is not what
  // --columns gives that name to, is left out and added to `ignored`.
  OrderedJson rename(const OrderedJson& row, std::vector<std::string>& ignored) const;

  // What to say of a row without the pair's key: the keys there are, and which of them was meant.
  std::string missing(const Pair& pair, const OrderedJson& row) const;

 private:
  std::vector<Pair> pairs_;
};

// The row's keys for a message: "{id, question, answer}".
std::string listed_keys(const OrderedJson& row);

}  // namespace lk
