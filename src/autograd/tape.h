// Var, Node and Tape: reverse-mode differentiation, one tape per micro-batch.
//
// Note [Recording order]: an op's node is recorded after the nodes that made its inputs, so the
// list of nodes is already topologically sorted and backward is a loop from its end. A node is
// destroyed as soon as it has run, which returns the activations it saved.
//
// Note [Gradient by demand]: a Var that depends on no Parameter has no id, so its gradient is never
// asked for, allocated or computed. Ops ask tape.sink(x) before they compute dx.
//
// Note [Save what backward reads]: a node keeps a Var for an input whose value its backward reads,
// and an Edge for one whose gradient it only writes. A Var keeps the value's memory alive until the
// node has run; an Edge does not.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "autograd/parameter.h"
#include "tensor/backend.h"

namespace lk {

class Tape;
class KeptAttention;

// A value on the tape: a Tensor, plus the id of its gradient if anything before it is trainable.
class Var {
 public:
  Var() = default;
  explicit Var(Tensor value) : value_(std::move(value)) {}  // a constant

  const Tensor& value() const { return value_; }
  Backend& backend() const {
    check(value_.defined(), "Var: has no value");
    return value_.backend();
  }
  DType dtype() const { return value_.dtype(); }
  bool needs_grad() const { return id_ >= 0; }
  int id() const { return id_; }
  template <int N>
  std::array<std::int64_t, N> dims(const char* what) const {
    return value_.dims<N>(what);
  }

 private:
  friend class Tape;
  friend class Edge;
  Var(Tensor value, std::uint64_t tape, int id) : value_(std::move(value)), tape_(tape), id_(id) {}
  Tensor value_;
  std::uint64_t tape_ = 0;  // the tape's serial number: a later tape may have its address
  int id_ = -1;
};

// The destination of a Var's gradient, without the Var's value. Any Var converts to its Edge.
class Edge {
 public:
  Edge() = default;
  Edge(const Var& x)
      : tape_(x.tape_),
        id_(x.id_),
        dtype_(x.value_.dtype()),
        shape_(x.value_.shape()),
        margin_(x.value_.margin()) {}
  bool needs_grad() const { return id_ >= 0; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }

 private:
  friend class Tape;
  std::uint64_t tape_ = 0;
  int id_ = -1;
  DType dtype_ = DType::F32;
  Shape shape_;
  std::int64_t margin_ = 0;  // of the value; its gradient gets the same margin
};

// Whether anybody reads an op's output. Where a function runs again for its backward alone
// (autograd/checkpoint.h), its last value is unread: the op records its node but does not compute
// the value, and the output's memory stays uninitialised.
enum class Output : std::uint8_t { Read, Unread };

// What an op saved, and its derivative. Defined next to the op's forward in autograd/ops/.
struct Node {
  virtual ~Node() = default;
  virtual const char* name() const = 0;
  // Adds this op's contribution to the gradients of its inputs, given the gradient of its output.
  virtual void backward(Tape& tape, const Tensor& dy) = 0;
};

class Tape {
 public:
  enum class Mode { Record, NoGrad };
  explicit Tape(Backend& backend, Mode mode = Mode::Record, KeptAttention* kept = nullptr)
      : backend_(backend), mode_(mode), serial_(next_serial()), kept_(kept) {}
  Tape(const Tape&) = delete;  // Vars refer to their tape
  Tape& operator=(const Tape&) = delete;

  Backend& backend() const { return backend_; }
  bool recording() const { return mode_ != Mode::NoGrad; }
  // Attention's outputs that a checkpoint keeps (autograd/attended.h), or null.
  KeptAttention* kept() const { return kept_; }
  // Memory for an op's output or saved statistics. A matrix gets `margin` columns behind its rows.
  Tensor activation(DType dtype, Shape shape, std::int64_t margin = 0) const {
    return backend_.empty_with_margin(Tag::Activations, dtype, shape, margin);
  }

  // Whether an op with these inputs, Vars and Parameters, should record a node. A Parameter always
  // asks for one. On a tape without gradients any Var is a constant; on a recording tape a Var of
  // another tape throws.
  template <class... Inputs>
  bool wants(const Inputs&... inputs) const {
    return recording() && (static_cast<int>(mine(inputs)) | ...) != 0;
  }
  // Wraps the output of an op that needs no gradient.
  Var constant(Tensor y) { return Var(std::move(y)); }
  // Wraps the output of an op that needs one, with its node: record<XNode>(y, constructor
  // arguments).
  Var record(Tensor y, std::unique_ptr<Node> node);
  template <class N, class... Args>
  Var record(Tensor y, Args&&... args) {
    return record(std::move(y), std::make_unique<N>(std::forward<Args>(args)...));
  }
  // A leaf whose gradient is kept for the caller (gradient checks, tests), who reads it with
  // gradient(). Memory of a frozen Weight is refused.
  Var leaf(Tensor x);

  // Inside Node::backward: where the gradient of an input goes. Its buffer is allocated on first
  // use, with the shape and margin of x, and copied first if its memory is shared (see pass).
  Sink sink(const Edge& x);
  // Inside Node::backward: adds dy to x's gradient. The first contribution copies no memory: the
  // buffer is shared until somebody adds to it. So a backward never changes its dy, though it may
  // use the margin behind dy's rows, which belongs to nobody.
  void pass(const Edge& x, const Tensor& dy);

  // Runs all nodes backwards from y, once, with the given dy, or with dy = 1 for a scalar y.
  void backward(const Var& y);
  void backward(const Edge& y, Tensor dy);
  // Inside Node::backward: takes dy's memory from the tape, to change it if nobody else holds it.
  Tensor take_dy() { return std::move(dy_); }

  // The gradient of a leaf after backward (undefined if nothing reached it).
  Tensor gradient(const Edge& x) const;

  std::size_t n_nodes() const { return nodes_.size(); }
  // Names of the recorded nodes, in recording order.
  std::vector<std::string> node_names() const;

 private:
  struct Record {
    std::unique_ptr<Node> node;  // null for a leaf, and once it has run
    Tensor grad;
    bool leaf = false;
  };
  // Whether x has a gradient on this tape. Throws if it has one on another tape.
  bool mine(const Edge& x) const {
    check(!x.needs_grad() || x.tape_ == serial_, "tape: this value belongs to another tape");
    return x.needs_grad();
  }
  static bool mine(const Parameter&) { return true; }
  static std::uint64_t next_serial();  // 1, 2, ...: no two tapes of a process have the same
  Backend& backend_;
  Mode mode_;
  std::uint64_t serial_;
  KeptAttention* kept_;
  bool ran_ = false;
  Tensor dy_;  // gradient of the output of the node that is running
  std::vector<Record> nodes_;
};

}  // namespace lk
