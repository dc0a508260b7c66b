#include "run/checkpoint.h"

#include <algorithm>
#include <cmath>

#include "io/paths.h"
#include "io/printable.h"
#include "io/safetensors.h"
#include "io/sha256.h"

namespace lk {
namespace {

constexpr const char* kFormat = "lorikeet-checkpoint-2";
constexpr std::int64_t kMostMicroBatches = INT32_MAX;  // as many micro-batches as a run may have

using Metadata = std::map<std::string, std::string>;

// A tensor of the training state, or, of processes that have a slice each, the part of it that is here.
struct Slot {
  std::string name;
  Shape shape;
  Tensor tensor;  // its numbers from `first` on
  std::int64_t first = 0;
  const std::vector<float>* whole = nullptr;  // all of its numbers, on the host, if not null
};

constexpr const char *kSecondMoment = "adamw_v/", *kKept = "kept/";

// Every tensor of the training state, in a fixed order.
std::vector<Slot> slots(const Method& method, Trainer& trainer,
                        const WholeMoments* whole = nullptr) {
  std::vector<Slot> all;
  std::vector<Parameter*> parameters = method.parameters();
  const AdamW& optimizer = trainer.optimizer();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const std::string& name = parameters[i]->name();
    const Shape& shape = parameters[i]->shape();
    const std::int64_t first = optimizer.slice(i).begin;
    all.push_back({"value/" + name, shape, parameters[i]->value()});
    all.push_back({"adamw_m/" + name, shape, optimizer.moment_m(i), first,
                   whole ? &whole->m.at(i) : nullptr});
    all.push_back({kSecondMoment + name, shape, optimizer.moment_v(i), first,
                   whole ? &whole->v.at(i) : nullptr});
  }
  return all;
}

// A digest over everything that a checkpoint says: names, shapes, numbers and metadata, each with
// its length before it, so that no two contents are the same bytes.
class ContentHash {
 public:
  void add(const std::string& text) {
    add_number(text.size());
    hash_.update(text.data(), text.size());
  }
  void add(const Metadata& metadata) {
    for (const auto& [key, value] : metadata)
      if (key != "sha256") add(key), add(value);
  }
  void add(const std::string& name, const Shape& shape, const std::vector<float>& values) {
    add(name);
    add(shape.str());
    add_number(values.size());
    hash_.update(values.data(), values.size() * sizeof values[0]);
  }
  std::string hex() { return hash_.hex(); }

 private:
  void add_number(std::uint64_t n) { hash_.update(&n, sizeof n); }

  Sha256 hash_;
};

const std::string& entry(const Metadata& metadata, const char* key, const std::string& path) {
  const auto at = metadata.find(key);
  if (at == metadata.end()) throw InputError(concat(path, ": metadata ", key, " is missing"));
  return at->second;
}

std::int64_t counter(const Metadata& metadata, const char* key, const std::string& path) {
  const std::string where = concat(path, ": metadata ", key);
  const Json value = parse_json("{\"v\":" + entry(metadata, key, path) + "}", where);
  return json_int(value, "v", 0, kMostMicroBatches, where);
}

void check_numbers(const std::string& path, const std::string& name,
                   const std::vector<float>& values) {
  const bool never_negative = name.starts_with(kSecondMoment);
  for (float v : values)
    if (!std::isfinite(v) || (never_negative && v < 0))
      throw InputError(concat(path, ": tensor ", name, ": ", v, " can't be"));
}

}  // namespace

bool has_checkpoint(const std::string& folder) { return is_taken(folder + "/" + kCheckpoint); }

void save_checkpoint(const std::string& folder, const Method& method, Trainer& trainer,
                     const Json& identity, const RunProgress& progress,
                     const std::vector<std::vector<float>>& kept,
                     const std::optional<WholeMoments>& moments) {
  std::vector<SafetensorsEntry> tensors;
  for (const Slot& s : slots(method, trainer, moments ? &*moments : nullptr)) {
    tensors.push_back({s.name, s.shape, s.whole ? *s.whole : to_host<float>(s.tensor)});
    check(std::ssize(tensors.back().values) == s.shape.numel(), "save_checkpoint: a part of ",
          s.name);
  }
  const std::vector<Parameter*> parameters = method.parameters();
  for (std::size_t i = 0; i < kept.size(); ++i)
    tensors.push_back({kKept + parameters[i]->name(), parameters[i]->shape(), kept[i]});
  std::sort(tensors.begin(), tensors.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  Metadata metadata = {{"format", kFormat},
                       {"steps", std::to_string(trainer.steps_done())},
                       {"micro_steps", std::to_string(trainer.micro_steps_done())},
                       {"identity", json_text(identity)},
                       {"progress", to_json(progress).dump()}};
  ContentHash hash;
  hash.add(metadata);
  for (const SafetensorsEntry& t : tensors) hash.add(t.name, t.shape, t.values);
  metadata["sha256"] = hash.hex();
  write_safetensors(folder + "/" + kCheckpoint, tensors, metadata);
}

Checkpoint::Checkpoint(const std::string& folder) : path_(folder + "/" + kCheckpoint) {
  const SafetensorsFile file(path_);
  const Metadata& metadata = file.metadata();
  if (const std::string& format = entry(metadata, "format", path_); format != kFormat)
    throw InputError(concat(path_, ": metadata format is ", printable(format),
                            ", this version goes on from ", kFormat));
  const std::string& sha256 = entry(metadata, "sha256", path_);
  ContentHash hash;
  hash.add(metadata);
  for (const std::string& name : file.names()) {
    if (file.stored_type(name) != "F32")
      throw InputError(concat(path_, ": tensor ", name, ": not F32"));
    Values& t = tensors_[name];
    t.shape = file.shape(name);
    t.values.resize(static_cast<std::size_t>(t.shape.numel()));
    file.read_rows(name, 0, t.shape.rank() <= 1 ? 1 : t.shape[0], t.values.data());
    hash.add(name, t.shape, t.values);
  }
  if (hash.hex() != sha256)
    throw InputError(path_ + ": is damaged: its content is not that of its SHA-256");

  for (const auto& [name, t] : tensors_) check_numbers(path_, name, t.values);
  steps_ = counter(metadata, "steps", path_);
  micro_steps_ = counter(metadata, "micro_steps", path_);
  identity_ = parse_json(entry(metadata, "identity", path_), path_ + ": metadata identity");
  const std::string where = path_ + ": metadata progress";
  progress_ = progress_from_json(parse_json(entry(metadata, "progress", path_), where), where);
  if (!identity_.is_object()) throw InputError(path_ + ": metadata identity: not an object");
  const std::string in_identity = path_ + ": metadata identity";
  const std::int64_t per_step =
      json_int_or(identity_, "grad_accum", 1, 1, kMostMicroBatches, in_identity);
  const std::int64_t total =
      json_int_or(identity_, "steps", kMostMicroBatches, 1, kMostMicroBatches, in_identity);
  if (steps_ > total || micro_steps_ != steps_ * per_step)
    throw InputError(concat(path_, ": ", steps_, " steps of ", total, ", ", micro_steps_,
                            " micro-batches at ", per_step, " a step: can't be"));
}

void Checkpoint::restore(Method& method, Trainer& trainer) const {
  const std::vector<Slot> all = slots(method, trainer);
  std::vector<Slot> expected = all;
  if (tensors_.size() != all.size())  // then with the kept adapter
    for (const Parameter* p : method.parameters())
      expected.push_back({kKept + p->name(), p->shape(), p->value()});
  if (tensors_.size() != expected.size())
    throw InputError(concat(path_, ": ", tensors_.size(), " tensors, expected ", all.size()));
  for (const Slot& s : expected) {
    const auto at = tensors_.find(s.name);
    if (at == tensors_.end()) throw InputError(concat(path_, ": tensor '", s.name, "' is missing"));
    if (!(at->second.shape == s.shape))
      throw InputError(concat(path_, ": ", s.name, " has shape ", at->second.shape.str(),
                              ", expected ", s.shape.str()));
  }
  for (const Slot& s : all) {
    const float* const values = tensors_.at(s.name).values.data();
    s.tensor.backend().upload(s.tensor, values + s.first, s.tensor.bytes());
  }
  for (Parameter* p : method.parameters()) p->refresh();
  trainer.resume_at(steps_, micro_steps_);
}

std::vector<std::vector<float>> Checkpoint::kept(const Method& method) const {
  std::vector<std::vector<float>> all;
  for (const Parameter* p : method.parameters())
    if (const auto at = tensors_.find(kKept + p->name()); at != tensors_.end())
      all.push_back(at->second.values);
  return all;
}

}  // namespace lk
