#include "nn/recompute.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "tensor/backend.h"

namespace lk {
namespace {

using Member = std::int64_t Recompute::*;
constexpr std::array<std::pair<const char*, Member>, 4> kWays = {
    {{"gate-up", &Recompute::gate_up},
     {"keep-attention", &Recompute::keep_attention},
     {"block", &Recompute::block},
     {"offload", &Recompute::offload}}};

}  // namespace

RecomputeKind Recompute::of(std::int64_t layer) const {
  if (layer < block) return RecomputeKind::Block;
  if (layer < keep_attention) return RecomputeKind::KeepAttention;
  if (layer < offload) return RecomputeKind::Block;
  return layer < gate_up ? RecomputeKind::GateUp : RecomputeKind::None;
}

void require_possible(const Recompute& recompute, const Backend& backend) {
  if (recompute.offload > 0 && !backend.traits().can_offload)
    throw UsageError(
        "`recompute` offload: a CPU has no memory apart from the host's; use `recompute` block");
}

Recompute parse_recompute(const std::string& text) {
  Recompute r;
  if (text == "none") return r;
  auto refuse = [&] {
    throw UsageError(
        concat("`recompute` ", text,
               ": none, gate-up, keep-attention, block or offload, with :N for the "
               "first N layers alone; several joined by commas, like gate-up,block:4"));
  };
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string item = text.substr(begin, end - begin);
    const std::size_t colon = std::min(item.find(':'), item.size());
    std::int64_t layers = Recompute::kAllLayers;
    if (colon < item.size()) {
      const char *first = item.data() + colon + 1, *last = item.data() + item.size();
      auto [rest, error] = std::from_chars(first, last, layers);
      if (error != std::errc() || rest != last || layers < 1) refuse();
    }
    bool known = false;
    for (auto [name, member] : kWays) {
      if (item.compare(0, colon, name) != 0) continue;
      if (r.*member != 0) refuse();  // given twice
      r.*member = layers;
      known = true;
    }
    if (!known) refuse();
    begin = end + 1;
  }
  return r;
}

std::string recompute_text(const Recompute& recompute) {
  std::string text;
  for (auto [name, member] : kWays) {
    const std::int64_t layers = recompute.*member;
    if (layers == 0) continue;
    text += concat(text.empty() ? "" : ",", name);
    if (layers != Recompute::kAllLayers) text += concat(":", layers);
  }
  return text.empty() ? "none" : text;
}

}  // namespace lk
