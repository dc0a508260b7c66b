// TokenBatch: rows of text laid end to end on the device; documents of unequal length are segments
// of one token dimension. HostBatch holds the same data before its upload. It touches no device, so
// any thread can make it.
//
// Note [Padded batches]: no row is padded to the length of another. But where a step can be
// recorded (Note [Recorded steps] in tensor/recorder.h), a whole batch is brought to a size that
// other batches reach as well: by documents made of the missing tokens, empty documents after them,
// and supervised rows without a target. Nobody attends to the added tokens, and rows without a
// target have loss 0 and gradient 0, so every other number stays the same. The size is a function
// of the step's batches alone.
#pragma once

#include <span>
#include <vector>

#include "tensor/backend.h"
#include "text/row.h"

namespace lk {

struct HostBatch {
  std::vector<std::int32_t> ids = {}, positions = {};  // T each
  std::vector<std::int32_t> offsets = {};              // where documents begin, and T
  std::vector<std::int32_t> rows = {}, targets = {};   // n each
  std::vector<std::int32_t> virtual_rows = {};         // where virtual tokens stand (nn/places.h)
  std::int64_t n_tokens() const { return std::ssize(ids); }
  std::int64_t n_supervised() const { return std::ssize(targets); }
};

struct BatchSize {
  std::int64_t tokens = 0, documents = 0, supervised = 0, virtual_rows = 0;
  bool operator==(const BatchSize&) const = default;
};
BatchSize size_of(const HostBatch& batch);
// One size for all of a step's batches: the largest of each count, rounded up to one of a few
// values, and no virtual tokens, of which each batch keeps its own. Tokens grow by a sixteenth at
// most and supervised rows by a quarter (both to multiples of 64, which a GPU's products are
// computed in anyway), documents by a quarter to at least 8.
BatchSize padded_size(std::span<const BatchSize> sizes);
// Pads the batch to the size `to`: Note [Padded batches]. No count of `to` may be less than the
// batch's, and the rows without a target must fit: to.supervised <= to.tokens.
void pad_batch(HostBatch& batch, const BatchSize& to);

struct TokenBatch {
  Tensor ids;           // (T) I32
  Tensor positions;     // (T) I32, restarting at 0 in each document
  Segments segments;    // where documents begin and end
  Tensor rows;          // (n) I32: tokens whose next token is supervised
  Tensor targets;       // (n) I32: those next tokens
  Tensor virtual_rows;  // I32: virtual tokens, document by document; undefined without any
  std::int64_t n_tokens = 0;
  std::int64_t n_supervised = 0;  // n
};

// Lays rows end to end on the host, each behind `virtual_tokens` virtual ones. A row's first token is
// a target where a virtual token stands before it and predicts it, as in PEFT. Throws UsageError if
// there are no rows, a row has no token, or ids and marks of supervised tokens differ in number.
HostBatch make_host_batch(std::span<const Row* const> rows, std::int64_t virtual_tokens = 0);
// What a batch must fit.
struct BatchLimits {
  std::int64_t vocab_size = 0, max_positions = 0, virtual_tokens = 0;
};
// Throws UsageError, naming the field, unless the batch is one that make_host_batch() could make for
// a model with these limits, padded or not.
void check_batch(const HostBatch& batch, const BatchLimits& limits);
// Where documents of these lengths begin when laid end to end, and their number of tokens. Throws
// UsageError if there are more tokens than an offset can count.
std::vector<std::int32_t> document_offsets(std::span<const std::int64_t> lengths);
// The size of a batch of these documents that supervises all it can, of whose tokens each document has
// `virtual_tokens` virtual ones.
BatchSize size_of(std::span<const std::int32_t> offsets, std::int64_t virtual_tokens);
// The documents' offsets after pad_batch() of a batch of size `from` to the size `to`.
void pad_offsets(std::vector<std::int32_t>& offsets, const BatchSize& from, const BatchSize& to);
// Allocates a batch of this size, without values.
TokenBatch empty_batch(Backend& backend, const BatchSize& size);
// Uploads a batch into memory made for its size.
void upload_batch(TokenBatch& to, const HostBatch& batch);
// Uploads `rows` as one batch into memory of its own.
TokenBatch make_batch(Backend& backend, std::span<const Row* const> rows,
                      std::int64_t virtual_tokens = 0);
// A single sequence without targets at positions first_position, first_position + 1, ...
TokenBatch make_prompt(Backend& backend, std::span<const std::int32_t> ids,
                       std::int64_t first_position);

}  // namespace lk
