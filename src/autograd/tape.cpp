#include "autograd/tape.h"

#include <atomic>

namespace lk {

std::uint64_t Tape::next_serial() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

Var Tape::record(Tensor y, std::unique_ptr<Node> node) {
  check(recording(), "tape: record on a tape without gradients");
  check(!ran_, "tape: already ran backward; make a new tape for each micro-batch");
  const bool leaf = node == nullptr;
  nodes_.push_back({std::move(node), Tensor(), leaf});
  return Var(std::move(y), serial_, static_cast<int>(nodes_.size()) - 1);
}

Var Tape::leaf(Tensor x) {
  check(x.defined(), "tape.leaf: the tensor has no value");
  check(x.storage().tag() != Tag::Weights, "tape.leaf: a frozen weight has no gradient");
  return record(std::move(x), nullptr);
}

Sink Tape::sink(const Edge& x) {
  if (!mine(x)) return {};
  Tensor& grad = nodes_[static_cast<std::size_t>(x.id_)].grad;
  if (!grad.defined()) {
    grad = backend_.empty_with_margin(Tag::Backward, x.dtype(), x.shape(), x.margin_);
    return {grad, GradMode::Write};
  }
  if (grad.use_count() > 1) {  // shared by pass(): copy it before it changes
    Tensor own = backend_.empty_with_margin(Tag::Backward, x.dtype(), x.shape(), x.margin_);
    backend_.copy(own, grad);
    grad = own;
  }
  return {grad, GradMode::Add};
}

void Tape::pass(const Edge& x, const Tensor& dy) {
  if (!mine(x)) return;
  dy.expect(x.shape(), "tape.pass");
  check(dy.dtype() == x.dtype(), "tape.pass: a gradient of ", dtype_name(dy.dtype()),
        " for a value of ", dtype_name(x.dtype()));
  Tensor& grad = nodes_[static_cast<std::size_t>(x.id_)].grad;
  const bool fits = dy.margin() == x.margin_;
  if (!grad.defined() && fits) {
    grad = dy;
    return;
  }
  Sink to = sink(x);
  if (to.mode == GradMode::Write) {
    backend_.copy(to.tensor, dy);
    return;
  }
  backend_.add(to.tensor, to.tensor, dy);
}

void Tape::backward(const Var& y) {
  check(y.value().defined() && y.value().numel() == 1, "backward: needs a scalar, got ",
        y.value().shape());
  Tensor one = backend_.empty(Tag::Backward, y.dtype(), y.value().shape());
  backend_.fill(one, 1.0);
  backward(y, one);
}

void Tape::backward(const Edge& y, Tensor dy) {
  check(recording() && !ran_, "backward: nothing recorded, or already ran");
  require(y.needs_grad(), "backward: the value depends on nothing trainable");
  ran_ = true;
  pass(y, dy);
  dy = Tensor();
  for (std::size_t i = nodes_.size(); i-- > 0;) {
    if (nodes_[i].leaf) continue;  // a leaf keeps its gradient
    dy_ = std::move(nodes_[i].grad);
    nodes_[i].grad = Tensor();
    if (dy_.defined()) nodes_[i].node->backward(*this, dy_);
    dy_ = Tensor();
    nodes_[i].node.reset();  // what the node saved returns to the allocator now
  }
}

Tensor Tape::gradient(const Edge& x) const {
  check(mine(x) && nodes_[static_cast<std::size_t>(x.id_)].leaf && ran_,
        "gradient: only of a leaf, after backward");
  return nodes_[static_cast<std::size_t>(x.id_)].grad;
}

std::vector<std::string> Tape::node_names() const {
  std::vector<std::string> names;
  for (const Record& r : nodes_)
    if (r.node) names.push_back(r.node->name());
  return names;
}

}  // namespace lk
