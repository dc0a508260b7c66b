#include "text/pre_tokenizer.h"

namespace lk {

const char* to_string(PreTokenizer kind) {
  switch (kind) {
    case PreTokenizer::Gpt2:
      return "gpt2";
    case PreTokenizer::SmolLm:
      return "smollm";
    case PreTokenizer::Llama3:
      return "llama3";
    case PreTokenizer::Qwen2:
      return "qwen2";
    case PreTokenizer::Whole:
      return "whole";
  }
  return "?";
}

}  // namespace lk
