// Many adapters in one batch: each document's rows get the product of their own adapter.
//
// A few rows (decoding) are computed as dot products and row sums in place, documents in parallel;
// more rows (prompts) take two matrix products per document. Which of the two depends on the
// document's own length, so no row depends on its neighbours.
#include <algorithm>
#include <vector>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/simd.h"
#include "cpu/kernels.h"
#include "cpu/thread_scratch.h"

namespace lk {

using namespace cpu;

namespace {

constexpr std::int64_t kFewRows = 4;

// One document's rows [begin, end), with its factors.
struct Job {
  std::int64_t begin, end;
  const LoraFactors* factors;
};

std::vector<Job> jobs_of(const LoraTable& table, const Segments& documents,
                         const RowVariants& variants) {
  check(std::ssize(variants.host) == documents.count(), "lora_segments: ", documents.count(),
        " documents, ", variants.host.size(), " variants");
  std::vector<Job> jobs;
  for (std::size_t i = 0; i < variants.host.size(); ++i) {
    const std::int32_t v = variants.host[i];
    if (v < 0) continue;
    require(v < std::ssize(table.host), "GenerationRequest::variant ", v, ": there are ",
            table.host.size(), " adapters");
    const LoraFactors& f = table.host[static_cast<std::size_t>(v)];
    if (f.a.defined()) jobs.push_back({documents.host[i], documents.host[i + 1], &f});
  }
  return jobs;
}

// ---- plain twin: the definition ----------------------------------------------------------------

template <class T>
void lora_segments_plain(Matrix<T> y, Matrix<T> x, const std::vector<Job>& jobs) {
  using A = accumulate_t<T>;
  for (const Job& job : jobs) {
    const Matrix<T> a = matrix<T>(job.factors->a), b_t = matrix<T>(job.factors->b_t);
    std::vector<A> s(static_cast<std::size_t>(a.rows));
    for (std::int64_t t = job.begin; t < job.end; ++t) {
      for (std::int64_t r = 0; r < a.rows; ++r) {
        A dot = 0;
        for (std::int64_t k = 0; k < x.cols; ++k) dot += load(x[t][k]) * load(a[r][k]);
        s[static_cast<std::size_t>(r)] = dot;
      }
      for (std::int64_t n = 0; n < y.cols; ++n) {
        A sum = 0;
        for (std::int64_t r = 0; r < a.rows; ++r)
          sum += s[static_cast<std::size_t>(r)] * load(b_t[r][n]);
        put(y[t][n], GradMode::Add, static_cast<A>(job.factors->scale) * sum);
      }
    }
  }
}

// ---- fast path ---------------------------------------------------------------------------------

// s (R) = a (R,K) x
template <class T>
LK_SIMD void shrink_row(float* s, const T* x, const T* a, std::int64_t R, std::int64_t K) {
  for (std::int64_t r = 0; r < R; ++r) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t k = 0; k < K; ++k) sum += widen(x[k]) * widen(a[r * K + k]);
    s[r] = sum;
  }
}

// y (N) += scale * s b_t, with `sum` (N) as scratch.
template <class T>
LK_SIMD void expand_row(T* y, float* sum, const float* s, const T* b_t, std::int64_t R,
                        std::int64_t N, float scale) {
  for (std::int64_t n = 0; n < N; ++n) sum[n] = 0;
  for (std::int64_t r = 0; r < R; ++r) {
    const float f = s[r];
    const T* b = b_t + r * N;
#pragma omp simd
    for (std::int64_t n = 0; n < N; ++n) sum[n] += f * widen(b[n]);
  }
#pragma omp simd
  for (std::int64_t n = 0; n < N; ++n) y[n] = narrow<T>(widen(y[n]) + scale * sum[n]);
}

template <class T>
void add_few_rows(Matrix<T> y, Matrix<T> x, const std::vector<Job>& jobs) {
  std::int64_t most = 0, work = 0;
  for (const Job& job : jobs) {
    most = std::max(most, job.factors->a.rows());
    work += (job.end - job.begin) * (job.factors->a.numel() + job.factors->b_t.numel());
  }
  ThreadScratch scratch(most + y.cols);
#pragma omp parallel if (work > kSerialElements && jobs.size() > 1)
  {
    float *s = scratch.mine(), *sum = s + most;
#pragma omp for schedule(dynamic)
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      const LoraFactors& f = *jobs[i].factors;
      const T *a = f.a.data<T>(), *b_t = f.b_t.data<T>();
      for (std::int64_t t = jobs[i].begin; t < jobs[i].end; ++t) {
        shrink_row(s, x[t], a, f.a.rows(), x.cols);
        expand_row(y[t], sum, s, b_t, f.a.rows(), y.cols, f.scale);
      }
    }
  }
}

}  // namespace

void CpuBackend::lora_segments(const Tensor& y, const Tensor& x, const LoraTable& table,
                               const Segments& documents, const RowVariants& variants) {
  std::vector<Job> jobs = jobs_of(table, documents, variants);
  dispatch_float(x.dtype(), [&]<class T>() {
    if constexpr (has_fast_path<T>)
      if (fast()) {
        const auto rest = std::stable_partition(
            jobs.begin(), jobs.end(), [](const Job& j) { return j.end - j.begin <= kFewRows; });
        add_few_rows(matrix<T>(y), matrix<T>(x), {jobs.begin(), rest});
        for (auto job = rest; job != jobs.end(); ++job) {
          const LoraFactors& f = *job->factors;
          const std::int64_t M = job->end - job->begin;
          const std::int64_t R = f.a.rows();
          Tensor s = empty(Tag::Workspace, x.dtype(), {M, R});
          matmul_nt(s, GradMode::Write, 1.0, x.slice_rows(job->begin, job->end), f.a, {});
          matmul_nn(y.slice_rows(job->begin, job->end), GradMode::Add, f.scale, s, f.b_t);
        }
        return;
      }
    lora_segments_plain(matrix<T>(y), matrix<T>(x), jobs);
  });
}

}  // namespace lk
