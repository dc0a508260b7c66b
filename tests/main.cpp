// The test program's main: doctest, plus one line that the test script adds up:
//   lorikeet-tests: N passed, N failed, N skipped
// A test case that called LK_SKIP counts as skipped, never as passed.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "harness.h"

namespace {
struct Counter : doctest::IReporter {
  static inline int passed = 0, failed = 0, skipped = 0;
  explicit Counter(const doctest::ContextOptions&) {}
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats&) override {}
  void test_case_start(const doctest::TestCaseData&) override { lk::test::skip_reason().clear(); }
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats& s) override {
    if (!s.testCaseSuccess)
      ++failed;
    else if (!lk::test::skip_reason().empty())
      ++skipped;
    else
      ++passed;
  }
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
};
REGISTER_LISTENER("lorikeet-counter", 1, Counter);
}  // namespace

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  int status = context.run();
  if (context.shouldExit()) return status;
  std::printf("lorikeet-tests: %d passed, %d failed, %d skipped\n", Counter::passed,
              Counter::failed, Counter::skipped);
  if (status != 0 || Counter::passed > 0) return status;
  if (Counter::skipped > 0) return 77;  // Meson: SKIP
  std::printf("no test case ran\n");    // a misspelt -tc, or a program without cases
  return 1;
}
