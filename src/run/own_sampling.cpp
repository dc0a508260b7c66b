#include "run/own_sampling.h"

#include <limits>
#include <utility>

#include "io/json.h"
#include "io/paths.h"
#include "tensor/error.h"

namespace lk {
namespace {

// transformers' keys that change what is generated without drawing, each with the number that says
// nothing (NaN: every number says something). Keys that are not here change nothing, or only how
// tokens are drawn, how many, and what is returned with them.
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
constexpr std::pair<const char*, double> kNotObeyed[] = {
    {"num_beams", 1},
    {"num_beam_groups", 1},
    {"diversity_penalty", 0},
    {"early_stopping", 0},
    {"penalty_alpha", 0},
    {"dola_layers", kNone},
    {"min_length", 0},
    {"min_new_tokens", 0},
    {"exponential_decay_length_penalty", kNone},
    {"suppress_tokens", kNone},
    {"begin_suppress_tokens", kNone},
    {"bad_words_ids", kNone},
    {"sequence_bias", kNone},
    {"force_words_ids", kNone},
    {"constraints", kNone},
    {"forced_bos_token_id", kNone},
    {"forced_eos_token_id", kNone},
    {"encoder_repetition_penalty", 1},
    {"encoder_no_repeat_ngram_size", 0},
    {"guidance_scale", 1},
    {"stop_strings", kNone},
    {"token_healing", kNone},
    {"watermarking_config", kNone},
};

bool present(const Json& object, const char* key) {
  return object.contains(key) && !object.at(key).is_null();
}

bool says_nothing(const Json& value, double neutral) {
  if (value.is_number()) return value.get<double>() == neutral;
  if (value.is_boolean()) return !value.get<bool>();
  return value.empty();
}

}  // namespace

OwnSampling read_own_sampling(const std::string& model) {
  OwnSampling own;
  if (!is_folder(model)) return own;
  own.file = model + "/generation_config.json";
  if (!exists(own.file)) own.file = model + "/config.json";
  if (!exists(own.file)) return own;
  const Json json = read_json(own.file);
  if (!json.is_object()) throw InputError(own.file + ": not a JSON object");
  if (present(json, "repetition_penalty")) {
    const double penalty = json_number(json, "repetition_penalty", own.file);
    if (!(penalty > 0)) throw InputError(own.file + ": repetition_penalty: must be larger than 0");
    if (penalty != 1) own.repetition_penalty = penalty;
  }
  if (present(json, "length_penalty")) {
    const double penalty = json_number(json, "length_penalty", own.file);
    if (penalty != 1) own.length_penalty = penalty;
  }
  if (present(json, "no_repeat_ngram_size")) {
    const std::int64_t n = json_int(json, "no_repeat_ngram_size", 0,
                                    std::numeric_limits<std::int32_t>::max(), own.file);
    if (n > 0) own.no_repeat_ngram = n;
  }
  for (const auto& [key, neutral] : kNotObeyed)
    if (present(json, key) && !says_nothing(json.at(key), neutral)) own.left_out.push_back(key);
  return own;
}

}  // namespace lk
