// Places: where a method takes part in a model, apart from its projections (nn/linear_map.h). A method
// implements one of these classes and hangs it into Transformer::places(); an empty place costs
// nothing. Places combine freely: that is what makes methods orthogonal.
#pragma once

#include "autograd/ops.h"
#include "nn/linear_map.h"

namespace lk {

// In place of a block's attention.
class AttentionPlace {
 public:
  virtual ~AttentionPlace() = default;
  // q (T,H*D), k, v (T,G*D), positions applied -> (T,H*D), the input of the output projection
  virtual Var attend(Tape& tape, const Var& q, const Var& k, const Var& v,
                     const AttentionShape& shape, const Segments& segments,
                     const Tensor& positions) = 0;
  // The same in generation: o (T,H*D) is what attention to the cache made of q, with its log-sum-exp
  // lse (H,T), and becomes what attend() would return.
  virtual void attend_cached(Tape& tape, const Tensor& o, const Tensor& lse, const Tensor& q,
                             const AttentionShape& shape, const Tensor& positions) = 0;
};

// Behind a sublayer: between it and the residual stream.
class SublayerPlace {
 public:
  virtual ~SublayerPlace() = default;
  // x, y (T,C): the residual stream, and what the sublayer made of it -> what is added to x
  virtual Var apply(Tape& tape, const Var& x, const Var& y, const ForwardMode& mode) = 0;
};

// Virtual tokens of a batch: row rows[i] is token index[i] of those before each document. Without an
// index the rows are whole runs of them: 0, 1, ..., n - 1, 0, 1, ... There may be none.
struct VirtualRows {
  Tensor rows = {}, index = {};  // (m) I32
};

// Before the blocks.
class InputPlace {
 public:
  virtual ~InputPlace() = default;
  // How many virtual tokens stand before each document.
  virtual std::int64_t tokens() const = 0;
  // x (T,C), embedded, with the virtual tokens' rows filled in.
  virtual Var apply(Tape& tape, const Var& x, const VirtualRows& virtual_rows) = 0;
};

// In place of the tables, where they train. A tied head is the embedding's Parameter.
struct TablePlaces {
  Parameter *embedding = nullptr, *positions = nullptr, *head = nullptr;
};
// Ops on a table that `trained`, if it is not null, is in the place of.
// x (T,C) = scale * table[ids]
Var embedding(Tape& tape, const Weight& table, Parameter* trained, const Tensor& ids,
              double scale = 1, std::int64_t margin = 0);
Var head_loss(Tape& tape, const Var& x, const Weight& head, Parameter* trained,
              const Tensor& targets, const LossScale& scale, std::int64_t chunk_rows);
Var linear(Tape& tape, const Var& x, const Weight& w, Parameter* trained);

// The places of a block; null: empty.
struct BlockPlaces {
  AttentionPlace* attention = nullptr;
  SublayerPlace *after_attention = nullptr, *after_mlp = nullptr;
  bool any() const { return attention || after_attention || after_mlp; }
};

}  // namespace lk
