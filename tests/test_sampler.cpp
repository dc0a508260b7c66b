// Would catch: a sampler that is biased or depends on history, a row lost or seen twice in an
// epoch, a bin over its capacity, bins fuller in one epoch than in another.
#include "text/sampler.h"

#include <algorithm>
#include <numeric>

#include "harness.h"

using namespace lk;

namespace {

using Rows = std::vector<std::int64_t>;

// Many short rows and a few long ones, as data sets have them.
Rows random_lengths(std::size_t n, std::int64_t capacity, unsigned seed) {
  std::mt19937 rng(seed);
  Rows lengths;
  for (std::size_t i = 0; i < n; ++i)
    lengths.push_back(1 + static_cast<std::int64_t>(rng()) % (i % 9 ? capacity / 4 : capacity));
  return lengths;
}

Rows in_order(std::size_t n) {
  Rows order(n);
  std::iota(order.begin(), order.end(), std::int64_t{0});
  return order;
}

Rows sorted(Rows rows) {
  std::sort(rows.begin(), rows.end());
  return rows;
}

}  // namespace

TEST_CASE("sampler: in file order, wrapping round") {
  const Sampler sampler(5, 3, false, 1);
  CHECK(sampler.batch(0) == std::vector<std::int64_t>{0, 1, 2});
  CHECK(sampler.batch(1) == std::vector<std::int64_t>{3, 4, 0});
  CHECK(sampler.batch(2) == std::vector<std::int64_t>{1, 2, 3});
  CHECK(Sampler(2, 5, false, 1).batch(1) == std::vector<std::int64_t>{1, 0, 1, 0, 1});
}

TEST_CASE("sampler: every epoch is a permutation, a pure function of seed and epoch") {
  const std::int64_t n = 97, batch = 10;
  const Sampler sampler(n, batch, true, 42);
  std::vector<std::int64_t> drawn;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t row : sampler.batch(i)) drawn.push_back(row);
  std::vector<std::int64_t> first(drawn.begin(), drawn.begin() + n),
      second(drawn.begin() + n, drawn.begin() + 2 * n);
  CHECK(first != second);
  for (auto epoch : {first, second}) {
    std::sort(epoch.begin(), epoch.end());
    for (std::int64_t i = 0; i < n; ++i) CHECK(epoch[static_cast<std::size_t>(i)] == i);
  }
  // The sampler gives the same rows when asked out of order, by another object.
  const Sampler other(n, batch, true, 42);
  CHECK(other.batch(50) == sampler.batch(50));
  CHECK(other.batch(3) == std::vector<std::int64_t>(drawn.begin() + 30, drawn.begin() + 40));
  CHECK(Sampler(n, batch, true, 43).batch(3) != other.batch(3));
}

TEST_CASE("sampler: no row prefers a place") {
  // 4 rows, 24 orders, 24,000 seeds: chi-square with 23 degrees of freedom stays under 60 (p =
  // 4e-5).
  std::vector<int> counts(256, 0);
  for (std::uint64_t seed = 0; seed < 24000; ++seed) {
    int code = 0;
    for (std::int64_t row : Sampler(4, 4, true, seed).batch(0))
      code = code * 4 + static_cast<int>(row);
    ++counts[static_cast<std::size_t>(code)];
  }
  double chi = 0;
  int orders = 0;
  for (int count : counts)
    if (count > 0) ++orders, chi += (count - 1000.0) * (count - 1000.0) / 1000.0;
  CHECK(orders == 24);
  CHECK(chi < 60.0);
}

TEST_CASE("best fit decreasing: the fullest bin that has room, the longest row first") {
  const Rows lengths{3, 7, 5, 4, 1};
  const Bins bins = best_fit_decreasing(lengths, in_order(5), 10);
  REQUIRE(bins.count() == 2);
  CHECK(Rows(bins[0].begin(), bins[0].end()) == Rows{1, 0});     // 7 + 3
  CHECK(Rows(bins[1].begin(), bins[1].end()) == Rows{2, 3, 4});  // 5 + 4 + 1
  CHECK(tokens_of(bins, lengths) == Rows{10, 10});
  CHECK_THROWS_AS(best_fit_decreasing(lengths, in_order(5), 6), Error);
  CHECK(best_fit_decreasing({}, {}, 6).count() == 0);
}

TEST_CASE("next fit: rows stay in order") {
  const Rows lengths{3, 7, 5, 4, 1, 10};
  const Bins bins = next_fit(lengths, in_order(6), 10);
  CHECK(bins.rows == in_order(6));
  CHECK(tokens_of(bins, lengths) == Rows{10, 10, 10});
  CHECK_THROWS_AS(next_fit(lengths, in_order(6), 9), Error);
  CHECK(next_fit({}, {}, 9).count() == 0);
}

TEST_CASE("packed epochs: every row once, no bin over capacity, all epochs equally full") {
  const std::int64_t capacity = 64;
  const Rows lengths = random_lengths(500, capacity, 3);
  const std::int64_t total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  const Sampler sampler(lengths, capacity, 4, true, 11);
  const Rows first = sampler.epoch(0).rows;
  const Rows full = sorted(tokens_of(sampler.epoch(0), lengths));
  for (std::int64_t e = 0; e < 5; ++e) {
    const Bins& bins = sampler.epoch(e);
    CHECK(sorted(bins.rows) == in_order(lengths.size()));
    const Rows tokens = tokens_of(bins, lengths);
    CHECK(*std::max_element(tokens.begin(), tokens.end()) <= capacity);
    // Two bins that are half empty would have been one.
    CHECK(std::count_if(tokens.begin(), tokens.end(),
                        [&](std::int64_t n) { return 2 * n <= capacity; }) <= 1);
    CHECK(sorted(tokens) == full);
    CHECK((e == 0 || bins.rows != first));
  }
  const double fewest = std::ceil(static_cast<double>(total) / static_cast<double>(capacity));
  CHECK(static_cast<double>(sampler.bins_per_epoch()) <= 11.0 / 9 * fewest + 1);
}

TEST_CASE("packed batches go through all bins in order, from one epoch into the next") {
  const Rows lengths = random_lengths(101, 32, 5);
  const std::int64_t batch = 7;
  for (bool shuffle : {true, false}) {
    const Sampler sampler(lengths, 32, batch, shuffle, 2);
    const std::int64_t n = sampler.bins_per_epoch();
    REQUIRE(n % batch != 0);
    Rows drawn, want;
    for (std::int64_t i = 0; i < 3 * n; ++i)
      for (std::int64_t row : sampler.batch(i)) drawn.push_back(row);
    for (std::int64_t e = 0; e < 3 * batch; ++e)
      want.insert(want.end(), sampler.epoch(e).rows.begin(), sampler.epoch(e).rows.end());
    CHECK(drawn == want);
    // The sampler gives the same bins when asked out of order, by another object, as a resumed run
    // does.
    const Sampler other(lengths, 32, batch, shuffle, 2);
    CHECK(other.batch(2 * n) == sampler.batch(2 * n));
    CHECK(other.batch(5) == sampler.batch(5));
    CHECK((Sampler(lengths, 32, batch, shuffle, 3).batch(5) == other.batch(5)) == !shuffle);
  }
  const Sampler plain(lengths, 32, 3, false, 0);
  CHECK(plain.epoch(4).rows == in_order(lengths.size()));
}
