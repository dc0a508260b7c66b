// Origin: what a model folder that `merge` wrote was made from. lorikeet.json beside its weights says it.
//
// The record names the weights that it was written with, so it says nothing of others that are put in
// their place. GGUF files have none: tools that quantise them copy metadata along.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace lk {

struct Origin {
  std::string weights = {};  // Fingerprint of the folder's weights
  std::string base = {};     // path of the model that it was made from
  std::vector<std::string> bases =
      {};                      // its Fingerprint, and those of models with the same numbers
  std::string precision = {};  // nf4, fp4 or fp8: the base was quantised and dequantised
  std::vector<std::string> keep_dense = {};
  std::string type = {};                   // of the matrices: "BF16"
  bool exact = true;                       // no number was rounded
  std::vector<std::string> adapters = {};  // folders of what was merged in
};

inline constexpr const char* kOriginFile = "lorikeet.json";

// The record as text.
std::string origin_text(const Origin& origin);
// The record of the model at `path`, whose weights have this fingerprint (empty: not known yet);
// nothing if there is none, or one of other weights. Throws InputError for a file that is no record, IoError.
std::optional<Origin> read_origin(const std::string& path, const std::string& fingerprint);
// The fingerprints that stand for the numbers of the model at `path`: its own and those of models that
// its record shows to be the same.
std::vector<std::string> same_weights(const std::string& path, const std::string& fingerprint);

}  // namespace lk
