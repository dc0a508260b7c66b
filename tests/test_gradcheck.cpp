// Every backward is the derivative of its forward, to 1e-6 in F64. Would catch a wrong or missing
// term, a gradient written where it must be added, a node without a check.
//
// The chain of trust: finite differences => these ops on the plain F64 twins => the fast CPU and
// CUDA kernels, which are compared with the twins.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>

#include "autograd/checkpoint.h"
#include "autograd/joined.h"
#include "gradcheck_cases.h"
#include "lora/lora_linear.h"

using namespace lk;
using namespace lk::test;

namespace {

using Case = GradcheckCase;
using Function = std::function<Var(Tape&, const Vars&)>;

// ---- ops that combine several families ---------------------------------------------------------

void lora_cases(std::vector<Case>& out) {
  const Weight w = frozen({6, 7}, 110), bias = frozen({6}, 111), one = frozen({1, 1}, 112);
  Parameter &a = trainable({3, 7}, 113), &b = trainable({6, 3}, 114);
  Parameter &a1 = trainable({1, 1}, 115), &b1 = trainable({1, 1}, 116);
  for (float p : {0.0f, 0.4f})
    out.push_back({concat("lora_linear, dropout ", p),
                   [=, &a, &b](Tape& t, const Vars& in) {
                     return lora_linear(t, in[0], w, &bias, a, b, 1.7, p, {9, 4, 2});
                   },
                   {rnd({5, 7}, 117)},
                   {&a, &b}});
  out.push_back({"lora_linear 1 x 1 x 1, rank 1",
                 [=, &a1, &b1](Tape& t, const Vars& in) {
                   return lora_linear(t, in[0], one, nullptr, a1, b1, 0.5, 0, {});
                 },
                 {rnd({1, 1}, 118)},
                 {&a1, &b1}});
}

// The norms are constants of the derivative, so any numbers do.
void dora_cases(std::vector<Case>& out) {
  const Weight w = frozen({6, 7}, 310), bias = frozen({6}, 311), one = frozen({1, 1}, 312);
  Parameter &a = trainable({3, 7}, 313), &b = trainable({6, 3}, 314), &m = trainable({6}, 319);
  Parameter &a1 = trainable({1, 1}, 315), &b1 = trainable({1, 1}, 316), &m1 = trainable({1}, 320);
  const Tensor inverse = rnd({6}, 321), inverse1 = rnd({1}, 322);
  for (float p : {0.0f, 0.4f})
    out.push_back({concat("dora_linear, dropout ", p),
                   [=, &a, &b, &m](Tape& t, const Vars& in) {
                     return dora_linear(t, in[0], w, &bias, a, b, m, inverse, 1.7, p, {9, 4, 2});
                   },
                   {rnd({5, 7}, 317)},
                   {&a, &b, &m}});
  out.push_back({"dora_linear 1 x 1 x 1, rank 1",
                 [=, &a1, &b1, &m1](Tape& t, const Vars& in) {
                   return dora_linear(t, in[0], one, nullptr, a1, b1, m1, inverse1, 0.5, 0, {});
                 },
                 {rnd({1, 1}, 318)},
                 {&a1, &b1, &m1}});
}

// W (N,K) with the factors of its parts next to it, as lora/joined.cpp lays them out. With
// `ranks[i]` = 0, part i has no adapter. Lives as long as the program, as the parameters do.
const JoinedLinear& joined(const std::vector<std::int64_t>& widths, std::int64_t K,
                           const std::vector<std::int64_t>& ranks, unsigned seed,
                           std::vector<Parameter*>& parameters) {
  static std::list<JoinedLinear> all;
  JoinedLinear& f = all.emplace_back();
  f.in = K, f.scale = 1.7;
  for (std::size_t i = 0; i < widths.size(); ++i) {
    JoinedLinear::Part part;
    part.begin = f.out, part.end = f.out + widths[i], part.site = seed;
    part.column = f.thin, part.rank = ranks[i];
    if (i == 0) part.bias = frozen({widths[i]}, seed++);
    f.out = part.end, f.thin += ranks[i];
    f.parts.push_back(part);
  }
  f.thin += 2;  // there may be more thin columns than ranks
  f.matrix = rnd({f.out + f.thin, K + f.thin}, seed++);
  reference().fill(f.a(), 0), reference().fill(f.b(), 0);
  for (std::size_t i = 0; i < widths.size(); ++i) {
    JoinedLinear::Part& p = f.parts[i];
    if (p.rank == 0) continue;
    p.a = &trainable({p.rank, K}, seed++), p.b = &trainable({widths[i], p.rank}, seed++);
    p.a->keep_copy_in(f.a().slice_rows(p.column, p.column + p.rank));
    p.b->keep_copy_in(f.b().slice_rows(p.begin, p.end).slice_cols(p.column, p.column + p.rank));
    parameters.insert(parameters.end(), {p.a, p.b});
  }
  return f;
}

// Ops that overwrite their input's memory get a copy of the input. The copies of A and B follow the
// masters, which gradcheck changes. `h` is the residual stream that the op adds to, if it does.
void joined_case(std::vector<Case>& out, const std::string& what, const JoinedLinear& f,
                 const std::vector<Parameter*>& parameters, Tensor x, std::optional<Tensor> h,
                 std::function<Var(Tape&, const Var& x, const Var& h, const JoinedLinear&)> op) {
  Tensor nothing = tensor_from(reference(), DType::F64, x.shape(),
                               std::vector<double>(static_cast<std::size_t>(x.numel()), 0.0));
  std::vector<Tensor> inputs{std::move(x)};
  if (h) inputs.push_back(std::move(*h));
  out.push_back({what,
                 [=, &f](Tape& t, const Vars& in) {
                   for (Parameter* p : parameters) p->refresh();
                   return op(t, add(t, in[0], Var(nothing)), in.size() > 1 ? in[1] : Var(), f);
                 },
                 std::move(inputs), parameters});
}

void joined_cases(std::vector<Case>& out) {
  std::vector<Parameter*> p1, p2, p3, p4;
  const JoinedLinear &one = joined({6}, 7, {3}, 140, p1),
                     &three = joined({4, 2, 3}, 5, {2, 0, 1}, 150, p2),
                     &down = joined({4}, 3, {2}, 160, p3), &bare = joined({3}, 4, {0}, 170, p4);
  auto plain = [](std::int64_t margin) {
    return [margin](Tape& t, const Var& x, const Var& h, const JoinedLinear& f) {
      return joined_linear_onto(t, h, x, f, margin);
    };
  };
  joined_case(out, "joined_linear", one, p1, rnd({5, 7}, 180), rnd({5, 6}, 191), plain(0));
  joined_case(out, "joined_linear of three parts, one frozen", three, p2, rnd({4, 5}, 181),
              rnd({4, 9}, 192), plain(9));
  joined_case(out, "joined_linear without an adapter", bare, p4, rnd({2, 4}, 182), rnd({2, 3}, 193),
              plain(0));
  // An input and a gradient with margins: nothing is copied. h takes part twice.
  const JoinedLinear& next = joined({6}, 6, {2}, 190, p1);
  joined_case(out, "joined_linear after joined_linear", one, p1, rnd({5, 7}, 183), rnd({5, 6}, 194),
              [&next](Tape& t, const Var& x, const Var& h, const JoinedLinear& f) {
                return joined_linear_onto(t, h, joined_linear_onto(t, h, x, f, 8), next, 0);
              });
  const Weight gain = frozen({5}, 184);
  joined_case(out, "joined_norm_linear", three, p2, rnd({4, 5}, 185), {},
              [gain](Tape& t, const Var& x, const Var&, const JoinedLinear& f) {
                return joined_norm_linear(t, x, gain, 0.1, f, f.thin);
              });
  joined_case(out, "joined_gated_linear", down, p3, rnd({4, 6}, 186), rnd({4, 4}, 195),
              [](Tape& t, const Var& x, const Var& h, const JoinedLinear& f) {
                return joined_gated_linear_onto(t, Activation::Silu, h, x, f, 0);
              });
  joined_case(out, "joined_gated_linear, gelu, nothing added", down, p3, rnd({4, 6}, 175), {},
              [](Tape& t, const Var& x, const Var&, const JoinedLinear& f) {
                return joined_gated_linear(t, Activation::Gelu, x, f, f.thin);
              });
  joined_case(out, "joined_linear, nothing added", three, p2, rnd({4, 5}, 176), {},
              [](Tape& t, const Var& x, const Var&, const JoinedLinear& f) {
                return joined_linear(t, x, f, f.thin);
              });
  const InputDropout drop{0.4f, {5, 3, 0}};
  joined_case(out, "joined_linear with dropout", one, p1, rnd({5, 7}, 196), rnd({5, 6}, 197),
              [drop](Tape& t, const Var& x, const Var& h, const JoinedLinear& f) {
                return joined_linear_onto(t, h, x, f, 3, drop);
              });
  joined_case(out, "joined_norm_linear with dropout", three, p2, rnd({4, 5}, 198), {},
              [gain, drop](Tape& t, const Var& x, const Var&, const JoinedLinear& f) {
                return joined_norm_linear(t, x, gain, 0.1, f, f.thin, drop);
              });
  joined_case(out, "joined_gated_linear with dropout", down, p3, rnd({4, 6}, 199), rnd({4, 4}, 188),
              [drop](Tape& t, const Var& x, const Var& h, const JoinedLinear& f) {
                return joined_gated_linear_onto(t, Activation::Silu, h, x, f, 0, drop);
              });
  Tensor table = rope_angles(9, 2), positions = ints({0, 1, 2, 0, 1});
  Segments segments = make_segments(reference(), {0, 3, 5});
  AttentionShape shape{4, 2, 2, 0.6f, 0};
  joined_case(out, "qkv_attention", bare, {}, rnd({5, 16}, 187), {},
              [=](Tape& t, const Var& x, const Var&, const JoinedLinear&) {
                return qkv_attention(t, x, table, positions, shape, segments, 3);
              });
  const HeadNorms norms{frozen({2}, 177), frozen({2}, 178), 0.1};
  for (const Tensor& angles : {table, Tensor()})
    joined_case(
        out, angles.defined() ? "head_normed_attention" : "head_normed_attention, no angles", bare,
        {}, rnd({5, 16}, 179), {}, [=](Tape& t, const Var& x, const Var&, const JoinedLinear&) {
          return head_normed_attention(t, x, norms, angles, positions, shape, segments, 3);
        });
}

// f and g of x, where f is computed again in backward: alone, inside another checkpoint, and
// without parameters.
void checkpoint_cases(std::vector<Case>& out) {
  const Weight gain = frozen({5}, 200), w = frozen({5, 5}, 201), v = frozen({3, 5}, 207);
  Parameter &p = trainable({5, 5}, 202), &q = trainable({3, 5}, 203);
  auto f = [=, &p](Tape& t, const Var& x, Output y) {
    Var n = dropout(t, rmsnorm(t, x, gain, 0.1), 0.2f, {1, 2, 3});
    Var inner = swiglu(t, n, linear(t, n, p, 0.7));
    return add(t, x, linear(t, inner, w, nullptr, y), y);
  };
  auto g = [=, &q](Tape& t, const Var& x, Output) {
    return linear(t, checkpoint(t, checkpoint(t, x, f), f), q);
  };
  auto frozen_f = [=](Tape& t, const Var& x, Output y) {
    return linear(t, swiglu(t, x, x), w, nullptr, y);
  };
  out.push_back({"checkpoint",
                 [=](Tape& t, const Vars& in) { return checkpoint(t, in[0], f); },
                 {rnd({4, 5}, 204)},
                 {&p}});
  out.push_back({"checkpoints in a checkpoint, and x used beside them",
                 [=](Tape& t, const Vars& in) {
                   return add(t, checkpoint(t, in[0], g), linear(t, in[0], v));
                 },
                 {rnd({4, 5}, 205)},
                 {&p, &q}});
  out.push_back({"checkpoint of frozen things",
                 [=](Tape& t, const Vars& in) { return checkpoint(t, in[0], frozen_f, {false}); },
                 {rnd({2, 5}, 206)}});
}

// A decoder block with trainable query and value, then the loss: fan-out, fan-in and chain rule.
void block_cases(std::vector<Case>& out) {
  const std::int64_t C = 6, H = 2, D = 2, F = 5, V = 8;
  const Weight norm1 = frozen({C}, 120), norm2 = frozen({C}, 121), wk = frozen({D, C}, 122),
               wo = frozen({C, H * D}, 123), gate = frozen({F, C}, 124), up = frozen({F, C}, 125),
               down = frozen({C, F}, 126), head = frozen({V, C}, 127);
  Parameter &wq = trainable({H * D, C}, 128), &wv = trainable({D, C}, 129);
  Segments segments = make_segments(reference(), {0, 2, 6});
  Tensor table = rope_angles(6, D), positions = ints({0, 1, 0, 1, 2, 3});
  Tensor rows = ints({0, 2, 5}), targets = ints({7, 1, 2});
  AttentionShape shape{H, 1, D, 0.7f, 0};
  out.push_back({"decoder block",
                 [=, &wq, &wv](Tape& t, const Vars& in) {
                   const Var& x = in[0];
                   Var n = rmsnorm(t, x, norm1, 1e-3);
                   Var q = rope(t, linear(t, n, wq, 0.5), table, positions, D);
                   Var k = rope(t, linear(t, n, wk), table, positions, D);
                   Var v = dropout(t, linear(t, n, wv), 0.2f, {1, 2, 3});
                   Var h = add(t, x, linear(t, attention(t, q, k, v, shape, segments), wo));
                   Var m = rmsnorm(t, h, norm2, 1e-3);
                   Var y = linear(t, swiglu(t, linear(t, m, gate), linear(t, m, up)), down);
                   return head_loss(t, gather_rows(t, add(t, h, y), rows), head, targets, 0.4, 2);
                 },
                 {rnd({6, C}, 130)},
                 {&wq, &wv}});
}

const std::vector<Case>& all_cases() {
  static const std::vector<Case> cases = [] {
    GradcheckCases out;
    for (GradcheckFamily::Add add : GradcheckFamily::all()) add(out);
    lora_cases(out);
    dora_cases(out);
    joined_cases(out);
    checkpoint_cases(out);
    block_cases(out);
    return out;
  }();
  return cases;
}

std::set<std::string> recorded_nodes(const Case& c) {
  Tape tape(reference());
  Vars vars;
  for (const Tensor& x : c.inputs) vars.push_back(tape.leaf(x));
  c.f(tape, vars);
  std::vector<std::string> names = tape.node_names();
  return {names.begin(), names.end()};
}

// Every literal that a Node's name() may return, according to the sources in src/.
std::set<std::string> nodes_in_source() {
  std::set<std::string> names;
  const std::string name = "const char* name() const override {";
  const std::filesystem::path src = std::filesystem::path(LK_TEST_DATA).parent_path() / "src";
  for (const char* folder : {"autograd", "nn", "lora"})
    for (const auto& entry : std::filesystem::recursive_directory_iterator(src / folder)) {
      if (!entry.is_regular_file()) continue;
      std::ifstream in(entry.path());
      const std::string text{std::istreambuf_iterator<char>(in), {}};
      if (text.find(": Node") == std::string::npos) continue;
      for (std::size_t at = 0; (at = text.find(name, at)) != std::string::npos;) {
        const std::size_t end = text.find('}', at);
        while ((at = text.find('"', at)) < end) {
          const std::size_t from = at + 1;
          at = text.find('"', from);
          names.insert(text.substr(from, at - from));
          ++at;
        }
        at = end;
      }
    }
  return names;
}

std::string join(const std::set<std::string>& names) {
  std::string s;
  for (const std::string& n : names) s += n + " ";
  return s;
}

}  // namespace

TEST_CASE("every op's backward is its derivative") {
  std::int64_t n = 0;
  double worst = 0;
  for (const Case& c : all_cases()) {
    GradcheckResult r = gradcheck(reference(), c.f, c.inputs, c.parameters);
    CHECK_MESSAGE(r.ok, c.what, ": ", r.message);
    n += r.n_checked;
    worst = std::max(worst, r.worst_ratio);
  }
  MESSAGE(all_cases().size(), " cases, ", n, " derivatives, worst error / bound ", worst);
}

TEST_CASE("every node type has a case") {
  std::set<std::string> covered;
  for (const Case& c : all_cases()) covered.merge(recorded_nodes(c));
  const std::set<std::string> in_source = nodes_in_source();
  CHECK(in_source.size() >= 18);
  CHECK_MESSAGE(covered == in_source, "covered: ", join(covered),
                " in the source: ", join(in_source));
}

TEST_CASE("embedding of a frozen table is a constant") {
  const Weight table = frozen({5, 3}, 140);
  Tape tape(reference());
  Var x = embedding(tape, table, ints({4, 0, 4}));
  CHECK(!x.needs_grad());
  CHECK(tape.n_nodes() == 0);
}

// ---- gradcheck itself must fail where a backward is wrong --------------------------------------

namespace {

// A node whose backward is given by the test.
struct CustomNode : Node {
  std::function<void(Tape&, const Tensor&)> f;
  explicit CustomNode(std::function<void(Tape&, const Tensor&)> f) : f(std::move(f)) {}
  const char* name() const override { return "custom"; }
  void backward(Tape& tape, const Tensor& dy) override { f(tape, dy); }
};

Tensor scratch(const Tensor& like) {
  return reference().empty(Tag::Backward, like.dtype(), like.shape());
}

// y = x wᵀ with the given backward.
template <class F>
Function custom_linear(const Weight& w, F backward) {
  return [=](Tape& t, const Vars& in) {
    const Var& x = in[0];
    Tensor y = t.activation(DType::F64, {x.value().rows(), w.shape()[0]});
    reference().linear_forward(y, x.value(), w);
    if (!t.wants(x)) return t.constant(y);
    return t.record<CustomNode>(y, [=](Tape& tape, const Tensor& dy) { backward(tape, x, dy); });
  };
}

GradcheckResult check_linear(auto backward) {
  const Weight w = frozen({4, 3}, 150);
  return gradcheck(
      reference(),
      custom_linear(w, [=](Tape& t, const Var& x, const Tensor& dy) { backward(t, x, dy, w); }),
      {rnd({5, 3}, 151)});
}

void require_wrong(const GradcheckResult& r, const char* what) {
  CHECK_MESSAGE(!r.ok, "gradcheck accepts ", what);
  CHECK(r.worst_ratio > 100);  // not a near miss of the bound
  CHECK(!r.message.empty());
}

}  // namespace

TEST_CASE("gradcheck: wrong backwards of a linear map") {
  Backend& be = reference();
  // The control: the same machinery with the right backward passes.
  GradcheckResult right =
      check_linear([&](Tape& t, const Var& x, const Tensor& dy, const Weight& w) {
        if (Sink dx = t.sink(x)) be.linear_backward_x(dx.tensor, dx.mode, dy, w);
      });
  CHECK_MESSAGE(right.ok, right.message);

  require_wrong(check_linear([&](Tape& t, const Var& x, const Tensor& dy, const Weight& w) {
                  Tensor exact = scratch(x.value());
                  be.linear_backward_x(exact, GradMode::Write, dy, w);
                  if (Sink dx = t.sink(x)) be.scale(dx.tensor, dx.mode, 0.999, {}, exact);
                }),
                "dx * 0.999");
  require_wrong(check_linear([&](Tape& t, const Var& x, const Tensor& dy, const Weight& w) {
                  Tensor exact = scratch(x.value());
                  be.linear_backward_x(exact, GradMode::Write, dy, w);
                  exact.data<double>()[7] *= 1.001;
                  t.pass(x, exact);
                }),
                "0.1 % in one element");
  require_wrong(check_linear([&](Tape& t, const Var& x, const Tensor& dy, const Weight& w) {
                  if (Sink dx = t.sink(x)) be.linear_backward_x(dx.tensor, GradMode::Write, dy, w);
                }),
                "writing where it must add");
  require_wrong(check_linear([&](Tape& t, const Var& x, const Tensor& dy, const Weight& w) {
                  Tensor memory = dy;
                  be.scale(memory, GradMode::Write, 2.0, {}, dy);  // dy may be shared
                  be.scale(memory, GradMode::Write, 1.0, {}, dy);
                  if (Sink dx = t.sink(x)) be.linear_backward_x(dx.tensor, dx.mode, dy, w);
                }),
                "changing dy");
  require_wrong(check_linear([](Tape&, const Var&, const Tensor&, const Weight&) {}),
                "no gradient at all");
  require_wrong(check_linear([&](Tape& t, const Var& x, const Tensor& dy, const Weight& w) {
                  Sink dx = t.sink(x);
                  be.linear_backward_x(dx.tensor, dx.mode, dy, w);
                  dx.tensor.data<double>()[0] = NAN;
                }),
                "a NaN");
  const Weight w = frozen({4, 3}, 150);
  require_wrong(gradcheck(reference(),
                          [&](Tape& t, const Vars& in) {
                            Tape detached(reference(), Tape::Mode::NoGrad);
                            return t.constant(linear(detached, in[0], w).value());
                          },
                          {rnd({5, 3}, 152)}),
                "an op that forgets to record");
}

TEST_CASE("gradcheck: wrong backwards of other families") {
  Backend& be = reference();
  const Weight gain = frozen({6}, 160);
  auto rms = [&](bool mean_term) {
    return gradcheck(be,
                     [=, &be](Tape& t, const Vars& in) {
                       const Var& x = in[0];
                       Tensor y = t.activation(DType::F64, x.value().shape());
                       Tensor rstd = t.activation(DType::F64, {x.value().rows()});
                       be.rmsnorm_forward(y, rstd, x.value(), gain, 1e-5);
                       if (!t.wants(x)) return t.constant(y);
                       return t.record<CustomNode>(y, [=, &be](Tape& tape, const Tensor& dy) {
                         Tensor dx = scratch(x.value());
                         be.rmsnorm_backward(dx, GradMode::Write, dy, x.value(), gain, rstd);
                         for (std::int64_t i = 0; i < dx.rows() && !mean_term; ++i)
                           for (std::int64_t j = 0; j < dx.cols(); ++j) {
                             const std::int64_t at = i * dx.cols() + j;
                             dx.data<double>()[at] = rstd.data<double>()[i] *
                                                     dy.data<double>()[at] *
                                                     gain.values().data<double>()[j];
                           }
                         Sink to = tape.sink(x);
                         be.scale(to.tensor, to.mode, 1.0, {}, dx);
                       });
                     },
                     {rnd({4, 6}, 161)});
  };
  CHECK(rms(true).ok);
  require_wrong(rms(false), "rmsnorm without its mean term");

  auto swiglu_with = [&](double sign_up, bool chain_gate) {
    return gradcheck(be,
                     [=, &be](Tape& t, const Vars& in) {
                       const Var &gate = in[0], &up = in[1];
                       Tensor y = t.activation(DType::F64, gate.value().shape());
                       be.gated_forward(Activation::Silu, y, gate.value(), up.value());
                       if (!t.wants(gate, up)) return t.constant(y);
                       return t.record<CustomNode>(y, [=, &be](Tape& tape, const Tensor& dy) {
                         Tensor dgate = scratch(dy), dup = scratch(dy);
                         be.gated_backward(Activation::Silu, {}, dgate, GradMode::Write, dup, dy,
                                           gate.value(), up.value());
                         if (Sink to = tape.sink(up))
                           be.scale(to.tensor, to.mode, sign_up, {}, dup);
                         if (chain_gate) tape.pass(gate, dgate);
                       });
                     },
                     {rnd({3, 4}, 162), rnd({3, 4}, 163)});
  };
  CHECK(swiglu_with(1, true).ok);
  require_wrong(swiglu_with(-1, true), "swiglu with the sign of dup wrong");
  require_wrong(swiglu_with(1, false), "swiglu without dgate");

  auto rope_back = [&](bool inverse) {
    Tensor table = rope_angles(4, 4), positions = ints({3, 1, 2});
    return gradcheck(be,
                     [=, &be](Tape& t, const Vars& in) {
                       const Var& x = in[0];
                       Tensor y = t.activation(DType::F64, x.value().shape());
                       be.rope(y, GradMode::Write, x.value(), table, positions, 4, false);
                       if (!t.wants(x)) return t.constant(y);
                       return t.record<CustomNode>(y, [=, &be](Tape& tape, const Tensor& dy) {
                         Sink dx = tape.sink(x);
                         be.rope(dx.tensor, dx.mode, dy, table, positions, 4, inverse);
                       });
                     },
                     {rnd({3, 8}, 164)});
  };
  CHECK(rope_back(true).ok);
  require_wrong(rope_back(false), "rope rotated forward again");

  auto attention_scaled = [&](double q_factor, bool swap) {
    const AttentionShape shape{2, 2, 3, 0.5f, 0};
    Segments seg = make_segments(be, {0, 2, 5});
    return gradcheck(
        be,
        [=, &be](Tape& t, const Vars& in) {
          const Var &q = in[0], &k = in[1], &v = in[2];
          Tensor o = t.activation(DType::F64, {5, 6}), lse = t.activation(DType::F64, {2, 5});
          be.attention_forward(o, lse, q.value(), k.value(), v.value(), shape, seg, seg);
          if (!t.wants(q, k, v)) return t.constant(o);
          return t.record<CustomNode>(o, [=, &be](Tape& tape, const Tensor& dy) {
            Tensor dq = scratch(dy), dk = scratch(dy), dv = scratch(dy);
            be.attention_backward(dq, dk, dv, dy, q.value(), k.value(), v.value(), o, lse, shape,
                                  seg);
            if (Sink to = tape.sink(q)) be.scale(to.tensor, to.mode, q_factor, {}, dq);
            tape.pass(swap ? v : k, dk);
            tape.pass(swap ? k : v, dv);
          });
        },
        {rnd({5, 6}, 165), rnd({5, 6}, 166), rnd({5, 6}, 167)});
  };
  CHECK(attention_scaled(1, false).ok);
  require_wrong(attention_scaled(0.999, false), "attention with dq * 0.999");
  require_wrong(attention_scaled(1, true), "attention with dk and dv exchanged");
}

TEST_CASE("gradcheck: wrong gradients of parameters") {
  Backend& be = reference();
  auto trained = [&](double alpha, bool add) {
    Parameter p("p", rnd({4, 3}, 170), DType::F64);
    return gradcheck(be,
                     [&](Tape& t, const Vars& in) {
                       const Var x = in[0];
                       Tensor y = t.activation(DType::F64, {x.value().rows(), 4});
                       be.matmul_nt(y, GradMode::Write, 2.0, x.value(), p.value());
                       if (!t.recording()) return t.constant(y);
                       return t.record<CustomNode>(y, [=, &be, &p](Tape& tape, const Tensor& dy) {
                         Sink dw = p.sink();
                         be.weight_gradient(dw.tensor, add ? dw.mode : GradMode::Write, alpha, dy,
                                            x.value());
                         if (Sink dx = tape.sink(x))
                           be.matmul_nn(dx.tensor, dx.mode, 2.0, dy, p.value());
                       });
                     },
                     {rnd({5, 3}, 171)}, {&p});
  };
  CHECK(trained(2.0, true).ok);
  require_wrong(trained(1.0, true), "a parameter gradient without alpha");
  require_wrong(trained(2.0, false), "a parameter gradient overwritten by the second use");
}

TEST_CASE("gradcheck: arguments, and nothing to compare") {
  auto f = [](Tape& t, const Vars& in) { return add(t, in[0], in[0]); };
  CHECK_THROWS_AS(gradcheck(reference(), f, {random_tensor(reference(), DType::F32, {2, 2}, 1)}),
                  Error);
  CHECK_THROWS_AS(gradcheck(reference(), f, {rnd({4, 4}, 1).slice_cols(0, 2)}), Error);
  GradcheckResult r = gradcheck(reference(), f, {rnd({0, 3}, 1)});
  CHECK(!r.ok);  // no derivative was compared: that is no proof
  Tensor x = rnd({2, 3}, 5);
  const std::vector<double> before = to_host_f64(x);
  CHECK(gradcheck(reference(), f, {x}).ok);
  CHECK(to_host_f64(x) == before);  // values are put back
}
