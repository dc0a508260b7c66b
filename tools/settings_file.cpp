#include "settings_file.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <map>
#include <set>

#include "flag_names.h"
#include "io/printable.h"
#include "io/utf8.h"
#include "tensor/error.h"

namespace lk::program {
namespace {

bool is_key_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_';
}

// One pass over the text of a file.
class Reader {
 public:
  Reader(const CLI::App& app, std::string file, std::string_view text)
      : app_(app), file_(std::move(file)), text_(text) {
    if (text_.starts_with("\xEF\xBB\xBF")) at_ = 3;  // a byte order mark
  }

  std::vector<CLI::ConfigItem> items() {
    std::vector<CLI::ConfigItem> all;
    std::map<std::string, std::size_t> lines;  // of the keys so far
    for (skip_blank(true); at_ < text_.size(); skip_blank(true)) {
      if (peek() == '[') fail("a table: flags stand at the top, without one");
      CLI::ConfigItem item;
      item.name = flag();
      const auto [before, is_new] = lines.emplace(item.name, line());
      if (!is_new) fail(concat(item.name, ": stands in line ", before->second, " already"));
      skip_blank(false);
      if (peek() != '=') fail(item.name + ": a value is expected, as in key = value");
      ++at_;
      skip_blank(false);
      item.inputs = peek() == '[' ? array(item.name) : std::vector<std::string>{value(item.name)};
      skip_blank(false);
      if (at_ < text_.size() && peek() != '\n')
        fail(item.name + ": more text behind the value; text with spaces stands in quotes");
      all.push_back(std::move(item));
    }
    return all;
  }

 private:
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  std::size_t line() const {
    return static_cast<std::size_t>(
               std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(at_), '\n')) +
           1;
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw CLI::ConversionError(concat(file_, ":", line(), ": ", what));
  }

  // Skips spaces and comments, and line ends if they do not count.
  void skip_blank(bool lines) {
    for (; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (c == '#')
        while (at_ + 1 < text_.size() && text_[at_ + 1] != '\n') ++at_;
      else if (c != ' ' && c != '\t' && c != '\r' && !(lines && c == '\n'))
        return;
    }
  }

  std::string key() {
    if (peek() == '"' || peek() == '\'') return string("a key");
    const std::size_t begin = at_;
    while (is_key_char(peek())) ++at_;
    if (at_ == begin) fail("a line key = value is expected, with a flag's name as its key");
    return std::string(text_.substr(begin, at_ - begin));
  }

  // A key as the app's own name for the flag, without its dashes.
  std::string flag() {
    const std::string name = own_name(app_, "--" + key());
    if (!app_.get_option_no_throw(name)) fail(unknown_flag_text(app_, name));
    return name.substr(2);
  }

  std::string value(const std::string& name) {
    if (peek() == '"' || peek() == '\'') return string(name);
    const std::size_t begin = at_;
    while (at_ < text_.size() && std::string_view(" \t\r\n,#[]{}\"'").find(peek()) == text_.npos)
      ++at_;
    if (at_ == begin) fail(name + ": a value is expected: a string, a number, true or false");
    return std::string(text_.substr(begin, at_ - begin));
  }

  std::string string(const std::string& name) {
    const char mark = text_[at_++];
    if (text_.substr(at_).starts_with(std::string(2, mark)))
      fail(name + ": a string of several lines; write it in one, line breaks as \\n");
    std::string out;
    for (; peek() != mark; ++at_) {
      if (at_ >= text_.size() || peek() == '\n')
        fail(name + ": a string without its closing quote");
      if (mark == '"' && peek() == '\\')
        escape(name, out);
      else
        out += peek();
    }
    ++at_;
    return out;
  }

  // Appends what the escape sequence at hand stands for, and stays on its last character.
  void escape(const std::string& name, std::string& out) {
    static constexpr std::string_view kNames = "btnfre\"\\", kMeant = "\b\t\n\f\r\x1b\"\\";
    ++at_;
    const std::size_t simple = at_ < text_.size() ? kNames.find(peek()) : kNames.npos;
    if (simple != kNames.npos) {
      out += kMeant[simple];
      return;
    }
    const std::size_t digits = peek() == 'u' ? 4 : peek() == 'U' ? 8 : 0;
    const std::string_view hex = text_.substr(std::min(at_ + 1, text_.size()), digits);
    std::uint32_t code = 0;
    const auto end = std::from_chars(hex.data(), hex.data() + hex.size(), code, 16).ptr;
    if (digits == 0 || hex.size() < digits || end != hex.data() + hex.size() || code == 0 ||
        code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      fail(name + ": an unknown escape; a backslash is written \\\\, or the text in single quotes");
    utf8_append(out, code);
    at_ += digits;
  }

  std::vector<std::string> array(const std::string& name) {
    const CLI::Option* option = app_.get_option_no_throw("--" + name);
    const bool list = option && option->get_type_name() == kList;
    const bool several = option && option->get_items_expected_max() > 1;
    if (option && !list && !several)
      fail(concat(name, ": an array, but --", name, " takes one value"));
    std::vector<std::string> items;
    ++at_;
    for (skip_blank(true); peek() != ']'; skip_blank(true)) {
      if (peek() == '[') fail(name + ": an array within an array");
      items.push_back(value(name));
      skip_blank(true);
      if (peek() == ',')
        ++at_;
      else if (peek() != ']')
        fail(name + ": a comma or ] is expected in the array");
    }
    ++at_;
    if (items.empty()) fail(name + ": an empty array");
    if (!list) return items;
    return {joined(name, items)};
  }

  std::string joined(const std::string& name, const std::vector<std::string>& items) const {
    std::string out;
    for (const std::string& item : items) {
      bool quoted = false;
      for (const char c : item) {
        if (c == '"') quoted = !quoted;
        if (c == ',' && !quoted)
          fail(concat(name, ": ", printable(item), ": an item with a comma, which parts items"));
      }
      if (item.empty()) fail(name + ": an empty item");
      out += (out.empty() ? "" : ",") + item;
    }
    return out;
  }

  const CLI::App& app_;
  std::string file_;
  std::string_view text_;
  std::size_t at_ = 0;
};

class SettingsFile : public CLI::ConfigTOML {
 public:
  explicit SettingsFile(const CLI::App& app) : app_(app) {}
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    const std::string text{std::istreambuf_iterator<char>(input), {}};
    const CLI::Option* config = app_.get_config_ptr();
    const std::string file = config && config->count() ? config->results().back() : "--config";
    std::vector<CLI::ConfigItem> items = Reader(app_, file, text).items();
    // The command line, which is read before the file, wins over what excludes its flags too.
    std::erase_if(items, [&](const CLI::ConfigItem& item) {
      const std::set<CLI::Option*> others = app_.get_option("--" + item.name)->get_excludes();
      return std::any_of(others.begin(), others.end(),
                         [](const CLI::Option* other) { return other->count() > 0; });
    });
    return items;
  }

 private:
  const CLI::App& app_;
};

}  // namespace

std::shared_ptr<CLI::Config> settings_file(const CLI::App& app) {
  return std::make_shared<SettingsFile>(app);
}

}  // namespace lk::program
