// compare: what differs between runs, and that nothing else is shown.
#include "harness.h"
#include "hostile.h"
#include "io/json.h"
#include "run/chart.h"
#include "run/compare.h"
#include "scratch_folder.h"

using namespace lk;
using namespace lk::test;

namespace {

Json run_of(double lr, double rank, double eval) {
  return {{"status", "finished"},
          {"version", "1"},
          {"settings", {{"model", "m"}, {"out", "x"}, {"run", {{"lr", lr}, {"rank", rank}}}}},
          {"device", {{"name", "cpu"}}},
          {"dtype", "f32"},
          {"data", {{"rows", 3}}},
          {"parameters", {{"trainable", 1000}}},
          {"memory", {{"peak_bytes", 3 << 20}}},
          {"result",
           {{"steps", 2},
            {"first_loss", 3.5},
            {"last_loss", 2.5},
            {"eval_before", {{"loss", 4.0}}},
            {"eval_after", {{"loss", eval}}}}}};
}

struct Runs {
  ScratchFolder folder;
  std::vector<std::string> paths;
  void add(const std::string& name, const Json& run, const std::string& metrics) {
    std::filesystem::create_directories(folder.file(name));
    folder.write(name + "/run.json", run.dump());
    folder.write(name + "/metrics.jsonl", metrics);
    paths.push_back(folder.file(name));
  }
};

const std::string kMetrics =
    "{\"step\":0,\"eval_loss\":4.0}\n{\"step\":1,\"loss\":3.5,\"lr\":1e-3}\n"
    "{\"step\":1,\"eval_loss\":1.75}\n{\"step\":2,\"loss\":2.5,\"lr\":1e-3}\n";

}  // namespace

TEST_CASE("the peak of memory is that of all parts of a resumed run") {
  Runs r;
  Json resumed = run_of(1e-4, 8, 3.0);
  resumed["result"]["peak_bytes"] = 7 << 20;
  r.add("resumed", resumed, kMetrics);
  r.add("old", run_of(1e-4, 8, 3.0), kMetrics);
  const auto runs = read_runs(r.paths);
  const std::string text = comparison_text(runs, compare_runs(runs));
  CHECK(text.find("7 MiB") != std::string::npos);
  CHECK(text.find("3 MiB") != std::string::npos);
}

TEST_CASE("the evaluation loss shown is that of what was kept, and says of which step") {
  Runs r;
  Json earlier = run_of(1e-4, 8, 3.0);
  earlier["result"]["kept_step"] = 1, earlier["result"]["best"] = {{"step", 1}, {"loss", 1.75}};
  Json last = run_of(1e-4, 8, 3.0);
  last["result"]["kept_step"] = 2, last["result"]["best"] = {{"step", 1}, {"loss", 1.75}};
  r.add("earlier", earlier, kMetrics);
  r.add("last", last, kMetrics);
  const ComparisonTable table = compare_runs(read_runs(r.paths));
  CHECK(table.results[3].name == "evaluation loss, kept");
  CHECK(table.results[3].values ==
        std::vector<std::string>{"4 \u2192 1.75 at step 1", "4 \u2192 3"});
  ReportInput input{earlier, read_metrics(r.paths[0]), {}, {}};
  const std::string page = report_html(input);
  for (const char* part : {"4 \u2192 1.75", "kept: step 1; the last step's: 3"})
    CHECK_MESSAGE(page.find(html_escape(part)) != std::string::npos, "the page lacks ", part);
}

TEST_CASE("only settings that differ are shown, and the results of every run") {
  Runs r;
  r.add("low", run_of(1e-4, 8, 3.0), kMetrics);
  r.add("high", run_of(1e-3, 8, 2.0), kMetrics);
  const auto runs = read_runs(r.paths);
  const ComparisonTable table = compare_runs(runs);
  REQUIRE(table.settings.size() == 1);
  CHECK(table.settings[0].name == "lr");
  CHECK(table.settings[0].values == std::vector<std::string>{"0.0001", "0.001"});
  const std::string text = comparison_text(runs, table), page = comparison_html(runs, table);
  for (const char* part : {"low", "high", "lr", "3.5 \u2192 2.5", "4 \u2192 3", "4 \u2192 2",
                           "1.75 at step 1", "3 MiB"}) {
    CHECK_MESSAGE(text.find(part) != std::string::npos, text, " lacks ", part);
    CHECK_MESSAGE(page.find(part) != std::string::npos, "the page lacks ", part);
  }
  CHECK(text.find("rank") == std::string::npos);
  CHECK(page.find("class=\"line s1\"") != std::string::npos);
  CHECK(page.find("<script") == std::string::npos);
}

TEST_CASE("the page names the best run, if the runs were evaluated on the same rows") {
  Runs r;
  const std::string better = "{\"step\":1,\"lr\":1,\"loss\":2,\"eval_loss\":1.5}\n";
  Json under_way = run_of(1e-4, 8, 3.0);
  under_way["status"] = "running", under_way.erase("result");
  r.add("a", run_of(1e-4, 8, 3.0), kMetrics);
  r.add("b", under_way, better);
  auto runs = read_runs(r.paths);
  const ComparisonTable table = compare_runs(runs);
  CHECK(comparison_html(runs, table).find("Lowest evaluation loss: b") != std::string::npos);
  CHECK(comparison_text(runs, table).find("1.5 at step 1") != std::string::npos);
  CHECK(table.results[1].values == std::vector<std::string>{"2", "1"});  // steps done
  runs[1].run["settings"]["run"]["eval_rows_sha256"] = "other";
  CHECK(comparison_html(runs, table).find("different rows") != std::string::npos);
  for (ComparedRun& run : runs) run.curves.eval_loss.clear();
  runs[1].run = runs[0].run;
  CHECK(comparison_html(runs, table).find("No run was evaluated") != std::string::npos);
}

TEST_CASE("runs of the same settings say so; folders of one name keep their paths") {
  Runs r;
  r.add("a/run", run_of(1e-4, 8, 3.0), "");
  r.add("b/run", run_of(1e-4, 8, 3.0), "");
  const auto runs = read_runs(r.paths);
  CHECK(runs[0].name == r.paths[0]);
  const ComparisonTable table = compare_runs(runs);
  CHECK(table.settings.empty());
  CHECK(comparison_text(runs, table).find("same settings") != std::string::npos);
  CHECK(comparison_html(runs, table).find("same settings") != std::string::npos);
}

TEST_CASE("a name from outside becomes neither markup nor a terminal's escape sequence") {
  Runs r;
  r.add("<b>\x1b[31m", run_of(1e-4, 8, 3.0), "");
  r.add("b", run_of(1e-4, 16, 3.0), "");
  const auto runs = read_runs(r.paths);
  const ComparisonTable table = compare_runs(runs);
  CHECK(comparison_text(runs, table).find('\x1b') == std::string::npos);
  CHECK(comparison_html(runs, table).find("<b>\x1b") == std::string::npos);
  CHECK(comparison_html(runs, table).find("&lt;b&gt;") != std::string::npos);
}

TEST_CASE("what is not a run is refused by name") {
  Runs r;
  r.add("a", run_of(1e-4, 8, 3.0), "");
  r.add("list", Json::array(), "");
  std::filesystem::create_directories(r.folder.file("empty"));
  const std::string empty = r.folder.file("empty");
  check_throws<UsageError>("one run", {"two runs"}, [&] { read_runs({r.paths[0]}); });
  check_throws<UsageError>("twice", {r.paths[0], "twice"}, [&] {
    read_runs({r.paths[0], r.paths[0]});
  });
  check_throws<InputError>("no run", {empty, "run.json"}, [&] { read_runs({r.paths[0], empty}); });
  check_throws<InputError>("not an object", {"list/run.json"}, [&] { read_runs(r.paths); });
}
