// report.html: what it must show, and what must never get through.
#include <fstream>

#include "harness.h"
#include "io/json.h"
#include "run/chart.h"
#include "run/report.h"
#include "run/run_files.h"
#include "scratch_folder.h"

using namespace lk;

namespace {

const std::string kHostile =
    "</pre><script>alert('x')</script><img src=\"http://e.x/\" onerror=y>&amp;";

ReportInput full(const std::string& text) {
  ReportInput in;
  in.run = {{"status", text},
            {"version", text},
            {"settings",
             {{"model", text},
              {"data", text},
              {"out", text},
              {text, text},
              {"run", {{"targets", {text}}}}}},
            {"device", {{"name", text}, {"description", text}}},
            {"dtype", text},
            {"base", {{"path", text}}},
            {"data", {{"rows", 3}}},
            {"memory",
             {{"peak_bytes", 3 << 20},
              {"tags", {{text, {{"peak_bytes", 2 << 20}, {"live_bytes", 0}}}}}}}};
  in.curves.loss = {{1, 2.5}, {2, 1.25}};
  in.curves.eval_loss = {{0, 3.5}};
  in.samples = {{text, text, text, text}};
  in.proofs = {text};
  return in;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace

TEST_CASE("no text from outside becomes markup") {
  const std::string page = report_html(full(kHostile)), plain = report_html(full("plain"));
  CHECK(page.find("<script") == std::string::npos);
  CHECK(page.find("<img") == std::string::npos);
  CHECK(page.find("onerror=y>&amp;amp;") == std::string::npos);
  // The tab's title has only what stands behind a path's last slash.
  CHECK(count(page, "&lt;script&gt;") == count(plain, "plain") - 1);
  CHECK(count(page, "<") == count(plain, "<"));  // the same tags, whatever the text
  CHECK(count(page, "\"") == count(plain, "\""));
  CHECK(html_escape("a<b>&\"'") == "a&lt;b&gt;&amp;&quot;&#39;");
  CHECK(html_escape(std::string("a\0b\x1b[31m\xffz\n\t", 12)) == "a\uFFFDb\uFFFD[31m\uFFFDz\n\t");
  CHECK(html_escape("\xE4\xBD") == "\uFFFD\uFFFD");  // a character cut short
}

TEST_CASE("the page is one file: nothing in it is fetched") {
  const std::string page = report_html(full("plain"));
  for (const char* reference : {"http:", "https:", "src=", "href=", "url(", "@import"})
    CHECK_MESSAGE(page.find(reference) == std::string::npos, reference);
  CHECK(page.find("default-src 'none'") != std::string::npos);
  for (const char* part :
       {"Loss", "Learning rate", "Gradient norm", "Speed", "Memory by purpose", "Samples", "Proved",
        "Settings", "without the adapter", "nats per token"})
    CHECK_MESSAGE(page.find(part) != std::string::npos, std::string(part));
}

TEST_CASE("a report of a run that recorded nothing is still a page") {
  ReportInput in;
  const std::string page = report_html(in);
  CHECK(count(page, "nothing was recorded") == 4);
  CHECK(page.ends_with("</html>\n"));
}

TEST_CASE("charts: long curves are thinned, values that are not finite are left out") {
  ChartLine line{"x", {}, false};
  for (int i = 0; i < 100000; ++i) line.points.emplace_back(i, i % 2);
  const std::string svg = chart_svg("t", "", {line});
  CHECK(svg.size() < 60000);
  CHECK(svg.find("class=\"band") != std::string::npos);  // from 0 to 1 in each group
  const double inf = std::numeric_limits<double>::infinity();
  const std::string odd =
      chart_svg("t", "", {{"x", {{1, inf}, {2, std::nan("")}, {3, 5.0}}, false}});
  CHECK(odd.find("inf") == std::string::npos);
  CHECK(odd.find("nan") == std::string::npos);
  CHECK(odd.find("<circle") != std::string::npos);  // one point alone is drawn
  CHECK(chart_svg("t", "", {{"x", {{1, 0}, {2, 0}}, false}}).find("nan") == std::string::npos);
}

TEST_CASE("numbers are short") {
  for (const auto& [value, text] : {std::pair{0.0, "0"},
                                    {1234.5, "1,234"},
                                    {384440.0, "384,440"},
                                    {0.0002, "0.0002"},
                                    {0.0000789, "7.89e-05"},
                                    {4884480.0, "4,884,480"},
                                    {-123456.0, "-123,456"},
                                    {2.4490, "2.449"},
                                    {-3.5, "-3.5"},
                                    {100.0, "100"},
                                    {1e10, "1e+10"},
                                    {0.25, "0.25"}})
    CHECK(short_number(value) == text);
}

TEST_CASE("lines differ in more than colour, and many lines are means without bands") {
  std::vector<ChartLine> lines;
  for (int n = 0; n < 3; ++n) {
    lines.push_back({"run" + std::to_string(n), {}, false});
    for (int i = 1; i <= 300; ++i) lines.back().points.emplace_back(i, n + i % 2);
  }
  const std::string svg = chart_svg("t", "u", lines, {{150, "<kept>"}, {999, "outside"}});
  CHECK(count(svg, "class=\"swatch\"") == 3);
  CHECK(count(svg, "class=\"band") == 0);
  CHECK(svg.find("u, means of 6 steps<") != std::string::npos);
  CHECK(svg.find("&lt;kept&gt;") != std::string::npos);
  CHECK(svg.find("outside") == std::string::npos);
  CHECK(svg.find("1 \u2192 0") != std::string::npos);  // the values themselves, not means
}

TEST_CASE("the page begins with the run's state, its lesson and what to do next") {
  ReportInput in;
  in.run = {{"status", "running"},
            {"settings",
             {{"out", "runs/a b"},
              {"model", "m.gguf"},
              {"data", "d.csv"},
              {"run", {{"steps", 20}, {"format", "user-assistant"}}}}},
            {"data", {{"chats", 40}, {"system", "It's."}}}};
  in.curves.lr = {{1, 0.1}, {8, 0.1}};
  in.curves.loss = {{1, 3.0}, {8, 2.0}};
  in.curves.eval_loss = {{0, 4.0}, {4, 2.0}, {8, 2.5}};
  in.seconds_left = 72, in.written = "2026-01-31 13:05:09 UTC";
  auto says = [&](std::initializer_list<const char*> parts) {
    const std::string page = report_html(in);
    for (const char* part : parts)
      CHECK_MESSAGE(page.find(part) != std::string::npos, std::string(part));
  };
  says({"<title>step 8 of 20", "Running: step 8 of 20, about 1 min 12 s left", "3 \u2192 2",
        "13:05:09", "width:40%", "http-equiv=\"refresh\"", "lowest: step 4"});
  Json& run = in.run;
  run["status"] = "finished";
  run["result"] = {{"steps", 20},
                   {"kept_step", 4},
                   {"seconds", 3700},
                   {"eval_before", {{"loss", 4.0}, {"rows", 6}}},
                   {"eval_after", {{"loss", 2.5}}},
                   {"best", {{"step", 4}, {"loss", 2.0}}}};
  says({"<title>finished", "Finished: 20 steps in 1 h 1 min", "It learnt", "from 4 to 2,",
        "that of step 4", "kept: step 4", "runs/a b/adapter_model.safetensors",
        "--adapter &#39;runs/a b&#39; --chat --system &#39;It&#39;\\&#39;&#39;s.&#39; --prompt"});
  CHECK(report_html(in).find("refresh") == std::string::npos);
  run["result"]["best"]["loss"] = 3.99;
  says({"next to nothing"});
  run["result"].erase("eval_before");
  says({"No rows were kept for evaluation"});
  run["status"] = "stopped", run["result"]["steps"] = 8;
  says({"Stopped at step 8 of 20", "finetune --config &#39;runs/a b/run.toml&#39; --resume"});
  run["status"] = "failed", in.failure = "loss is not finite";
  says({"<title>failed", "Failed at step 8 of 20", "loss is not finite"});
}

TEST_CASE("a card for each prompt has the samples of all steps") {
  ReportInput in;
  in.curves.samples = {{5, {"p1", "r1", "", "five"}}, {9, {"p1", "r1", "", "nine"}}};
  std::string page = report_html(in);
  CHECK(count(page, "class=\"card sample\"") == 1);
  CHECK(page.find("with the adapter") == std::string::npos);
  in.samples = {{"p1", "r1", "base", "mine"}, {"p2", "r2", "base", "mine"}};
  page = report_html(in);
  CHECK(count(page, "class=\"card sample\"") == 2);
  CHECK(page.find("at step 5") < page.find("at step 9"));
  CHECK(page.find("at step 9") < page.find("with the adapter"));
  for (int i = 10; i < 100; ++i) in.curves.samples.emplace_back(i, Sample{"p1", "r1", "", "more"});
  page = report_html(in);
  CHECK(count(page, "<th>at step ") == 8);
  CHECK(page.find("at step 99") != std::string::npos);
}

TEST_CASE("metrics.jsonl becomes curves; null is left out, a bad line is named") {
  const test::ScratchFolder folder;
  CHECK(read_metrics(folder.path()).loss.empty());
  std::ofstream(folder.file("metrics.jsonl"))
      << "{\"step\":0,\"eval_loss\":3.5}\n{\"step\":1,\"loss\":2.0,\"lr\":0.1}\n"
         "{\"step\":2,\"loss\":null,\"lr\":0.2}\n";
  const MetricsCurves c = read_metrics(folder.path());
  CHECK(c.loss == MetricsCurves::Points{{1, 2}});
  CHECK(c.lr == MetricsCurves::Points{{1, 0.1}, {2, 0.2}});
  CHECK(c.eval_loss == MetricsCurves::Points{{0, 3.5}});
  std::ofstream(folder.file("metrics.jsonl")) << "{\"step\":1,\"loss\":\"two\"}\n";
  CHECK_THROWS_WITH_AS(read_metrics(folder.path()), doctest::Contains("metrics.jsonl:1: loss"),
                       InputError);
  std::ofstream(folder.file("metrics.jsonl")) << "{\"step\":1}\n{\"step\":\"two\"}\n";
  CHECK_THROWS_WITH_AS(read_metrics(folder.path()), doctest::Contains("metrics.jsonl:2"),
                       InputError);
}

TEST_CASE("what a model writes goes through metrics.jsonl, also half a character") {
  const test::ScratchFolder folder;
  MetricsLog log(folder.path(), 0, true, {});
  log.samples(7, {{"caf\xC3", "\"ref\"\n", "", "\xF0\x9F<b>"}});
  log.flush();
  const MetricsCurves c = read_metrics(folder.path());
  REQUIRE(c.samples.size() == 1);
  CHECK(c.samples[0].first == 7);
  CHECK(c.samples[0].second.prompt == "caf\uFFFD");
  CHECK(c.samples[0].second.reference == "\"ref\"\n");
  CHECK(c.samples[0].second.adapted == "\uFFFD<b>");
}
