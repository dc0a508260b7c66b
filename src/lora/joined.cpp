#include "lora/joined.h"

#include <algorithm>

namespace lk {
namespace {

// 16 values are 32 bytes of BF16, a sector of memory: rows of the buffers stay aligned to it.
constexpr std::int64_t kThinMultiple = 16;

struct Member {
  Site site = Site::Q;
  FrozenLinear* base = nullptr;
  LoraLinear* lora = nullptr;  // null if the projection is not adapted
};

bool trains(const std::vector<Member>& members) {
  return std::any_of(members.begin(), members.end(), [](const Member& m) { return m.lora; });
}

// A joined matrix has one scale.
bool same_scale(const std::vector<Member>& members) {
  const LoraLinear* first = nullptr;
  for (const Member& m : members) {
    if (!m.lora) continue;
    if (!first) first = m.lora;
    if (m.lora->shape().scale() != first->shape().scale()) return false;
  }
  return true;
}

// Whether a weight can't be moved: it is quantised, or its memory is used by others in turn.
bool stays_apart(const std::vector<Member>& members) {
  return std::any_of(members.begin(), members.end(), [](const Member& m) {
    return m.base->weight().source() || m.base->weight().quantised();
  });
}

// Leaves the weights where they are and moves only the factors, into strips of their own.
JoinedLinear leave_apart(Backend& backend, const std::vector<Member>& members, JoinedLinear f) {
  const DType dtype = members[0].base->weight().dtype();
  f.apart_a = backend.empty(Tag::Weights, dtype, {f.thin, f.in});
  f.apart_b = backend.empty(Tag::Weights, dtype, {f.out, f.thin});
  f.copies = Ledger::Share(backend.ledger(), Tag::Weights, Tag::Params,
                           static_cast<std::int64_t>(f.apart_a.bytes() + f.apart_b.bytes()));
  backend.fill(f.apart_a, 0.0), backend.fill(f.apart_b, 0.0);
  for (std::size_t i = 0; i < members.size(); ++i) {
    JoinedLinear::Part& p = f.parts[i];
    p.apart = members[i].base->weight();
    if (!p.a) continue;
    p.a->keep_copy_in(f.apart_a.slice_rows(p.column, p.column + p.rank));
    p.b->keep_copy_in(f.apart_b.slice_rows(p.begin, p.end).slice_cols(p.column, p.column + p.rank));
  }
  f.plan = ThinPlan(f.thin_shape());
  return f;
}

// Moves the frozen weights and the factors into one buffer; their former holders now view it.
JoinedLinear join(Transformer& model, std::size_t layer, const std::vector<Member>& members,
                  float dropout) {
  Backend& backend = model.backend();
  JoinedLinear f;
  f.in = members[0].base->in_features();
  f.dropout = dropout;
  std::int64_t columns = 0;
  for (const Member& m : members) {
    JoinedLinear::Part part;
    part.begin = f.out;
    part.end = f.out += m.base->out_features();
    if (m.base->bias()) part.bias = *m.base->bias();
    if (m.lora) {
      part.a = &m.lora->a(), part.b = &m.lora->b();
      part.site = m.lora->site();
      part.column = columns;
      part.rank = m.lora->shape().rank;
      f.scale = m.lora->shape().scale();
      if (const Dora* dora = m.lora->dora()) {
        part.m = m.lora->magnitude();
        part.w_sq = dora->w_sq(), part.inverse = dora->inverse();
      }
      columns += ThinPlan::columns_of(part.rank);
    }
    f.parts.push_back(std::move(part));
  }
  f.thin = (columns + kThinMultiple - 1) / kThinMultiple * kThinMultiple;
  if (stays_apart(members)) return leave_apart(model.backend(), members, std::move(f));
  if (members.size() == 1 && columns == 0) {  // nothing lies next to the matrix: leave it as it is
    f.matrix = members[0].base->weight().values();
    return f;
  }
  f.matrix = backend.empty(Tag::Weights, model.compute_dtype(), {f.out + f.thin, f.in + f.thin});
  const auto beside_w = static_cast<std::int64_t>(f.matrix.bytes()) -
                        f.out * f.in * static_cast<std::int64_t>(dtype_size(f.matrix.dtype()));
  f.copies = Ledger::Share(backend.ledger(), Tag::Weights, Tag::Params, beside_w);
  backend.fill(f.matrix, 0.0);
  for (std::size_t i = 0; i < members.size(); ++i) {
    const JoinedLinear::Part& p = f.parts[i];
    Tensor rows = f.matrix.slice_rows(p.begin, p.end), place = rows.slice_cols(0, f.in);
    const Weight& w = members[i].base->weight();
    backend.copy(place, w.values());
    model.move_weight(layer, members[i].site, Weight(w.name(), place));
    if (!p.a) continue;
    p.a->keep_copy_in(f.a().slice_rows(p.column, p.column + p.rank));
    p.b->keep_copy_in(rows.slice_cols(f.in + p.column, f.in + p.column + p.rank));
  }
  f.plan = ThinPlan(f.thin_shape());
  return f;
}

}  // namespace

bool join_projections(Transformer& model, Adapter& adapter) {
  const LoraShape& shape = adapter.config().shape;
  if (shape.dora && shape.dropout > 0) return false;
  std::vector<std::array<Member, kSiteCount>> layers;
  model.visit_sites(
      [&](const std::string&, std::size_t layer, Site site, std::unique_ptr<LinearMap>& map) {
        layers.resize(layer + 1);
        layers[layer][static_cast<std::size_t>(site)] = {site, &map->frozen(),
                                                         dynamic_cast<LoraLinear*>(map.get())};
      });
  auto members = [&](std::size_t layer, std::initializer_list<Site> sites) {
    std::vector<Member> all;  // those that the family has
    for (Site s : sites)
      if (const Member& m = layers[layer][static_cast<std::size_t>(s)]; m.base) all.push_back(m);
    return all;
  };
  const std::initializer_list<Site> qkv_sites = {Site::Qkv, Site::Q, Site::K, Site::V};
  for (std::size_t layer = 0; layer < layers.size(); ++layer)
    if (!same_scale(members(layer, qkv_sites)) ||
        !same_scale(members(layer, {Site::Gate, Site::Up})))
      return false;
  bool reached = false;  // a gradient reaches it: something before it trains
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    const auto qkv = members(layer, qkv_sites), o = members(layer, {Site::O}),
               gate_up = members(layer, {Site::Gate, Site::Up}),
               down = members(layer, {Site::Down});
    if (!trains(qkv) && !trains(o) && !trains(gate_up) && !trains(down)) continue;
    auto join_if_recorded = [&](const std::vector<Member>& group) {
      reached = reached || trains(group);
      return reached ? std::optional(join(model, layer, group, adapter.config().shape.dropout))
                     : std::nullopt;
    };
    auto joined = std::make_unique<JoinedProjections>();
    joined->qkv = join_if_recorded(qkv);
    joined->o = join_if_recorded(o);
    joined->gate_up = join_if_recorded(gate_up);
    joined->down = join_if_recorded(down);
    model.set_joined(layer, std::move(joined));
    model.backend().trim();
  }
  model.backend().reset_peaks();
  return true;
}

}  // namespace lk
