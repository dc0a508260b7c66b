// Values as text, as Python writes them, and as JSON.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "io/hex.h"
#include "io/utf8.h"
#include "text/jinja/value.h"

namespace lk::jinja {

namespace {

// A float as Python's repr() writes it: the shortest digits that read back, 1e16 as 1e+16.
std::string real_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const double size = std::abs(value);
  const bool plain = value == 0 || (size >= 1e-4 && size < 1e16);
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value,
                                 plain ? std::chars_format::fixed : std::chars_format::scientific)
                       .ptr;
  std::string out(buffer, end);
  if (plain && out.find('.') == std::string::npos) out += ".0";
  return out;
}

// Copies a string with escapes: escape(c) gives what to write for a character, or nothing to write
// the character itself.
template <class Escape>
void append_escaped(Text& out, const Text& text, Budget& budget, Escape&& escape) {
  budget.work(text.s.size());
  budget.bytes(text.s.size() + 2);
  std::size_t done = 0;
  for (std::size_t i = 0; i < text.s.size();) {
    const std::size_t next = i + utf8_length(static_cast<unsigned char>(text.s[i]));
    const std::string written = escape(utf8_decode(text.s.data() + i));
    if (!written.empty()) {
      out.append(text, done, i);
      budget.bytes(written.size());
      if (text.marked(i))
        out.append_marked(written);
      else
        out.append(written);
      done = next;
    }
    i = next;
  }
  out.append(text, done, text.s.size());
}

// What str.isprintable() says no to: separators but the space, controls, formats and private use.
// Code points that no version of Unicode has assigned count as printable here.
bool is_printable(char32_t c) {
  constexpr char32_t ranges[][2] = {
      {0, 0x1F},          {0x7F, 0xA0},       {0xAD, 0xAD},       {0x600, 0x605},
      {0x61C, 0x61C},     {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x890, 0x891},
      {0x8E2, 0x8E2},     {0x1680, 0x1680},   {0x180E, 0x180E},   {0x2000, 0x200F},
      {0x2028, 0x202F},   {0x205F, 0x206F},   {0x3000, 0x3000},   {0xE000, 0xF8FF},
      {0xFEFF, 0xFEFF},   {0xFFF0, 0xFFFB},   {0xFFFE, 0xFFFF},   {0x110BD, 0x110BD},
      {0x110CD, 0x110CD}, {0x13430, 0x1343F}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A},
      {0xE0000, 0xE00FF}, {0xE01F0, 0x10FFFF}};
  return std::none_of(std::begin(ranges), std::end(ranges),
                      [&](const auto& range) { return range[0] <= c && c <= range[1]; });
}

void append_repr(Text& out, const Text& text, Budget& budget) {
  budget.work(1 + text.s.size() / 16);
  const bool doubled =
      text.s.find('\'') != std::string::npos && text.s.find('"') == std::string::npos;
  const char quote = doubled ? '"' : '\'';
  out.append(std::string(1, quote));
  append_escaped(out, text, budget, [&](char32_t c) -> std::string {
    if (c == static_cast<char32_t>(quote)) return std::string("\\") + quote;
    if (c == '\\') return "\\\\";
    if (c == '\n') return "\\n";
    if (c == '\r') return "\\r";
    if (c == '\t') return "\\t";
    if (is_printable(c)) return "";
    std::string escaped = c < 0x100 ? "\\x" : c < 0x10000 ? "\\u" : "\\U";
    for (int shift = c < 0x100 ? 0 : c < 0x10000 ? 8 : 24; shift >= 0; shift -= 8)
      append_hex(escaped, static_cast<std::uint8_t>(c >> shift));
    return escaped;
  });
  out.append(std::string(1, quote));
}

void append_text(Text& out, const Value& v, bool repr, Budget& budget) {
  budget.work();
  if (const Text* text = v.as_text()) {
    if (repr) return append_repr(out, *text, budget);
    budget.bytes(text->s.size());
    out.append(*text);
  } else if (v.is<Undefined>()) {
    if (repr) out.append("Undefined");
  } else if (v.is<None>()) {
    out.append("None");
  } else if (v.is<bool>()) {
    out.append(v.integer() != 0 ? "True" : "False");
  } else if (v.is<std::int64_t>()) {
    out.append(std::to_string(v.integer()));
  } else if (v.is<double>()) {
    out.append(real_text(v.real()));
  } else if (const List* list = v.as_list(); list != nullptr && list->is_written()) {
    budget.work(list->items.size());
    budget.bytes(2 + 2 * list->items.size());
    const bool tuple = list->kind == List::Kind::Tuple;
    out.append(tuple ? "(" : "[");
    for (std::size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out.append(", ");
      append_text(out, list->items[i], true, budget);
    }
    out.append(!tuple ? "]" : list->items.size() == 1 ? ",)" : ")");
  } else if (const Dict* dict = v.as_dict()) {
    budget.bytes(2 + 4 * dict->items.size());
    out.append("{");
    for (std::size_t i = 0; i < dict->items.size(); ++i) {
      if (i > 0) out.append(", ");
      budget.bytes(dict->items[i].first.size());
      append_repr(out, Text{dict->items[i].first, {}}, budget);
      out.append(": ");
      append_text(out, dict->items[i].second, true, budget);
    }
    out.append("}");
  } else {
    fail("a " + type_name(v) + " can't be written as text" +
         (v.as_list() ? "; the filter list makes one that can" : ""));
  }
}

std::string json_unit(char32_t unit) {
  std::string out = "\\u";
  append_hex(out, static_cast<std::uint8_t>(unit >> 8));
  append_hex(out, static_cast<std::uint8_t>(unit));
  return out;
}

void append_json_string(Text& out, const Text& text, bool ascii, Budget& budget) {
  out.append("\"");
  append_escaped(out, text, budget, [&](char32_t c) -> std::string {
    if (c == '"') return "\\\"";
    if (c == '\\') return "\\\\";
    if (c == '\n') return "\\n";
    if (c == '\r') return "\\r";
    if (c == '\t') return "\\t";
    if (c == '\b') return "\\b";
    if (c == '\f') return "\\f";
    if (c < 0x20 || (ascii && c >= 0x7F && c < 0x10000)) return json_unit(c);
    if (ascii && c >= 0x10000)
      return json_unit(0xD800 + ((c - 0x10000) >> 10)) +
             json_unit(0xDC00 + ((c - 0x10000) & 0x3FF));
    return "";
  });
  out.append("\"");
}

void append_json(Text& out, const Value& v, const JsonStyle& style, int level, Budget& budget) {
  budget.work();
  auto line = [&](int depth) {
    if (style.indent < 0) return;
    const auto spaces = static_cast<std::size_t>(style.indent) * static_cast<std::size_t>(depth);
    budget.bytes(spaces + 1);
    out.append("\n" + std::string(spaces, ' '));
  };
  if (const Text* text = v.as_text()) {
    append_json_string(out, *text, style.ascii, budget);
  } else if (v.is<None>()) {
    out.append("null");
  } else if (v.is<bool>()) {
    out.append(v.integer() != 0 ? "true" : "false");
  } else if (v.is<std::int64_t>() || v.is<double>()) {
    if (v.is<double>() && !std::isfinite(v.real())) fail("tojson: a number is not finite");
    append_text(out, v, false, budget);
  } else if (const List* list = v.as_list(); list != nullptr && list->is_written()) {
    budget.bytes(2 + list->items.size() * style.item.size());
    out.append("[");
    for (std::size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out.append(style.item);
      line(level + 1);
      append_json(out, list->items[i], style, level + 1, budget);
    }
    if (!list->items.empty()) line(level);
    out.append("]");
  } else if (const Dict* dict = v.as_dict()) {
    budget.bytes(2 + dict->items.size() * (style.item.size() + style.key.size()));
    out.append("{");
    budget.work(dict->items.size());
    std::vector<const std::pair<std::string, Value>*> items;
    for (const auto& item : dict->items) items.push_back(&item);
    if (style.sort_keys)
      std::sort(items.begin(), items.end(), [&](const auto* a, const auto* b) {
        budget.work(1 + std::min(a->first.size(), b->first.size()) / 32);
        return a->first < b->first;
      });
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out.append(style.item);
      line(level + 1);
      budget.bytes(items[i]->first.size());
      append_json_string(out, Text{items[i]->first, {}}, style.ascii, budget);
      out.append(style.key);
      append_json(out, items[i]->second, style, level + 1, budget);
    }
    if (!items.empty()) line(level);
    out.append("}");
  } else {
    fail("tojson: a " + type_name(v) + " is not JSON");
  }
}

}  // namespace

Text to_text(const Value& v, Budget& budget) {
  Text out;
  append_text(out, v, false, budget);
  return out;
}

Text to_json(const Value& v, const JsonStyle& style, Budget& budget) {
  Text out;
  append_json(out, v, style, 0, budget);
  return out;
}

}  // namespace lk::jinja
