#include "kernel_cases.h"

#include "roofline.h"
#include "tensor/plan_backend.h"
#include "tensor/slice_kernels.h"

namespace lk::bench {
namespace {

// Adds up the work of the ops that it is given, without running them.
class WorkCounter final : public PlanBackend, private SliceKernels {
 public:
  WorkCounter() : PlanBackend(DeviceTraits{}), SliceKernels(1, DType::F32) {}
  const Work& total() const { return total_; }
  SliceKernels* slice_kernels() override { return this; }

  void upload(const Tensor& dst, const void*, std::size_t) override { copied(dst); }
  void download(void*, const Tensor& src, std::size_t) override { copied(src); }
  void upload_made(const Tensor& dst, std::size_t, const MakeUnits&) override { copied(dst); }
  void look_at(const Tensor& src, std::size_t, const LookAtUnits&) override { copied(src); }
#define LK_COUNT(op, parameters, arguments) \
  void op parameters override { add_up(work::op arguments); }
  LK_BACKEND_OPS(LK_COUNT)
#undef LK_COUNT

 private:
  void matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                 const Tensor& b) override {
    add_up(work::weight_gradient(dw, mode, alpha, a, b));
  }
  void column_sums(const Tensor& dl, GradMode mode, const Tensor& a, const Tensor& b,
                   const Tensor& mean, const Tensor& rstd) override {
    add_up(work::vector_gradient(dl, mode, a, b, mean, rstd));
  }
  void sum_rows_by_id(const Tensor& dtable, GradMode mode, const Tensor& dy,
                      const Tensor& ids) override {
    add_up(work::table_gradient(dtable, mode, dy, ids));
  }
  void square_sums(const Tensor& sums, std::span<const Tensor> tensors) override {
    add_up(work::sum_squares(sums, tensors));
  }
  void add_square_sums(const Tensor& out, const Tensor& sums) override {
    add_up({OpFamily::Optimizer, 0, work::sizes(out, sums)});
  }
  void copy_many(std::span<const Copy> copies) override {
    for (const Copy& c : copies) add_up(work::copy(c.to, c.from));
  }
  void copied(const Tensor& x) { add_up({OpFamily::Transfer, 0, work::size(x)}); }
  void add_up(const Work& work) {
    total_.flops += work.flops;
    total_.bytes += work.bytes;
  }
  Work total_;
};

// Makes operands on a device, each with different values.
class Operands {
 public:
  Operands(Backend& device, DType dtype) : device_(device), dtype_(dtype) {}
  Tensor random(Shape shape) { return random_tensor(device_, dtype_, shape, ++seed_); }
  Tensor statistics(Shape shape) {
    return random_tensor(device_, stat_dtype(dtype_), shape, ++seed_);
  }
  Weight weight(Shape shape) { return Weight("w", random(shape)); }
  // n places i * step modulo `most`.
  Tensor places(std::int64_t n, std::int64_t step, std::int64_t most) {
    std::vector<std::int32_t> at;
    for (std::int64_t i = 0; i < n; ++i) at.push_back(static_cast<std::int32_t>(i * step % most));
    return to_device(device_, Tag::Workspace, at);
  }

 private:
  Backend& device_;
  DType dtype_;
  unsigned seed_ = 0;
};

}  // namespace

Work work_of(const KernelCall& call) {
  WorkCounter counter;
  call(counter);
  return counter.total();
}

std::vector<KernelCase> kernel_cases(const KernelSizes& sizes) {
  const auto [dtype, T, C, F, D, V, loss_rows, factors, factor_numel] = sizes;
  std::vector<KernelCase> cases;
  // make(operands) allocates the operands and returns the call.
  auto add = [&, dtype = dtype](std::string name, auto make) {
    cases.push_back({std::move(name), [=](Backend& device) {
                       Operands o(device, dtype);
                       return KernelCall(make(o));
                     }});
  };
  const Shape tc{T, C}, tf{T, F}, half{T / 2, C};
  const std::int64_t positions = std::min<std::int64_t>(T, 2048);

  add("fill", [=](Operands& o) { return [y = o.random(tc)](Backend& on) { on.fill(y, 1.5); }; });
  add("uniform", [=](Operands& o) {
    return [y = o.random(tc)](Backend& on) { on.uniform(y, 0.1f, {1, 2, 3}); };
  });
  add("copy_from_f32", [=](Operands& o) {
    return [y = o.random(tc), x = o.statistics(tc)](Backend& on) { on.copy(y, x); };
  });
  add("add", [=](Operands& o) {
    return [y = o.random(tc), a = o.random(tc), b = o.random(tc)](Backend& on) { on.add(y, a, b); };
  });
  add("scale_add", [=](Operands& o) {
    return [y = o.random(tc), x = o.random(tc), s = o.statistics({1})](Backend& on) {
      on.scale(y, GradMode::Add, 0.5, s, x);
    };
  });
  add("add_bias", [=](Operands& o) {
    return [y = o.random(tc), bias = o.weight({C})](Backend& on) { on.add_bias(y, bias); };
  });
  add("dropout", [=](Operands& o) {
    return [y = o.random(tc), x = o.random(tc)](Backend& on) {
      on.dropout(y, GradMode::Write, x, 0.1f, {1, 2, 3});
    };
  });

  add("rmsnorm_forward", [=](Operands& o) {
    return [y = o.random(tc), x = o.random(tc), rstd = o.statistics({T}),
            gain = o.weight({C})](Backend& on) { on.rmsnorm_forward(y, rstd, x, gain, 1e-5); };
  });
  add("rmsnorm_backward_add", [=](Operands& o) {
    return [dx = o.random(tc), dy = o.random(tc), x = o.random(tc), rstd = o.statistics({T}),
            gain = o.weight({C})](Backend& on) {
      on.rmsnorm_backward(dx, GradMode::Add, dy, x, gain, rstd);
    };
  });
  add("layernorm_forward", [=](Operands& o) {
    return [y = o.random(tc), x = o.random(tc), mean = o.statistics({T}), rstd = o.statistics({T}),
            gain = o.weight({C}), bias = o.weight({C})](Backend& on) {
      on.layernorm_forward(y, mean, rstd, x, gain, bias, 1e-5);
    };
  });
  add("layernorm_backward_add", [=](Operands& o) {
    return [dx = o.random(tc), dy = o.random(tc), x = o.random(tc), mean = o.statistics({T}),
            rstd = o.statistics({T}), gain = o.weight({C})](Backend& on) {
      on.layernorm_backward(dx, GradMode::Add, dy, x, gain, mean, rstd);
    };
  });
  add("rope_in_place", [=](Operands& o) {
    return [=, x = o.random(tc), table = o.statistics({positions, D}),
            at = o.places(T, 1, positions)](Backend& on) {
      on.rope(x, GradMode::Write, x, table, at, static_cast<int>(D), false);
    };
  });

  for (auto [act, name] : {std::pair{Activation::Silu, "swiglu"}, {Activation::Gelu, "geglu"}}) {
    const Activation a = act;
    add(concat(name, "_forward"), [=](Operands& o) {
      return [=, y = o.random(tf), gate = o.random(tf), up = o.random(tf)](Backend& on) {
        on.gated_forward(a, y, gate, up);
      };
    });
    add(concat(name, "_backward"), [=](Operands& o) {
      return [=, dgate = o.random(tf), dup = o.random(tf), dy = o.random(tf), gate = o.random(tf),
              up = o.random(tf)](Backend& on) {
        on.gated_backward(a, {}, dgate, GradMode::Write, dup, dy, gate, up);
      };
    });
  }
  add("gelu_forward", [=](Operands& o) {
    return [y = o.random(tf), x = o.random(tf)](Backend& on) {
      on.gated_forward(Activation::Gelu, y, x, {});
    };
  });
  add("gelu_backward", [=](Operands& o) {
    return [dx = o.random(tf), dy = o.random(tf), x = o.random(tf)](Backend& on) {
      on.gated_backward(Activation::Gelu, {}, dx, GradMode::Write, {}, dy, x, {});
    };
  });

  add("embedding_forward", [=](Operands& o) {
    return [y = o.random(tc), table = o.weight({32000, C}),
            ids = o.places(T, 7919, 32000)](Backend& on) { on.embedding_forward(y, table, ids); };
  });
  add("scale_columns", [=](Operands& o) {
    return [y = o.random(tc), x = o.random(tc), l = o.random({C})](Backend& on) {
      on.scale_columns(y, GradMode::Write, x, l);
    };
  });
  add("vector_gradient_of_layernorm", [=](Operands& o) {
    return [dl = o.statistics({C}), dy = o.random(tc), x = o.random(tc), mean = o.statistics({T}),
            rstd = o.statistics({T})](Backend& on) {
      on.vector_gradient(dl, GradMode::Write, dy, x, mean, rstd);
    };
  });
  add("table_gradient", [=](Operands& o) {
    return [dtable = o.statistics({32000, C}), dy = o.random(tc), ids = o.places(T, 7919, 32000)](
               Backend& on) { on.table_gradient(dtable, GradMode::Add, dy, ids); };
  });
  // Every second token is supervised.
  add("gather_rows", [=](Operands& o) {
    return [y = o.random(half), x = o.random(tc), rows = o.places(T / 2, 2, T)](Backend& on) {
      on.gather_rows(y, x, rows);
    };
  });
  add("put_rows", [=](Operands& o) {
    return [y = o.random(tc), x = o.random(half), rows = o.places(T / 2, 2, T)](Backend& on) {
      on.put_rows(y, x, rows);
    };
  });
  add("scatter_rows", [=](Operands& o) {
    return [dx = o.random(tc), dy = o.random(half), rows = o.places(T / 2, 2, T)](Backend& on) {
      on.scatter_rows(dx, GradMode::Write, dy, rows);
    };
  });

  add("cross_entropy_gradient", [=](Operands& o) {
    return [logits = o.random({loss_rows, V}), losses = o.statistics({loss_rows}),
            targets = o.places(loss_rows, 17, V)](Backend& on) {
      on.cross_entropy(losses, logits, targets, true, 1e-3);
    };
  });
  add("sum_of_losses", [=](Operands& o) {
    return [out = o.statistics({1}), x = o.statistics({T})](Backend& on) {
      on.sum(out, GradMode::Write, 1.0, x);
    };
  });

  add("sum_squares", [=](Operands& o) {
    std::vector<Tensor> x;
    for (std::int64_t i = 0; i < factors; ++i) x.push_back(o.statistics({factor_numel}));
    return [x, out = o.statistics({1})](Backend& on) { on.sum_squares(out, x); };
  });
  add("adamw", [=](Operands& o) {
    std::vector<AdamWSlot> slots;
    for (std::int64_t i = 0; i < factors; ++i) {
      slots.push_back({o.statistics({factor_numel}),
                       o.statistics({factor_numel}),
                       o.statistics({factor_numel}),
                       o.statistics({factor_numel}),
                       {},
                       0.0f});
      if (dtype == DType::BF16) slots.back().compute = o.random({factor_numel});
      slots.back().v.backend().fill(slots.back().v, 1.0);
    }
    return [slots, norm = o.statistics({1})](Backend& on) { on.adamw(slots, {.lr = 1e-4f}, norm); };
  });
  // What a step of several processes does beside: dist/shared_step.h.
  add("square_sums", [=](Operands& o) {
    std::vector<Tensor> x;
    for (std::int64_t i = 0; i < factors; ++i) x.push_back(o.statistics({factor_numel}));
    Backend& backend = x[0].backend();
    const SliceKernels& kernels = *backend.slice_kernels();
    const std::int64_t each = (factor_numel + kernels.piece() - 1) / kernels.piece();
    const Tensor sums = backend.empty(Tag::Workspace, kernels.sum_dtype(), {factors * each});
    return [x, sums, out = o.statistics({1})](Backend& on) {
      on.slice_kernels()->square_sums(sums, x);
      on.slice_kernels()->add_square_sums(out, sums);
    };
  });
  add("copy_many", [=](Operands& o) {
    const Tensor buffer = o.statistics({factors * factor_numel});
    std::vector<SliceKernels::Copy> copies;
    for (std::int64_t i = 0; i < factors; ++i)
      copies.push_back({buffer.slice_rows(i * factor_numel, (i + 1) * factor_numel),
                        o.statistics({factor_numel})});
    return [copies](Backend& on) { on.slice_kernels()->copy_many(copies); };
  });
  return cases;
}

}  // namespace lk::bench
