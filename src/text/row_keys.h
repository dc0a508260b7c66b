// RowKeys: takes the members of a row or a message, so that none goes unnoticed: each key is used,
// known to be a mere record, or refused by name.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"

namespace lk {

// Whether the key is known to say nothing of what a row means: ids, sources, categories, scores.
bool is_record_key(std::string_view key);

// Whether a value says nothing: null, "", [] or {}.
bool is_empty_value(const OrderedJson& value);

// InputError naming `where` for the first key of `row` that is none of `used`, says anything and is
// not known to be a mere record. `user` names what does not use it: "a row with choices".
void refuse_unused_keys(const OrderedJson& row, std::initializer_list<const char*> used,
                        const std::string& user, const std::string& where);

class RowKeys {
 public:
  // `object` must outlive this. InputError naming `where` if it is no object.
  RowKeys(const OrderedJson& object, const std::string& where);
  // The value of `key`, now used; null pointer if it is missing or null.
  const OrderedJson* take(const char* key);
  // The text of `key`. InputError naming it if it is missing or no string.
  std::string text(const char* key);
  // The text of the one of `keys`, names for one thing, that has any; "" if none has. NaN, which
  // pandas writes for a missing value, counts as none. InputError for two with texts, or no string.
  std::string text_or_nothing(std::initializer_list<const char*> keys);
  // As text_or_nothing(), but one of `keys` must be there, be it an empty text.
  std::string text_of(std::initializer_list<const char*> keys);
  bool has(const char* key) const { return object_.contains(key); }
  const OrderedJson& at(const char* key) const { return object_.at(key); }  // not marked as used
  // Treats `key` as a record's from here on, unless it is used: adds it to `ignored`.
  void ignore(const char* key, std::vector<std::string>& ignored);
  // To be called when all that is used has been taken: adds the keys of records to `ignored`.
  // InputError for the first other key that is left and says anything; `user` names what does not
  // use it: "format alpaca".
  void finish(const std::string& user, std::vector<std::string>& ignored);

 private:
  const OrderedJson& object_;
  const std::string& where_;
  std::vector<std::string_view> used_;
};

}  // namespace lk
