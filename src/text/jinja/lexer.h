// Cuts a chat template into tokens, and applies what Jinja2 does to white space around its tags
// (trim_blocks and lstrip_blocks on, as transformers sets them).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lk::jinja {

struct Token {
  enum class Kind {
    Data,  // text between tags
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name,
    String,  // the text is its value, escapes resolved
    Integer,
    Real,
    Operator,
    End
  } kind;
  std::string text;
  int line;
};

// Cuts `source` into tokens. InputError "line N: ..." for a tag without an end, an unknown
// character, a bad string or number.
std::vector<Token> tokenize(std::string_view source);

}  // namespace lk::jinja
