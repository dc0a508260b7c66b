// Row: the token ids of one row of data, the trained ones marked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lk {

struct Row {
  std::vector<std::int32_t> ids = {};
  std::vector<std::uint8_t> supervised = {};  // per token: 1 if the loss is taken on predicting it
  std::size_t line = 0;                       // the line in the file, from 1; for messages
  std::size_t lost_bytes = 0;                 // bytes of its text that no token stands for
  bool shares_token = false;                  // of a prompt's end and its completion's beginning
  // The number of tokens whose prediction counts: supervised and with a token before them. The first
  // has one if virtual tokens stand before the row.
  std::int64_t n_supervised(bool behind_virtual_tokens = false) const {
    std::int64_t n = 0;
    for (std::size_t i = behind_virtual_tokens ? 0 : 1; i < supervised.size(); ++i)
      n += supervised[i] != 0;
    return n;
  }
};

}  // namespace lk
