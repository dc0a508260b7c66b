// Ops with a trainable vector or table where ops.h has one with a frozen Weight, too, and others that
// only methods beside LoRA need. A node with a Parameter always records: it wants its gradient.
#include <algorithm>

#include "autograd/ops/by_head.h"
#include "autograd/ops/chunks.h"
#include "autograd/trained.h"
#include "autograd/work.h"

namespace lk {
namespace {

// The values of a trainable vector for one call of a kernel that takes a frozen one. Its gradient
// goes through the Parameter alone.
Weight frozen(const Parameter& p) { return Weight(p.name(), p.compute()); }

void check_vector(const Parameter& p, std::int64_t n, const char* what) {
  check(p.shape() == Shape{n}, what, ": ", p.name(), " is ", p.shape(), ", not (", n, ")");
}

// dl = sum over tokens of dy x,  dx = dy l
struct ScaleColumnsNode : Node {
  Var x;
  Parameter& l;
  ScaleColumnsNode(const Var& x, Parameter& l) : x(x), l(l) {}
  const char* name() const override { return "scale_columns"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Sink dl = l.sink();
    tape.backend().vector_gradient(dl.tensor, dl.mode, dy, x.value());
    if (Sink dx = tape.sink(x)) tape.backend().scale_columns(dx.tensor, dx.mode, dy, l.compute());
  }
};

}  // namespace

// y = x * l in every row
Var scale_columns(Tape& tape, const Var& x, Parameter& l) {
  auto [T, N] = x.dims<2>("scale_columns: x (T,N)");
  check_vector(l, N, "scale_columns");
  Tensor y = tape.activation(x.dtype(), {T, N});
  tape.backend().scale_columns(y, GradMode::Write, x.value(), l.compute());
  if (!tape.wants(x, l)) return tape.constant(std::move(y));
  return tape.record<ScaleColumnsNode>(std::move(y), x, l);
}

namespace {

// db = sum over tokens of dy,  dx = dy
struct TrainedBiasNode : Node {
  Edge x;
  Parameter& b;
  TrainedBiasNode(Edge x, Parameter& b) : x(x), b(b) {}
  const char* name() const override { return "trained_bias"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Sink db = b.sink();
    tape.backend().vector_gradient(db.tensor, db.mode, dy);
    tape.pass(x, dy);
  }
};

}  // namespace

// y = x + b in every row
Var add_bias(Tape& tape, const Var& x, Parameter& b) {
  auto [T, N] = x.dims<2>("add_bias: x (T,N)");
  check_vector(b, N, "add_bias");
  Tensor y = tape.activation(x.dtype(), {T, N});
  tape.backend().copy(y, x.value());
  tape.backend().add_bias(y, frozen(b));
  if (!tape.wants(x, b)) return tape.constant(std::move(y));
  return tape.record<TrainedBiasNode>(std::move(y), x, b);
}

namespace {

// With g = dy * gain and xhat = x * rstd: dx = rstd * (g - xhat * mean(g * xhat)), dgain = sum over
// rows of dy * xhat. A row is a token or one of its heads.
struct TrainedRmsNormNode : Node {
  Var x;
  Parameter& gain;
  Tensor rstd;
  TrainedRmsNormNode(const Var& x, Parameter& gain, Tensor rstd)
      : x(x), gain(gain), rstd(std::move(rstd)) {}
  const char* name() const override { return "trained_rmsnorm"; }
  void backward(Tape& tape, const Tensor& dy) override {
    const std::int64_t D = gain.numel();
    const Tensor up = by_head(dy.cols() == D ? dy : dense(dy), D), in = by_head(x.value(), D);
    Sink dgain = gain.sink();
    tape.backend().vector_gradient(dgain.tensor, dgain.mode, up, in, {}, rstd);
    if (Sink dx = tape.sink(x))
      tape.backend().rmsnorm_backward(by_head(dx.tensor, D), dx.mode, up, in, frozen(gain), rstd);
  }
};

}  // namespace

// y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + eps); the mean is over all columns or over each
// head's
Var rmsnorm(Tape& tape, const Var& x, Parameter& gain, double eps) {
  auto [T, C] = x.dims<2>("rmsnorm: x (T,C)");
  check(gain.shape().rank() == 1, "rmsnorm: gain (C), or (D) for each head");
  const std::int64_t D = gain.numel();
  check(D > 0 && C % D == 0, "rmsnorm: x has ", C, " columns, the gain ", D);
  check(C == D || x.value().contiguous(), "rmsnorm by head: the rows of x must be adjacent");
  Tensor y = tape.activation(x.dtype(), {T, C});
  Tensor rstd = tape.activation(stat_dtype(x.dtype()), {T * (C / D)});
  tape.backend().rmsnorm_forward(by_head(y, D), rstd, by_head(x.value(), D), frozen(gain), eps);
  if (!tape.wants(x, gain)) return tape.constant(std::move(y));
  return tape.record<TrainedRmsNormNode>(std::move(y), x, gain, std::move(rstd));
}

namespace {

// With g = dy * gain and xhat = (x - mean) * rstd: dx = rstd * (g - mean(g) - xhat * mean(g *
// xhat)), dgain = sum over tokens of dy * xhat, dbias = sum over tokens of dy. Saves no gradient of
// a gain that is frozen: `gain` is then null and `fixed` holds it.
struct TrainedLayerNormNode : Node {
  Var x;
  Parameter* gain;
  Weight fixed;
  Parameter& bias;
  Tensor mean, rstd;
  TrainedLayerNormNode(const Var& x, Parameter* gain, const Weight& fixed, Parameter& bias,
                       Tensor mean, Tensor rstd)
      : x(x), gain(gain), fixed(fixed), bias(bias), mean(std::move(mean)), rstd(std::move(rstd)) {}
  const char* name() const override { return gain ? "trained_layernorm" : "layernorm_bias"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    Sink db = bias.sink();
    backend.vector_gradient(db.tensor, db.mode, dy);
    if (gain) {
      Sink dgain = gain->sink();
      backend.vector_gradient(dgain.tensor, dgain.mode, dy, x.value(), mean, rstd);
    }
    if (Sink dx = tape.sink(x))
      backend.layernorm_backward(dx.tensor, dx.mode, dy, x.value(), gain ? frozen(*gain) : fixed,
                                 mean, rstd);
  }
};

Var trained_layernorm(Tape& tape, const Var& x, Parameter* gain, const Weight& fixed,
                      Parameter& bias, double eps) {
  auto [T, C] = x.dims<2>("layernorm: x (T,C)");
  const Weight factor = gain ? frozen(*gain) : fixed;
  factor.expect({C}, "layernorm: gain (C)");
  check_vector(bias, C, "layernorm: bias");
  const DType stat = stat_dtype(x.dtype());
  Tensor y = tape.activation(x.dtype(), {T, C});
  Tensor mean = tape.activation(stat, {T}), rstd = tape.activation(stat, {T});
  tape.backend().layernorm_forward(y, mean, rstd, x.value(), factor, frozen(bias), eps);
  if (!tape.wants(x, bias)) return tape.constant(std::move(y));
  return tape.record<TrainedLayerNormNode>(std::move(y), x, gain, fixed, bias, std::move(mean),
                                           std::move(rstd));
}

}  // namespace

// y = (x - mean) * rstd * gain + bias, rstd = 1 / sqrt(variance + eps)
Var layernorm(Tape& tape, const Var& x, Parameter& gain, Parameter& bias, double eps) {
  return trained_layernorm(tape, x, &gain, {}, bias, eps);
}

// layernorm with a frozen gain
Var layernorm(Tape& tape, const Var& x, const Weight& gain, Parameter& bias, double eps) {
  return trained_layernorm(tape, x, nullptr, gain, bias, eps);
}

namespace {

// dtable: each row is the sum of the dy of all tokens with its id.
struct TrainedEmbeddingNode : Node {
  Parameter& table;
  Tensor ids;
  TrainedEmbeddingNode(Parameter& table, const Tensor& ids) : table(table), ids(ids) {}
  const char* name() const override { return "trained_embedding"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Sink dtable = table.sink();
    tape.backend().table_gradient(dtable.tensor, dtable.mode, dy, ids);
  }
};

}  // namespace

// x = table[ids]
Var embedding(Tape& tape, Parameter& table, const Tensor& ids, std::int64_t margin) {
  auto [V, C] = table.value().dims<2>("embedding: table (V,C)");
  auto [T] = ids.dims<1>("embedding: ids (T)");
  Tensor x = tape.activation(table.compute().dtype(), {T, C}, margin);
  tape.backend().gather_rows(x, table.compute(), ids);
  if (!tape.wants(table)) return tape.constant(std::move(x));
  return tape.record<TrainedEmbeddingNode>(std::move(x), table, ids);
}

namespace {

// Calls f(begin, end, logits) for chunks of at most chunk_rows rows of x (n,C), with
// logits = x headᵀ of those rows. All chunks use one buffer.
template <class F>
void logits_by_chunk(const Tensor& x, const Parameter& head, std::int64_t chunk_rows, const F& f) {
  Backend& backend = x.backend();
  const std::int64_t n = x.rows(), most = equal_chunk(n, chunk_rows);
  Tensor buffer = backend.empty(Tag::Workspace, x.dtype(), {most, head.shape()[0]});
  for (std::int64_t begin = 0; begin < n; begin += most) {
    const std::int64_t end = std::min(n, begin + most);
    Tensor logits = buffer.slice_rows(0, end - begin);
    backend.matmul_nt(logits, GradMode::Write, 1.0, x.slice_rows(begin, end), head.compute());
    f(begin, end, logits);
  }
}

// With dlogits = dy scale (softmax - onehot): dhead = dlogitsᵀ x, dx = dlogits head. The logits are
// computed a second time: dhead needs them scaled by dy, which no forward knows, and a matrix of
// the head's size to scale later would cost more memory than the logits of a chunk.
struct TrainedHeadLossNode : Node {
  Var x;
  Parameter& head;
  Tensor targets;
  LossScale scale;
  std::int64_t chunk_rows;
  TrainedHeadLossNode(const Var& x, Parameter& head, const Tensor& targets, const LossScale& scale,
                      std::int64_t chunk_rows)
      : x(x), head(head), targets(targets), scale(scale), chunk_rows(chunk_rows) {}
  const char* name() const override { return "trained_head_loss"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    Tensor factor = dy;
    if (scale.factor) {
      factor = backend.empty(Tag::Workspace, dy.dtype(), {1});
      backend.scale(factor, GradMode::Write, 1.0, scale.factor, dy);
    }
    Tensor losses = backend.empty(Tag::Workspace, dy.dtype(), {x.value().rows()});
    const Sink dx = tape.sink(x);
    logits_by_chunk(x.value(), head, chunk_rows,
                    [&](std::int64_t begin, std::int64_t end, const Tensor& logits) {
                      backend.cross_entropy(losses.slice_rows(begin, end), logits,
                                            targets.slice_rows(begin, end), true, scale.alpha,
                                            factor, scale.smoothing);
                      const Sink dhead = head.sink();
                      backend.weight_gradient(dhead.tensor, dhead.mode, 1.0, logits,
                                              x.value().slice_rows(begin, end));
                      if (dx)
                        backend.matmul_nn(dx.tensor.slice_rows(begin, end), dx.mode, 1.0, logits,
                                          head.compute());
                    });
  }
};

}  // namespace

namespace {

Tensor smoothed_losses(const Tensor& x, const Parameter& head, const Tensor& targets,
                       double smoothing, std::int64_t chunk_rows) {
  auto [n, C] = x.dims<2>("head_loss: x (n,C)");
  auto [V, width] = head.value().dims<2>("head_loss: head (V,C)");
  check(width == C, "head_loss: head ", head.name(), " is ", head.shape(), ", x has ", C,
        " columns");
  targets.expect({n}, "head_loss: targets (n)");
  check(chunk_rows > 0, "head_loss: chunks of ", chunk_rows, " rows");
  Tensor losses = x.backend().empty(Tag::Workspace, stat_dtype(x.dtype()), {n});
  logits_by_chunk(
      x, head, chunk_rows, [&](std::int64_t begin, std::int64_t end, const Tensor& logits) {
        x.backend().cross_entropy(losses.slice_rows(begin, end), logits,
                                  targets.slice_rows(begin, end), false, 1.0, {}, smoothing);
      });
  return losses;
}

}  // namespace

Tensor head_losses(const Tensor& x, const Parameter& head, const Tensor& targets,
                   std::int64_t chunk_rows) {
  return smoothed_losses(x, head, targets, 0, chunk_rows);
}

Var head_loss(Tape& tape, const Var& x, Parameter& head, const Tensor& targets,
              const LossScale& scale, std::int64_t chunk_rows) {
  Tensor losses = smoothed_losses(x.value(), head, targets, scale.smoothing, chunk_rows);
  Tensor loss = tape.activation(losses.dtype(), {1});
  tape.backend().sum(loss, GradMode::Write, scale.alpha, losses);
  if (scale.factor) tape.backend().scale(loss, GradMode::Write, 1.0, scale.factor, loss);
  if (!tape.wants(x, head)) return tape.constant(std::move(loss));
  return tape.record<TrainedHeadLossNode>(std::move(loss), x, head, targets, scale, chunk_rows);
}

namespace {

// dx = alpha dy
struct ScaledNode : Node {
  Edge x;
  double alpha;
  ScaledNode(Edge x, double alpha) : x(x), alpha(alpha) {}
  const char* name() const override { return "scaled"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x)) tape.backend().scale(dx.tensor, dx.mode, alpha, {}, dy);
  }
};

}  // namespace

// y = alpha x
Var scaled(Tape& tape, const Var& x, double alpha) {
  Tensor y = tape.activation(x.dtype(), x.value().shape());
  tape.backend().scale(y, GradMode::Write, alpha, {}, x.value());
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<ScaledNode>(std::move(y), x, alpha);
}

Work work::scale_columns(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& l) {
  return {OpFamily::Other, 0, sizes(x, l) + written(y, mode)};
}

Work work::vector_gradient(const Tensor& dl, GradMode mode, const Tensor& a, const Tensor& b,
                           const Tensor& mean, const Tensor& rstd) {
  return {OpFamily::Other, 0, sizes(a, b, mean, rstd) + written(dl, mode)};
}

// Write also zeroes the rows of dtable that get nothing from dy.
Work work::table_gradient(const Tensor& dtable, GradMode mode, const Tensor& dy,
                          const Tensor& ids) {
  const double rows = static_cast<double>(dy.numel()) * static_cast<double>(sizeof(float));
  return {OpFamily::Embedding, 0,
          sizes(dy, ids) + (mode == GradMode::Add ? 2 * rows : size(dtable))};
}

}  // namespace lk
