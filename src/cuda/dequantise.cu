// Dense matrices of quantised ones.
//
// Shapes     to (N,K) BF16 or F32, rows `ld` apart; codes and scales as the format lays them out
// Plan       a thread: two octets of values (dequantise.cuh); tables of 16 values in shared memory,
//            where 16 words lie in 16 banks, so no lookup waits for another
// Bytes      codes and scales once, `to` once: 2.5 bytes a value for NF4 to BF16
// Numbers    those of the decoders (block_decoders.cuh, code_decoders.cuh), rounded once to `to`'s dtype
#include "cuda/code_decoders.cuh"
#include "cuda/cuda_backend.h"
#include "cuda/quantised_kernels.h"

namespace lk {

void CudaQuantisedKernels::dequantise(const Tensor& to, const Weight& w) {
  to.expect(w.shape(), "dequantise: to (N,K)");
  rows(to, w, nullptr);
}

void CudaQuantisedKernels::rows(const Tensor& to, const Weight& w, const int* ids) {
  check(w.has_values(), w.name(), ": is packed for inference");
  const QuantisedMatrix& q = *w.quantised();
  cudaStream_t stream = backend_.stream();
  if (q.format.encoding == Encoding::Blocks) return dequantise_blocks(q, to, ids, stream);
  const auto run = [&]<class Decoder>() {
    launch_dequantise("dequantise_codes", Decoder::of(q, to.cols()), to, ids, stream);
  };
  codes::whole_octets(q.format, to.cols()) ? codes::with_decoder<true>(q.format, run)
                                           : codes::with_decoder<false>(q.format, run);
}

}  // namespace lk
