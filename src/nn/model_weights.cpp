#include "nn/model_weights.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "io/sha256.h"
#include "tensor/philox.h"

namespace lk {
namespace {

// Rows of a matrix (or the whole vector) per block of at most kWeightBlockBytes, at least one.
std::int64_t rows_per_block(const Tensor& t) {
  std::int64_t row_bytes = t.cols() * static_cast<std::int64_t>(dtype_size(t.dtype()));
  return std::max<std::int64_t>(1, kWeightBlockBytes / std::max<std::int64_t>(row_bytes, 1));
}

Tensor as_matrix(const Tensor& t) {
  return t.shape().rank() == 2 ? t : t.reshape({t.rows(), t.cols()});
}

// Uniform draws in [-bound, bound), keyed by tensor and element; `first` is a multiple of four.
void fill_uniform(std::vector<float>& out, const RandomKey& key, std::int64_t first, float bound) {
  const std::int64_t n = static_cast<std::int64_t>(out.size());
#pragma omp parallel for
  for (std::int64_t i = 0; i < n; i += 4) {
    Philox4 bits = philox_quad(key, static_cast<std::uint64_t>(first + i) / 4);
    for (std::int64_t j = i; j < std::min(i + 4, n); ++j)
      out[static_cast<std::size_t>(j)] = bound * (2 * philox_uniform(bits.v[j - i]) - 1);
  }
}

template <class T>
void upload_as(Backend& backend, const Tensor& dst, std::span<const float> values) {
  std::vector<T> rounded(values.size());
  const std::int64_t n = static_cast<std::int64_t>(values.size());
#pragma omp parallel for simd if (n > 1 << 16)
  for (std::int64_t i = 0; i < n; ++i)
    rounded[static_cast<std::size_t>(i)] = static_cast<T>(values[static_cast<std::size_t>(i)]);
  backend.upload(dst, rounded.data(), rounded.size() * sizeof(T));
}

}  // namespace

std::vector<WeightSlot> weight_slots(const ModelConfig& c, ModelWeights& w) {
  std::vector<WeightSlot> slots;
  const std::int64_t C = c.hidden_size, F = c.intermediate_size, V = c.vocab_size;
  auto vector = [&](std::string name, std::int64_t n, Weight& weight) {
    slots.push_back({std::move(name), Shape{n}, &weight, false});
  };
  w.layers.resize(static_cast<std::size_t>(c.n_layers));
  slots.push_back({"model.embed_tokens.weight", Shape{V, C}, &w.embedding, false});
  for (std::int64_t i = 0; i < c.n_layers; ++i) {
    LayerWeights& l = w.layers[static_cast<std::size_t>(i)];
    const std::string layer = concat("model.layers.", i, ".");
    auto linear = [&](const char* path, std::int64_t out, std::int64_t in, Weight& weight,
                      bool biased, Weight& bias) {
      slots.push_back({layer + path + ".weight", Shape{out, in}, &weight, true});
      if (biased) vector(layer + path + ".bias", out, bias);
    };
    vector(layer + "input_layernorm.weight", C, l.attn_norm);
    linear("self_attn.q_proj", c.q_size(), C, l.q, c.attention_bias, l.q_bias);
    linear("self_attn.k_proj", c.kv_size(), C, l.k, c.attention_bias, l.k_bias);
    linear("self_attn.v_proj", c.kv_size(), C, l.v, c.attention_bias, l.v_bias);
    linear("self_attn.o_proj", C, c.q_size(), l.o, c.attention_output_bias, l.o_bias);
    vector(layer + "post_attention_layernorm.weight", C, l.ffn_norm);
    linear("mlp.gate_proj", F, C, l.gate, c.mlp_bias, l.gate_bias);
    linear("mlp.up_proj", F, C, l.up, c.mlp_bias, l.up_bias);
    linear("mlp.down_proj", C, F, l.down, c.mlp_bias, l.down_bias);
  }
  vector("model.norm.weight", C, w.final_norm);
  if (!c.tie_embeddings) slots.push_back({"lm_head.weight", Shape{V, C}, &w.head, true});
  return slots;
}

void visit_weights(const ModelWeights& w, const std::function<void(const Weight&)>& f) {
  auto visit = [&](const Weight& weight) {
    if (weight.defined()) f(weight);
  };
  visit(w.embedding);
  for (const LayerWeights& l : w.layers)
    for (const Weight* p :
         {&l.attn_norm, &l.q, &l.q_bias, &l.k, &l.k_bias, &l.v, &l.v_bias, &l.o, &l.o_bias,
          &l.ffn_norm, &l.gate, &l.gate_bias, &l.up, &l.up_bias, &l.down, &l.down_bias})
      visit(*p);
  visit(w.final_norm);
  if (!w.tied()) visit(w.head);
}

void tie_head(Backend& backend, ModelWeights& w) {
  // Quantised blocks are packed in place, so the embedding is read from the head's.
  if (w.embedding.quantised()) backend.prepare_linear(w.embedding);
  w.head = w.embedding.renamed("lm_head.weight");
  if (!w.embedding.quantised()) backend.prepare_linear(w.head);
}

void upload_rounded(Backend& backend, const Tensor& dst, std::span<const float> values) {
  if (dst.dtype() == DType::F32) {
    backend.upload(dst, values.data(), values.size_bytes());
  } else {
    dispatch_float(dst.dtype(), [&]<class T>() { upload_as<T>(backend, dst, values); });
  }
}

std::string weights_sha256(Backend& backend, const ModelWeights& weights) {
  Sha256 hash;
  std::vector<std::byte> block;
  visit_weights(weights, [&](const Weight& weight) {
    // The terminating zero keeps name and bytes apart.
    hash.update(weight.name().c_str(), weight.name().size() + 1);
    Tensor t = as_matrix(weight.values());
    const std::int64_t step = rows_per_block(t);
    for (std::int64_t begin = 0; begin < t.rows(); begin += step) {
      Tensor rows = dense(t.slice_rows(begin, std::min(begin + step, t.rows())));
      block.resize(rows.bytes());
      backend.download(block.data(), rows, block.size());
      hash.update(block.data(), block.size());
    }
  });
  return hash.hex();
}

ModelWeights random_weights(Backend& backend, const ModelConfig& config, DType dtype,
                            std::uint64_t seed) {
  validate(config, "random_weights");
  ModelWeights weights;
  std::uint32_t site = 0;
  std::vector<float> block;
  const float bound = 0.02f * std::sqrt(3.0f);  // the standard deviation is bound / sqrt(3)
  for (WeightSlot& slot : weight_slots(config, weights)) {
    Tensor t = backend.empty(Tag::Weights, dtype, slot.shape);
    ++site;
    if (slot.shape.rank() == 1 && slot.name.ends_with(".weight")) {
      backend.fill(t, 1.0);  // the gain of a norm
    } else {
      Tensor matrix = as_matrix(t);
      // A multiple of four rows, so that every block starts at a whole Philox draw.
      const std::int64_t step = (rows_per_block(matrix) + 3) / 4 * 4;
      for (std::int64_t begin = 0; begin < matrix.rows(); begin += step) {
        Tensor rows = matrix.slice_rows(begin, std::min(begin + step, matrix.rows()));
        block.resize(static_cast<std::size_t>(rows.numel()));
        fill_uniform(block, {seed, 0, site}, begin * matrix.cols(), bound);
        upload_rounded(backend, rows, block);
      }
    }
    *slot.weight = Weight(slot.name, std::move(t));
    if (slot.linear) backend.prepare_linear(*slot.weight);
  }
  if (config.tie_embeddings) tie_head(backend, weights);
  return weights;
}

}  // namespace lk
