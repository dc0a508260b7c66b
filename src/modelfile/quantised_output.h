// Quantised matrices as folders hold them, for those who write one: the way back from our planes that
// stored_quantised.h reads.
//
//   nf4, fp4  bitsandbytes with nested statistics, as transformers saves it: X.weight (codes),
//             X.weight.absmax, .nested_absmax, .nested_quant_map, .quant_map, .quant_state...
//   fp8       compressed-tensors, "float-quantized" by channel: X.weight, X.weight_scale (N,1)
//
// Values are rounded to F32 alone when they are read (the state's dtype, the scales' type), as those
// of a base that is quantised as it is loaded. Sources: bitsandbytes 0.50 (QuantState.as_dict),
// transformers 5.24, compressed-tensors 0.20.
#pragma once

#include <string>

#include "io/json_fwd.h"
#include "io/safetensors.h"
#include "modelfile/host_planes.h"

namespace lk {

// The tensors of the matrix `weight` (X.weight), of own_format(): F32 ones first, and of bytes a
// multiple of four, so that matrices that follow each other stay aligned.
TensorGroup quantised_tensors(const std::string& weight, const QuantisedFormat& format,
                              const Shape& shape);
// Appends the bytes of those tensors.
void append_quantised(TensorWriter& file, const HostPlanes& planes);

// config.json's quantization_config. `dtype` is what stays dense: "bfloat16".
OrderedJson quantisation_config(Encoding encoding, const std::string& dtype);

}  // namespace lk
