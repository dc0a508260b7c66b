// Memory of the host: aligned blocks on huge pages, and how much is left.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace lk::cpu {

// A 256-byte aligned block (if large, 2 MiB aligned and on huge pages), or nullptr when the host
// has not that much memory left.
void* allocate_host(std::size_t bytes);
// Frees such a block, given what was asked for: at once, if it is large.
void release_host(void* block, std::size_t bytes);

// Bytes that could still be allocated: MemAvailable, or what the control group leaves if that is
// less.
std::int64_t free_host_memory();

// The processor's name as the kernel reports it: "AMD EPYC 7B13".
std::string processor_name();

}  // namespace lk::cpu
