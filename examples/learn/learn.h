// What the small programs share: printing matrices and the ledger, and claims that are checked.
#pragma once

#include <cstdio>
#include <string>

#include "tensor/backend.h"

namespace learn {

// The number of claims that did not hold: a program that has one ends with an error.
inline int broken_claims = 0;

// Prints what is claimed and whether it holds.
inline void claim(bool holds, const std::string& what) {
  if (!holds) ++broken_claims;
  std::printf("%s %s\n", holds ? "[true] " : "[FALSE]", what.c_str());
}

// Prints a matrix, or a vector as one row.
inline void print(const char* name, const lk::Tensor& x) {
  const std::vector<double> values = lk::to_host_f64(x);
  for (std::int64_t i = 0; i < x.rows(); ++i) {
    std::printf("%-12s", i == 0 ? name : "");
    for (std::int64_t j = 0; j < x.cols(); ++j)
      std::printf(" %7.3f", values[static_cast<std::size_t>(i * x.cols() + j)]);
    std::printf("\n");
  }
}

// Prints the nodes that forward recorded, in its order.
inline void print_tape(const std::vector<std::string>& names) {
  std::printf("the tape:");
  for (const std::string& name : names) std::printf(" %s", name.c_str());
  std::printf("\n");
}

// Prints the live bytes of these purposes, a column each, as one row of a table.
inline void print_live(const char* moment, const lk::Ledger& ledger,
                       std::initializer_list<lk::Tag> tags) {
  std::printf("%-24s", moment);
  for (lk::Tag tag : tags) std::printf(" %12lld", static_cast<long long>(ledger[tag].live_bytes));
  std::printf("\n");
}
// The head of that table.
inline void print_tags(const char* title, std::initializer_list<lk::Tag> tags) {
  std::printf("%-24s", title);
  for (lk::Tag tag : tags) std::printf(" %12s", lk::tag_name(tag));
  std::printf("\n");
}

}  // namespace learn
