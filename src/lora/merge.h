// merge: W' = W + s B A (with DoRA, its rows at the lengths that DoRA gives them), written as a plain model. unmerge: writes the base back, once the merged
// model is shown to be the merge that it claims to be.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lora/adapter_io.h"
#include "modelfile/base_precision.h"

namespace lk {

struct WeightedAdapter {
  std::string folder = {};
  double weight = 1;  // factor of its update, on top of its own alpha / rank
};

struct MergeSettings {
  std::string model = {};
  std::vector<WeightedAdapter> adapters = {};
  std::string out = {};     // a folder, or a file if it ends in ".gguf"
  std::string type = {};    // "f32", "q4_0", "nf4", ...; empty: see OutputFormat (model_output.h)
  bool other_base = false;  // accept adapters that were trained on other weights
  // Merge into this model instead: `model`, on which the adapters were trained, before it was
  // quantised. Empty: into `model`, dequantised.
  std::string onto = {};
  // In which numbers the base is merged into. Auto: as the adapters were trained (hold_for() in
  // modelfile/base_identity.h); Dense: in its file's, which is all that `onto` can have.
  BaseStorage storage = {BasePrecision::Auto, {}};
  bool verify = true;  // load the result and compare its logits before it gets its name
  std::uint64_t shard_bytes = 5'000'000'000;
};

// How an update survived rounding. W is the base's matrix, u the update, S the matrix in the file:
//   kept  = <S - W, u> / <u, u>     1: all of it is there; 0: as if nothing had been merged
//   noise = |S - W - u| / |u|       what rounding added (of W too), in units of the update
// Sums run over the matrices of a group, in F64.
struct Survival {
  std::int64_t matrices = 0;
  double overlap = 0, update = 0, error = 0;  // <S - W, u>, <u, u>, |S - W - u|^2
  double least_kept = 1;                      // least `kept` of a single matrix
  double kept() const;
  double noise() const;
};

// The result compared with base + adapters, over all positions of a few texts; unset without
// verify.
struct LogitCheck {
  std::optional<double> largest_logit, logit_difference;
};

struct MergeResult : LogitCheck {
  std::string type;  // of the matrices: "BF16", "Q4_0", "nf4"
  bool quantised = false;
  std::uint64_t bytes = 0;
  Survival all;
  std::map<std::string, Survival> modules;  // keyed by "q_proj", ...
  std::vector<std::string> warnings;
};

// Hears of progress. progress() is called between blocks of rows; an exception from it ends the
// merge, which then leaves nothing behind.
struct MergeListener {
  virtual ~MergeListener() = default;
  virtual void message(const std::string& /*text*/) {}
  virtual void progress(std::uint64_t /*done_bytes*/, std::uint64_t /*of*/,
                        const std::string& /*tensor*/) {}
};

// Merges settings.adapters into settings.model; without any, writes the model as it is in another
// format, such as a Hugging Face folder of a GGUF file. Everything is checked before anything is written:
// throws UsageError (an existing target, formats), InputError naming what does not fit (an adapter
// of another base, or with unknown modules or shapes), IoError (no room). Streams tensor by tensor:
// memory is two blocks of 16 MiB, a module's A and B, with nf4, fp4 and fp8 the codes and scales of
// one matrix (up to 0.6 bytes a value, 1 with fp8), and, for `verify`, the model in F32, one at a
// time. A merged value that is not finite is an InputError, one too large for `type` a UsageError.
MergeResult merge(const MergeSettings& settings, MergeListener& listener);

// Checks that settings.model is `base` with settings.adapters merged in, value for value in the
// types it is stored in, and then writes the base to settings.out, byte for byte: the parts of a split
// GGUF file into a new folder. Throws InputError
// naming the first value that differs. settings.type and settings.verify are ignored.
void unmerge(const MergeSettings& settings, const std::string& base, MergeListener& listener);

// u (rows [begin, end) of the (out, in) matrix) = sum of scale * B A over `factors`: F32 products
// and sums, over the rank in ascending order, one pair of factors after the other.
void update_rows(std::span<const HostFactors> factors, std::int64_t begin, std::int64_t end,
                 std::span<float> u);

}  // namespace lk
