#include "cpu/fast/onednn_linear.h"

#include <dnnl.hpp>
#include <map>
#include <mutex>
#include <new>
#include <tuple>

namespace lk::cpu {
namespace {

using dnnl::matmul;
using dnnl::memory;

constexpr std::int64_t kTypicalRows = 512;  // the packed layout is chosen for about as many tokens
constexpr std::size_t kCachedShapes = 64;   // batches are not padded: a step may bring new shapes

// Calls f(), which uses oneDNN; an error of the library becomes one of ours.
template <class F>
void with_onednn(const F& f) {
  try {
    f();
  } catch (const dnnl::error& e) {
    if (e.status == dnnl_out_of_memory) throw std::bad_alloc();
    throw Error(concat("oneDNN: ", e.what()));
  }
}

dnnl::engine& engine() {
  static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

memory::data_type data_type(DType t) {
  return t == DType::F32 ? memory::data_type::f32 : memory::data_type::bf16;
}

memory::desc matrix_desc(std::int64_t rows, std::int64_t cols, memory::data_type type) {
  return {{rows, cols}, type, memory::format_tag::ab};
}

matmul::primitive_desc describe(std::int64_t rows, std::int64_t in, std::int64_t out,
                                const memory::desc& weight, memory::data_type type, bool add) {
  dnnl::primitive_attr attr;
  dnnl::post_ops post;
  if (add) post.append_sum(1.0f);
  attr.set_post_ops(post);
  try {
    return {{matrix_desc(rows, in, type), weight, matrix_desc(rows, out, type)}, attr, engine()};
  } catch (const dnnl::error& e) {
    if (e.status == dnnl_out_of_memory) throw;
    throw Error(concat("oneDNN has no product of ", rows, " x ", in, " by ", in, " x ", out, ": ",
                       e.what()));
  }
}

// Note [Sums one short]: oneDNN 2.6's BF16 kernels for AMX take 64 or 32 columns at a time, and one
// column less at the end (63, 2847, 4095 columns; all numbers up to 200 and odd ones up to 599 were
// tried) ends for many numbers of rows with an illegal instruction or, on several threads, in wrong
// numbers. Such sums get a column of zeros more.
std::int64_t summed(std::int64_t in, memory::data_type type) {
  constexpr std::int64_t kStep = 32;
  return type == memory::data_type::bf16 && in % kStep == kStep - 1 ? in + 1 : in;
}

// x, contiguous, with zeros behind if that is larger.
Tensor padded(const Tensor& x, std::int64_t rows, std::int64_t cols) {
  if (x.rows() == rows && x.cols() == cols) return dense(x);
  Tensor larger = x.backend().empty(Tag::Workspace, x.dtype(), {rows, cols});
  if (cols > x.cols()) x.backend().fill(larger.slice_cols(x.cols(), cols), 0.0);
  if (rows > x.rows()) x.backend().fill(larger.slice_rows(x.rows(), rows), 0.0);
  x.backend().copy(larger.slice_rows(0, x.rows()).slice_cols(0, x.cols()), x);
  return larger;
}

// A weight that is read as (in, out) if `tag` says how it lies, with zeros behind if its sums are one short.
Tensor padded_weight(const Tensor& w, memory::format_tag tag) {
  const memory::data_type type = data_type(w.dtype());
  return tag == memory::format_tag::ab ? padded(w, summed(w.rows(), type), w.cols())
                                       : padded(w, w.rows(), summed(w.cols(), type));
}

// The layout that oneDNN prefers for a weight read as (in, out).
memory::desc packed_layout(std::int64_t in, std::int64_t out, memory::data_type type) {
  const memory::desc any({in, out}, type, memory::format_tag::any);
  return describe(kTypicalRows, in, out, any, type, false).weights_desc();
}

}  // namespace

std::int64_t onednn_sums(std::int64_t n, DType dtype) { return summed(n, data_type(dtype)); }

PackedBytes onednn_packed_bytes(std::int64_t N, std::int64_t K) {
  auto bytes = [](std::int64_t in, std::int64_t out) {
    const auto type = memory::data_type::bf16;
    return static_cast<std::int64_t>(packed_layout(summed(in, type), out, type).get_size());
  };
  PackedBytes packed{};
  with_onednn([&] { packed = {bytes(K, N), bytes(N, K)}; });
  return packed;
}

bool prefers_onednn(DType dtype) {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::avx512_core:
    case dnnl::cpu_isa::avx512_core_vnni:
      return dtype == DType::F32;
    case dnnl::cpu_isa::avx512_core_bf16:
    case dnnl::cpu_isa::avx512_core_amx:
      return dtype == DType::F32 || dtype == DType::BF16;
    default:
      return false;
  }
}

namespace {

// y (T,out) (+)= x (T,in) times the matrix (in,out), which lies at `matrix` in `layout`; note [Sums one short].
void multiply(const matmul& primitive, const Tensor& y, GradMode mode, const Tensor& x,
              const memory::desc& layout, void* matrix) {
  const std::int64_t rows = y.rows();
  const memory::data_type type = data_type(y.dtype());
  const std::int64_t in = summed(x.cols(), type);
  Tensor from = padded(x, rows, in), to = y;
  if (!y.contiguous()) {
    to = y.backend().empty(Tag::Workspace, y.dtype(), y.shape());
    if (mode == GradMode::Add) y.backend().copy(to, y);
  }
  dnnl::stream stream(engine());
  primitive.execute(stream,
                    {{DNNL_ARG_SRC, {matrix_desc(rows, in, type), engine(), from.raw()}},
                     {DNNL_ARG_WEIGHTS, {layout, engine(), matrix}},
                     {DNNL_ARG_DST, {matrix_desc(rows, y.cols(), type), engine(), to.raw()}}});
  stream.wait();
  if (!y.contiguous()) y.backend().copy(y, to);
}

// What make() makes for `key`, kept for the next time.
template <class Key, class Make>
matmul kept(std::mutex& mutex, std::map<Key, matmul>& primitives, const Key& key,
            const Make& make) {
  std::lock_guard lock(mutex);
  if (auto found = primitives.find(key); found != primitives.end()) return found->second;
  if (primitives.size() >= kCachedShapes) primitives.clear();
  return primitives.emplace(key, matmul(make())).first->second;
}

}  // namespace

// One direction of the product.
struct OnednnLinear::Direction {
  // `tag` describes how the plain values lie when read as (in, out).
  Direction(Backend& backend, const Tensor& w, std::int64_t in, std::int64_t out,
            memory::format_tag tag)
      : in_(summed(in, data_type(w.dtype()))),
        out_(out),
        type_(data_type(w.dtype())),
        layout_({in_, out}, type_, tag),
        matrix_(w) {
    if (w.dtype() == DType::F32) return;
    const Tensor values = padded_weight(w, tag);
    memory plain(layout_, engine(), values.raw());
    layout_ = packed_layout(in_, out, type_);
    matrix_ =
        backend.empty(Tag::Workspace, DType::U8, {static_cast<std::int64_t>(layout_.get_size())});
    memory packed(layout_, engine(), matrix_.raw());
    dnnl::stream stream(engine());
    dnnl::reorder(plain, packed).execute(stream, plain, packed);
    stream.wait();
  }

  void run(const Tensor& y, GradMode mode, const Tensor& x) {
    if (y.rows() == 0) return;
    const bool add = mode == GradMode::Add;
    const auto primitive = kept(mutex_, primitives_, std::pair(y.rows(), add),
                                [&] { return describe(y.rows(), in_, out_, layout_, type_, add); });
    multiply(primitive, y, mode, x, layout_, matrix_.raw());
  }

 private:
  std::int64_t in_, out_;
  memory::data_type type_;
  memory::desc layout_;
  Tensor matrix_;  // the weight itself, or its packed copy
  std::mutex mutex_;
  std::map<std::pair<std::int64_t, bool>, matmul> primitives_;
};

OnednnLinear::OnednnLinear(Backend& backend, const Tensor& w) {
  const Tensor values = dense(w);
  const std::int64_t N = w.rows(), K = w.cols();
  with_onednn([&] {
    forward_ = std::make_unique<Direction>(backend, values, K, N, memory::format_tag::ba);
    backward_ = std::make_unique<Direction>(backend, values, N, K, memory::format_tag::ab);
  });
}

OnednnLinear::~OnednnLinear() = default;

void OnednnLinear::forward(const Tensor& y, const Tensor& x) const {
  with_onednn([&] { forward_->run(y, GradMode::Write, x); });
}

void OnednnLinear::backward(const Tensor& dx, GradMode mode, const Tensor& dy) const {
  with_onednn([&] { backward_->run(dx, mode, dy); });
}

namespace {

// y (T,out) (+)= x (T,in) w, where w is (in,out) if it is read as `tag` says.
void multiply_plain(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& w,
                    memory::format_tag tag) {
  using Key = std::tuple<std::int64_t, std::int64_t, std::int64_t, DType, memory::format_tag, bool>;
  static std::mutex mutex;
  static std::map<Key, matmul> primitives;
  if (y.rows() == 0) return;
  const std::int64_t rows = y.rows(), out = y.cols(), in = summed(x.cols(), data_type(w.dtype()));
  const bool add = mode == GradMode::Add;
  const Tensor values = padded_weight(w, tag);
  with_onednn([&] {
    const memory::desc layout({in, out}, data_type(w.dtype()), tag);
    const auto primitive = kept(mutex, primitives, Key{rows, in, out, w.dtype(), tag, add}, [&] {
      return describe(rows, in, out, layout, data_type(w.dtype()), add);
    });
    multiply(primitive, y, mode, x, layout, values.raw());
  });
}

}  // namespace

void onednn_forward(const Tensor& y, const Tensor& x, const Tensor& w) {
  multiply_plain(y, GradMode::Write, x, w, memory::format_tag::ba);
}

void onednn_backward(const Tensor& dx, GradMode mode, const Tensor& dy, const Tensor& w) {
  multiply_plain(dx, mode, dy, w, memory::format_tag::ab);
}

}  // namespace lk::cpu
