#include "text/tokenizer_json_parts.h"

#include "tensor/error.h"

namespace lk::tokenizer_json {

namespace {

constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The parts of a "Sequence", or the one part there is.
std::vector<Json> parts_of(const Json& part, const char* list, const std::string& where) {
  if (!part.is_object()) refuse(where, "not an object");
  if (json_string(part, "type", where) != "Sequence") return {part};
  const Json& parts = json_at(part, list, where);
  if (!parts.is_array()) refuse(where, std::string(list) + ": not an array");
  return parts.get<std::vector<Json>>();
}

std::string names_of(const std::vector<Json>& parts, const std::string& where) {
  std::string names;
  for (const Json& part : parts)
    names += (names.empty() ? "" : ", ") + json_string(part, "type", where);
  return "[" + names + "]";
}

// Reads the "String" of a pattern, which must not be empty.
std::string string_pattern(const Json& part, const std::string& where) {
  const Json& pattern = object_at(part, "pattern", where);
  if (!pattern.contains("String")) refuse(where, "a pattern that is no String is not known");
  std::string text = json_string(pattern, "String", where + ": pattern");
  if (text.empty()) refuse(where, "the pattern is empty");
  return text;
}

PreTokenizer split_pattern(const Json& split, const std::string& where) {
  const std::string behavior = json_string(split, "behavior", where);
  if (behavior != "Isolated" || json_bool_or(split, "invert", false, where))
    refuse(where, "Split with behavior \"" + behavior + "\" is not known (Isolated is)");
  const std::string pattern = json_string(object_at(split, "pattern", where), "Regex", where);
  if (pattern == kGpt2Pattern) return PreTokenizer::Gpt2;
  if (pattern == kLlama3Pattern) return PreTokenizer::Llama3;
  if (pattern == kQwen2Pattern) return PreTokenizer::Qwen2;
  refuse(where, "the pattern \"" + pattern + "\" is not one we know (gpt2's, llama3's, qwen2's)");
}

// Reads the character that marks spaces: "replacement" of Metaspace, as pre-tokenizer or decoder.
std::string replacement(const Json& part, const std::string& where) {
  std::string mark = json_string_or(part, "replacement", kSpaceMark, where);
  if (mark.empty() || mark.size() > 4 || mark == " ")
    refuse(where, "replacement: \"" + mark + "\" is not one character");
  return mark;
}

Metaspace::Prepend prepend_scheme(const Json& part, const std::string& where) {
  const bool old = json_bool_or(part, "add_prefix_space", true, where);
  const std::string scheme =
      json_string_or(part, "prepend_scheme", old ? "always" : "never", where);
  if (scheme == "always") return Metaspace::Prepend::Always;
  if (scheme == "first") return Metaspace::Prepend::First;
  if (scheme == "never") return Metaspace::Prepend::Never;
  refuse(where, "prepend_scheme: \"" + scheme + "\" is not known (always, first, never are)");
}

// Reads ByteLevel alone, after Digits, or, without its own pattern, after Split.
void read_byte_level(const std::vector<Json>& parts, const std::string& where,
                     TokenizerSpec& spec) {
  auto type = [&](std::size_t i) { return json_string(parts[i], "type", where); };
  const Json& byte_level = parts.back();
  if (json_bool_or(byte_level, "add_prefix_space", true, where))
    refuse(where, "ByteLevel with add_prefix_space is not supported");
  const bool own_pattern = json_bool_or(byte_level, "use_regex", true, where);
  if (parts.size() == 1) {
    if (!own_pattern) refuse(where, "ByteLevel without use_regex and without a Split");
    spec.pre = PreTokenizer::Gpt2;
  } else if (type(0) == "Digits") {
    if (!json_bool_or(parts[0], "individual_digits", false, where) || !own_pattern)
      refuse(where, "Digits is known with individual_digits and before a ByteLevel with use_regex");
    spec.pre = PreTokenizer::SmolLm;
  } else if (type(0) == "Split") {
    if (own_pattern) refuse(where, "Split before a ByteLevel with use_regex is not known");
    spec.pre = split_pattern(parts[0], where);
  } else {
    refuse(where, "\"" + type(0) + "\" is not known (Digits and Split are)");
  }
}

}  // namespace

void refuse(const std::string& where, const std::string& what) {
  throw InputError(where + ": " + what);
}

bool present(const Json& object, const char* key) {
  return object.contains(key) && !object.at(key).is_null();
}

const Json& object_at(const Json& object, const char* key, const std::string& where) {
  const Json& value = json_at(object, key, where);
  if (!value.is_object()) refuse(where, std::string(key) + ": not an object");
  return value;
}

std::pair<std::string, std::string> read_merge(const Json& merge, std::size_t rank,
                                               const std::string& where) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos)
      return {text.substr(0, space), text.substr(space + 1)};
  }
  refuse(where, concat("merge ", rank, " is not two tokens"));
}

void read_normalizer(const Json& file, TokenizerSpec& spec) {
  if (!present(file, "normalizer")) return;
  const std::string where = spec.where + ": normalizer";
  for (const Json& part : parts_of(file.at("normalizer"), "normalizers", where)) {
    const std::string type = json_string(part, "type", where);
    if (spec.normalizer.full())
      refuse(where, concat("more than ", Normalizer::kMaxSteps, " steps are not supported"));
    if (type == "NFC") {
      spec.normalizer.add_nfc();
    } else if (type == "Prepend") {
      const std::string what = json_string(part, "prepend", where);
      if (what.size() > Normalizer::kMaxPrefix)
        refuse(where, concat("prepend: more than ", Normalizer::kMaxPrefix, " bytes"));
      spec.normalizer.add_prepend(what);
    } else if (type == "Replace") {
      const std::string from = string_pattern(part, where);
      const std::string to = json_string(part, "content", where);
      if (to.size() > Normalizer::kMaxGrowth * from.size())
        refuse(where, concat("content: more than ", Normalizer::kMaxGrowth,
                             " times as long as the pattern is not supported"));
      spec.normalizer.add_replace(from, to);
    } else {
      refuse(where, "\"" + type + "\" is not known (NFC, Prepend, Replace and Sequence are)");
    }
  }
}

void read_pre_tokenizer(const Json& file, TokenizerSpec& spec) {
  const std::string where = spec.where + ": pre_tokenizer";
  std::vector<Json> parts;
  if (present(file, "pre_tokenizer"))
    parts = parts_of(file.at("pre_tokenizer"), "pretokenizers", where);
  auto type = [&](std::size_t i) { return json_string(parts[i], "type", where); };
  if (!parts.empty() && parts.size() <= 2 && type(parts.size() - 1) == "ByteLevel")
    return read_byte_level(parts, where, spec);

  spec.byte_level = false;
  spec.pre = PreTokenizer::Whole;
  if (parts.empty()) return;
  if (parts.size() == 1 && type(0) == "Metaspace") {
    spec.metaspace = Metaspace{replacement(parts[0], where), prepend_scheme(parts[0], where),
                               json_bool_or(parts[0], "split", true, where)};
    return;
  }
  // Gemma asks for a cut after each space, though its normalizer has left none.
  if (parts.size() == 1 && type(0) == "Split") {
    const std::string behavior = json_string(parts[0], "behavior", where);
    if (string_pattern(parts[0], where) == " " && behavior == "MergedWithPrevious" &&
        !json_bool_or(parts[0], "invert", false, where) &&
        spec.normalizer.apply(" ").text.find(' ') == std::string::npos)
      return;
    refuse(where,
           "a Split of spaces is known after a normalizer that replaces them, with the "
           "behavior MergedWithPrevious, not \"" +
               behavior + "\"");
  }
  refuse(where, names_of(parts, where) +
                    " is not known (ByteLevel alone or after Digits or Split, and Metaspace, are)");
}

void read_decoder(const Json& file, TokenizerSpec& spec) {
  const std::string where = spec.where + ": decoder";
  std::vector<Json> parts;
  if (present(file, "decoder")) parts = parts_of(file.at("decoder"), "decoders", where);
  DecoderSpec& d = spec.decoder;
  // The reference runs the steps in this order: one that is out of place is refused.
  int last = 0;
  auto in_order = [&](int place, const std::string& type) {
    if (place <= last) refuse(where, "\"" + type + "\" is not known in this place");
    last = place;
  };
  for (const Json& part : parts) {
    const std::string type = json_string(part, "type", where);
    if (spec.byte_level) {
      if (type != "ByteLevel") refuse(where, "\"" + type + "\" is not known (ByteLevel is)");
    } else if (type == "ByteLevel") {
      refuse(spec.where + ": pre_tokenizer", "missing, yet the decoder is ByteLevel");
    } else if (type == "Replace") {
      in_order(1, type);
      d.mark = string_pattern(part, where);
      if (json_string(part, "content", where) != " ")
        refuse(where, "Replace by anything but a space is not known");
    } else if (type == "Metaspace") {
      in_order(1, type);
      d.mark = replacement(part, where);
      d.first_loses_marks = prepend_scheme(part, where) != Metaspace::Prepend::Never;
    } else if (type == "ByteFallback") {
      in_order(2, type);
      d.byte_fallback = true;
    } else if (type == "Fuse") {
      in_order(3, type);
    } else if (type == "Strip") {
      in_order(4, type);
      if (json_string(part, "content", where) != " " ||
          json_int_or(part, "stop", 0, 0, 1, where) != 0)
        refuse(where, "Strip is known for spaces at the start");
      d.strip = static_cast<std::size_t>(json_int_or(part, "start", 0, 0, 16, where));
    } else {
      refuse(where, "\"" + type +
                        "\" is not known (ByteLevel, Replace, ByteFallback, Fuse, Strip "
                        "and Metaspace are)");
    }
  }
  if (!spec.byte_level && d.mark.empty())
    refuse(where, "missing or without Replace and Metaspace: how spaces are written is not said");
}

namespace {

// The ids of a special token of a TemplateProcessing: its `special_tokens` maps the name to them.
std::vector<std::int32_t> template_token(const Json& part, const Json& piece,
                                         const TokenizerSpec& spec, const std::string& where) {
  const std::string name = json_string(object_at(piece, "SpecialToken", where), "id", where);
  const Json& known = object_at(part, "special_tokens", where);
  if (!known.contains(name)) refuse(where, "special_tokens: \"" + name + "\" is missing");
  const std::string here = where + ": special_tokens: " + name;
  const Json& ids = json_at(known.at(name), "ids", here);
  if (!ids.is_array() || ids.empty()) refuse(here, "ids: not an array of at least one id");
  std::vector<std::int32_t> out;
  for (const Json& id : ids)
    out.push_back(static_cast<std::int32_t>(
        json_int(Json{{"ids", id}}, "ids", 0, std::ssize(spec.tokens) - 1, here)));
  return out;
}

// TemplateProcessing: `single` has the text as the sequence A, with special tokens around it.
void read_template_processing(const Json& part, TokenizerSpec& spec, const std::string& where) {
  const Json& single = json_at(part, "single", where);
  if (!single.is_array()) refuse(where, "single: not an array");
  std::vector<std::int32_t> before, after;
  bool text = false;
  for (const Json& piece : single) {
    if (!piece.is_object()) refuse(where, "single: not an object");
    if (piece.contains("Sequence")) {
      if (text || json_string(piece.at("Sequence"), "id", where) != "A")
        refuse(where, "single: the sequence A is expected once, and no other");
      text = true;
      continue;
    }
    std::vector<std::int32_t>& side = text ? after : before;
    const std::vector<std::int32_t> ids = template_token(part, piece, spec, where);
    side.insert(side.end(), ids.begin(), ids.end());
  }
  if (!text) refuse(where, "single: the sequence A is missing");
  spec.before.insert(spec.before.begin(), before.begin(), before.end());
  spec.after.insert(spec.after.end(), after.begin(), after.end());
}

}  // namespace

void read_post_processor(const Json& file, TokenizerSpec& spec) {
  if (!present(file, "post_processor")) return;
  const std::string where = spec.where + ": post_processor";
  for (const Json& part : parts_of(file.at("post_processor"), "processors", where)) {
    const std::string type = json_string(part, "type", where);
    if (type == "ByteLevel") continue;  // moves offsets only
    if (type != "TemplateProcessing")
      refuse(where, "\"" + type + "\" is not known (TemplateProcessing and ByteLevel are)");
    read_template_processing(part, spec, where);
  }
}

}  // namespace lk::tokenizer_json
