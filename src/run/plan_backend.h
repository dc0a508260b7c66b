// PlanBackend: a device that only keeps the books. Every op does nothing, every allocation is an
// address that is never touched; the ledger counts as on a real device, with the scratch that is
// large enough to matter. Running a real training step on it gives the step's memory by purpose
// before any weight is read.
#pragma once

#include <memory>

#include "tensor/backend.h"

namespace lk {

// `as_cpu` makes is_cpu() answer like the device that is planned for.
std::unique_ptr<Backend> make_plan_backend(bool as_cpu);

}  // namespace lk
