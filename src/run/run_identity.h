// What makes a run the run that it is: everything that shapes its model, its rows or its training.
#pragma once

#include <string>
#include <vector>

#include "io/json.h"
#include "run/run_inputs.h"

namespace lk {

// A run's settings in two objects: those that only say where things lie and what is recorded, and
// those that shape the training. A setting must stand in one of them: the list is made by taking
// FinetuneSettings apart, which does not compile while a member is missing.
struct SortedSettings {
  Json recorded, shaping;
};
SortedSettings sort_settings(const FinetuneSettings& settings);

// The identity of a run, for run.json and for checkpoints: the shaping settings as they were
// resolved, the model's config as parsed, and SHA-256 digests of the base's weights (`base`, empty
// while it is not known), of its other files, of the data, of the rows made from them and of the
// adapter that training starts from.
Json run_identity(const FinetuneSettings& settings, const RunInputs& in, const std::string& base,
                  DType dtype);

// The fields in which two identities differ, as "config.rope_theta was 10000.0, now it is 500000.0";
// empty if there is none. Fields named in `may_differ` are passed over.
std::string identity_difference(const Json& before, const Json& now,
                                const std::vector<std::string>& may_differ);

}  // namespace lk
