// Rows moved by index: exact, in any dtype.
#include "gradcheck_cases.h"

using namespace lk;
using namespace lk::test;

TEST_CASE("embedding, gather and scatter move rows") {
  for (const Subject& s : subjects()) {
    const std::int64_t V = 11, C = 37;
    Weight table("table", random_tensor(s.backend, s.dtype, {V, C}, 1));
    std::vector<double> rows = values(table.values());
    std::vector<std::int32_t> ids{10, 0, 3, 3, 7};
    Tensor index = to_device(s.backend, Tag::Workspace, ids),
           y = padded(s.backend, s.dtype, 5, C, 2, 2u);
    s.backend.embedding_forward(y, table, index);
    std::vector<double> got = values(y);
    for (std::size_t i = 0; i < ids.size(); ++i)
      for (std::size_t j = 0; j < C; ++j)
        CHECK(got[i * C + j] == rows[static_cast<std::size_t>(ids[i]) * C + j]);
    CHECK(padding_intact(y));

    Tensor x = padded(s.backend, s.dtype, 9, C, 3, 3u),
           few = padded(s.backend, s.dtype, 3, C, 1, 4u);
    Tensor pick = to_device(s.backend, Tag::Workspace, std::vector<std::int32_t>{8, 0, 5});
    s.backend.gather_rows(few, x, pick);
    CHECK(values(few.slice_rows(0, 1)) == values(x.slice_rows(8, 9)));
    CHECK(values(few.slice_rows(2, 3)) == values(x.slice_rows(5, 6)));
    CHECK(padding_intact(few));

    Tensor dx = padded(s.backend, s.dtype, 9, C, 3, 5u);
    std::vector<double> before = values(dx);
    s.backend.scatter_rows(dx, GradMode::Add, few, pick);
    CHECK(values(dx.slice_rows(1, 5)) ==
          std::vector<double>(before.begin() + C, before.begin() + 5 * C));
    std::vector<double> sum = values(few.slice_rows(0, 1));
    for (std::size_t j = 0; j < C; ++j) sum[j] += before[8 * C + j];
    check_close(values(dx.slice_rows(8, 9)), sum, unit_roundoff(s.dtype), {1e-300}, "scatter add");
    s.backend.scatter_rows(dx, GradMode::Write, few, pick);
    CHECK(values(dx.slice_rows(1, 5)) == std::vector<double>(4 * C, 0.0));
    CHECK(values(dx.slice_rows(0, 1)) == values(few.slice_rows(1, 2)));
    CHECK(padding_intact(dx));
  }
}

TEST_CASE("a row outside the table is refused") {
  for (const Subject& s : subjects()) {
    Weight table("table", random_tensor(s.backend, s.dtype, {4, 8}, 1));
    Tensor y = random_tensor(s.backend, s.dtype, {1, 8}, 2);
    for (std::int32_t id : {4, -1}) {
      Tensor index = to_device(s.backend, Tag::Workspace, std::vector<std::int32_t>{id});
      CHECK_THROWS_AS(s.backend.embedding_forward(y, table, index), Error);
      CHECK_THROWS_AS(s.backend.gather_rows(y, table.values(), index), Error);
      CHECK_THROWS_AS(s.backend.scatter_rows(table.values(), GradMode::Add, y, index), Error);
    }
  }
}

TEST_CASE("no rows") {
  for (const Subject& s : subjects()) {
    Weight table("table", random_tensor(s.backend, s.dtype, {4, 8}, 1));
    Tensor none = to_device(s.backend, Tag::Workspace, std::vector<std::int32_t>{});
    Tensor y = s.backend.empty(Tag::Workspace, s.dtype, {0, 8});
    s.backend.embedding_forward(y, table, none);
    s.backend.gather_rows(y, table.values(), none);
    Tensor dx = random_tensor(s.backend, s.dtype, {2, 8}, 3);
    s.backend.scatter_rows(dx, GradMode::Write, y, none);
    CHECK(values(dx) == std::vector<double>(16, 0.0));
  }
}

// ---- gradients ----------------------------------------------------------------------------------

namespace {

const GradcheckFamily gradients([](GradcheckCases& out) {
  for (const std::vector<std::int32_t>& rows :
       {std::vector<std::int32_t>{4, 0, 2}, {0, 1, 2, 3, 4, 5}, {5}, {}}) {
    Tensor index = ints(rows);
    out.push_back({concat("gather ", rows.size(), " of 6 rows"),
                   [=](Tape& t, const Vars& in) { return gather_rows(t, in[0], index); },
                   {rnd({6, 3}, 90)}});
  }
});

}  // namespace
