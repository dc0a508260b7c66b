#include "autograd/gradcheck.h"

#include <cmath>
#include <limits>
#include <random>

#include "autograd/ops.h"

namespace lk {
namespace {

using Function = std::function<Var(Tape&, const std::vector<Var>&)>;
using Values = std::vector<double>;
constexpr double kStep = 1e-5, kAbsolute = 1e-8, kRelative = 1e-6;

class Checker {
 public:
  Checker(Backend& backend, const Function& f, const std::vector<Tensor>& inputs,
          const std::vector<Parameter*>& parameters, unsigned seed)
      : backend_(backend), f_(f), inputs_(inputs), parameters_(parameters) {
    Tape tape(backend, Tape::Mode::NoGrad);
    const Tensor y = f(tape, constants()).value();
    require(y.defined(), "gradcheck: the function returns no value");
    const std::int64_t n = y.numel();
    std::mt19937_64 rng(seed);
    std::uniform_real_distribution<double> size(0.5, 1.5);  // no output may hide behind a zero
    for (std::int64_t i = 0; i < n; ++i) cotangent_.push_back((rng() & 1 ? 1 : -1) * size(rng));
  }

  GradcheckResult run() {
    for (const Tensor& x : inputs_) input_slopes_.push_back(slopes(x));
    for (Parameter* p : parameters_) parameter_slopes_.push_back(slopes(p->value()));
    const std::size_t n = inputs_.size();
    compare("all", std::vector<bool>(n, true), 1);
    compare("twice", std::vector<bool>(n, true), 2);
    for (std::size_t i = 0; i < n && n + parameters_.size() > 1; ++i) {
      std::vector<bool> alone(n, false);
      alone[i] = true;
      compare("alone", alone, 1);
    }
    if (n > 0 && !parameters_.empty()) compare("parameters alone", std::vector<bool>(n, false), 1);
    if (result_.n_checked == 0) result_.message = "nothing was compared";
    result_.ok = result_.n_checked > 0 && result_.worst_ratio <= 1;
    return result_;
  }

 private:
  std::vector<Var> constants() const { return {inputs_.begin(), inputs_.end()}; }

  // sum(u * f)
  double value() {
    Tape tape(backend_, Tape::Mode::NoGrad);
    const Values y = to_host_f64(f_(tape, constants()).value());
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += cotangent_[i] * y[i];
    return sum;
  }

  // d sum(u * f) / dx by central differences, changing x in place.
  Values slopes(const Tensor& x) {
    Values values = to_host_f64(x), slopes;
    auto upload = [&] { backend_.upload(x, values.data(), values.size() * sizeof(double)); };
    for (double& element : values) {
      const double original = element, above = original + kStep, below = original - kStep;
      element = above;
      upload();
      const double high = value();
      element = below;
      upload();
      const double low = value();
      element = original;
      slopes.push_back((high - low) / (above - below));  // the step as rounded, not 2 kStep
    }
    upload();
    return slopes;
  }

  // One backward through `calls` calls of f, with gradients for the inputs in `wanted`.
  void compare(const std::string& way, const std::vector<bool>& wanted, int calls) {
    Tape tape(backend_);
    std::vector<Var> vars;
    for (std::size_t i = 0; i < inputs_.size(); ++i)
      vars.push_back(wanted[i] ? tape.leaf(inputs_[i]) : Var(inputs_[i]));
    for (Parameter* p : parameters_) p->zero_grad();
    Var y = f_(tape, vars);
    if (calls == 2) y = add(tape, y, f_(tape, vars));
    if (y.needs_grad()) {
      Tensor dy = backend_.empty(Tag::Backward, DType::F64, y.value().shape());
      backend_.upload(dy, cotangent_.data(), cotangent_.size() * sizeof(double));
      tape.backward(y, dy);
    }
    for (std::size_t i = 0; i < inputs_.size(); ++i)
      if (wanted[i])
        compare(concat(way, ", input ", i), input_slopes_[i],
                y.needs_grad() ? tape.gradient(vars[i]) : Tensor(), calls);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const Parameter& p = *parameters_[i];
      compare(concat(way, ", ", p.name()), parameter_slopes_[i], p.has_grad() ? p.grad() : Tensor(),
              calls);
    }
  }

  // An undefined gradient says that the derivative is zero.
  void compare(const std::string& what, const Values& slopes, const Tensor& grad, int calls) {
    const Values analytic = grad.defined() ? to_host_f64(grad) : Values(slopes.size(), 0.0);
    for (std::size_t i = 0; i < slopes.size(); ++i) {
      const double n = calls * slopes[i], a = analytic[i];
      const double ratio = std::isfinite(a) && std::isfinite(n)
                               ? std::abs(a - n) / (calls * kAbsolute + kRelative * std::abs(n))
                               : std::numeric_limits<double>::infinity();
      ++result_.n_checked;
      if (ratio <= result_.worst_ratio) continue;
      result_.worst_ratio = ratio;
      result_.message = concat(what, "[", i, "]: analytic ", a, ", numeric ", n, ", error is ",
                               ratio, " times the bound");
    }
  }

  Backend& backend_;
  const Function& f_;
  const std::vector<Tensor>& inputs_;
  const std::vector<Parameter*>& parameters_;
  Values cotangent_;
  std::vector<Values> input_slopes_, parameter_slopes_;
  GradcheckResult result_;
};

}  // namespace

GradcheckResult gradcheck(Backend& backend, const Function& f, const std::vector<Tensor>& inputs,
                          const std::vector<Parameter*>& parameters, unsigned seed) {
  for (const Tensor& x : inputs)
    check(x.defined() && x.dtype() == DType::F64 && x.contiguous(),
          "gradcheck: an input is not contiguous f64");
  for (const Parameter* p : parameters)
    check(p->value().dtype() == DType::F64, "gradcheck: ", p->name(), " is not f64");
  return Checker(backend, f, inputs, parameters, seed).run();
}

}  // namespace lk
