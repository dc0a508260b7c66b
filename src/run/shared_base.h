// SharedBase: a frozen base in memory that runs take in turn, each with an adapter of its own.
#pragma once

#include <memory>
#include <optional>

#include "modelfile/fingerprint.h"
#include "modelfile/load.h"
#include "nn/transformer.h"

namespace lk {

struct ShardGroup;

struct SharedBase {
  std::unique_ptr<Backend> backend;          // first: what follows lives in its memory
  std::shared_ptr<const ModelFile> file;     // that the weights came from
  std::unique_ptr<Fingerprint> fingerprint;  // of the file
  BaseStorage storage;                       // as which they were loaded
  std::optional<LoadedModel> loaded;         // its weights are away while a run uses them

  // What the backend has counted so far.
  struct Counts {
    std::int64_t gradient_buffers = 0, driver_allocations = 0;
  };
  // Makes the backend's peaks those of the run that begins now, and returns the counts before it.
  Counts begin_run();
  // Loads `model`'s weights, and hashes them if requested. `group` holds them in parts if `how` says so.
  void load(std::shared_ptr<const ModelFile> model, DType dtype, const BaseStorage& how, bool hash,
            const ShardGroup* group = nullptr);
  // Takes the weights back from a model whose adapters are detached, with the same values and each
  // in memory of its own. `model` may be null: its run failed before it had one. If they can't be
  // had back the next run loads them again.
  void take_back(const Transformer* model) noexcept;
};

}  // namespace lk
