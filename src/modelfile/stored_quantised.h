// Folders whose matrices are quantised already: how each is stored, and the way to our planes.
//
//   bitsandbytes        X.weight with X.weight.quant_state.bitsandbytes__nf4 (fp4) and its statistics
//   fp8                 X.weight F8_E4M3 with X.weight_scale_inv or X.weight_scale
//   pack-quantized      X.weight_packed, X.weight_scale, X.weight_shape (compressed-tensors)
//   AWQ, GPTQ           X.qweight, X.qzeros, X.scales (, X.g_idx)
//
// What a tensor is follows from the tensors beside it, never from the config's lists of modules: a
// matrix without such companions is dense. Config says only what tensors do not
// (modelfile/quantisation_config.h).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "io/tensor_reader.h"
#include "modelfile/host_planes.h"
#include "modelfile/quantisation_config.h"

namespace lk {

struct StoredMatrix {
  enum class Layout : std::uint8_t { Bitsandbytes, Fp8, PackQuantized, Awq, Gptq };
  Layout layout = Layout::Bitsandbytes;
  QuantisedFormat format;
  float offset = 0;
  int zero_shift = 0;
  std::string base;                // X
  std::vector<std::string> names;  // all tensors that belong to it

  // Eight zeros of AWQ or GPTQ. GPTQ's version 1 takes 1 from the whole word, so a zero of 0 borrows
  // from the next one: the word is put right before it is taken apart.
  std::uint32_t zeros(std::int32_t word) const {
    return static_cast<std::uint32_t>(word) + 0x11111111u * static_cast<std::uint32_t>(zero_shift);
  }
};

// How `weight` (X.weight), a matrix of `shape`, is stored: nothing if it is dense. Checks the
// companions' types and sizes and small tables. Throws InputError naming file, tensor and rule.
std::optional<StoredMatrix> find_stored_matrix(const TensorReader& reader,
                                               const std::vector<std::string>& sorted_names,
                                               const std::string& weight, const Shape& shape,
                                               const QuantisationConfig& config);

// Checks that nothing is stored of X but its weight, its bias and, if it is quantised, what `stored`
// names; null: dense. Throws InputError naming the tensor.
void check_companions(const TensorReader& reader, const std::vector<std::string>& sorted_names,
                      const std::string& weight, const StoredMatrix* stored);

// Reads the matrix. Throws InputError for scales that are not finite, or negative where they can't
// be, and for codes that are no numbers.
HostPlanes read_stored_matrix(const TensorReader& reader, const StoredMatrix& stored,
                              const Shape& shape);

}  // namespace lk
