#include "modelfile/load.h"

#include <algorithm>
#include <vector>

#include "modelfile/quantise.h"
#include "modelfile/weight_hash.h"
#include "nn/streamed_base.h"

namespace lk {
namespace {

// Streams tensors to the device, all threads reading.
class WeightLoader {
 public:
  WeightLoader(Backend& backend, const ModelFile& file, DType dtype)
      : backend_(backend), file_(file), dtype_(dtype) {}

  // The bytes that the tensor will take on the device.
  std::int64_t bytes(const WeightSlot& slot, const HeldFormat& format) const {
    if (format) return format->bytes(slot.shape);
    return slot.shape.numel() * static_cast<std::int64_t>(dtype_size(dtype_));
  }

  // `hashes`: takes the rows of a dense weight as they pass by, if not null.
  Weight load(const WeightSlot& slot, const HeldFormat& format, RowHashes* hashes) const {
    if (format) return Weight(slot.name, load_quantised(slot, *format), slot.shape, dtype_);
    return Weight(slot.name, file_.stored(slot).transposed ? load_transposed(slot, hashes)
                                                           : load_dense(slot, hashes));
  }

 private:
  QuantisedMatrix load_quantised(const WeightSlot& slot, const QuantisedFormat& format) const {
    if (format.encoding == Encoding::Blocks)
      return of_blocks(load_blocks(slot, *format.blocks), *format.blocks);
    if (file_.quantised_format(slot)) return file_.read_planes(slot).upload(backend_, &format);
    return quantise(format.encoding, slot.shape, file_.block_rows(slot),
                    [&](std::int64_t begin, std::int64_t end, float* dst) {
                      file_.read_rows(slot, begin, end, dst);
                    })
        .upload(backend_, &format);
  }

  // Rows that must be read together: a head where rotary pairs are adjacent in the file, else one.
  std::int64_t unit_rows(const WeightSlot& slot) const {
    return slot.shape.rank() == 1 ? 1 : std::max<std::int64_t>(1, file_.stored(slot).pair_rows);
  }

  Tensor load_blocks(const WeightSlot& slot, const GgmlType& type) const {
    const std::int64_t row_bytes = type.row_bytes(slot.shape[1]), unit = unit_rows(slot);
    Tensor tensor = backend_.empty(Tag::Weights, DType::U8, {slot.shape[0], row_bytes});
    backend_.upload_made(tensor, static_cast<std::size_t>(unit * row_bytes),
                         [&](std::int64_t first, std::int64_t last, std::byte* to) {
                           file_.read_blocks(slot, first * unit, last * unit, to);
                         });
    return tensor;
  }

  Tensor load_dense(const WeightSlot& slot, RowHashes* hashes) const {
    const std::int64_t unit = unit_rows(slot);
    Tensor tensor = backend_.empty(Tag::Weights, dtype_, slot.shape);
    backend_.upload_made(tensor,
                         static_cast<std::size_t>(unit * slot.shape.cols()) * dtype_size(dtype_),
                         [&](std::int64_t first, std::int64_t last, std::byte* to) {
                           const std::int64_t begin = first * unit, end = last * unit;
                           file_.read_rows_as(dtype_, slot, begin, end, to);
                           if (hashes) hashes->take(begin, end, to);
                         });
    return tensor;
  }

  Tensor load_transposed(const WeightSlot& slot, RowHashes* hashes) const {
    Tensor tensor = backend_.empty(Tag::Weights, dtype_, slot.shape);
    const std::int64_t out = tensor.rows(), in = tensor.cols();
    const std::int64_t step = std::max<std::int64_t>(1, kWeightBlockBytes / (4 * out));
    std::vector<float> values;
    for (std::int64_t begin = 0; begin < in; begin += step) {
      const std::int64_t end = std::min(begin + step, in), n = end - begin;
      values.resize(static_cast<std::size_t>(n * out));
      file_.read_columns(slot, begin, end, values.data());
      Tensor block = n == in ? tensor : backend_.empty(Tag::Workspace, dtype_, {out, n});
      upload_rounded(backend_, block, values);
      if (n != in) backend_.copy(tensor.slice_cols(begin, end), block);
    }
    if (hashes) *hashes = hash_rows(tensor);
    return tensor;
  }

  Backend& backend_;
  const ModelFile& file_;
  DType dtype_;
};

}  // namespace

void check_tied_head(const ModelFile& file) {
  const TensorReader& reader = file.reader();
  if (!file.may_repeat_head() || !reader.has(kFolderHead)) return;
  const ModelConfig& c = file.config();
  const std::string embedding = file.stored(file.slots()[0]).name;
  if (embedding == kFolderHead) return;
  bool same = reader.shape(kFolderHead) == Shape{c.vocab_size, c.hidden_size};
  const std::int64_t step = std::max<std::int64_t>(1, kWeightBlockBytes / (4 * c.hidden_size));
  std::vector<float> a, b;
  for (std::int64_t begin = 0; same && begin < c.vocab_size; begin += step) {
    std::int64_t end = std::min(begin + step, c.vocab_size);
    a.resize(static_cast<std::size_t>((end - begin) * c.hidden_size));
    b.resize(a.size());
    reader.read_rows(kFolderHead, begin, end, a.data());
    reader.read_rows(embedding, begin, end, b.data());
    same = a == b;
  }
  if (!same)
    throw InputError(concat(reader.path(), ": tensor ", kFolderHead, " differs from ", embedding,
                            ", but tie_word_embeddings is true"));
}

LoadedModel load_weights(Backend& backend, const ModelFile& file, DType dtype,
                         const LoadOptions& options) {
  check(is_float(dtype), "load_weights: compute dtype ", dtype_name(dtype));
  check(!options.hash || !options.pack, "load_weights: packed weights are not hashed");
  check_tied_head(file);

  LoadedModel model{file.config(), {}, {}};
  const std::vector<WeightSlot> slots = weight_slots(model.config, model.weights);
  const WeightLoader loader(backend, file, dtype);
  std::vector<HeldFormat> formats = held_formats(file, options.storage);
  if (options.pack)
    for (HeldFormat& format : formats)
      if (format && !(format->blocks && backend.keeps_quantised(*format->blocks))) format.reset();
  const StreamedLayers& streamed_layers = options.storage.streamed;
  std::int64_t total = 0, done = 0, elsewhere = 0;
  std::vector<std::int64_t> layers(static_cast<std::size_t>(model.config.n_layers));  // elsewhere
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::int64_t bytes = loader.bytes(slots[i], formats[i]);
    total += bytes;
    if (!StreamedBase::is_streamed(slots[i], streamed_layers.count)) continue;
    layers[static_cast<std::size_t>(slots[i].layer)] += bytes;
    elsewhere += bytes;
  }
  std::int64_t needed = total - elsewhere + StreamedBase::slot_bytes(layers);
  if (streamed_layers.in_parts() && options.group) needed += elsewhere / options.group->size;
  if (std::int64_t free = backend.free_memory(); needed > free)
    throw OutOfMemoryError(concat(file.reader().path(), ": the weights need ", needed >> 20,
                                  " MiB as ", dtype_name(dtype), ", ", backend.name(), " has ",
                                  free >> 20, " MiB left"));
  const auto streamed = make_streamed_base(backend, streamed_layers, options.group);
  WeightsHash hash;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const WeightSlot& slot = slots[i];
    if (options.hash && !formats[i]) {
      RowHashes rows(slot.shape, dtype);
      *slot.weight = loader.load(slot, formats[i], &rows);
      hash.add(slot.name, rows);
    } else {
      *slot.weight = loader.load(slot, formats[i], nullptr);
      if (options.hash) hash.add(*slot.weight);
    }
    const bool packs = formats[i] ? options.pack : slot.linear;
    const bool tied_table = model.config.tie_embeddings && slot.role == Role::Embedding;
    if (streamed && streamed->takes(slot))
      streamed->take(slot);
    else if (packs && (slot.linear || tied_table))
      backend.prepare_linear(*slot.weight);
    done += loader.bytes(slot, formats[i]);
    if (options.progress) options.progress(done, total, slot.name);
  }
  if (streamed) streamed->finish();
  if (model.config.tie_embeddings) tie_head(backend, model.weights);
  if (options.hash) model.sha256 = hash.hex();
  return model;
}

}  // namespace lk
