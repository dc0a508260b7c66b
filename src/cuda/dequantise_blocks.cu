// Dense matrices of ggml's blocks (block_decoders.cuh).
//
// Shapes     to (N,K) BF16 or F32, rows `ld` apart; blocks U8 (N, bytes of a row)
// Plan       a thread: two octets of values (dequantise.cuh). Neighbouring threads share a block's
//            scales, and the two halves of a byte go to two threads of a warp: both come from L1.
// Bytes      blocks once, `to` once: 2.6 bytes a value for Q4_K to BF16
#include "cuda/block_decoders.cuh"

namespace lk {

void dequantise_blocks(const QuantisedMatrix& q, const Tensor& to, const int* ids,
                       cudaStream_t stream) {
  blocks::with_decoder(*q.format.blocks, [&]<class Decoder>() {
    launch_dequantise("dequantise_blocks", Decoder::of(q, to.cols()), to, ids, stream);
  });
}

}  // namespace lk
