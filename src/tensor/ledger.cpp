#include "tensor/ledger.h"

#include <algorithm>

#include "tensor/error.h"

namespace lk {

const char* tag_name(Tag tag) {
  switch (tag) {
    case Tag::Weights:
      return "weights";
    case Tag::Params:
      return "params";
    case Tag::Activations:
      return "activations";
    case Tag::Gradients:
      return "gradients";
    case Tag::Backward:
      return "backward";
    case Tag::Optimizer:
      return "optimizer";
    case Tag::Workspace:
      return "workspace";
    case Tag::KvCache:
      return "kv_cache";
  }
  return "?";
}

namespace {
void add(Ledger::Entry& e, std::int64_t bytes) {
  e.live_bytes += bytes;
  e.peak_bytes = std::max(e.peak_bytes, e.live_bytes);
  ++e.live_count;
  ++e.total_count;
}
void sub(Ledger::Entry& e, std::int64_t bytes) {
  e.live_bytes -= bytes;
  --e.live_count;
}
}  // namespace

void Ledger::allocated(Tag tag, std::size_t bytes) {
  add(entries_[static_cast<int>(tag)], static_cast<std::int64_t>(bytes));
  add(total_, static_cast<std::int64_t>(bytes));
}

void Ledger::freed(Tag tag, std::size_t bytes) {
  sub(entries_[static_cast<int>(tag)], static_cast<std::int64_t>(bytes));
  sub(total_, static_cast<std::int64_t>(bytes));
}

void Ledger::move(Tag from, Tag to, std::int64_t bytes) {
  Entry &out = entries_[static_cast<int>(from)], &in = entries_[static_cast<int>(to)];
  out.live_bytes -= bytes;
  in.live_bytes += bytes;
  in.peak_bytes = std::max(in.peak_bytes, in.live_bytes);
}

void Ledger::reset_peaks() {
  for (Entry& e : entries_) e.peak_bytes = e.live_bytes;
  total_.peak_bytes = total_.live_bytes;
}

}  // namespace lk
