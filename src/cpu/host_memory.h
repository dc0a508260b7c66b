// Memory of the host: aligned blocks on huge pages, and how much of it is left.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace lk::cpu {

// A 256-byte aligned block (2 MiB aligned and on huge pages where large), or nullptr when the host
// has not that much left. Free it with std::free.
void* allocate_host(std::size_t bytes);

// Bytes that could still be allocated: MemAvailable, or what the control group leaves if that is
// less.
std::int64_t free_host_memory();

// "AMD EPYC 7B13": the processor's name as the kernel tells it.
std::string processor_name();

}  // namespace lk::cpu
