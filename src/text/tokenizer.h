// Tokenizer: byte-level and sentencepiece BPE from GGUF metadata or tokenizer.json, ids equal to
// those of Hugging Face's tokenizers and of sentencepiece.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensor/error.h"

namespace lk {

class GgufFile;

// A text has a token that the model has no embedding for.
class UnreadableToken : public InputError {
 public:
  UnreadableToken(const std::string& what, std::size_t begin) : InputError(what), begin(begin) {}
  std::size_t begin;  // offset of its first byte in the text
};

class Tokenizer {
 public:
  // Reads tokenizer.ggml.* of a GGUF file's metadata. Throws InputError.
  static std::unique_ptr<Tokenizer> from_gguf(const GgufFile& file);
  // Reads folder/tokenizer.json with the files beside it: what text/folder_tokens.h reads,
  // generation_config.json, config.json and chat_template.jinja. Throws InputError, IoError.
  static std::unique_ptr<Tokenizer> from_folder(const std::string& folder);
  ~Tokenizer();

  // Turns text into ids. Added and special tokens in the text become their ids; nothing is added
  // (no BOS, no EOS). Inside `plain` spans (byte ranges, sorted) the text of special tokens is
  // ordinary text: chat content cannot forge a turn. InputError for text that is not UTF-8,
  // UnreadableToken for a token that the model has no embedding for.
  std::vector<std::int32_t> encode(
      std::string_view text, std::span<const std::pair<std::size_t, std::size_t>> plain = {}) const;
  // The ids of encode(), each with where it begins: what a mask over bytes needs.
  struct Encoding {
    std::vector<std::int32_t> ids;
    std::vector<std::size_t> begins;  // per id: offset of its first byte in the text; never falls
    // Bytes that no token stands for: the vocabulary lacks them and they vanished, as in the
    // reference.
    std::size_t lost_bytes = 0;
  };
  Encoding encode_with_offsets(
      std::string_view text, std::span<const std::pair<std::size_t, std::size_t>> plain = {}) const;
  // The ids of a text that stands alone, as far as its end: before_text(), then encode(text). A
  // prompt, or a row that a completion or after_text() may follow. InputError if the text itself
  // begins with BOS too, which would then stand there twice.
  Encoding encode_prompt(std::string_view text) const;
  // The tokens that the model's tokenizer puts around each text: BOS before it, for many models.
  // Of tokenizer.json's post-processor or of GGUF's add_bos_token and add_eos_token. A chat
  // template writes its own instead.
  const std::vector<std::int32_t>& before_text() const;
  const std::vector<std::int32_t>& after_text() const;
  // Turns ids into bytes (UTF-8 if the model made valid UTF-8). Special tokens are left out if
  // skip_special. Where encode() puts a space before a text, the first space is taken off again.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = true) const;
  // The text that `ids` add to that of `before`: decode() of both without decode() of `before`.
  std::string decode_after(std::span<const std::int32_t> before, std::span<const std::int32_t> ids,
                           bool skip_special = true) const;
  // The bytes of one token, special ones included: maybe part of a character. None for a row of the
  // embedding beyond the tokens, which pads it: a model may still choose it.
  std::string token_text(std::int32_t id) const;

  std::int64_t n_tokens() const;  // largest id + 1
  std::int32_t eos() const;       // -1 if the model names none
  std::int32_t bos() const;       // -1 if none
  // Every id that ends a generation: generation_config's list, the end token, and what ends a turn
  // in models we know (<|im_end|>, <|eot_id|>, ...).
  const std::vector<std::int32_t>& stop_ids() const;
  // Says how many rows the model's embedding has. Published tokenizers have more tokens than that:
  // from here on a text with one of them is refused by name, not the model.
  void set_embedding_rows(std::int64_t rows);
  // UnreadableToken naming the token, which begins at byte `begin` of a text, if the model has no
  // embedding for it.
  void require_embedding(std::int32_t id, std::size_t begin = 0) const;
  const std::string& chat_template() const;  // template text, empty if none
  // The template of chats with tools, where the model has one for them alone; else empty.
  const std::string& tool_template() const;
  // What a folder calls other tokens than the first and the end token, for its template: {"pad_token", "<pad>"}.
  const std::vector<std::pair<std::string, std::string>>& named_tokens() const;
  const std::string& pre_tokenizer() const;  // "smollm", "gpt2", "llama3", "qwen2", "whole"
  // The id of a token string, -1 if absent. For special tokens named by templates.
  std::int32_t id_of(std::string_view token) const;

 private:
  Tokenizer();
  struct Impl;
  std::unique_ptr<Impl> impl_;
  friend struct TokenizerBuilder;
  friend class TextDecoder;
};

// Decodes ids as they come: what next() returns adds up to the text of all ids so far, so that a
// continuation keeps the space that decode() would take off its front. The tokenizer must outlive
// the decoder.
class TextDecoder {
 public:
  explicit TextDecoder(const Tokenizer& tokenizer, bool skip_special = true);
  // The text that `id` adds. InputError for an id outside the vocabulary.
  std::string next(std::int32_t id);

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  bool first_ = true;  // no token yet
  std::size_t strip_;  // spaces that may still be taken off: 0 once anything was written
};

}  // namespace lk
