#include "modelfile/held_rows.h"

#include <algorithm>

#include "modelfile/model_file.h"
#include "modelfile/quantise.h"

namespace lk {

HeldRows::HeldRows(const ModelFile& file, const BaseStorage& storage)
    : file_(file), formats_(held_formats(file, storage)) {
  for (std::size_t i = 0; i < formats_.size(); ++i)
    if (file.quantised_format(file.slots()[i])) formats_[i].reset();
}

bool HeldRows::changes() const {
  return std::any_of(formats_.begin(), formats_.end(), [](const auto& f) { return f.has_value(); });
}

void HeldRows::read(const WeightSlot& slot, std::int64_t begin, std::int64_t end, float* dst) {
  const std::vector<WeightSlot>& slots = file_.slots();
  const auto at = std::find_if(slots.begin(), slots.end(),
                               [&](const WeightSlot& s) { return s.name == slot.name; });
  check(at != slots.end(), "HeldRows: ", slot.name, " is no tensor of ", file_.path());
  const HeldFormat& format = formats_[static_cast<std::size_t>(at - slots.begin())];
  if (!format) return file_.read_rows(slot, begin, end, dst);
  if (name_ != slot.name) {
    planes_.reset();
    planes_ = std::make_unique<HostPlanes>(
        quantise(format->encoding, slot.shape, file_.block_rows(slot),
                 [&](std::int64_t first, std::int64_t last, float* to) {
                   file_.read_rows(slot, first, last, to);
                 }));
    name_ = slot.name;
  }
  dequantise_rows(planes_->view(), begin, end, dst);
}

}  // namespace lk
