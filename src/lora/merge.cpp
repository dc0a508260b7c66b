#include "lora/merge.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "io/durable.h"
#include "io/input_file.h"
#include "io/paths.h"
#include "io/staged_output.h"
#include "lora/made_from.h"
#include "lora/merge_source.h"
#include "modelfile/base_identity.h"
#include "modelfile/fingerprint.h"
#include "modelfile/load.h"
#include "modelfile/model_output.h"
#include "modelfile/origin.h"

namespace lk {

namespace {

bool is_gguf_name(const std::string& path) { return path.ends_with(".gguf"); }

// Merges block by block and measures how much of the update survives rounding.
class MergePipe : public RowPipe {
 public:
  MergePipe(MergeSource& source, const TypeChoice& types, MergeResult& result,
            MergeListener& listener)
      : source_(source), types_(types), result_(result), listener_(listener) {
    for (const WeightSlot& slot : source.base().slots())
      total_ += 4 * static_cast<std::uint64_t>(slot.shape.numel());
  }

  void produce(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
               std::span<float> values) override {
    changed_ = source_.rows(slot, begin, end, values);
    if (begin == 0) rounded_ = rounded_ || types_.rounds(slot, changed_ || source_.holds_others());
    produced_.assign(values.begin(), values.end());
  }

  void stored(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
              std::span<const float> values) override {
    exact_ = exact_ && std::equal(values.begin(), values.end(), produced_.begin(), produced_.end());
    if (changed_) measure(values);
    if (changed_ && end == slot.shape.rows()) close_matrix(slot.name);
    done_ += 4 * static_cast<std::uint64_t>((end - begin) * slot.shape.cols());
    listener_.progress(done_, total_, slot.name);
  }

  // Whether the file has every number as it was produced.
  bool exact() const { return exact_; }
  bool rounded() const { return rounded_; }

 private:
  void measure(std::span<const float> s) {
    double overlap = 0, update = 0, error = 0;
    const std::span<const float> w = source_.w(), u = source_.u();
#pragma omp parallel for reduction(+ : overlap, update, error)
    for (std::size_t i = 0; i < s.size(); ++i) {
      const double ui = u[i], change = static_cast<double>(s[i]) - w[i];
      overlap += change * ui;
      update += ui * ui;
      error += (change - ui) * (change - ui);
    }
    matrix_.overlap += overlap;
    matrix_.update += update;
    matrix_.error += error;
  }

  void close_matrix(const std::string& name) {
    matrix_.least_kept = matrix_.kept();
    const std::string module = name.substr(0, name.rfind('.'));
    for (Survival* s : {&result_.all, &result_.modules[module.substr(module.rfind('.') + 1)]}) {
      s->least_kept =
          s->matrices == 0 ? matrix_.least_kept : std::min(s->least_kept, matrix_.least_kept);
      ++s->matrices;
      s->overlap += matrix_.overlap;
      s->update += matrix_.update;
      s->error += matrix_.error;
    }
    matrix_ = {};
  }

  MergeSource& source_;
  const TypeChoice& types_;
  MergeResult& result_;
  MergeListener& listener_;
  bool changed_ = false, exact_ = true, rounded_ = false;
  std::vector<float> produced_;
  Survival matrix_;
  std::uint64_t done_ = 0, total_ = 0;
};

void warn_of_rounding(MergeResult& r) {
  char text[240];
  if (r.quantised) {
    std::snprintf(text, sizeof text,
                  "%s rounds every weight: %.3f of the update is left, under noise of %.1f times "
                  "its size; f16 or bf16 keep more",
                  r.type.c_str(), r.all.kept(), r.all.noise());
    r.warnings.push_back(text);
  } else if (r.all.kept() < 0.9) {
    std::snprintf(text, sizeof text, "only %.3f of the update survived rounding to %s: use f32",
                  r.all.kept(), r.type.c_str());
    r.warnings.push_back(text);
  }
}

// What will be written, "F32, 514 MiB", and for a quantised base, which becomes several times as
// large, how to have less.
std::string size_text(const MergeSettings& s, const ModelOutput& output, bool quantised_base) {
  std::string text =
      concat(output.type().name(), ", ", (output.bytes() + (1 << 20) - 1) >> 20, " MiB");
  if (s.type.empty() && quantised_base)
    text += concat(
        ", which holds the dequantised values exactly (`type` f16 or bf16 rounds them to half of "
        "that",
        is_gguf_name(s.out) ? ", q8_0, q6_k, q4_k and others to less" : ", fp8, nf4 or fp4 to less",
        ")");
  return text;
}

// ", held as nf4", of a base that is quantised and dequantised again.
std::string held_as(const BaseStorage& storage) {
  BaseIdentity held;
  set_precision(held, storage);
  return held.precision.empty() ? "" : ", held as " + held.precision;
}

// Copies a file byte for byte, in pieces.
void copy_file(const InputFile& in, const std::string& to) {
  DurableFile out(to);
  std::vector<char> piece(std::size_t{1} << 20);
  for (std::uint64_t at = 0; at < in.size(); at += piece.size()) {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), in.size() - at));
    in.read(at, piece.data(), n);
    out.append(piece.data(), n);
  }
  out.commit();
}

// Opens what is merged. With `onto` the adapters are those of settings.model, and what they are merged
// into has its own numbers.
MergeSource open_source(const MergeSettings& s) {
  if (s.onto.empty()) return MergeSource(s.model, s.adapters, s.other_base, s.storage);
  require(!s.adapters.empty(), "`onto` ", s.onto, ": there is no adapter to merge into it");
  const BasePrecision precision = s.storage.precision;
  require(precision == BasePrecision::Auto || precision == BasePrecision::Dense,
          "`base_precision` ", base_precision_name(precision), ": with `onto` ", s.onto,
          " has no effect, as that is merged into in its file's numbers; leave one of the two out");
  require(s.storage.keep_dense.empty(), "`keep_dense`: with `onto` ", s.onto,
          " has no effect, as all of that stays dense; leave one of the two out");
  return MergeSource(s.onto, s.adapters, true, {});
}

// Checks that the adapters were trained on settings.model, which they are not merged into.
void check_trained_on(const MergeSettings& s, const MergeSource& source,
                      std::vector<std::string>& warnings) {
  const std::string fingerprint = model_fingerprint(s.model);
  for (const AdapterFile& file : source.files())
    if (std::string doubt = check_base(file.folder, file.base, fingerprint, s.model);
        !doubt.empty())
      warnings.push_back(std::move(doubt));
}

// Writes beside a folder's weights what they were made from.
void write_origin(const MergeSettings& s, MergeSource& source, const std::string& type, bool exact,
                  StagedOutput& staged) {
  Origin o;
  o.weights = model_fingerprint(staged.path());
  o.base = source.base().path();
  o.bases = same_weights(o.base, source.fingerprint());
  BaseIdentity held;
  set_precision(held, source.storage());
  o.precision = held.precision, o.keep_dense = held.keep_dense;
  o.type = type, o.exact = exact;
  for (const WeightedAdapter& adapter : s.adapters)
    if (adapter.weight != 0) o.adapters.push_back(adapter.folder);
  write_file_durably(staged.file(kOriginFile), origin_text(o));
}

}  // namespace

double Survival::kept() const { return update > 0 ? overlap / update : 1; }
double Survival::noise() const { return update > 0 ? std::sqrt(error / update) : 0; }

MergeResult merge(const MergeSettings& s, MergeListener& listener) {
  MergeSource source = open_source(s);
  require(s.onto.empty() || !source.base().is_quantised(), "`onto` ", s.onto,
          ": is quantised itself; it is for the dense model that `model` was made from");
  const OutputFormat format{is_gguf_name(s.out), s.type, s.shard_bytes};
  const ModelOutput output(source.base(), format);
  MergeResult result;
  result.type = output.type().name();
  result.quantised = output.type().quantised();
  result.bytes = output.bytes();
  result.warnings = source.warnings();
  if (!s.onto.empty() && !s.other_base) {
    check_trained_on(s, source, result.warnings);
    check_made_from(source.base(), ModelFile(s.model));
  }
  for (const std::string& note : output.notes()) result.warnings.push_back(note);
  if (!source.remark().empty()) listener.message(source.remark());
  const std::string size = size_text(s, output, source.base().is_quantised());
  if (s.adapters.empty())
    listener.message(concat("no adapter: ", s.model, " itself", held_as(source.storage()),
                            " is written as ", size));
  else
    listener.message(concat("merging ", s.adapters.size(), " adapter(s) into ", source.n_changed(),
                            " matrices of ", source.base().path(),
                            source.base().is_quantised() ? ", dequantised" : "",
                            held_as(source.storage()), ", written as ", size));
  for (const AdapterFile& file : source.files())
    listener.message(concat(file.folder, ": ", summary(file)));
  for (const AdapterFile& file : source.files())
    for (std::string& text : disagreements(file, source.base().config()))
      result.warnings.push_back(std::move(text));
  using Kind = StagedOutput::Kind;
  StagedOutput staged(s.out, format.gguf ? Kind::File : Kind::Folder, output.bytes());
  MergePipe pipe(source, output.type(), result, listener);
  output.write([&](const std::string& name) { return staged.file(name); }, pipe);
  if (!format.gguf) write_origin(s, source, result.type, pipe.exact(), staged);
  if (!s.adapters.empty()) warn_of_rounding(result);
  if (s.verify) {
    listener.message("reading it back: logits of base + adapter, then of the result");
    static_cast<LogitCheck&>(result) = compare_merged(
        source.base(), source.storage(), [&](Transformer& model) { return source.attach(model); },
        staged.path(), result.type, pipe.rounded());
  }
  staged.commit();
  return result;
}

void unmerge(const MergeSettings& s, const std::string& base, MergeListener& listener) {
  require(!s.adapters.empty(), "`adapter`: name at least one");
  MergeSource source(base, s.adapters, s.other_base, s.storage);
  const ModelFile merged(s.model);
  check_tied_head(merged);
  std::map<std::string, const WeightSlot*> slots;
  for (const WeightSlot& slot : merged.slots()) slots[slot.name] = &slot;
  if (slots.size() != source.base().slots().size())
    throw InputError(concat(s.model, ": has ", slots.size(), " tensors, ", base, " has ",
                            source.base().slots().size(), ": another model"));
  std::uint64_t bytes = 0;
  const std::vector<const InputFile*> weights = source.base().weight_files();
  for (const InputFile* file : weights) bytes += file->size();
  // The parts of a split GGUF file keep their names, in a folder.
  const bool gguf = source.base().gguf() != nullptr, folder = !gguf || weights.size() > 1;
  if (folder == is_gguf_name(s.out))
    throw UsageError(concat("`out` ", s.out, ": ", base, " is ",
                            !folder ? "a .gguf file and is written back as one"
                            : gguf  ? "the first of several files, which are written back into a "
                                      "folder: name one"
                                    : "a folder and is written back as one"));
  StagedOutput staged(s.out, folder ? StagedOutput::Kind::Folder : StagedOutput::Kind::File, bytes);

  std::vector<float> want, have;
  std::vector<std::uint8_t> unused;
  std::uint64_t done = 0;
  for (const WeightSlot& slot : source.base().slots()) {
    auto other = slots.find(slot.name);
    if (other == slots.end() || !(other->second->shape == slot.shape))
      throw InputError(concat(s.model, ": tensor ", slot.name, " is missing or of another shape"));
    const std::string stored = merged.stored_type(*other->second);
    const GgmlEncoder* type = find_ggml_encoder(stored);
    if (type == nullptr)
      throw InputError(concat(s.model, ": tensor ", slot.name, " is stored as ", stored, ": only ",
                              ggml_encoder_names(), " can be checked"));
    const std::int64_t rows = slot.shape.rows(), cols = slot.shape.cols();
    const float shift = gain_shift(source.base().stored(slot), merged.stored(*other->second));
    for (std::int64_t begin = 0; begin < rows; begin += source.base().block_rows(slot)) {
      const std::int64_t end = std::min(begin + source.base().block_rows(slot), rows);
      want.resize(static_cast<std::size_t>((end - begin) * cols));
      have.resize(want.size());
      source.rows(slot, begin, end, want);
      if (shift != 0)
        for (float& v : want) v += shift;
      if (!round_to(*type, want, unused))
        throw InputError(concat(s.model, ": tensor ", slot.name, ": ", base,
                                " and the adapters give a value that is too large for its ", stored,
                                ": it is not their merge"));
      merged.read_rows(*other->second, begin, end, have.data());
      const auto [a, b] = std::mismatch(want.begin(), want.end(), have.begin());
      if (a != want.end())
        throw InputError(concat(s.model, ": tensor ", slot.name, ": value ",
                                begin * cols + (a - want.begin()), " is ", *b, ", but ", base,
                                " and the adapters give ", *a, ": it is not their merge"));
      done += 4 * want.size();
      listener.progress(done, 0, slot.name);
    }
  }
  listener.message(concat(s.model, " is ", base, " with the adapters merged in; writing the base"));
  for (const auto& [name, content] : source.base().side_files())  // none of a GGUF file
    write_file_durably(staged.file(name), content);
  for (const InputFile* file : weights) copy_file(*file, staged.file(file_name(file->path())));
  const std::string index = base + "/model.safetensors.index.json";
  if (!gguf && weights.size() > 1 && exists(index))
    copy_file(InputFile(index), staged.file("model.safetensors.index.json"));
  const std::string copy =
      gguf && folder ? staged.path() + "/" + file_name(weights[0]->path()) : staged.path();
  check(model_fingerprint(copy) == model_fingerprint(source.base()),
        "unmerge: the copy is not the base");
  staged.commit();
}

}  // namespace lk
