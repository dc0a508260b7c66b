// LoRA's thin products through joined projections (Note [Joined projections] in autograd/joined.h).
// The device's kernels run them where the plan has one (tensor/lora_kernels.h); elsewhere they are
// composed of the core's ops, one product for each part, which is their definition.
//
// dy (T,N) and x, dx (T,K) are wide; s, ds (T,S), a (S,K) and b (N,S) are thin. Part p has columns
// [begin, end) of the wide matrix and [column, column + rank) of the thin ones; drop_p is dropout
// with its key. Each part of a backward counts as one weight gradient.
//
// Note [Masks drawn once]: the device's kernels draw the masks in forward and store one bit an
// element, which into_x and backward_a read: drawing costs them more than all else they do. The bits
// are activations of the op that records a backward, and are freed with its node: a block that runs
// twice keeps them from its second run alone. Where products are composed, each draws the same masks
// again, for a masked copy of x.
#pragma once

#include <span>

#include "tensor/lora_kernels.h"

namespace lk::thin {

// Memory of `tokens` tokens' masks for a backward, to be put in InputDropout::bits before forward;
// undefined where they are drawn again.
Tensor empty_bits(Backend& backend, const ThinPlan& plan, std::int64_t tokens);

// s = scale drop_p(x) a_pᵀ in each part's columns, zero in all others. Without dropout this is one
// product for all parts.
void forward(Backend& backend, const ThinPlan& plan, const Tensor& s, double scale, const Tensor& x,
             const Tensor& a, std::span<const ThinPart> parts, const InputDropout& drop);
// dx += sum over p of drop_p(ds_p a_p), with the masks of x, which are forward's
void into_x(Backend& backend, const ThinPlan& plan, const Tensor& dx, const Tensor& ds,
            const Tensor& a, std::span<const ThinPart> parts, const InputDropout& drop);
// ds = scale dy b; dw_p (end - begin, rank) (+)= dy[:, begin:end]ᵀ s[:, p]. b is zero outside the
// parts' blocks.
void backward_b(Backend& backend, const ThinPlan& plan, const Tensor& ds, double scale,
                const Tensor& dy, const Tensor& b, const Tensor& s,
                std::span<const ThinPart> parts);
// dw_p (rank, K) (+)= ds[:, p]ᵀ drop_p(x), where x is replaced by what `norm` makes of it if there
// is one. Each part's begin and end are 0 and K.
void backward_a(Backend& backend, const ThinPlan& plan, const Tensor& ds, const Tensor& x,
                const NormedInput* norm, std::span<const ThinPart> parts,
                const InputDropout& drop = {});
// Backend::gated_backward with silu, and backward_a with x = silu(gate) * up. dgate may be gate's
// memory and dup may be up's; dy's values are lost.
void swiglu_backward(Backend& backend, const ThinPlan& plan, const Tensor& dgate, const Tensor& dup,
                     const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& ds,
                     std::span<const ThinPart> parts, const InputDropout& drop = {});

}  // namespace lk::thin
