#include "text/row_keys.h"

#include <algorithm>
#include <cmath>

#include "io/printable.h"
#include "tensor/error.h"

namespace lk {

namespace {

constexpr std::string_view kRecords[] = {
    // which row it is
    "id", "ids", "uid", "uuid", "guid", "idx", "index", "hash", "md5", "sha256", "key",
    // where it comes from
    "source", "sources", "src", "origin", "dataset", "dataset_name", "subset", "split", "corpus",
    "url", "urls", "link", "title", "author", "authors", "annotator", "user", "file", "filename",
    "file_name", "path", "page", "license", "licence", "copyright", "provenance",
    // what it is about
    "category", "categories", "subcategory", "topic", "topics", "subject", "domain", "type", "task",
    "tasks", "task_type", "task_name", "tag", "tags", "lang", "language", "locale", "keywords",
    // when and by whom it was made
    "date", "time", "timestamp", "created", "created_at", "updated", "updated_at", "create_time",
    "update_time", "version", "model", "model_name", "generator", "teacher",
    // how good or long somebody finds it
    "score", "scores", "rating", "ratings", "quality", "difficulty", "level", "length",
    "num_tokens", "n_tokens", "token_count", "num_turns", "n_turns",
    // notes
    "meta", "metadata", "info", "extra", "extra_info", "note", "notes", "comment", "comments",
    // what other readers of the file need: evaluate --generate, and an API's options
    "references", "parallel_tool_calls",
    // a nameless column: the row numbers that pandas writes
    ""};

}  // namespace

bool is_record_key(std::string_view key) {
  std::string name(key);
  while (name.starts_with('_')) name.erase(0, 1);
  std::transform(name.begin(), name.end(), name.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return std::find(std::begin(kRecords), std::end(kRecords), name) != std::end(kRecords) ||
         name.ends_with("_id") || name.starts_with("unnamed: ") || name.starts_with("index_level_");
}

bool is_empty_value(const OrderedJson& value) {
  return value.is_null() || (value.is_structured() && value.empty()) ||
         (value.is_string() && value.get_ref<const std::string&>().empty());
}

RowKeys::RowKeys(const OrderedJson& object, const std::string& where)
    : object_(object), where_(where) {
  if (!object.is_object()) throw InputError(where + ": not an object");
}

const OrderedJson* RowKeys::take(const char* key) {
  used_.push_back(key);
  const auto at = object_.find(key);
  return at == object_.end() || at->is_null() ? nullptr : &*at;
}

void RowKeys::ignore(const char* key, std::vector<std::string>& ignored) {
  if (!has(key) || std::find(used_.begin(), used_.end(), key) != used_.end()) return;
  used_.push_back(key);
  ignored.emplace_back(key);
}

std::string RowKeys::text(const char* key) {
  const OrderedJson* value = take(key);
  if (value == nullptr)
    throw InputError(concat(where_, ": ", key, object_.contains(key) ? ": is null" : ": missing"));
  if (!value->is_string())
    throw InputError(concat(where_, ": ", key, ": a string is expected, not ",
                            value->is_number_float() && !std::isfinite(value->get<double>())
                                ? "NaN or Infinity"
                                : value->type_name()));
  return value->get<std::string>();
}

std::string RowKeys::text_or_nothing(std::initializer_list<const char*> keys) {
  std::string found;
  const char* from = nullptr;
  for (const char* key : keys) {
    const OrderedJson* value = take(key);
    if (value == nullptr || is_empty_value(*value)) continue;
    if (value->is_number_float() && std::isnan(value->get<double>())) continue;
    std::string here = text(key);
    if (from != nullptr && here != found)
      throw InputError(concat(where_, ": ", from, " and ", key,
                              " are names for one thing, and both have a text"));
    found = std::move(here);
    from = key;
  }
  return found;
}

std::string RowKeys::text_of(std::initializer_list<const char*> keys) {
  const std::string found = text_or_nothing(keys);
  if (!found.empty()) return found;
  for (const char* key : keys)
    if (has(key)) return text(key);  // empty, or refused
  return text(*keys.begin());
}

void RowKeys::finish(const std::string& user, std::vector<std::string>& ignored) {
  for (const auto& [key, value] : object_.items()) {
    if (std::find(used_.begin(), used_.end(), key) != used_.end()) continue;
    if (is_record_key(key))
      ignored.push_back(key);
    else if (!is_empty_value(value))
      throw InputError(
          concat(where_, ": the key ", printable(key), " is not used by ", user,
                 ", and not known to be a mere record: rename or remove it, or say by `columns` "
                 "what counts"));
  }
}

void refuse_unused_keys(const OrderedJson& row, std::initializer_list<const char*> used,
                        const std::string& user, const std::string& where) {
  RowKeys keys(row, where);
  for (const char* key : used) keys.take(key);
  std::vector<std::string> records;
  keys.finish(user, records);
}

}  // namespace lk
