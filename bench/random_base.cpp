#include "random_base.h"

#include <map>
#include <random>

#include "io/ggml_encode.h"

namespace lk::bench {
namespace {

// Blocks of random numbers, again and again.
std::vector<std::byte> random_blocks(const GgmlType& type, std::size_t bytes) {
  const GgmlEncoder* encoder = find_ggml_encoder(type.name);
  check(encoder, "no encoder of ", type.name);
  constexpr std::int64_t kBlocks = 4096;
  std::vector<float> values(static_cast<std::size_t>(kBlocks * type.block_values));
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  for (float& v : values) v = normal(rng);
  std::vector<std::uint8_t> blocks(static_cast<std::size_t>(kBlocks * type.block_bytes));
  encoder->encode(values.data(), kBlocks, blocks.data());
  std::vector<std::byte> all(bytes);
  for (std::size_t i = 0; i < bytes; ++i) all[i] = std::byte(blocks[i % blocks.size()]);
  return all;
}

// Quantises matrices: the first of a kind by its numbers, the others of the kind get its codes.
class SharedCodes {
 public:
  explicit SharedCodes(Backend& backend) : backend_(backend) {}

  void quantise(const WeightSlot& slot, const QuantisedFormat& format) {
    Codes& codes = of_kind_[kind(slot) + format.name()];
    if (codes.empty() && format.encoding == Encoding::Blocks)
      codes.planes[0] = random_blocks(
          *format.blocks, static_cast<std::size_t>(format.plane(Plane::Codes, slot.shape).bytes()));
    if (codes.empty()) {
      quantise_weight(backend_, slot, format);
      codes = read(*slot.weight->quantised());
      return;
    }
    const DType dtype = slot.weight->dtype();
    *slot.weight = Weight();  // its numbers' memory first
    QuantisedMatrix q{format, codes.offset, {}};
    for (std::size_t p = 0; p < kPlanes; ++p) {
      const std::vector<std::byte>& bytes = codes.planes[p];
      if (bytes.empty()) continue;
      const PlaneShape plane = format.plane(static_cast<Plane>(p), slot.shape);
      q.planes[p] = backend_.empty(Tag::Weights, plane.dtype, {plane.rows, plane.cols});
      backend_.upload(q.planes[p], bytes.data(), bytes.size());
    }
    *slot.weight = Weight(slot.name, std::move(q), slot.shape, dtype);
  }

 private:
  struct Codes {
    float offset = 0;
    std::array<std::vector<std::byte>, kPlanes> planes = {};
    bool empty() const { return planes[0].empty(); }
  };

  // The slot's name without its layer's number.
  static std::string kind(const WeightSlot& slot) {
    const std::string number = concat(".", slot.layer, ".");
    const std::size_t at = slot.name.find(number);
    return at == std::string::npos ? slot.name : slot.name.substr(at + number.size());
  }
  Codes read(const QuantisedMatrix& q) {
    Codes codes;
    codes.offset = q.offset;
    for (std::size_t p = 0; p < kPlanes; ++p) {
      if (!q.planes[p]) continue;
      codes.planes[p].resize(q.planes[p].bytes());
      backend_.download(codes.planes[p].data(), q.planes[p], q.planes[p].bytes());
    }
    return codes;
  }

  Backend& backend_;
  std::map<std::string, Codes> of_kind_;
};

}  // namespace

ModelWeights random_base(Backend& backend, const ModelConfig& config, DType dtype,
                         const BaseStorage& storage, const ShardGroup* group,
                         const GgmlType* blocks) {
  std::vector<HeldFormat> formats = held_formats(config, storage);
  for (HeldFormat& format : formats)
    if (blocks && format) format = block_format(*blocks);
  const auto streamed = make_streamed_base(backend, storage.streamed, group);
  SharedCodes codes(backend);
  std::size_t next = 0;
  ModelWeights weights = random_weights(backend, config, dtype, 1, [&](const WeightSlot& slot) {
    if (const HeldFormat& format = formats[next++]) codes.quantise(slot, *format);
    if (streamed && streamed->takes(slot)) streamed->take(slot);
  });
  if (streamed) streamed->finish();
  backend.trim();
  backend.reset_peaks();
  return weights;
}

}  // namespace lk::bench
