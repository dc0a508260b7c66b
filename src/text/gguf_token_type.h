// The kinds of tokens in GGUF (tokenizer.ggml.token_type). Source: ggml's docs/gguf.md.
#pragma once

namespace lk {

enum GgufTokenType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

}  // namespace lk
