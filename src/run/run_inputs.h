// What a run is given, read and arranged before anything is computed: the adapter's shape, the
// model's file, the rows, and which of them each step will see.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/json.h"
#include "lora/adapter_io.h"
#include "modelfile/base_precision.h"
#include "modelfile/model_file.h"
#include "nn/batch.h"
#include "run/finetune.h"
#include "run/methods.h"
#include "text/dataset.h"
#include "text/sampler.h"
#include "text/tokenizer.h"

namespace lk {

struct RunInputs {
  MethodConfig methods;
  std::optional<AdapterFile> init;  // the adapter to start from
  std::string init_sha256;          // of its weights; empty without one
  std::shared_ptr<const ModelFile> model;
  BaseStorage storage;              // of the base, as the methods allow it
  std::vector<HeldFormat> formats;  // of its tensors
  std::string
      base_model;  // what the adapter calls its base: a name on the hub, or the model's path
  std::map<std::string, std::string> model_files;  // SHA-256 by name: a folder's, without weights
  std::unique_ptr<Tokenizer> tokenizer;
  Dataset data, eval;
  std::string rows_sha256, eval_rows_sha256;  // of the rows as made; the latter empty without any
  std::optional<Sampler> sampler;
  Json packing;  // for run.json; null without packing
  std::int64_t steps = 0;

  // Of the rows, with their virtual tokens.
  std::vector<std::int64_t> row_lengths() const;
  // What the run needs memory for, but for where it runs (`device` and `processes` stay open). Not while
  // another thread lays out batches.
  PlanRequest plan_request(const FinetuneSettings& settings, const Backend& backend,
                           DType dtype) const;
  // Lays out the micro-batches of a step. Any thread may call it.
  std::vector<HostBatch> lay_out(std::int64_t step, std::int64_t grad_accum) const;

 private:
  // Lengths of the rows, with virtual tokens, of the largest micro-batch there can be: the longest rows, or the
  // fullest bins, each as one row.
  std::vector<std::int64_t> longest_batch(const FinetuneSettings& settings) const;
  // The run's micro-batches of which one needs most memory. Where a step's are `padded` to one size, each
  // supervises as many tokens as any of its step.
  std::vector<PlannedBatch> largest_batches(const FinetuneSettings& settings, bool padded) const;
  // The same of an evaluation in batches of so many tokens. None where there are no rows to evaluate on.
  std::vector<PlannedBatch> largest_evaluations(std::int64_t batch_tokens) const;
  std::vector<const Row*> rows_of(std::int64_t micro_batch) const;
  PlannedBatch planned(std::span<const Row* const> rows) const;
};

// Reads the inputs and reports to `listener` what was found. Fills in what the settings leave open
// (run/defaults.h); `backend` and `dtype` are what the run computes with; `before` is the identity of the run to go on with, or null. `rows`: taken
// instead of files; null: none. `opened`: the model's file, if it is open already. Throws InputError, UsageError, IoError.
RunInputs read_inputs(FinetuneSettings& settings, Backend& backend, DType dtype,
                      FinetuneListener& listener, const Json* before, FinetuneRows* rows = nullptr,
                      std::shared_ptr<const ModelFile> opened = nullptr);

}  // namespace lk
