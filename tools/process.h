// What a program asks of the system before it works, and how it ends where no exception can reach
// main(): an allocation that fails in a destructor or in a library must end it as any other does.
#pragma once

#include <cstdint>
#include <functional>

namespace lk::program {

// Prepares the process and runs `body`, whose status it returns: the standard descriptors are open,
// as many files may be open as the system allows, stacks have 8 MiB (of this thread, of OpenMP's and
// of all others), and the threads that OpenMP will want can be made. Throws OutOfMemoryError if they
// can't, std::system_error if the system refuses something else.
//
// From before main() on, std::terminate() ends the program with the code of the exception that
// caused it, and prints one line; a library that calls exit() (OpenMP's does, out of threads or
// memory) ends it with ExitCode::OutOfMemory.
int with_resources(const std::function<int()>& body);

// Sets how OpenMP runs and, as it reads that before main(), starts the program again if it runs
// otherwise: `threads` (0: as the environment says, or as many as affinity and the control groups'
// quota of processor time allow), which wait for the next loop only a short time
// before they sleep, unless OMP_WAIT_POLICY or GOMP_SPINCOUNT say how. Where the system refuses that,
// the program goes on as it is.
void set_openmp(char** argv, std::int64_t threads);

// Returns `status`, with which main() is about to return: an exit() from now on is its own.
int finish(int status);

}  // namespace lk::program
