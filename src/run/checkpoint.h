// Checkpoint: everything that a run needs to go on exactly where it was, in one file.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dist/optimizer_slices.h"
#include "io/json.h"
#include "lora/trainer.h"
#include "run/run_progress.h"

namespace lk {

inline constexpr const char* kCheckpoint = "checkpoint.safetensors";

// Writes folder/checkpoint.safetensors durably: A, B, both moments, the counters, the run's
// identity (run/run_identity.h), its progress and `kept`, the adapter of the lowest evaluation (or
// nothing), with a SHA-256 over all of them. Three to four times as large as the adapter. `moments`:
// those of processes that have a slice each, as the file has them whole; none: they are the trainer's.
// Throws IoError; NonFiniteError for a number that is not finite.
void save_checkpoint(const std::string& folder, const Method& method, Trainer& trainer,
                     const Json& identity, const RunProgress& progress,
                     const std::vector<std::vector<float>>& kept = {},
                     const std::optional<WholeMoments>& moments = {});

// Whether the folder has a checkpoint, sound or not. Throws IoError if that can't be known.
bool has_checkpoint(const std::string& folder);

// A checkpoint that was read whole and found sound.
class Checkpoint {
 public:
  // Throws InputError naming the file if a bit of it differs from what was written, a number is not
  // finite or a counter can't be; IoError.
  explicit Checkpoint(const std::string& folder);

  const std::string& path() const { return path_; }
  std::int64_t steps() const { return steps_; }
  const Json& identity() const { return identity_; }
  const RunProgress& progress() const { return progress_; }
  // Puts the state into adapter and trainer, of the moments what the trainer's optimizer has. Throws
  // InputError if it is not one of theirs; both are as they were then.
  void restore(Method& method, Trainer& trainer) const;
  // `kept`, as it was saved; restore() has checked its shapes.
  std::vector<std::vector<float>> kept(const Method& method) const;

 private:
  struct Values {
    Shape shape;
    std::vector<float> values;
  };

  std::string path_;
  std::map<std::string, Values> tensors_;
  std::int64_t steps_ = 0, micro_steps_ = 0;
  Json identity_;
  RunProgress progress_;
};

}  // namespace lk
