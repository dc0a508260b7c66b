#include "modelfile/model_source.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "io/paths.h"
#include "io/safetensors.h"
#include "modelfile/config.h"

namespace lk {

ModelSource::ModelSource(const std::string& path) : path_(path) {
  if (is_folder(path)) {
    config_ = config_from_folder(path);
    reader_ = open_safetensors_model(path);
    layout_ = folder_layout(config_, *reader_);
  } else {
    auto file = std::make_unique<GgufFile>(path);
    config_ = config_from_gguf(*file);
    gguf_ = file.get();
    reader_ = std::move(file);
    layout_ = gguf_layout(config_);
  }
  slots_ = weight_slots(config_, unused_);
  for (WeightSlot& slot : slots_) {
    slot.weight = nullptr;
    const StoredTensor want = stored(slot);
    if (!reader_->has(want.name))
      throw InputError(concat(reader_->path(), ": tensor ", want.name, " is missing"));
    if (Shape shape = reader_->shape(want.name); !(shape == want.shape))
      throw InputError(concat(reader_->path(), ": tensor ", want.name, " has shape ", shape.str(),
                              ", its config asks for ", want.shape.str()));
  }
}

std::string ModelSource::stored_type(const WeightSlot& slot) const {
  return reader_->stored_type(stored(slot).name);
}

std::int64_t ModelSource::block_rows(const WeightSlot& slot) const {
  if (slot.shape.rank() == 1) return 1;
  if (folder_layout(config_).find(slot).transposed) return slot.shape.rows();
  const std::int64_t rows = std::max<std::int64_t>(1, kWeightBlockBytes / (4 * slot.shape.cols()));
  const std::int64_t heads =
      slot.role == Role::Q || slot.role == Role::K ? config_.head_dim : std::int64_t{1};
  return (rows + heads - 1) / heads * heads;
}

void ModelSource::read_rows(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
                            float* dst) const {
  const StoredTensor from = stored(slot);
  const auto n = static_cast<std::size_t>((end - begin) * slot.shape.cols());
  if (from.transposed || from.pair_rows > 0) {
    check(!from.transposed || (begin == 0 && end == slot.shape.rows()), "read_rows: ", slot.name,
          " is turned in its file and read whole");
    std::vector<float> values(n);
    if (from.transposed)
      reader_->read_rows(from.name, 0, from.shape.rows(), values.data());
    else
      reader_->read_rows(from.name, begin, end, values.data());
    from.to_ours(values, slot.shape.rank() == 1 ? 1 : slot.shape.cols());
    std::copy(values.begin(), values.end(), dst);
  } else {
    reader_->read_rows(from.name, begin, end, dst);
  }
  if (!std::all_of(dst, dst + n, [](float v) { return std::isfinite(v); }))
    throw InputError(
        concat(reader_->path(), ": tensor ", from.name, " holds a number that is not finite"));
}

}  // namespace lk
