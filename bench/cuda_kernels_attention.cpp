// Times attention.
#include "cuda_kernels.h"
#include "tensor/shared_keys.h"

namespace lk::bench::cuda {
namespace {

enum class Pass { Forward, Backward, RopeBackward };

}  // namespace

void register_attention() {
  auto attention = [](DType t, int heads, int kv_heads, int head_dim, int documents, int length,
                      int window = 0) {
    std::string name = concat("attention_", dtype_name(t), "_H", heads, "_G", kv_heads, "_D",
                              head_dim, "_", documents, "x", length);
    if (window > 0) name += concat("_W", window);
    double pairs = 0.5 * length * length;
    if (window > 0 && window < length) pairs -= 0.5 * (length - window) * (length - window);
    double flops = 4.0 * documents * heads * head_dim * pairs;  // 2 products
    auto make = [=](Pass pass) {
      std::int64_t n = static_cast<std::int64_t>(documents) * length;
      std::vector<std::int32_t> offsets;
      for (int i = 0; i <= documents; ++i) offsets.push_back(i * length);
      Tensor q = random_tensor(t, {n, heads * head_dim}, 1),
             k = random_tensor(t, {n, kv_heads * head_dim}, 2),
             v = random_tensor(t, {n, kv_heads * head_dim}, 3),
             o = random_tensor(t, {n, heads * head_dim}, 4),
             dout = random_tensor(t, {n, heads * head_dim}, 5),
             lse = random_tensor(DType::F32, {heads, n}, 6);
      Tensor dq = random_tensor(t, {n, heads * head_dim}, 7),
             dk = random_tensor(t, {n, kv_heads * head_dim}, 8),
             dv = random_tensor(t, {n, kv_heads * head_dim}, 9);
      Segments seg = make_segments(gpu(), offsets);
      AttentionShape shape{heads, kv_heads, head_dim, static_cast<float>(1 / std::sqrt(head_dim)),
                           window};
      Rotation rotation{random_tensor(DType::F32, {length, head_dim}, 10),
                        to_device(gpu(), Tag::Workspace, std::vector<std::int32_t>(n, 7))};
      gpu().attention_forward(o, lse, q, k, v, shape, seg, seg);
      return [=] {
        if (pass == Pass::Forward)
          gpu().attention_forward(o, lse, q, k, v, shape, seg, seg);
        else if (pass == Pass::Backward)
          gpu().attention_backward(dq, dk, dv, dout, q, k, v, o, lse, shape, seg);
        else
          gpu().attention_backward(dq, dk, dv, dout, q, k, v, o, lse, shape, seg, &rotation);
      };
    };
    add(name + "_forward", {.flops = flops}, [=] { return make(Pass::Forward); });
    add(name + "_backward", {.flops = 2.5 * flops}, [=] { return make(Pass::Backward); });
    add(name + "_rope_backward", {.flops = 2.5 * flops}, [=] { return make(Pass::RopeBackward); });
  };
  attention(DType::BF16, 32, 32, 128, 4, 2048);
  attention(DType::BF16, 32, 8, 128, 4, 2048);
  attention(DType::BF16, 32, 8, 128, 1, 8192);
  attention(DType::BF16, 32, 8, 64, 4, 2048);
  attention(DType::BF16, 9, 3, 64, 16, 512);
  for (int head_dim : {64, 128, 256})  // 2048 columns and 16384 rows: as attention is compared
    for (int length : {512, 2048, 8192, 32768})
      if (head_dim < 256 || length <= 8192)
        attention(DType::BF16, 2048 / head_dim, 2048 / head_dim, head_dim,
                  std::max(1, 16384 / length), length);
  attention(DType::BF16, 4, 1, 256, 4, 1024);  // gemma3-1b: its global and its local layers
  attention(DType::BF16, 4, 1, 256, 4, 1024, 512);
  for (int head_dim : {80, 96, 192}) attention(DType::BF16, 16, 16, head_dim, 4, 2048);
  attention(DType::F32, 9, 3, 64, 4, 512);
  // One new token per document against a cache of 2048 keys; bytes, not products, are the roof.
  add("attention_bf16_H32_G8_D128_decode_8x2048", {.bytes = 2.0 * 8 * 2048 * 8 * 128 * 2}, [] {
    std::vector<std::int32_t> one, keys;
    for (int i = 0; i <= 8; ++i) one.push_back(i), keys.push_back(2048 * i);
    Tensor q = random_tensor(DType::BF16, {8, 4096}, 1),
           k = random_tensor(DType::BF16, {8 * 2048, 1024}, 2),
           v = random_tensor(DType::BF16, {8 * 2048, 1024}, 3),
           o = random_tensor(DType::BF16, {8, 4096}, 4),
           lse = random_tensor(DType::F32, {32, 8}, 5);
    Segments qs = make_segments(gpu(), one), ks = make_segments(gpu(), keys);
    return [=] { gpu().attention_forward(o, lse, q, k, v, {32, 8, 128, 0.088f, 0}, qs, ks); };
  });
}

// A prefix of 30 keys beside the attention of a layer with eight key/value heads.
void register_shared_keys() {
  constexpr std::int64_t n = 30, kv_width = 8 * 128;
  const AttentionShape shape{32, 8, 128, 0.088f, 0};
  const double flops = 4.0 * T * C * n, bytes = 2.0 * T * C;
  auto make = [=](bool backward) {
    const Tensor q = random_tensor(DType::BF16, {T, C}, 1),
                 o = random_tensor(DType::BF16, {T, C}, 2),
                 dout = random_tensor(DType::BF16, {T, C}, 3),
                 dq = random_tensor(DType::BF16, {T, C}, 4),
                 lse = random_tensor(DType::F32, {32, T}, 5),
                 delta = random_tensor(DType::F32, {32, T}, 6),
                 dk = random_tensor(DType::BF16, {n, kv_width}, 7),
                 dv = random_tensor(DType::BF16, {n, kv_width}, 8);
    const SharedKeys keys{random_tensor(DType::BF16, {n, kv_width}, 9),
                          random_tensor(DType::BF16, {n, kv_width}, 10)};
    return [=] {
      if (backward)
        gpu().shared_key_kernels()->shared_keys_backward(dq, GradMode::Add, dk, dv, delta, dout, q,
                                                         keys, o, lse, shape);
      else
        gpu().shared_key_kernels()->shared_keys_forward(o, lse, GradMode::Add, q, keys, shape);
    };
  };
  add("shared_keys_forward", {.flops = flops, .bytes = 3 * bytes}, [=] { return make(false); });
  add("shared_keys_backward", {.flops = 3.5 * flops, .bytes = 5 * bytes},
      [=] { return make(true); });
}

}  // namespace lk::bench::cuda
