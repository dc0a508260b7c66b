#include "text/tokenizer.h"

#include <algorithm>
#include <optional>
#include <unordered_map>

#include "io/printable.h"
#include "tensor/error.h"
#include "text/byte_alphabet.h"
#include "text/link_merges.h"
#include "text/tokenizer_builder.h"

namespace lk {

namespace {

// Tokens that end a turn or a text in models we know, wherever a model lists only one of them.
constexpr const char* kStopNames[] = {
    "<|im_end|>",      "<|eot_id|>", "<|eom_id|>",    "<|endoftext|>",
    "<|end_of_text|>", "<|end|>",    "<end_of_turn>", "</s>"};

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerSpec&& s) : spec(std::move(s)) {}

  TokenizerSpec spec;
  std::optional<std::int64_t> embedding_rows;  // unset: as many as there are tokens
  std::string pre_name;
  std::vector<std::string> bytes;  // by id: the bytes that decode() writes, but of these:
  std::unordered_map<std::int32_t, std::string> normal;  // added tokens as normalisation has them
  std::vector<bool> special;                             // by id
  std::vector<bool> stops;                               // by id: in spec.stop_ids
  TokenIds ids;
  TokenIds whole;  // tokens by the piece that they spell; filled for ignore_merges
  std::unique_ptr<BytePairs> pairs;
  AddedTokenFinder raw, normalized;  // tokens to look for before, after normalisation

  // What encode() makes: ids, and where they begin.
  struct Output {
    const Impl& tokenizer;
    Encoding encoding;
    bool offsets;
    std::vector<Symbol> symbols;  // scratch
    void add(std::int32_t id, std::size_t begin) {
      tokenizer.require_embedding(id, begin);
      encoding.ids.push_back(id);
      if (offsets) encoding.begins.push_back(begin);
    }
  };

  void index();
  std::string text_of(std::string token) const;
  void find_stop_ids();
  void check_around() const;
  void require_embedding(std::int32_t id, std::size_t begin) const;
  void add_added_tokens();

  Encoding encode(std::string_view text, ByteSpans plain, bool offsets) const;
  void encode_stretch(std::string_view text, std::size_t base, ByteSpans plain, Output& out) const;
  template <class Origin>
  void encode_text(std::string_view text, Origin&& origin, Output& out) const;
  template <class Origin>
  void encode_piece(std::string_view text, std::size_t begin, std::size_t end, Origin&& origin,
                    Output& out) const;
};

// Maps token strings to ids; each string must appear once.
void Tokenizer::Impl::index() {
  const std::size_t n = spec.tokens.size();
  if (n == 0) throw InputError(spec.where + ": the vocabulary is empty");
  ids.reserve(n);
  bytes.resize(n);
  special.resize(n);
  for (std::size_t i = 0; i < n; ++i) {
    const std::string& token = spec.tokens[i];
    if (utf8_valid_prefix(token) != token.size())
      throw InputError(concat(spec.where, ": token ", i, " is not valid UTF-8"));
    auto [it, fresh] = ids.emplace(token, static_cast<std::int32_t>(i));
    if (!fresh)
      throw InputError(concat(spec.where, ": tokens ", it->second, " and ", i, " are the same, \"",
                              token, "\""));
    bytes[i] = text_of(token);
  }
}

// The bytes that decode() writes for a vocabulary string.
std::string Tokenizer::Impl::text_of(std::string token) const {
  if (spec.byte_level) return byte_alphabet().decode(token);
  if (spec.decoder.byte_fallback)
    if (const int byte = fallback_byte(token); byte >= 0)
      return std::string(1, static_cast<char>(byte));
  const std::string& mark = spec.decoder.mark;
  if (mark.empty()) return token;
  for (std::size_t at = 0; (at = token.find(mark, at)) != std::string::npos; ++at)
    token.replace(at, mark.size(), " ");
  return token;
}

void Tokenizer::Impl::find_stop_ids() {
  const auto n = static_cast<std::int32_t>(spec.tokens.size());
  auto known = [&](std::int32_t id, const char* what) {
    if (id < -1 || id >= n)
      throw InputError(
          concat(spec.where, ": ", what, " is ", id, ", outside the vocabulary of ", n));
  };
  known(spec.bos, "the bos token");
  known(spec.eos, "the eos token");
  known(spec.unknown, "the unknown token");
  std::vector<std::int32_t> found;
  stops.resize(spec.tokens.size());
  auto add = [&](std::int32_t id) {
    known(id, "a stop token");
    if (id < 0 || stops[static_cast<std::size_t>(id)]) return;
    stops[static_cast<std::size_t>(id)] = true;
    found.push_back(id);
  };
  add(spec.eos);
  for (std::int32_t id : spec.stop_ids) add(id);
  for (const char* name : kStopNames)
    for (const AddedToken& token : spec.added)
      if (token.special && token.content == name) add(token.id);
  spec.stop_ids = std::move(found);
}

void Tokenizer::Impl::check_around() const {
  for (const auto* ids : {&spec.before, &spec.after})
    for (const std::int32_t id : *ids)
      if (id < 0 || id >= std::ssize(spec.tokens))
        throw InputError(concat(spec.where, ": a token put around each text has id ", id,
                                ", outside the vocabulary of ", spec.tokens.size()));
}

void Tokenizer::Impl::require_embedding(std::int32_t id, std::size_t begin) const {
  if (!embedding_rows || id < *embedding_rows) return;
  throw UnreadableToken(concat("the token ", printable(spec.tokens[static_cast<std::size_t>(id)]),
                               " has id ", id, ", but the model's embedding has ", *embedding_rows,
                               " rows: the model can't read this token; remove it from the text"),
                        begin);
}

void Tokenizer::Impl::add_added_tokens() {
  for (const AddedToken& token : spec.added) {
    if (token.content.empty())
      throw InputError(concat(spec.where, ": added token ", token.id, " is empty"));
    if (token.content.size() > AddedTokenFinder::kMaxBytes)
      throw InputError(concat(spec.where, ": added token ", token.id, " has ", token.content.size(),
                              " bytes; at most ", AddedTokenFinder::kMaxBytes, " are read"));
    const auto id = static_cast<std::size_t>(token.id);
    special[id] = token.special;
    if (spec.byte_level) bytes[id] = token.content;
    AddedToken wanted = token;
    // Content must not forge a token that ends a turn, whatever the file says of that token.
    wanted.special = token.special || stops[id];
    if (!token.normalized) {
      raw.add(wanted);
    } else {
      if (!spec.added_are_normal) wanted.content = spec.normalizer.apply(token.content).text;
      if (wanted.content.empty())
        throw InputError(
            concat(spec.where, ": added token ", token.id, " is empty once normalised"));
      // Decoding gives back what is found, as tokenizers 0.23 does and older ones do not: a mark put
      // before it stands for a space of the text.
      if (wanted.content != token.content)
        normal[token.id] = spec.byte_level ? wanted.content : text_of(wanted.content);
      if (!normalized.add(wanted))  // tokenizers finds either, another one each time it is loaded
        throw InputError(concat(spec.where, ": added token ", token.id, " (",
                                printable(token.content),
                                ") is another added token once normalised: which of them is found "
                                "can't be told"));
    }
  }
  if (!spec.ignore_merges) return;
  std::vector<bool> piece(bytes.size(), true);  // by id: whether a whole piece may be this token
  for (const AddedToken& token : spec.added)
    piece[static_cast<std::size_t>(token.id)] = token.in_vocabulary && !token.special;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    if (piece[i]) whole.emplace(spec.byte_level ? bytes[i] : spec.tokens[i], static_cast<int>(i));
}

std::unique_ptr<Tokenizer> TokenizerBuilder::build(TokenizerSpec spec) {
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer);
  tokenizer->impl_ = std::make_unique<Tokenizer::Impl>(std::move(spec));
  Tokenizer::Impl& impl = *tokenizer->impl_;
  impl.pre_name = to_string(impl.spec.pre);
  impl.index();
  impl.pairs = link_merges(impl.spec, impl.ids);
  impl.spec.merges = {};
  impl.spec.scores = {};
  impl.find_stop_ids();
  impl.check_around();
  impl.add_added_tokens();
  return tokenizer;
}

// Encodes a piece by its byte pairs. origin(i): where byte i of the text came from.
template <class Origin>
void Tokenizer::Impl::encode_piece(std::string_view text, std::size_t begin, std::size_t end,
                                   Origin&& origin, Output& out) const {
  const std::string_view piece = text.substr(begin, end - begin);
  if (spec.ignore_merges) {
    if (auto it = whole.find(piece); it != whole.end()) {
      out.add(it->second, origin(begin));
      return;
    }
  }
  out.encoding.lost_bytes += pairs->encode(piece, spec.unknown, spec.fuse_unknown, out.symbols);
  for (const auto& symbol : out.symbols) out.add(symbol.id, origin(begin + symbol.begin));
}

// Encodes a text without added tokens, piece by piece.
template <class Origin>
void Tokenizer::Impl::encode_text(std::string_view text, Origin&& origin, Output& out) const {
  if (!spec.metaspace) {
    pre_tokenize(spec.pre, text, [&](std::size_t begin, std::size_t end) {
      encode_piece(text, begin, end, origin, out);
    });
    return;
  }
  const Metaspace& m = *spec.metaspace;
  Normalizer marks;
  marks.add_replace(" ", m.mark);
  const bool starts = text.starts_with(' ') || text.starts_with(m.mark);
  if (!starts && (m.prepend == Metaspace::Prepend::Always ||
                  (m.prepend == Metaspace::Prepend::First && origin(0) == 0)))
    marks.add_prepend(m.mark);
  const Normalized marked = marks.apply(text);
  auto marked_origin = [&](std::size_t i) { return origin(marked.origin[i]); };
  for (std::size_t begin = 0, end = 0; begin < marked.text.size(); begin = end) {
    end = m.split ? marked.text.find(m.mark, begin + 1) : std::string::npos;
    if (end == std::string::npos) end = marked.text.size();
    encode_piece(marked.text, begin, end, marked_origin, out);
  }
}

// Encodes the text between raw added tokens; it starts at byte `base` of the text that the `plain`
// spans refer to.
void Tokenizer::Impl::encode_stretch(std::string_view text, std::size_t base, ByteSpans plain,
                                     Output& out) const {
  if (normalized.empty() && spec.normalizer.surely_keeps(text)) {
    encode_text(
        text, [&](std::size_t i) { return base + i; }, out);
    return;
  }
  const Normalized normal = spec.normalizer.apply(text);
  auto origin = [&](std::size_t i) { return base + normal.origin[i]; };
  // The plain spans, in bytes of the normalised text.
  std::vector<std::pair<std::size_t, std::size_t>> spans;
  auto moved = [&](std::size_t at) {
    const std::size_t source = at < base ? 0 : at - base;
    return static_cast<std::size_t>(
        std::lower_bound(normal.origin.begin(), normal.origin.end(), source) -
        normal.origin.begin());
  };
  for (const auto& [begin, end] : plain) spans.emplace_back(moved(begin), moved(end));
  normalized.split(
      normal.text, spans,
      [&](std::size_t begin, std::size_t end) {
        encode_text(
            std::string_view(normal.text).substr(begin, end - begin),
            [&](std::size_t i) { return origin(begin + i); }, out);
      },
      [&](std::size_t begin, std::size_t, std::int32_t id) { out.add(id, origin(begin)); });
}

Tokenizer::Encoding Tokenizer::Impl::encode(std::string_view text, ByteSpans plain,
                                            bool offsets) const {
  if (std::size_t ok = utf8_valid_prefix(text); ok != text.size())
    throw InputError(concat("text to encode is not valid UTF-8 at byte ", ok));
  std::size_t last = 0;
  for (const auto& [begin, end] : plain) {
    require(last <= begin && begin <= end && end <= text.size(), "encode: the plain span ", begin,
            " to ", end, ": spans are sorted and lie inside the text of ", text.size(), " bytes");
    last = end;
  }
  Output out{*this, {}, offsets, {}};
  out.encoding.ids.reserve(text.size() / 4 + 8);
  raw.split(
      text, plain,
      [&](std::size_t begin, std::size_t end) {
        encode_stretch(text.substr(begin, end - begin), begin, plain, out);
      },
      [&](std::size_t begin, std::size_t, std::int32_t id) { out.add(id, begin); });
  return std::move(out.encoding);
}

Tokenizer::Tokenizer() = default;
Tokenizer::~Tokenizer() = default;

std::vector<std::int32_t> Tokenizer::encode(
    std::string_view text, std::span<const std::pair<std::size_t, std::size_t>> plain) const {
  return impl_->encode(text, plain, false).ids;
}

Tokenizer::Encoding Tokenizer::encode_with_offsets(
    std::string_view text, std::span<const std::pair<std::size_t, std::size_t>> plain) const {
  return impl_->encode(text, plain, true);
}

Tokenizer::Encoding Tokenizer::encode_prompt(std::string_view text) const {
  Encoding e = encode_with_offsets(text);
  const std::vector<std::int32_t>& before = impl_->spec.before;
  for (const std::int32_t id : before) {
    require_embedding(id);
    if (!e.ids.empty() && e.ids[0] == id)
      throw InputError(concat("the text begins with ", printable(token_text(id)),
                              ", which the model's tokenizer adds itself: it would stand there "
                              "twice; remove it from the text"));
  }
  e.ids.insert(e.ids.begin(), before.begin(), before.end());
  e.begins.insert(e.begins.begin(), before.size(), 0);
  return e;
}

std::string Tokenizer::token_text(std::int32_t id) const {
  if (id >= n_tokens() && id < impl_->embedding_rows.value_or(0)) return "";
  if (id < 0 || id >= n_tokens())
    throw InputError(concat("token id ", id, " is outside the vocabulary of ", n_tokens()));
  return impl_->bytes[static_cast<std::size_t>(id)];
}

TextDecoder::TextDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer),
      skip_special_(skip_special),
      strip_(tokenizer.impl_->spec.decoder.strip) {}

std::string TextDecoder::next(std::int32_t id) {
  const Tokenizer::Impl& impl = *tokenizer_->impl_;
  const auto normal = impl.normal.find(id);
  const bool is_normal = normal != impl.normal.end();
  std::string text = is_normal ? normal->second : tokenizer_->token_text(id);
  if (id >= tokenizer_->n_tokens()) return text;
  const auto i = static_cast<std::size_t>(id);
  if (skip_special_ && impl.special[i]) return "";
  // The reference drops every mark of the first token, wherever in the token it is.
  if (first_ && impl.spec.decoder.first_loses_marks &&
      (is_normal || impl.spec.tokens[i].find(impl.spec.decoder.mark) != std::string::npos))
    std::erase(text, ' ');
  first_ = false;
  std::size_t spaces = 0;
  while (spaces < strip_ && spaces < text.size() && text[spaces] == ' ') ++spaces;
  strip_ = spaces == text.size() ? strip_ - spaces : 0;
  return text.substr(spaces);
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  return decode_after({}, ids, skip_special);
}

std::string Tokenizer::decode_after(std::span<const std::int32_t> before,
                                    std::span<const std::int32_t> ids, bool skip_special) const {
  TextDecoder decoder(*this, skip_special);
  for (std::int32_t id : before) decoder.next(id);
  std::string text;
  for (std::int32_t id : ids) text += decoder.next(id);
  return text;
}

std::int64_t Tokenizer::n_tokens() const { return std::ssize(impl_->spec.tokens); }
std::int32_t Tokenizer::eos() const { return impl_->spec.eos; }
std::int32_t Tokenizer::bos() const { return impl_->spec.bos; }
const std::vector<std::int32_t>& Tokenizer::stop_ids() const { return impl_->spec.stop_ids; }
const std::vector<std::int32_t>& Tokenizer::before_text() const { return impl_->spec.before; }
const std::vector<std::int32_t>& Tokenizer::after_text() const { return impl_->spec.after; }
void Tokenizer::set_embedding_rows(std::int64_t rows) { impl_->embedding_rows = rows; }
void Tokenizer::require_embedding(std::int32_t id, std::size_t begin) const {
  impl_->require_embedding(id, begin);
}
const std::string& Tokenizer::chat_template() const { return impl_->spec.chat_template; }
const std::string& Tokenizer::tool_template() const { return impl_->spec.tool_template; }
const std::vector<std::pair<std::string, std::string>>& Tokenizer::named_tokens() const {
  return impl_->spec.named_tokens;
}
const std::string& Tokenizer::pre_tokenizer() const { return impl_->pre_name; }

std::int32_t Tokenizer::id_of(std::string_view token) const {
  auto it = impl_->ids.find(token);
  return it == impl_->ids.end() ? -1 : it->second;
}

}  // namespace lk
