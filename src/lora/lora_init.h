// How A and B start: all but the usual way, which LoraLinear itself does.
//
// Note [Taken out of the base]. PiSSA and OLoRA start A and B at a part of W and train them on the
// rest: the frozen projection becomes W - s B0 A0, so that the adapted one starts as W. An adapter
// is then saved as the plain LoRA adapter of twice the rank that does the same on W itself:
//   W - s B0 A0 + s B A = W + s [B, -B0] [A; A0]
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace lk {

class LoraLinear;
class Transformer;

// Kaiming: A uniform in +-1 / sqrt(in), B zero.
// Gaussian: A normal with the standard deviation 1 / rank, B zero.
// Pissa: s B A is W's best approximation of its rank, the `rank` largest terms of its singular value
//   decomposition U S Vᵀ: B = U sqrt(S / s), A = sqrt(S / s) Vᵀ. Source: Meng, Wang & Zhang, "PiSSA:
//   Principal Singular Values and Singular Vectors Adaptation", 2024.
// Olora: with W = Q R, B is the first `rank` columns of Q and A the first rows of R. Source:
//   Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", 2024.
enum class LoraInit : std::uint8_t { Kaiming, Gaussian, Pissa, Olora };

// A and B as they started, on the host: A (R,in), B (out,R).
struct StartingFactors {
  std::vector<float> a, b;
  // y (T,out) += scale x (T,in) Aᵀ Bᵀ
  void add_to(const Tensor& y, const Tensor& x, double scale) const;
};

// "kaiming", ... Throws UsageError for another name.
LoraInit parse_lora_init(const std::string& name);
const char* lora_init_name(LoraInit init);

// Whether the frozen weights are changed: see Note [Taken out of the base].
inline bool changes_base(LoraInit init) {
  return init == LoraInit::Pissa || init == LoraInit::Olora;
}

// Sets A and B of fresh layers, which are kaiming as they come. Random numbers come from Philox,
// keyed by (seed, the layer's site). What is taken out of the base is computed on the host, a matrix
// a thread; the ledger's peaks start anew afterwards. Throws UsageError if a weight that changes is
// not dense.
void initialise(Transformer& model, const std::vector<LoraLinear*>& layers, LoraInit init,
                std::uint64_t seed);

}  // namespace lk
