#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <unordered_set>

#include "tensor/error.h"
#include "text/bpe.h"
#include "text/tokenizer_builder.h"

namespace lk {

namespace {

// Byte-level BPE writes each byte as a visible character: 33-126, 161-172 and 174-255 as
// themselves, the other 68 as U+0100, U+0101, ... in order. Source: GPT-2's encoder (Radford et al.
// 2019).
struct ByteAlphabet {
  std::array<std::string, 256> text;
  std::unordered_map<char32_t, std::uint8_t> byte;
  ByteAlphabet() {
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool visible = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      const char32_t c = visible ? static_cast<char32_t>(b) : next++;
      utf8_append(text[static_cast<std::size_t>(b)], c);
      byte[c] = static_cast<std::uint8_t>(b);
    }
  }
  // The bytes a vocabulary string stands for; a string with any other character stands for itself.
  std::string decode(const std::string& token) const {
    std::string bytes;
    for (std::size_t i = 0; i < token.size();
         i += utf8_length(static_cast<unsigned char>(token[i]))) {
      auto it = byte.find(utf8_decode(token.data() + i));
      if (it == byte.end()) return token;
      bytes += static_cast<char>(it->second);
    }
    return bytes;
  }
};

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

// Tokens that end a turn or a text in models we know, wherever a model lists only one of them.
constexpr const char* kStopNames[] = {
    "<|im_end|>",      "<|eot_id|>", "<|eom_id|>",    "<|endoftext|>",
    "<|end_of_text|>", "<|end|>",    "<end_of_turn>", "</s>"};

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerSpec&& s) : spec(std::move(s)) {}

  TokenizerSpec spec;
  std::string pre_name;
  std::vector<std::string> bytes;                            // by id: what decode() writes
  std::vector<bool> special;                                 // by id
  std::vector<bool> stops;                                   // by id: in spec.stop_ids
  std::unordered_map<std::string_view, std::int32_t> ids;    // by vocabulary string
  std::unordered_map<std::string_view, std::int32_t> whole;  // by bytes; filled for ignore_merges
  std::unique_ptr<BytePairs> pairs;
  AddedTokenFinder raw, normalized;  // looked for before and after normalisation

  // Where encode() writes.
  struct Output {
    Encoding encoding;
    bool offsets;
    std::vector<BytePairs::Symbol> symbols;  // scratch
    void add(std::int32_t id, std::size_t begin) {
      encoding.ids.push_back(id);
      if (offsets) encoding.begins.push_back(begin);
    }
  };

  void index();
  void link_merges();
  void find_stop_ids();
  void add_added_tokens();

  Encoding encode(std::string_view text, ByteSpans plain, bool offsets) const;
  void encode_stretch(std::string_view text, std::size_t base, ByteSpans plain, Output& out) const;
  template <class Origin>
  void encode_text(std::string_view text, Origin&& origin, Output& out) const;
};

// Token string -> id, each once.
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
    bytes[i] = byte_alphabet().decode(token);
  }
}

void Tokenizer::Impl::link_merges() {
  std::vector<std::int32_t> byte_ids(256, -1);
  bool any = false;
  for (std::size_t b = 0; b < 256; ++b) {
    if (auto it = ids.find(byte_alphabet().text[b]); it != ids.end()) byte_ids[b] = it->second;
    any = any || byte_ids[b] >= 0;
  }
  if (!any)
    throw InputError(spec.where + ": no token stands for a single byte: not byte-level BPE");

  std::vector<BytePairs::Merge> merges;
  merges.reserve(spec.merges.size());
  std::unordered_set<std::uint64_t> seen(2 * spec.merges.size());
  for (std::size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const auto& [left, right] = spec.merges[rank];
    auto id = [&](const std::string& token) {
      auto it = ids.find(token);
      if (it == ids.end() || token.empty())
        throw InputError(concat(spec.where, ": merge ", rank, " (\"", left, "\" \"", right,
                                "\") names \"", token, "\", which is not a token"));
      return it->second;
    };
    merges.push_back({id(left), id(right), id(left + right)});
    const auto key = static_cast<std::uint64_t>(merges.back().left) << 32 |
                     static_cast<std::uint32_t>(merges.back().right);
    if (!seen.insert(key).second)
      throw InputError(
          concat(spec.where, ": merge ", rank, " (\"", left, "\" \"", right, "\") is there twice"));
  }
  pairs = std::make_unique<BytePairs>(byte_ids, merges);
  spec.merges = {};
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

void Tokenizer::Impl::add_added_tokens() {
  for (const AddedToken& token : spec.added) {
    if (token.content.empty())
      throw InputError(concat(spec.where, ": added token ", token.id, " is empty"));
    if (token.content.size() > AddedTokenFinder::kMaxBytes)
      throw InputError(concat(spec.where, ": added token ", token.id, " has ", token.content.size(),
                              " bytes; at most ", AddedTokenFinder::kMaxBytes, " are read"));
    const auto id = static_cast<std::size_t>(token.id);
    special[id] = token.special;
    bytes[id] = token.content;
    AddedToken wanted = token;
    // Whatever ends a turn must not be forged either, whatever the file says of it.
    wanted.special = token.special || stops[id];
    if (!token.normalized || !spec.nfc) {
      raw.add(wanted);
    } else {
      wanted.content = to_nfc(token.content).text;
      normalized.add(wanted);
    }
  }
  if (!spec.ignore_merges) return;
  std::vector<bool> piece(bytes.size(), true);  // by id: what a piece may be as a whole
  for (const AddedToken& token : spec.added)
    piece[static_cast<std::size_t>(token.id)] = token.in_vocabulary && !token.special;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    if (piece[i]) whole.emplace(bytes[i], static_cast<std::int32_t>(i));
}

std::unique_ptr<Tokenizer> TokenizerBuilder::build(TokenizerSpec spec) {
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer);
  tokenizer->impl_ = std::make_unique<Tokenizer::Impl>(std::move(spec));
  Tokenizer::Impl& impl = *tokenizer->impl_;
  impl.pre_name = to_string(impl.spec.pre);
  impl.index();
  impl.link_merges();
  impl.find_stop_ids();
  impl.add_added_tokens();
  return tokenizer;
}

// A text without added tokens: pieces, then their byte pairs. origin(i): where byte i came from.
template <class Origin>
void Tokenizer::Impl::encode_text(std::string_view text, Origin&& origin, Output& out) const {
  pre_tokenize(spec.pre, text, [&](std::size_t begin, std::size_t end) {
    const std::string_view piece = text.substr(begin, end - begin);
    if (spec.ignore_merges) {
      if (auto it = whole.find(piece); it != whole.end()) {
        out.add(it->second, origin(begin));
        return;
      }
    }
    out.encoding.lost_bytes += pairs->encode(piece, spec.unknown, spec.fuse_unknown, out.symbols);
    for (const auto& symbol : out.symbols) out.add(symbol.id, origin(begin + symbol.begin));
  });
}

// What lies between raw added tokens; it starts at byte `base` of the text that `plain` speaks of.
void Tokenizer::Impl::encode_stretch(std::string_view text, std::size_t base, ByteSpans plain,
                                     Output& out) const {
  if (!spec.nfc || (normalized.empty() && surely_nfc(text))) {
    encode_text(
        text, [&](std::size_t i) { return base + i; }, out);
    return;
  }
  const Normalized nfc = to_nfc(text);
  auto origin = [&](std::size_t i) { return base + nfc.origin[i]; };
  // The plain spans, in bytes of the normalised text.
  std::vector<std::pair<std::size_t, std::size_t>> spans;
  auto moved = [&](std::size_t at) {
    const std::size_t source = at < base ? 0 : at - base;
    return static_cast<std::size_t>(std::lower_bound(nfc.origin.begin(), nfc.origin.end(), source) -
                                    nfc.origin.begin());
  };
  for (const auto& [begin, end] : plain) spans.emplace_back(moved(begin), moved(end));
  normalized.split(
      nfc.text, spans,
      [&](std::size_t begin, std::size_t end) {
        encode_text(
            std::string_view(nfc.text).substr(begin, end - begin),
            [&](std::size_t i) { return origin(begin + i); }, out);
      },
      [&](std::size_t begin, std::size_t, std::int32_t id) { out.add(id, origin(begin)); });
}

Tokenizer::Encoding Tokenizer::Impl::encode(std::string_view text, ByteSpans plain,
                                            bool offsets) const {
  if (std::size_t ok = utf8_valid_prefix(text); ok != text.size())
    throw InputError(concat("text to encode is not valid UTF-8 at byte ", ok));
  Output out{{}, offsets, {}};
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

std::string Tokenizer::token_text(std::int32_t id) const {
  if (id < 0 || id >= n_tokens())
    throw InputError(concat("token id ", id, " is outside the vocabulary of ", n_tokens()));
  return impl_->bytes[static_cast<std::size_t>(id)];
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::string text;
  for (std::int32_t id : ids) {
    if (id < 0 || id >= n_tokens()) token_text(id);  // throws
    const auto i = static_cast<std::size_t>(id);
    if (!skip_special || !impl_->special[i]) text += impl_->bytes[i];
  }
  return text;
}

std::int64_t Tokenizer::n_tokens() const { return std::ssize(impl_->spec.tokens); }
std::int32_t Tokenizer::eos() const { return impl_->spec.eos; }
std::int32_t Tokenizer::bos() const { return impl_->spec.bos; }
const std::vector<std::int32_t>& Tokenizer::stop_ids() const { return impl_->spec.stop_ids; }
bool Tokenizer::adds_bos() const { return impl_->spec.adds_bos; }
const std::string& Tokenizer::chat_template() const { return impl_->spec.chat_template; }
const std::string& Tokenizer::pre_tokenizer() const { return impl_->pre_name; }

std::int32_t Tokenizer::id_of(std::string_view token) const {
  auto it = impl_->ids.find(token);
  return it == impl_->ids.end() ? -1 : it->second;
}

}  // namespace lk
