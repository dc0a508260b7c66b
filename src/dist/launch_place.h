// Which of a run's processes this one is, as whoever started them says in the environment.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace lk {

struct LaunchPlace {
  int rank = 0, size = 1;              // of the run
  int local_rank = 0, local_size = 1;  // among those of this machine
  std::string address = "127.0.0.1";   // where rank 0 listens
  int port = 0;
  int listening = -1;  // rank 0: a socket that does already, or -1
  std::string by;      // "torchrun", "Open MPI", "MPICH", "SLURM"
};

// The value of an environment variable, or null.
using Environment = std::function<const char*(const char*)>;

// Reads, in this order, the variables of
//   torchrun   RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
//   Open MPI   OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK
//   MPICH      PMI_RANK, PMI_SIZE, MPI_LOCALRANKID
//   SLURM      SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID: srun's own, not those of a batch
//              script, which runs once whatever it asked for
// Others than torchrun take MASTER_ADDR and MASTER_PORT too; without them a run of one machine meets
// on a port made of the job's number. Nothing if this process was started alone. Throws UsageError
// naming the variable that is missing or can't be.
std::optional<LaunchPlace> find_launch_place(const Environment& environment);

}  // namespace lk
