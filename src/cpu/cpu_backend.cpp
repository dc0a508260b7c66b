#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <dnnl.hpp>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/dora.h"
#include "cpu/fast/fp8.h"
#include "cpu/fast/onednn_linear.h"
#include "cpu/fast/slices.h"
#include "cpu/host_memory.h"
#include "tensor/parts.h"

namespace lk {
namespace {

const char* isa_name() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41:
      return "SSE4.1";
    case dnnl::cpu_isa::avx:
      return "AVX";
    case dnnl::cpu_isa::avx2:
      return "AVX2";
    case dnnl::cpu_isa::avx2_vnni:
      return "AVX2 VNNI";
    case dnnl::cpu_isa::avx512_core:
      return "AVX-512";
    case dnnl::cpu_isa::avx512_core_vnni:
      return "AVX-512 VNNI";
    case dnnl::cpu_isa::avx512_core_bf16:
      return "AVX-512 BF16";
    case dnnl::cpu_isa::avx512_core_amx:
      return "AVX-512 AMX";
    default:
      return "other";
  }
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(CpuMode mode) {
  return std::make_unique<CpuBackend>(mode);
}

CpuBackend::CpuBackend(CpuMode mode, Products products, const DeviceTraits& traits)
    : Backend(traits),
      dora_kernels_(cpu::make_dora_kernels(weight_gradient_count())),
      slice_kernels_(cpu::make_slice_kernels()),
      fp8_kernels_(cpu::make_fp8_kernels(*this)),
      mode_(mode),
      products_(products) {
  // Rows are not padded here, so that almost every step has sizes of its own.
  set_cache(std::make_unique<BlockCache>(cpu::allocate_host, cpu::release_host,
                                         BlockCache::Idle::Bounded));
}

CpuBackend::~CpuBackend() { release_cache(); }

bool CpuBackend::use_onednn(DType dtype) const {
  if (!fast() || dtype == DType::F64 || products_ == Products::Tiles) return false;
  return products_ == Products::Onednn || cpu::prefers_onednn(dtype);
}

std::string CpuBackend::description() const {
  const dnnl_version_t& v = *dnnl::version();
  return concat(cpu::processor_name(), ", ", omp_get_max_threads(), " threads, ", isa_name(),
                ", oneDNN ", v.major, ".", v.minor, ".", v.patch,
                fast() ? "" : ", reference kernels");
}

std::int64_t CpuBackend::free_memory() const { return cpu::free_host_memory(); }

void CpuBackend::upload(const Tensor& dst, const void* src, std::size_t bytes) {
  check(dst.contiguous() && bytes == dst.bytes(), "upload: ", bytes, " bytes into ", dst.shape(),
        " of ", dst.bytes());
  if (bytes) std::memcpy(dst.raw(), src, bytes);
}

void CpuBackend::download(void* dst, const Tensor& src, std::size_t bytes) {
  check(src.contiguous() && bytes == src.bytes(), "download: ", bytes, " bytes from ", src.shape(),
        " of ", src.bytes());
  if (bytes) std::memcpy(dst, src.raw(), bytes);
}

void CpuBackend::upload_made(const Tensor& dst, std::size_t unit_bytes, const MakeUnits& make) {
  const std::int64_t n = check_units("upload_made", dst, unit_bytes);
  auto* to = static_cast<std::byte*>(dst.raw());
  for_parts(n, units_per_part(unit_bytes), [&](std::int64_t first, std::int64_t last) {
    make(first, last, to + static_cast<std::size_t>(first) * unit_bytes);
  });
}

void CpuBackend::look_at(const Tensor& src, std::size_t unit_bytes, const LookAtUnits& look) {
  const std::int64_t n = check_units("look_at", src, unit_bytes);
  const auto* from = static_cast<const std::byte*>(src.raw());
  for_parts(n, units_per_part(unit_bytes), [&](std::int64_t first, std::int64_t last) {
    look(first, last, from + static_cast<std::size_t>(first) * unit_bytes);
  });
}

}  // namespace lk
