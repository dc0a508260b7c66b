#include "run/checkpoint.h"

#include <algorithm>

#include "io/json.h"
#include "io/paths.h"
#include "io/safetensors.h"

namespace lk {
namespace {

constexpr const char* kName = "checkpoint.safetensors";
constexpr const char* kFormat = "lorikeet-checkpoint-1";

struct Slot {
  std::string name;
  Tensor tensor;
};

// Every tensor of the training state, in a fixed order.
std::vector<Slot> slots(const Adapter& adapter, Trainer& trainer) {
  std::vector<Slot> all;
  std::vector<Parameter*> parameters = adapter.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const std::string& name = parameters[i]->name();
    all.push_back({"value/" + name, parameters[i]->value()});
    all.push_back({"adamw_m/" + name, trainer.optimizer().moment_m(i)});
    all.push_back({"adamw_v/" + name, trainer.optimizer().moment_v(i)});
  }
  return all;
}

std::int64_t counter(const std::map<std::string, std::string>& metadata, const std::string& key,
                     const std::string& where) {
  auto it = metadata.find(key);
  if (it == metadata.end()) throw InputError(concat(where, ": metadata ", key, " is missing"));
  Json value = parse_json("{\"v\":" + it->second + "}", where + ": metadata " + key);
  return json_int(value, "v", 0, std::int64_t{1} << 40, where + ": metadata " + key);
}

}  // namespace

bool has_checkpoint(const std::string& folder) { return exists(folder + "/" + kName); }

void save_checkpoint(const std::string& folder, const Adapter& adapter, Trainer& trainer,
                     const Json& identity) {
  std::vector<SafetensorsEntry> tensors;
  for (const Slot& s : slots(adapter, trainer))
    tensors.push_back({s.name, s.tensor.shape(), to_host<float>(s.tensor)});
  write_safetensors(folder + "/" + kName, tensors,
                    {{"format", kFormat},
                     {"steps", std::to_string(trainer.steps_done())},
                     {"micro_steps", std::to_string(trainer.micro_steps_done())},
                     {"identity", json_text(identity)}});
}

void load_checkpoint(const std::string& folder, Adapter& adapter, Trainer& trainer,
                     const Json& identity, const std::vector<std::string>& may_differ) {
  const std::string path = folder + "/" + kName;
  SafetensorsFile file(path);
  const auto& metadata = file.metadata();
  auto format = metadata.find("format");
  if (format == metadata.end() || format->second != kFormat)
    throw InputError(concat(path, ": metadata format is not ", kFormat));
  auto stored = metadata.find("identity");
  if (stored == metadata.end()) throw InputError(path + ": metadata identity is missing");
  Json before = parse_json(stored->second, path + ": identity");
  auto shown = [](const Json& run, const std::string& key) {
    return run.contains(key) ? json_text(run[key]) : "unset";
  };
  Json either = before;
  either.update(identity);
  for (const auto& [key, ignored] : either.items()) {
    if (std::find(may_differ.begin(), may_differ.end(), key) != may_differ.end()) continue;
    if (const std::string was = shown(before, key), is = shown(identity, key); was != is)
      throw UsageError(concat("--resume: ", key, " was ", was, ", now it is ", is,
                              "; a resumed run must be the same run"));
  }
  const std::int64_t steps = counter(metadata, "steps", path);
  const std::int64_t micro_steps = counter(metadata, "micro_steps", path);
  std::vector<Slot> all = slots(adapter, trainer);
  if (file.names().size() != all.size())
    throw InputError(concat(path, ": ", file.names().size(), " tensors, expected ", all.size()));
  for (const Slot& s : all) {
    if (!file.has(s.name)) throw InputError(concat(path, ": tensor '", s.name, "' is missing"));
    if (!(file.shape(s.name) == s.tensor.shape()))
      throw InputError(concat(path, ": ", s.name, " has shape ", file.shape(s.name).str(),
                              ", expected ", s.tensor.shape().str()));
    std::vector<float> values(static_cast<std::size_t>(s.tensor.numel()));
    file.read_rows(s.name, 0, s.tensor.shape()[0], values.data());
    s.tensor.backend().upload(s.tensor, values.data(), values.size() * sizeof(float));
  }
  for (Parameter* p : adapter.parameters()) p->refresh();
  trainer.resume_at(steps, micro_steps);
}

}  // namespace lk
