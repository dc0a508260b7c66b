#include "text/unicode.h"

#include <algorithm>
#include <array>
#include <memory>
#include <unordered_map>

#include "io/utf8.h"

namespace lk {

namespace {

#include "text/unicode_classes.inc"
#include "text/unicode_nfc.inc"

// Hangul syllables compose by arithmetic.
constexpr char32_t kHangulBase = 0xAC00, kLeadBase = 0x1100, kVowelBase = 0x1161,
                   kTailBase = 0x11A7;
constexpr char32_t kLeads = 19, kVowels = 21, kTails = 28, kSyllables = kLeads * kVowels * kTails;

struct Character {
  char32_t code;
  std::uint8_t combining_class;
  std::size_t origin;
};

struct NfcTables {
  std::unordered_map<char32_t, std::array<std::uint32_t, 2>> decomposition;
  std::unordered_map<std::uint64_t, char32_t> composition;
  std::unordered_map<char32_t, std::uint8_t> combining_class;
};

std::uint64_t pair_key(char32_t a, char32_t b) { return static_cast<std::uint64_t>(a) << 32 | b; }

const NfcTables& nfc_tables() {
  static const NfcTables tables = [] {
    NfcTables t;
    for (const auto& [first, last, value] : kCombiningClasses)
      for (char32_t c = first; c <= last; ++c)
        t.combining_class[c] = static_cast<std::uint8_t>(value);
    for (const auto& [c, a, b] : kPrimaryComposites) {
      t.decomposition[c] = {a, b};
      t.composition[pair_key(a, b)] = c;
    }
    for (const auto& [c, a, b] : kOneWayDecompositions) t.decomposition[c] = {a, b};
    return t;
  }();
  return tables;
}

void decompose(char32_t c, std::size_t origin, const NfcTables& t, std::vector<Character>& out) {
  if (c >= kHangulBase && c < kHangulBase + kSyllables) {
    const char32_t s = c - kHangulBase;
    out.push_back({kLeadBase + s / (kVowels * kTails), 0, origin});
    out.push_back({kVowelBase + s % (kVowels * kTails) / kTails, 0, origin});
    if (s % kTails != 0) out.push_back({kTailBase + s % kTails, 0, origin});
    return;
  }
  if (auto it = t.decomposition.find(c); it != t.decomposition.end()) {
    decompose(it->second[0], origin, t, out);
    if (it->second[1] != 0) decompose(it->second[1], origin, t, out);
    return;
  }
  auto it = t.combining_class.find(c);
  out.push_back({c, it == t.combining_class.end() ? std::uint8_t{0} : it->second, origin});
}

// The composite of two characters, 0 if there is none.
char32_t compose(char32_t a, char32_t b, const NfcTables& t) {
  if (a >= kLeadBase && a < kLeadBase + kLeads && b >= kVowelBase && b < kVowelBase + kVowels)
    return kHangulBase + ((a - kLeadBase) * kVowels + (b - kVowelBase)) * kTails;
  if (a >= kHangulBase && a < kHangulBase + kSyllables && (a - kHangulBase) % kTails == 0 &&
      b > kTailBase && b < kTailBase + kTails)
    return a + (b - kTailBase);
  auto it = t.composition.find(pair_key(a, b));
  return it == t.composition.end() ? 0 : it->second;
}

template <std::size_t N>
void mark(std::uint8_t* classes, const std::array<std::uint32_t, 2> (&ranges)[N], int bits) {
  for (const auto& [first, last] : ranges)
    for (char32_t c = first; c <= last; ++c) classes[c] |= static_cast<std::uint8_t>(bits);
}

}  // namespace

const std::uint8_t* char_classes() {
  static const std::unique_ptr<std::uint8_t[]> classes = [] {
    auto bits = std::make_unique<std::uint8_t[]>(0x110000);
    mark(bits.get(), kLetters, kLetter | kWord);
    mark(bits.get(), kNumbers, kNumber | kNumeric | kWord);
    for (const auto& [first, last] : kNoWordNumbers)
      for (char32_t c = first; c <= last; ++c) bits[c] &= static_cast<std::uint8_t>(~kWord);
    mark(bits.get(), kNumericSince17, kNumeric);
    mark(bits.get(), kWhiteSpace, kSpace);
    mark(bits.get(), kOtherWord, kWord);
    // NFC's quick check gives no plain yes for marks, for characters that never survive composition
    // and for what may be the second half of a composite.
    for (const auto& [first, last, value] : kCombiningClasses)
      for (char32_t c = first; c <= last; ++c) bits[c] |= kNfcActive;
    for (const auto& row : kOneWayDecompositions) bits[row[0]] |= kNfcActive;
    for (const auto& row : kPrimaryComposites) bits[row[2]] |= kNfcActive;
    for (char32_t c = kVowelBase; c < kVowelBase + kVowels; ++c) bits[c] |= kNfcActive;
    for (char32_t c = kTailBase + 1; c < kTailBase + kTails; ++c) bits[c] |= kNfcActive;
    return bits;
  }();
  return classes.get();
}

bool surely_nfc(std::string_view text) {
  const std::uint8_t* classes = char_classes();
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    // Nothing below U+0300 (lead byte 0xCC) is active.
    if (lead >= 0xCC && (classes[utf8_decode(text.data() + i)] & kNfcActive)) return false;
    i += utf8_length(lead);
  }
  return true;
}

Normalized to_nfc(std::string_view text) {
  const NfcTables& t = nfc_tables();
  std::vector<Character> chars;
  chars.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); i += utf8_length(static_cast<unsigned char>(text[i])))
    decompose(utf8_decode(text.data() + i), i, t, chars);

  // Canonical order: each run of marks sorted by class, equal classes left in place.
  for (std::size_t i = 0; i < chars.size();) {
    std::size_t end = i + 1;
    if (chars[i].combining_class != 0) {
      while (end < chars.size() && chars[end].combining_class != 0) ++end;
      std::stable_sort(chars.begin() + static_cast<std::ptrdiff_t>(i),
                       chars.begin() + static_cast<std::ptrdiff_t>(end),
                       [](const Character& a, const Character& b) {
                         return a.combining_class < b.combining_class;
                       });
    }
    i = end;
  }

  // Compose: a character joins the last starter unless something between them blocks it, that is,
  // has no lower a combining class.
  std::size_t kept = 0, starter = 0;
  bool have_starter = false;
  int last_class = 0;  // of the last kept character after the starter; 0 right after the starter
  for (const Character& c : chars) {
    const bool adjacent = have_starter && kept == starter + 1;
    if (have_starter && (adjacent || last_class < c.combining_class)) {
      if (char32_t joined = compose(chars[starter].code, c.code, t); joined != 0) {
        chars[starter].code = joined;
        continue;
      }
    }
    if (c.combining_class == 0) {
      starter = kept;
      have_starter = true;
    }
    last_class = c.combining_class;
    chars[kept++] = c;
  }

  Normalized out;
  out.text.reserve(text.size());
  std::size_t origin = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    origin = std::max(origin, chars[i].origin);  // reordered marks: keep the map monotone
    utf8_append(out.text, chars[i].code);
    out.origin.resize(out.text.size(), origin);
  }
  return out;
}

}  // namespace lk
