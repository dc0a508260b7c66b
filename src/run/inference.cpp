#include "run/inference.h"

#include <algorithm>
#include <memory>

#include "cuda/open_device.h"
#include "io/paths.h"
#include "lora/adapter_io.h"
#include "methods/method_set.h"
#include "modelfile/base_identity.h"
#include "modelfile/fingerprint.h"
#include "modelfile/held_rows.h"
#include "modelfile/load.h"
#include "run/methods.h"

namespace lk {

DType parse_compute_dtype(const std::string& name, const Backend& backend) {
  if (name == "auto") return backend.traits().preferred_dtype;
  if (name == "f32") return DType::F32;
  if (name == "bf16") return DType::BF16;
  throw UsageError(concat("`dtype` ", name, ": one of auto, f32, bf16"));
}

namespace {

struct Holding {
  BaseStorage storage;
  bool pack = false;
};

// What is packed for fast products, or stays as stored in the memory of a GPU.
Holding parse_holding(const InferenceSettings& s, const ModelFile& file, const Backend& backend) {
  const bool packs = backend.traits().prefers_quantised;
  if (s.weights == "dense") return {};
  if (s.weights == "quantised") return {{BasePrecision::Auto}, packs};
  if (s.weights != "auto")
    throw UsageError(concat("`weights` ", s.weights, ": one of auto, quantised, dense"));
  const bool wanted = packs ? s.dtype == "auto" : file.gguf() == nullptr;
  return wanted ? Holding{{BasePrecision::Auto}, packs} : Holding{};
}

// What `base_precision` asks for; `weights` says how what a file has quantised is held.
BaseStorage parse_storage(const InferenceSettings& s) {
  const BasePrecision precision = parse_base_precision(s.base_precision);
  require(precision != BasePrecision::Stored,
          "`base_precision` stored: `weights` quantised holds a file's blocks as they are");
  require(s.keep_dense.empty() ||
              (precision != BasePrecision::Auto && precision != BasePrecision::Dense),
          "`keep_dense`: is for `base_precision` nf4, fp4, fp8 or fp8-head");
  return {precision, s.keep_dense};
}

// The bases of all adapters that are loaded.
std::vector<AdapterBase> bases_of(const std::string& folder, const MethodFile* file,
                                  const std::vector<std::pair<std::string, AdapterFile>>& named) {
  std::vector<AdapterBase> all;
  if (file) all.push_back({folder, file->base()});
  for (const auto& [name, one] : named) all.push_back({one.folder, one.base});
  return all;
}

}  // namespace

InferenceModel& InferenceModel::operator=(InferenceModel&& other) noexcept {
  if (this == &other) return *this;
  std::destroy_at(this);  // members in the reverse of their order
  return *std::construct_at(this, std::move(other));
}

void set_adapters(const std::vector<std::string>& flags, bool by_request,
                  InferenceSettings& settings) {
  // A folder's path may contain '='; a name does not contain '/'.
  auto named = [](const std::string& text) {
    return text.find('=') < text.find('/') && !exists(text);
  };
  if (flags.size() == 1 && !(by_request && named(flags[0]))) {
    settings.adapter = named(flags[0]) ? flags[0].substr(flags[0].find('=') + 1) : flags[0];
    return;
  }
  settings.named_adapters = flags;
}

InferenceModel open_inference(const InferenceSettings& settings) {
  require(!settings.model.empty(), "`model` is required");
  require(settings.max_positions >= 0, "`max_positions` ", settings.max_positions,
          ": must not be negative");
  InferenceModel m;
  m.backend = open_device(settings.device);
  const DType dtype = parse_compute_dtype(settings.dtype, *m.backend);
  std::unique_ptr<MethodFile> file;  // read first: a bad adapter is found before the model is read
  if (!settings.adapter.empty()) file = open_method(settings.adapter);
  if (file && !settings.named_adapters.empty())
    throw UsageError("`adapter`: either one folder for all prompts or name=folder each time");
  std::vector<std::pair<std::string, AdapterFile>> named;
  for (const std::string& text : settings.named_adapters) {
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0)
      throw UsageError(concat("`adapter` ", text, ": give name=folder, or one folder alone"));
    const std::string folder = text.substr(equals + 1);
    require_lora(folder, concat("`adapter` ", text),
                 concat("sets of named adapters are LoRA's alone: give ", folder,
                        " without a name, for all prompts"));
    named.emplace_back(text.substr(0, equals), open_adapter(folder));
  }
  const ModelFile model_file(settings.model);
  Holding holding = parse_holding(settings, model_file, *m.backend);
  const std::vector<AdapterBase> bases = bases_of(settings.adapter, file.get(), named);
  HeldBase held = hold_for(model_file, parse_storage(settings), bases);
  if (file && file->needs_dense_base()) {
    require(
        settings.weights != "quantised",
        "`weights` quantised: DoRA needs the norms of the base's rows, which only dense weights "
        "give");
    holding = {};
  }
  if (HeldRows(model_file, held.storage).changes()) {
    require(settings.weights != "quantised", "`weights` quantised and `base_precision` ",
            base_precision_name(held.storage.precision), ": give one of the two");
    holding = {held.storage, false};
  }
  m.tokenizer = model_file.read_tokenizer();  // a bad one is found before the weights are read
  // If an adapter names its base's fingerprint, the base is hashed while it loads.
  std::unique_ptr<Fingerprint> fingerprint;
  if (std::any_of(bases.begin(), bases.end(),
                  [](const AdapterBase& one) { return !one.base.fingerprint.empty(); }))
    fingerprint = std::make_unique<Fingerprint>(model_file);
  LoadedModel loaded = load_weights(*m.backend, model_file, dtype,
                                    {.storage = holding.storage, .pack = holding.pack});
  if (settings.weights == "quantised") {
    bool any = false;
    visit_weights(loaded.weights, [&](const Weight& w) { any = any || w.quantised(); });
    if (!any)
      throw UsageError(concat("`weights` quantised: ", settings.model,
                              " has no quantised matrix that ", m.backend->name(),
                              " multiplies as it is"));
  }
  for (const AdapterBase& one : bases)
    if (std::string doubt =
            check_base(one.folder, one.base, fingerprint ? fingerprint->get() : "", settings.model);
        !doubt.empty())
      m.warnings.push_back(std::move(doubt));
  auto warn = [&](std::vector<std::string> lines) {
    m.warnings.insert(m.warnings.end(), lines.begin(), lines.end());
  };
  warn(std::move(held.warnings));
  m.remark = std::move(held.remark);
  if (file) warn(file->disagreements(loaded.config));
  for (const auto& [name, one] : named) warn(disagreements(one, loaded.config));
  // Virtual tokens take positions, too: those of a batch are part of its sequences.
  const std::int64_t before = file ? file->first_position() : 0;
  const std::int64_t room = loaded.config.max_position - before;
  std::int64_t positions = settings.max_positions;
  if (positions <= 0)
    positions = std::min<std::int64_t>(room, 8192);
  else if (file)
    positions += file->virtual_tokens();
  if (positions > room)
    throw UsageError(concat("sequences of ", positions + before, " tokens: the model has ",
                            loaded.config.max_position, " positions"));
  m.model = std::make_unique<Transformer>(*m.backend, loaded.config, std::move(loaded.weights),
                                          dtype, positions);
  log_line(settings.log, concat(settings.model, ": ", m.model->n_parameters(), " parameters in ",
                                dtype_name(dtype), " on ", m.backend->name()));
  if (file) {
    m.adapter = file->attach(*m.model);
    log_line(settings.log, concat(settings.adapter, ": ", file->summary(), ", ",
                                  m.adapter->n_parameters(), " parameters"));
  }
  if (!named.empty()) {
    m.adapters = std::make_unique<AdapterSet>(*m.model);
    for (const auto& [name, one] : named) m.adapters->add(name, one);
  }
  return m;
}

std::int32_t find_adapter(const InferenceModel& m, const std::string& name,
                          const std::string& where) {
  if (name.empty()) return -1;
  const std::int32_t variant = m.adapters ? m.adapters->find(name) : -1;
  if (variant < 0) throw InputError(concat(where, ": no `adapter` is called '", name, "'"));
  return variant;
}

}  // namespace lk
