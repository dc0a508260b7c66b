#include "10_divisor.h"

#include <doctest/doctest.h>

#include <cmath>

#include "cpu/cpu_backend.h"
#include "tensor/sample.h"

using namespace lk;
using exercise::MicroBatch;

namespace {

// The gradient after rows of these lengths went through in micro-batches of `at_once` rows.
std::vector<double> gradient(const std::vector<std::int64_t>& lengths, std::size_t at_once) {
  auto cpu = make_cpu_backend(CpuMode::Reference);
  const std::int64_t K = 5, C = 4, V = 7;
  const Weight head("head", random_tensor(*cpu, DType::F64, {V, C}, 1));
  Parameter w("w", tensor_from(*cpu, DType::F64, {C, K}, random_values(C * K, 2), Tag::Params),
              DType::F64);
  std::int64_t n_all = 0;
  for (std::int64_t length : lengths) n_all += length;
  const Tensor x = random_tensor(*cpu, DType::F64, {n_all, K}, 3);
  std::vector<MicroBatch> micro_batches;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < lengths.size(); i += at_once) {
    std::int64_t end = begin;
    for (std::size_t j = i; j < std::min(i + at_once, lengths.size()); ++j) end += lengths[j];
    std::vector<std::int32_t> targets;
    for (std::int64_t t = begin; t < end; ++t)
      targets.push_back(static_cast<std::int32_t>(t * 5 % V));
    micro_batches.push_back({x.slice_rows(begin, end), to_device(*cpu, Tag::Workspace, targets)});
    begin = end;
  }
  exercise::accumulate(*cpu, w, head, micro_batches);
  return to_host_f64(w.grad());
}

double difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

}  // namespace

TEST_CASE("10: rows of equal length: 8 at once, 4 and 4, 2 at a time, one by one") {
  const std::vector<std::int64_t> equal(8, 6);
  for (std::size_t at_once : {4, 2, 1})
    CHECK(difference(gradient(equal, at_once), gradient(equal, 8)) < 1e-12);
}

TEST_CASE("10: rows of unequal length, too") {
  const std::vector<std::int64_t> unequal = {1, 30, 2, 3, 17, 1, 1, 9};
  for (std::size_t at_once : {4, 3, 2, 1}) {
    CAPTURE(at_once);
    const double d = difference(gradient(unequal, at_once), gradient(unequal, 8));
    CHECK(d < 1e-12);
  }
}
