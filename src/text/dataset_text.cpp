// What a reader is told of a dataset: remarks, and rows with their trained tokens marked.
#include "io/hex.h"
#include "io/utf8.h"
#include "text/dataset.h"

namespace lk {
namespace {

std::string joined(const std::vector<std::string>& texts) {
  std::string out;
  for (const std::string& text : texts) out += (out.empty() ? "" : ", ") + text;
  return out;
}

}  // namespace

std::vector<std::string> Dataset::remarks() const {
  std::vector<std::string> lines;
  if (!ignored_keys.empty())
    lines.push_back((columns.empty() ? "ignored keys, which only record something: "
                                     : "ignored keys, which `columns` does not name: ") +
                    joined(ignored_keys));
  if (rows_of_own_system)
    lines.push_back(concat(rows_of_own_system,
                           rows_of_own_system == 1 ? " chat has" : " chats have",
                           " a system turn already, which stays: `system` is for the others"));
  if (!fitted.empty())
    lines.push_back("the chat template has no place for all of these rows; written are " +
                    joined(fitted));
  if (thoughts_lost)
    lines.push_back(concat(
        "warning: the chat template leaves out the thoughts, up to </think>, of ", thoughts_lost,
        " of ", thoughts, " trained turns that have some, first in ", first_lost_thought,
        ": these answers are trained without them (`train_on` all trains each as the chat's "
        "last)"));
  if (rows_sharing_a_token)
    lines.push_back(concat("warning: in ", rows_sharing_a_token, " of ", std::ssize(rows),
                           " rows the completion begins inside a token of the prompt, as behind a "
                           "space at its end: tokens at the border count as the prompt's, and the "
                           "loss leaves them out"));
  if (rows_truncated)
    lines.push_back(
        concat("truncated ", rows_truncated, " rows, ", tokens_truncated, " tokens lost"));
  if (chats_apart)
    lines.push_back(concat(chats_apart, chats_apart == 1 ? " chat as " : " chats as ",
                           rows_of_chats_apart, rows_of_chats_apart == 1 ? " row" : " rows",
                           ", each ending with the one turn it trains"));
  if (const std::int64_t out = rows_bad + rows_too_long + rows_cut_to_nothing)
    lines.push_back(concat("left out ", out, " of ", out + std::ssize(rows), " rows: ", rows_bad,
                           " bad, ", rows_too_long, " too long, ", rows_cut_to_nothing,
                           " without a trained token once cut; the first is ", first_left_out));
  return lines;
}

std::string show_row(const Row& row, const Tokenizer& tokenizer, bool colour,
                     bool behind_virtual_tokens) {
  const char *open = colour ? "\x1b[32m" : "[", *close = colour ? "\x1b[0m" : "]";
  std::string out;
  for (std::size_t i = 0; i < row.ids.size(); ++i) {
    const bool trained = (i > 0 || behind_virtual_tokens) && row.supervised[i] != 0;
    const std::string bytes = tokenizer.token_text(row.ids[i]);
    if (trained) out += open;
    for (std::size_t at = 0; at < bytes.size();) {
      const auto byte = static_cast<unsigned char>(bytes[at]);
      const std::size_t length =
          utf8_checked_length(bytes.data() + at, bytes.data() + bytes.size());
      if (byte == '\n') {
        out += "\\n";
      } else if (byte == '\t') {
        out += "\\t";
      } else if (byte == '\r') {
        out += "\\r";
      } else if (byte < 0x20 || byte == 0x7F || length == 0) {
        // A file must not steer the terminal; part of a character is shown as its bytes.
        out += "\\x";
        append_hex(out, byte);
      } else {
        out += bytes.substr(at, length);
        at += length;
        continue;
      }
      ++at;
    }
    if (trained) out += close;
  }
  return out;
}

}  // namespace lk
