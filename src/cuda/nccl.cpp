#include "cuda/nccl.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <cstring>

#include "cuda/cuda_check.h"

namespace lk {
namespace {

// What is used of nccl.h, version 2: names, types and numbers are its own.
struct UniqueId {
  std::array<char, 128> internal{};
};
using Comm = struct ncclComm*;
using Result = int;
constexpr Result kSuccess = 0, kInProgress = 7;
constexpr int kUint8 = 1;

struct Nccl {
  Result (*get_unique_id)(UniqueId*) = nullptr;
  Result (*comm_init_rank)(Comm*, int size, UniqueId, int rank) = nullptr;
  Result (*comm_destroy)(Comm) = nullptr;
  Result (*comm_abort)(Comm) = nullptr;
  Result (*comm_get_async_error)(Comm, Result*) = nullptr;
  Result (*group_start)() = nullptr;
  Result (*group_end)() = nullptr;
  Result (*send)(const void*, std::size_t, int type, int peer, Comm, cudaStream_t) = nullptr;
  Result (*recv)(void*, std::size_t, int type, int peer, Comm, cudaStream_t) = nullptr;
  const char* (*get_error_string)(Result) = nullptr;
  bool complete = false;
};

// The library's functions; not complete where there is none. It stays loaded.
const Nccl& nccl() {
  static const Nccl functions = [] {
    Nccl n;
    void* library = ::dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) return n;
    bool all = true;
    auto find = [&](auto& function, const char* name) {
      void* symbol = ::dlsym(library, name);
      std::memcpy(&function, &symbol, sizeof symbol);
      all = all && symbol;
    };
    find(n.get_unique_id, "ncclGetUniqueId");
    find(n.comm_init_rank, "ncclCommInitRank");
    find(n.comm_destroy, "ncclCommDestroy");
    find(n.comm_abort, "ncclCommAbort");
    find(n.comm_get_async_error, "ncclCommGetAsyncError");
    find(n.group_start, "ncclGroupStart");
    find(n.group_end, "ncclGroupEnd");
    find(n.send, "ncclSend");
    find(n.recv, "ncclRecv");
    find(n.get_error_string, "ncclGetErrorString");
    n.complete = all;
    return n;
  }();
  return functions;
}

void nccl_check(Result result, const char* what) {
  if (result != kSuccess && result != kInProgress)
    throw IoError(concat("NCCL: ", what, ": ", nccl().get_error_string(result)));
}

class NcclTransport : public Transport {
 public:
  NcclTransport(CudaBackend& backend, const std::string& id, int rank, int size,
                std::chrono::seconds timeout)
      : backend_(backend), timeout_(timeout) {
    UniqueId unique;
    check(id.size() == unique.internal.size(), "NCCL: an id of ", id.size(), " bytes");
    std::copy(id.begin(), id.end(), unique.internal.begin());
    backend_.stream();  // makes the GPU current
    cuda_check(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "an event");
    nccl_check(nccl().comm_init_rank(&comm_, size, unique, rank), "the processes do not meet");
    backend_.guard_waits([this](Clock::duration waited) { guard(waited); });
  }
  ~NcclTransport() override {
    backend_.guard_waits(nullptr);
    if (comm_ && cudaEventQuery(done_) == cudaSuccess)
      nccl().comm_destroy(comm_);
    else
      abandon();
    cudaGetLastError();
    cudaEventDestroy(done_);
  }

  void exchange(std::span<const Piece> sends, std::span<const Piece> receives) override {
    if (!failure_.empty()) throw IoError(failure_);
    check(comm_ != nullptr, "NCCL: used after it was abandoned");
    const cudaStream_t stream = backend_.stream();
    nccl_check(nccl().group_start(), "a group");
    for (const Piece& p : sends)
      nccl_check(nccl().send(p.memory.raw(), p.memory.bytes(), kUint8, p.peer, comm_, stream),
                 "a send");
    for (const Piece& p : receives)
      nccl_check(nccl().recv(p.memory.raw(), p.memory.bytes(), kUint8, p.peer, comm_, stream),
                 "a receive");
    nccl_check(nccl().group_end(), "an exchange");
    cuda_check(cudaEventRecord(done_, stream), "an event");
  }

  void abandon() noexcept override {
    if (comm_) nccl().comm_abort(comm_);
    comm_ = nullptr;
    failure_.clear();
  }

 private:
  using Clock = std::chrono::steady_clock;
  // Note [Waiting for others] in cuda_backend.h. What came after a failed exchange is not to be
  // read: each later wait throws too.
  void guard(Clock::duration waited) {
    if (failure_.empty() && comm_) {
      Result result = kSuccess;
      nccl().comm_get_async_error(comm_, &result);
      if (result != kSuccess && result != kInProgress)
        fail(concat("another process is gone: ", nccl().get_error_string(result)));
      else if (waited > timeout_ && cudaEventQuery(done_) == cudaErrorNotReady)
        fail(concat("another process was silent for ", timeout_.count(), " s"));
    }
    if (!failure_.empty()) throw IoError(failure_);
  }
  void fail(const std::string& why) {
    abandon();
    failure_ = "NCCL: " + why;
  }

  CudaBackend& backend_;
  std::chrono::seconds timeout_;
  Comm comm_ = nullptr;
  cudaEvent_t done_ = nullptr;  // the last exchange
  std::string failure_;         // of an exchange; empty: none
};

}  // namespace

bool nccl_is_there() { return nccl().complete; }

std::string make_nccl_id() {
  UniqueId id;
  nccl_check(nccl().get_unique_id(&id), "no id");
  return {id.internal.begin(), id.internal.end()};
}

std::unique_ptr<Transport> make_nccl_transport(CudaBackend& backend, const std::string& id,
                                               int rank, int size, std::chrono::seconds timeout) {
  // Multicast over NVLink serves sums, of which there are none here, and not all machines have it.
  ::setenv("NCCL_NVLS_ENABLE", "0", 0);
  return std::make_unique<NcclTransport>(backend, id, rank, size, timeout);
}

}  // namespace lk
