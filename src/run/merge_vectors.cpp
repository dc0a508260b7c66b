#include "run/merge_vectors.h"

#include <algorithm>
#include <map>

#include "io/durable.h"
#include "io/safetensors.h"
#include "io/staged_output.h"
#include "lora/adapter_io.h"
#include "lora/merge_source.h"
#include "modelfile/base_identity.h"
#include "modelfile/fingerprint.h"
#include "modelfile/held_rows.h"
#include "modelfile/model_output.h"
#include "modelfile/origin.h"
#include "run/methods.h"

namespace lk {
namespace {

// What happens to a tensor of the model.
struct Change {
  enum class Kind : std::uint8_t { ScaleRows, ScaleColumns, Add, Replace } kind;
  std::vector<float> vector;
};

std::vector<float> read_vector(const SafetensorsFile& file, const std::string& name) {
  const Shape shape = file.shape(name);
  std::vector<float> values(static_cast<std::size_t>(shape.numel()));
  file.read_rows(name, 0, shape.rank() == 1 ? 1 : shape[0], values.data());
  return values;
}

// The changes by the names of the model's tensors. (IA)3's output vectors scale a bias too.
std::map<std::string, Change> read_changes(const std::string& path, const ModelFile& base) {
  std::map<std::string, const WeightSlot*> slots;
  for (const WeightSlot& slot : base.slots()) slots[slot.name] = &slot;
  const SafetensorsFile file(path);
  std::map<std::string, Change> changes;
  for (const std::string& name : file.names()) {
    const std::string own = name.starts_with(kAdapterPrefix)
                                ? name.substr(std::string_view(kAdapterPrefix).size())
                                : name;
    const std::string module = own.substr(0, own.rfind('.'));
    auto change = [&](const std::string& tensor, Change::Kind kind, std::int64_t wanted) {
      const auto at = slots.find(tensor);
      if (at == slots.end()) return false;
      Change c{kind, read_vector(file, name)};
      if (std::ssize(c.vector) != wanted)
        throw InputError(concat(path, ": ", name, " has ", c.vector.size(), " values, ", tensor,
                                " needs ", wanted));
      changes.emplace(tensor, std::move(c));
      return true;
    };
    auto size = [&](const std::string& tensor, int dimension) {
      const auto at = slots.find(tensor);
      return at == slots.end() ? 0 : at->second->shape[dimension];
    };
    const std::string weight = module + ".weight", bias = module + ".bias";
    bool found = false;
    if (own.ends_with(".ia3_l")) {
      const bool rows = file.shape(name).rank() == 2 && file.shape(name)[1] == 1;
      found = change(weight, rows ? Change::Kind::ScaleRows : Change::Kind::ScaleColumns,
                     size(weight, rows ? 0 : 1));
      if (rows) change(bias, Change::Kind::ScaleRows, size(bias, 0));
    } else if (own.ends_with(".beft_bias")) {
      found = change(bias, Change::Kind::Add, size(bias, 0));
      if (!found && slots.count(weight))
        throw UsageError(concat(module,
                                " has no bias in this model's files: a new one can't be "
                                "merged into it"));
    } else if (own.ends_with(".bias")) {
      found = change(own, Change::Kind::Replace, size(own, 0));
    }
    if (!found) throw InputError(concat(path, ": ", name, " belongs to no tensor of the model"));
  }
  return changes;
}

class VectorPipe : public RowPipe {
 public:
  VectorPipe(const ModelFile& file, HeldRows& base, const TypeChoice& types,
             const std::map<std::string, Change>& changes, MergeListener& listener)
      : base_(base), types_(types), changes_(changes), listener_(listener) {
    for (const WeightSlot& slot : file.slots())
      total_ += 4 * static_cast<std::uint64_t>(slot.shape.numel());
  }

  void produce(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
               std::span<float> values) override {
    base_.read(slot, begin, end, values.data());
    const auto at = changes_.find(slot.name);
    rounded_ = rounded_ || types_.rounds(slot, at != changes_.end() || base_.changes());
    if (at == changes_.end()) return;
    const std::vector<float>& l = at->second.vector;
    const bool vector = slot.shape.rank() == 1;
    const auto cols = static_cast<std::size_t>(slot.shape.cols());
    for (std::size_t i = 0; i < values.size(); ++i) {
      // A vector is one row, and its elements are what the rows of its matrix are.
      const std::size_t row = vector ? i : static_cast<std::size_t>(begin) + i / cols;
      switch (at->second.kind) {
        case Change::Kind::ScaleRows:
          values[i] *= l[row];
          break;
        case Change::Kind::ScaleColumns:
          values[i] *= l[i % cols];
          break;
        case Change::Kind::Add:
          values[i] += l[i];
          break;
        case Change::Kind::Replace:
          values[i] = l[i];
          break;
      }
    }
  }
  void stored(const WeightSlot& slot, std::int64_t, std::int64_t,
              std::span<const float> values) override {
    done_ += 4 * values.size();
    listener_.progress(done_, total_, slot.name);
  }

  bool rounded() const { return rounded_; }

 private:
  HeldRows& base_;
  const TypeChoice& types_;
  const std::map<std::string, Change>& changes_;
  MergeListener& listener_;
  bool rounded_ = false;
  std::uint64_t done_ = 0, total_ = 0;
};

}  // namespace

bool merges_as_vectors(const std::string& method) {
  if (method == "ia3" || method == "bitfit") return true;
  require(method == "lora", "`adapter`: ", method,
          " can't be merged: what it adds is no linear function of a projection's input, so no "
          "matrix of the base can hold it");
  return false;
}

VectorMergeResult merge_vectors(const VectorMergeSettings& s, MergeListener& listener) {
  const std::unique_ptr<MethodFile> method = open_method(s.adapter);
  check(merges_as_vectors(method->method()), "merge_vectors: ", method->method());
  const ModelFile base(s.model);
  const std::string fingerprint = model_fingerprint(base);
  HeldBase held = hold_for(base, s.storage, {{s.adapter, method->base()}});
  if (!s.other_base)
    if (std::string doubt = check_base(s.adapter, method->base(), fingerprint, s.model);
        !doubt.empty())
      held.warnings.push_back(std::move(doubt));
  const std::map<std::string, Change> changes =
      read_changes(s.adapter + "/" + kAdapterWeights, base);
  const OutputFormat format{s.out.ends_with(".gguf"), s.type, s.shard_bytes};
  const ModelOutput output(base, format);
  StagedOutput staged(s.out, format.gguf ? StagedOutput::Kind::File : StagedOutput::Kind::Folder,
                      output.bytes());
  HeldRows rows(base, held.storage);
  VectorPipe pipe(base, rows, output.type(), changes, listener);
  output.write([&](const std::string& name) { return staged.file(name); }, pipe);
  if (!format.gguf) {
    Origin o{model_fingerprint(staged.path()), s.model, same_weights(s.model, fingerprint)};
    o.type = output.type().name(), o.exact = false, o.adapters = {s.adapter};
    write_file_durably(staged.file(kOriginFile), origin_text(o));
  }
  VectorMergeResult result;
  result.type = output.type().name(), result.bytes = output.bytes();
  result.changed = std::ssize(changes);
  result.warnings = std::move(held.warnings), result.remark = std::move(held.remark);
  if (s.verify) {
    listener.message("reading it back: logits of base + vectors, then of the result");
    static_cast<LogitCheck&>(result) = compare_merged(
        base, rows.changes() ? held.storage : BaseStorage{},
        [&](Transformer& model) { return method->attach(model); }, staged.path(), result.type,
        pipe.rounded());
  }
  staged.commit();
  return result;
}

}  // namespace lk
