// Whether a model may be what a quantised one was made from: for adapters that were trained on the
// quantised one, and are merged into the dense one.
#pragma once

#include "modelfile/model_file.h"

namespace lk {

// Checks what a config decides, the vectors, and the first rows of each matrix: throws InputError, naming
// config key or tensor, if one is missing, of another shape, or other than quantising leaves it. What
// both have dense may differ by the rounding of the coarser type; a quantised matrix may be as far away
// as its quantising takes it.
void check_made_from(const ModelFile& dense, const ModelFile& quantised);

}  // namespace lk
