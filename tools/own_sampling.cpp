#include "own_sampling.h"

#include "program.h"
#include "run/own_sampling.h"

namespace lk::program {

void take_own_sampling(const CLI::App& app, const std::string& model, SamplingSettings& sampling) {
  const OwnSampling own = read_own_sampling(model);
  auto take = [&](const char* key, const auto& value, auto& setting, const char* flag, int off) {
    if (!value || app.count(flag) > 0) return;
    setting = *value;
    message(concat(own.file, ": ", key, " ", setting, " is obeyed, as transformers does; ", flag,
                   " ", off, " turns it off"));
  };
  take("repetition_penalty", own.repetition_penalty, sampling.repetition_penalty,
       "--repetition-penalty", 1);
  take("no_repeat_ngram_size", own.no_repeat_ngram, sampling.no_repeat_ngram, "--no-repeat-ngram",
       0);
  if (sampling.beams > 1)
    take("length_penalty", own.length_penalty, sampling.length_penalty, "--length-penalty", 1);
  std::string keys;
  for (const std::string& key : own.left_out) {
    const bool of_beams =
        key == "early_stopping" || key == "num_beam_groups" || key == "diversity_penalty";
    if (of_beams ? sampling.beams == 1 : key == "num_beams" && app.count("--beams") > 0) continue;
    keys += (keys.empty() ? "" : ", ") + key;
  }
  if (!keys.empty())
    message(concat("warning: ", own.file, ": transformers' generate() obeys ", keys,
                   "; this program does not"));
}

}  // namespace lk::program
