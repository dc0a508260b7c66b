#include "text/dataset.h"

#include <algorithm>
#include <cmath>
#include <exception>

#include "io/printable.h"
#include "io/sha256.h"
#include "io/utf8.h"
#include "tensor/error.h"
#include "text/data_file.h"
#include "text/rows.h"

namespace lk {

namespace {

// A row over --seq-len is no bad row: what becomes of it is --long-rows' to say.
class LongRow : public InputError {
  using InputError::InputError;
};

constexpr std::size_t kMaxTextFile = std::size_t{1} << 30;
// Rows are made in blocks of this size: work for many threads, and little memory.
constexpr std::size_t kBlockRows = 4096, kBlockBytes = std::size_t{4} << 20;

// Adds the texts of `more` that `all` lacks.
void add_new(std::vector<std::string>& all, const std::vector<std::string>& more) {
  for (const std::string& text : more)
    if (std::find(all.begin(), all.end(), text) == all.end()) all.push_back(text);
}

// Leaves a row out, and remembers the first.
void leave_out(std::int64_t& counter, const std::string& why, Dataset& data) {
  if (data.first_left_out.empty()) data.first_left_out = why;
  ++counter;
}

// Cuts a row to its first `limit` tokens. Whether any of them is trained.
bool cut(Row& row, std::size_t limit, Dataset& data) {
  const std::size_t tokens = row.ids.size();
  row.ids.resize(limit);
  row.supervised.resize(limit);
  if (row.n_supervised() == 0) return false;
  ++data.rows_truncated;
  data.tokens_truncated += static_cast<std::int64_t>(tokens - limit);
  return true;
}

void count(const Row& row, const Tokenizer& tokenizer, Dataset& data) {
  data.tokens += std::ssize(row.ids);
  data.lost_bytes += static_cast<std::int64_t>(row.lost_bytes);
  data.rows_sharing_a_token += row.shares_token;
  data.supervised_tokens += row.n_supervised();
  std::size_t last = row.ids.size();
  while (last > 0 && row.supervised[last - 1] == 0) --last;
  const auto& stops = tokenizer.stop_ids();
  if (last > 0 && std::find(stops.begin(), stops.end(), row.ids[last - 1]) != stops.end())
    ++data.rows_ending_in_eos;
}

// Checks one finished row, cuts it if that is wanted, and keeps or leaves it out.
void keep(Row row, const std::string& where, const Tokenizer& tokenizer, const DatasetOptions& o,
          Dataset& data) {
  const auto limit = static_cast<std::size_t>(o.seq_len);
  if (row.n_supervised() == 0) throw InputError(where + ": the row has no token to train on");
  if (row.ids.size() > limit) {
    const std::string what =
        concat(where, ": the row has ", row.ids.size(), " tokens, over `seq_len` ", o.seq_len);
    if (o.long_rows == LongRows::Error)
      throw LongRow(what + "; `long_rows` truncate cuts it, skip leaves it out");
    if (o.long_rows == LongRows::Skip) return leave_out(data.rows_too_long, what, data);
    if (!cut(row, limit, data))
      return leave_out(data.rows_cut_to_nothing,
                       where + ": cut to `seq_len`, the row has no token left to train on", data);
  }
  count(row, tokenizer, data);
  data.rows.push_back(std::move(row));
}

// Encodes a whole text; errors name its line.
Tokenizer::Encoding encode_file(const std::string& text, const Tokenizer& tokenizer,
                                const std::string& path) {
  try {
    return tokenizer.encode_prompt(text);
  } catch (const UnreadableToken& e) {
    const auto begin = static_cast<std::ptrdiff_t>(e.begin);
    const auto line = 1 + std::count(text.begin(), text.begin() + begin, '\n');
    throw InputError(concat(path, ":", line, ": ", e.what()));
  } catch (const InputError& e) {
    throw InputError(concat(path, ":1: ", e.what()));
  }
}

// Encodes plain text whole and cuts it into windows, the last one shorter. Each is a text to the
// model, so each begins with the tokenizer's before_text(). A last window with nothing to predict
// is left out.
void load_text(const ByteSource& source, const Tokenizer& tokenizer, const DatasetOptions& o,
               Dataset& data) {
  if (source.size() > kMaxTextFile)
    throw InputError(concat(data.path, ": ", source.size(), " bytes; at most ", kMaxTextFile,
                            " of plain text are read"));
  std::string text(static_cast<std::size_t>(source.size()), '\0');
  source.read(0, text.data(), text.size());
  refuse_other_formats(text, data.path);
  if (std::size_t ok = utf8_valid_prefix(text); ok != text.size())
    throw InputError(concat(data.path, ": not valid UTF-8 at byte ", ok));
  Sha256 sha;
  sha.update(text.data(), text.size());
  data.sha256 = sha.hex();
  text.erase(0, byte_order_mark(text));
  Tokenizer::Encoding all = encode_file(text, tokenizer, data.path);
  for (const std::int32_t id : tokenizer.after_text()) {
    tokenizer.require_embedding(id);
    if (!all.ids.empty() && all.ids.back() == id) continue;
    all.ids.push_back(id);
    all.begins.push_back(text.size());
  }
  data.lost_bytes = static_cast<std::int64_t>(all.lost_bytes);
  const std::vector<std::int32_t>& before = tokenizer.before_text();
  if (static_cast<std::size_t>(o.seq_len) <= before.size())
    throw UsageError(concat("`seq_len` ", o.seq_len, ": the tokenizer's own ", before.size(),
                            " tokens before each text fill it"));
  const std::size_t window = static_cast<std::size_t>(o.seq_len) - before.size();
  std::size_t line = 1, counted = 0;
  for (std::size_t begin = before.size(); begin < all.ids.size(); begin += window) {
    if (o.max_rows >= 0 && data.rows_read >= o.max_rows) return;
    const std::size_t end = std::min(begin + window, all.ids.size());
    if (before.size() + end - begin < 2) return;
    for (; counted < all.begins[begin]; ++counted) line += text[counted] == '\n';
    Row row;
    row.line = line;
    row.ids = before;
    row.ids.insert(row.ids.end(), all.ids.begin() + static_cast<std::ptrdiff_t>(begin),
                   all.ids.begin() + static_cast<std::ptrdiff_t>(end));
    row.supervised.assign(row.ids.size(), 1);
    ++data.rows_read;
    keep(std::move(row), concat(data.path, ":", line), tokenizer, o, data);
  }
}

// A row, or why there is none.
struct Made {
  RowBuilder::Built built;
  std::exception_ptr failure;
};

// Parses and encodes rows on all cores; keeps them, or throws the failure of the first bad one, in
// the file's order, so that the result is that of one row at a time.
class ParallelRows {
 public:
  ParallelRows(RowBuilder& builder, const Tokenizer& tokenizer, const DatasetOptions& options,
               Dataset& data)
      : builder_(builder), tokenizer_(tokenizer), options_(options), data_(data) {}

  // Whether more rows are wanted.
  bool add(RawRow&& row) {
    bytes_ += row.bytes();
    rows_.push_back(std::move(row));
    // Rows are made alone until one has settled the format of the others.
    const bool settled = data_.rows_read > 0 && builder_.format() != "auto";
    if (settled && rows_.size() < kBlockRows && bytes_ < kBlockBytes) return true;
    return flush();
  }

  bool flush() {
    std::vector<Made> made(rows_.size());
#pragma omp parallel for schedule(dynamic, 16)
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      try {
        made[i].built = builder_.build(rows_[i].parse(), rows_[i].where());
      } catch (...) {
        made[i].failure = std::current_exception();
      }
    }
    for (std::size_t i = 0; i < made.size() && !full(); ++i) {
      ++data_.rows_read;
      take(made[i], rows_[i]);
    }
    rows_.clear();
    bytes_ = 0;
    return !full();
  }

  // InputError for a key that --columns names and no row has.
  void require_columns() const {
    for (std::size_t i = 0; i < met_.size(); ++i)
      if (!met_[i])
        throw InputError(concat(data_.path, ": no row has ",
                                printable(options_.columns.pairs()[i].theirs),
                                ", which `columns` takes as ", options_.columns.pairs()[i].ours));
  }

  bool full() const { return options_.max_rows >= 0 && data_.rows_read >= options_.max_rows; }

 private:
  void take(Made& made, RawRow& raw) {
    try {
      if (made.failure) std::rethrow_exception(made.failure);
      if (made.built.one_a_turn) {
        ++data_.chats_apart;
        data_.rows_of_chats_apart += std::ssize(made.built.rows);
      }
      if (made.built.is_chat) {
        if (++data_.chats == 1)
          data_.system = made.built.system;
        else if (data_.system != made.built.system)
          data_.system.reset();
      }
      data_.rows_of_own_system += made.built.own_system;
      data_.thoughts += made.built.thoughts.said;
      data_.thoughts_lost += made.built.thoughts.lost;
      if (data_.thoughts_lost > 0 && data_.first_lost_thought.empty())
        data_.first_lost_thought = raw.where();
      note_columns(made.built.columns);
      for (Row& row : made.built.rows) {
        row.line = raw.line();
        keep(std::move(row), raw.where(), tokenizer_, options_, data_);
      }
      add_new(data_.ignored_keys, made.built.ignored);
      add_new(data_.fitted, made.built.fitted);
    } catch (const LongRow&) {
      throw;
    } catch (const InputError& e) {
      if (!options_.skip_bad_rows) throw;
      leave_out(data_.rows_bad, e.what(), data_);
    }
  }

  void note_columns(const std::vector<bool>& has) {
    met_.resize(has.size());
    for (std::size_t i = 0; i < has.size(); ++i) met_[i] = met_[i] || has[i];
  }

  RowBuilder& builder_;
  const Tokenizer& tokenizer_;
  const DatasetOptions& options_;
  Dataset& data_;
  std::vector<RawRow> rows_;
  std::vector<bool> met_;  // of each pair of options.columns: a row has its key
  std::size_t bytes_ = 0;
};

constexpr std::pair<LongRows, const char*> kLongRows[] = {
    {LongRows::Error, "error"}, {LongRows::Truncate, "truncate"}, {LongRows::Skip, "skip"}};

}  // namespace

LongRows parse_long_rows(const std::string& name) {
  for (const auto& [rule, text] : kLongRows)
    if (name == text) return rule;
  throw UsageError(concat("`long_rows` ", name, ": one of error, truncate, skip"));
}

const char* long_rows_name(LongRows rule) {
  return kLongRows[static_cast<std::size_t>(rule)].second;
}

Dataset dataset_of(std::vector<Row> rows, const Tokenizer& tokenizer, const std::string& name) {
  Dataset data;
  data.path = name, data.format = "rows", data.container = "memory";
  for (std::size_t i = 0; i < rows.size(); ++i) {
    require(rows[i].ids.size() == rows[i].supervised.size(), name, ": rows[", i,
            "]: ", rows[i].ids.size(), " ids but ", rows[i].supervised.size(),
            " values of `supervised`");
    count(rows[i], tokenizer, data);
  }
  data.rows_read = std::ssize(rows);
  data.rows = std::move(rows);
  return data;
}

Dataset split_off(Dataset& data, const Tokenizer& tokenizer, double share, std::int64_t most) {
  require(share > 0 && std::isfinite(share) && most >= 1, "split_off: `eval_split` ", share,
          " of at most ", most, " rows: both must be positive");
  // The number of each row's group: rows of a line are made of the same chat. Windows of a text are
  // rows of their own, however long its lines are.
  std::vector<std::int64_t> group;
  for (std::size_t i = 0; i < data.rows.size(); ++i) {
    const std::size_t line = data.rows[i].line;
    const bool same = i > 0 && line > 0 && data.format != "txt" && line == data.rows[i - 1].line;
    group.push_back(i == 0 ? 0 : group.back() + !same);
  }
  const std::int64_t groups = group.empty() ? 0 : group.back() + 1;
  const double wanted = std::clamp(share * static_cast<double>(groups), 1.0, 1e15);
  const auto taken = std::min(static_cast<std::int64_t>(std::llround(wanted)), most);
  if (taken >= groups)
    throw UsageError(
        concat("`eval_split` ", share, ": of ", groups, " rows none would be left to train on"));
  Dataset out;
  out.path = data.path, out.format = data.format, out.container = data.container;
  std::vector<Row> kept;
  data.tokens = data.supervised_tokens = data.rows_ending_in_eos = data.lost_bytes =
      data.rows_sharing_a_token = 0;
  for (std::size_t i = 0; i < data.rows.size(); ++i) {
    // Group g is the last of its g-th share of `taken` in all.
    const bool goes = (group[i] + 1) * taken / groups > group[i] * taken / groups;
    Dataset& to = goes ? out : data;
    count(data.rows[i], tokenizer, to);
    (goes ? out.rows : kept).push_back(std::move(data.rows[i]));
  }
  data.rows = std::move(kept);
  return out;
}

Dataset load_dataset(const ByteSource& source, const Tokenizer& tokenizer,
                     const std::optional<std::string>& template_name,
                     const DatasetOptions& options) {
  if (options.seq_len < 2) throw UsageError("`seq_len` must be at least 2");
  Dataset data;
  data.path = source.name();
  data.format = options.format;
  if (data.format == "txt" || (data.format == "auto" && is_text_name(data.path))) {
    data.format = "txt";
    data.container = "text";
    if (options.train_on != TrainOn::Assistant)
      throw UsageError(concat("`train_on` ", train_on_name(options.train_on), ": ", data.path,
                              " is plain text, and it is for chats"));
    if (!options.columns.empty())
      throw UsageError(concat("`columns`: ", data.path, " is plain text, which has none"));
    if (options.system)
      throw UsageError(concat("`system`: ", data.path, " is plain text, and it is for chats"));
    load_text(source, tokenizer, options, data);
  } else {
    RowBuilder builder(tokenizer, template_name, options);
    data.columns = options.columns;
    ParallelRows rows(builder, tokenizer, options, data);
    FileRead read = for_each_raw_row(
        source, [&](RawRow&& row) { return !rows.full() && rows.add(std::move(row)); },
        options.columns.theirs());
    rows.flush();
    if (!rows.full()) rows.require_columns();  // a key may first come in rows that are not read
    data.format = builder.format();
    data.container = std::move(read.container);
    data.sha256 = std::move(read.sha256);
    // A template that writes no thoughts at all is not the one that these rows were made for.
    if (data.thoughts > 0 && data.thoughts_lost == data.thoughts)
      throw InputError(concat(
          data.first_lost_thought,
          ": the chat template leaves out the thoughts, up to </think>, of all ", data.thoughts,
          " trained turns that have some: the model would learn to answer without "
          "them (pass a `template` that writes turns as they are, chatml say, or rows "
          "without thoughts)"));
  }
  if (data.rows.empty() && options.max_rows != 0)
    throw InputError(data.path + ": no rows" +
                     (data.first_left_out.empty()
                          ? ""
                          : concat(" but those left out; the first is ", data.first_left_out)));
  return data;
}

}  // namespace lk
