// Elementwise ops against doubles. Each takes one float operation and one rounding to the dtype.
#include <limits>

#include "gradcheck_cases.h"
#include "tensor/philox.h"

using namespace lk;
using namespace lk::test;

namespace {
const std::pair<std::int64_t, std::int64_t> kShapes[] = {{0, 5},   {1, 1},     {3, 7},
                                                         {33, 65}, {2, 20000}, {130, 576}};
}

TEST_CASE("fill and copy") {
  for (const Subject& s : subjects())
    for (auto [rows, cols] : kShapes) {
      Tensor x = padded(s.backend, s.dtype, rows, cols, 3, 1u);
      s.backend.fill(x, -1.5);
      CHECK(values(x) == std::vector<double>(static_cast<std::size_t>(rows * cols), -1.5));
      CHECK(padding_intact(x));
      for (DType dtype : {DType::F64, DType::F32, DType::BF16}) {
        Tensor from = padded(s.backend, s.dtype, rows, cols, 1, 2u),
               to = padded(s.backend, dtype, rows, cols, 4, 3u);
        s.backend.copy(to, from);
        std::vector<double> want = values(from);
        for (double& v : want) {
          if (dtype == DType::F32) v = static_cast<float>(v);
          if (dtype == DType::BF16) v = static_cast<float>(bf16(static_cast<float>(v)));
        }
        CHECK(values(to) == want);
        CHECK(padding_intact(to));
      }
    }
}

TEST_CASE("copying to bf16 rounds every kind of number as the type does") {
  std::vector<float> x;
  for (std::uint32_t high = 0; high < 0x10000; ++high)
    for (std::uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      x.push_back(std::bit_cast<float>(high << 16 | low));
  const auto n = static_cast<std::int64_t>(x.size());
  Tensor from = fast().empty(Tag::Workspace, DType::F32, {n}),
         to = fast().empty(Tag::Workspace, DType::BF16, {n});
  fast().upload(from, x.data(), from.bytes());
  fast().copy(to, from);
  std::vector<bf16> got = to_host<bf16>(to);
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < x.size(); ++i) wrong += got[i].bits != bf16(x[i]).bits;
  CHECK(wrong == 0);
}

TEST_CASE("copy moves integers too") {
  std::vector<std::int32_t> ids{3, 1, 2};
  Tensor a = to_device(fast(), Tag::Workspace, ids),
         b = fast().empty(Tag::Workspace, DType::I32, {3});
  fast().copy(b, a);
  CHECK(to_host<std::int32_t>(b) == ids);
}

TEST_CASE("add, in place too") {
  for (const Subject& s : subjects())
    for (auto [rows, cols] : kShapes) {
      Tensor a = padded(s.backend, s.dtype, rows, cols, 1, 1u),
             b = padded(s.backend, s.dtype, rows, cols, 2, 2u);
      Tensor y = padded(s.backend, s.dtype, rows, cols, 3, 3u);
      std::vector<double> want = values(a), other = values(b);
      for (std::size_t i = 0; i < want.size(); ++i) want[i] += other[i];
      s.backend.add(y, a, b);
      check_close(values(y), want, unit_roundoff(s.dtype), {1e-300}, concat("add ", s.name));
      CHECK(padding_intact(y));
      s.backend.add(a, a, b);
      CHECK(values(a) == values(y));
    }
}

TEST_CASE("scale writes or adds") {
  for (const Subject& s : subjects())
    for (auto [rows, cols] : kShapes) {
      Tensor x = padded(s.backend, s.dtype, rows, cols, 1, 1u);
      Tensor scalar = tensor_from(s.backend, stat_dtype(s.dtype), {1}, {0.5});
      for (GradMode mode : {GradMode::Write, GradMode::Add}) {
        Tensor y = padded(s.backend, s.dtype, rows, cols, 2, 2u);
        std::vector<double> want = values(y), in = values(x), size = want;
        for (std::size_t i = 0; i < want.size(); ++i) {
          double term = 1.75 * 0.5 * in[i];
          size[i] = 2 * 0x1p-24 * std::abs(term) + 1e-300;
          want[i] = term + (mode == GradMode::Add ? want[i] : 0);
        }
        s.backend.scale(y, mode, 1.75, scalar, x);
        check_close(values(y), want, unit_roundoff(s.dtype), size, concat("scale ", s.name));
        CHECK(padding_intact(y));
      }
      Tensor y = padded(s.backend, s.dtype, rows, cols, 2, 2u);
      s.backend.scale(y, GradMode::Write, 2.0, {}, x);
      std::vector<double> want = values(x);
      for (double& v : want) v *= 2;
      CHECK(values(y) == want);
    }
}

TEST_CASE("add_bias") {
  for (const Subject& s : subjects())
    for (auto [rows, cols] : kShapes) {
      Tensor y = padded(s.backend, s.dtype, rows, cols, 3, 1u);
      Weight bias("bias", random_tensor(s.backend, s.dtype, {cols}, 2));
      std::vector<double> want = values(y), b = values(bias.values());
      for (std::size_t i = 0; i < want.size(); ++i)
        want[i] += b[i % static_cast<std::size_t>(cols)];
      s.backend.add_bias(y, bias);
      check_close(values(y), want, unit_roundoff(s.dtype), {1e-300}, concat("add_bias ", s.name));
      CHECK(padding_intact(y));
    }
}

TEST_CASE("the backend says what it is") {
  CHECK(fast().name() == "cpu");
  CHECK(fast().name() == "cpu");
  CHECK(fast().description().find("threads") != std::string::npos);
  CHECK(reference().description().find("reference") != std::string::npos);
}

TEST_CASE("uniform: the same numbers in every dtype and thread count, within the bound") {
  const RandomKey key{77, 3, 5};
  for (const Subject& s : subjects())
    for (auto [rows, cols] :
         {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 7}, {5, 4104}, {0, 3}}) {
      Tensor x = padded(s.backend, s.dtype, rows, cols, 3, 1);
      s.backend.uniform(x, 0.25f, key);
      const std::vector<double> got = values(x);
      bool right = true;
      for (std::size_t i = 0; i < got.size(); ++i) {
        const float u = philox_uniform(philox_at(key, i / 4).v[i % 4]);
        const double want = 0.25f * (2 * u - 1);
        right &=
            got[i] ==
            (s.dtype == DType::BF16 ? static_cast<float>(bf16(static_cast<float>(want))) : want);
      }
      CHECK_MESSAGE(right, s.name, " ", rows, " x ", cols);
      CHECK(padding_intact(x));
    }
}

// ---- gradients ----------------------------------------------------------------------------------

namespace {

const GradcheckFamily gradients([](GradcheckCases& out) {
  out.push_back({"add",
                 [](Tape& t, const Vars& in) { return add(t, in[0], in[1]); },
                 {rnd({3, 5}, 80), rnd({3, 5}, 81)}});
  out.push_back({"add x + x",
                 [](Tape& t, const Vars& in) { return add(t, in[0], in[0]); },
                 {rnd({1, 1}, 82)}});
  for (float p : {0.0f, 0.3f, 0.9f})
    out.push_back({concat("dropout ", p),
                   [=](Tape& t, const Vars& in) {
                     Var y = dropout(t, in[0], p, {5, 3, 2});
                     return add(t, y, in[0]);  // p = 0 records no node of its own
                   },
                   {rnd({7, 5}, 83)}});
  out.push_back({"dropout of one number",
                 [](Tape& t, const Vars& in) {
                   return dropout(t, in[0], 0.5f, {5, 4, 2});
                 },
                 {rnd({1, 1}, 84)}});
});

}  // namespace
