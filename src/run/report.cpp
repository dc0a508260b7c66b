#include "run/report.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "io/json.h"
#include "io/paths.h"
#include "run/chart.h"
#include "run/page.h"
#include "run/report_head.h"
#include "tensor/error.h"
#include "text/data_file.h"

namespace lk {
namespace {

constexpr std::size_t kMostSampleSteps = 8;  // of a prompt's samples along the way
constexpr std::ptrdiff_t kRecent = 20;       // steps whose speed counts for a run under way

std::string mib(const Json& bytes) {
  char text[40];
  std::snprintf(text, sizeof text, "%.1f",
                bytes.is_number() ? bytes.get<double>() / (1 << 20) : 0.0);
  return text;
}

std::string card(const std::string& name, const std::string& value, const std::string& note = "") {
  return "<div class=\"card\"><small>" + html_escape(name) + "</small><b>" + html_escape(value) +
         "</b><small>" + html_escape(note) + "</small></div>\n";
}

double recent_median(const MetricsCurves::Points& points) {
  std::vector<double> last;
  for (auto p = points.end() - std::min(std::ssize(points), kRecent); p != points.end(); ++p)
    last.push_back(p->second);
  const auto middle = last.begin() + std::ssize(last) / 2;
  std::nth_element(last.begin(), middle, last.end());
  return *middle;
}

// "2.54 → 2.4", to what was kept, or while nothing is, to the last evaluation.
std::string evaluation_text(const ReportInput& in) {
  const Json before = at(in.run, "result/eval_before/loss"), kept = kept_loss(in.run);
  if (!before.is_number() || !kept.is_number()) return first_to_last(in.curves.eval_loss);
  return number(before) + " \u2192 " + number(kept);
}

std::string evaluation_note(const ReportInput& in) {
  if (const std::string step = kept_earlier(in.run); !step.empty())
    return concat("kept: ", step,
                  "; the last step's: ", number(at(in.run, "result/eval_after/loss")));
  const auto* lowest = lowest_evaluation(in.curves);
  return lowest ? concat("lowest ", short_number(lowest->second), " at step ",
                         short_number(lowest->first))
                : "before training";
}

std::string cards(const ReportInput& in) {
  const Json& run = in.run;
  const MetricsCurves& c = in.curves;
  const std::int64_t step = last_step(in);
  std::string out = card(
      "Training loss", first_to_last(c.loss),
      concat(short_number(static_cast<double>(step)), step == 1 ? " step done" : " steps done"));
  if (!c.eval_loss.empty())
    out += card("Evaluation loss", evaluation_text(in), evaluation_note(in));
  const Json speed = at(run, "result/tokens_per_second");
  if (speed.is_number())
    out += card("Speed", number(speed) + " tokens/s",
                number(at(run, "result/seconds")) + " s in steps");
  else if (!c.tokens_per_second.empty())
    out += card("Speed", short_number(recent_median(c.tokens_per_second)) + " tokens/s",
                "in the last steps");
  if (const Json peak = at(run, "memory/peak_bytes"); peak.is_number())
    out += card("Peak memory", mib(peak) + " MiB", "of all purposes at once");
  else if (const Json planned = at(run, "planned_peak_bytes"); planned.is_number())
    out += card("Peak memory", mib(planned) + " MiB", "as planned");
  const Json base = at(run, "parameters/base"), trained = at(run, "parameters/trainable");
  if (base.is_number() && trained.is_number())
    out += card(
        "Trained parameters", number(trained),
        short_number(100 * trained.get<double>() / (base.get<double>() + trained.get<double>())) +
            " % of all");
  return "<div class=\"cards\">\n" + out + "</div>\n";
}

// Marks the step whose adapter was kept, or the lowest evaluation so far.
std::vector<ChartMark> marks(const ReportInput& in) {
  const Json kept = at(in.run, "result/kept_step");
  if (kept.is_number()) {
    if (kept == at(in.run, "result/steps")) return {};
    return {{kept.get<double>(), "kept: step " + show(kept)}};
  }
  const auto* lowest = lowest_evaluation(in.curves);
  if (!lowest || lowest->first == in.curves.eval_loss.back().first) return {};
  return {{lowest->first, "lowest: step " + short_number(lowest->first)}};
}

std::string charts(const ReportInput& in) {
  const MetricsCurves& c = in.curves;
  std::vector<ChartLine> loss{{"training", c.loss, false}};
  if (!c.eval_loss.empty()) loss.push_back({"evaluation", c.eval_loss, c.eval_loss.size() <= 40});
  return "<h2>Curves</h2><div class=\"charts\">\n" +
         chart_svg("Loss", "nats per token", loss, marks(in)) +
         chart_svg("Learning rate", "", {{"rate", c.lr, false}}) +
         chart_svg("Gradient norm", "before clipping", {{"norm", c.grad_norm, false}}) +
         chart_svg("Speed", "tokens per second", {{"tokens/s", c.tokens_per_second, false}}) +
         "</div>\n";
}

std::string memory(const Json& run) {
  const Json tags = at(run, "memory/tags");
  if (!tags.is_object()) return "";
  std::vector<std::pair<double, std::string>> order;
  for (const auto& [tag, bytes] : tags.items())
    order.emplace_back(bytes.value("peak_bytes", 0.0), tag);
  std::sort(order.rbegin(), order.rend());
  std::string rows;
  for (const auto& [peak, tag] : order) {
    char width[32];
    std::snprintf(width, sizeof width, "%.2f", 100 * peak / std::max(order.front().first, 1.0));
    rows += "<tr><td>" + html_escape(tag) + "</td><td class=\"number\">" + mib(peak) +
            "</td><td class=\"number\">" + mib(tags.at(tag).value("live_bytes", 0.0)) +
            "</td><td style=\"width:45%\"><div class=\"bar\" style=\"width:" + width +
            "%\"></div></td></tr>\n";
  }
  return "<h2>Memory by purpose</h2><div class=\"scroll\"><table><tr><th>purpose</th>"
         "<th class=\"number\">peak MiB</th><th class=\"number\">at the end "
         "MiB</th><th></th></tr>\n" +
         rows + "</table></div>\n";
}

// A row of a sample's card; the model's own words stand out.
std::string row(const std::string& name, const std::string& text, bool ours = false) {
  const char* style = ours ? " class=\"ours\"" : "";
  return concat("<tr><th", style, ">", html_escape(name), "</th><td", style,
                "><pre class=\"text\" dir=\"auto\">", html_escape(text), "</pre></td></tr>\n");
}

// A card for each prompt: what was written at several steps, and at the end without and with the
// adapter, or by the model whose weights were all trained.
std::string samples(const ReportInput& in) {
  std::vector<Sample> prompts = in.samples;
  const bool ended = !prompts.empty();
  auto same_row = [](const Sample& a, const Sample& b) {
    return a.prompt == b.prompt && a.reference == b.reference;
  };
  for (const auto& [step, s] : in.curves.samples)
    if (std::none_of(prompts.begin(), prompts.end(),
                     [&](const Sample& p) { return same_row(p, s); }))
      prompts.push_back({s.prompt, s.reference, "", ""});
  if (prompts.empty()) return "";
  std::string out =
      "<h2>Samples</h2><p class=\"quiet\">What the model makes of rows kept for evaluation: "
      "greedily, " +
      std::to_string(kSampleTokens) + " tokens at most.</p>\n";
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const Sample& p = prompts[i];
    const bool final = ended && i < in.samples.size();
    out += "<div class=\"card sample\"><table>" + row("prompt", p.prompt) +
           row("expected", p.reference);
    const bool has_base = at(in.run, "parameters/base") != 0;  // else it is gone
    if (final && has_base) out += row("without the adapter", p.base);
    std::vector<const std::pair<double, Sample>*> along;
    for (const auto& made : in.curves.samples)
      if (same_row(p, made.second)) along.push_back(&made);
    const std::size_t shown = std::min(along.size(), kMostSampleSteps);
    for (std::size_t k = 1; k <= shown; ++k) {  // evenly, the last among them
      const auto& [step, s] = *along[k * along.size() / shown - 1];
      out += row("at step " + short_number(step), s.adapted);
    }
    if (final) out += row(has_base ? "with the adapter" : "trained", p.adapted, true);
    out += "</table></div>\n";
  }
  return out;
}

// Rows of a table of an object's members; nested objects are named "outer.inner".
std::string table_rows(const Json& object, const std::string& prefix) {
  std::string out;
  if (!object.is_object()) return out;
  for (const auto& [key, value] : object.items())
    out += value.is_object() ? table_rows(value, key + ".")
                             : "<tr><th>" + html_escape(prefix + key) + "</th><td>" +
                                   html_escape(show(value)) + "</td></tr>\n";
  return out;
}

// A table that is folded until a reader opens it.
std::string table(const std::string& title, const std::string& rows) {
  return "<details><summary>" + title + "</summary><table class=\"pairs\">\n" + rows +
         "</table></details>\n";
}

std::string proved(const std::vector<std::string>& proofs) {
  if (proofs.empty()) return "";
  std::string out = "<h2>Proved</h2><ul class=\"proved\">\n";
  for (const std::string& line : proofs) out += "<li>" + html_escape(line) + "</li>\n";
  return out + "</ul>\n";
}

}  // namespace

std::string report_html(const ReportInput& in) {
  const std::string out = show(at(in.run, "settings/out"));
  Json settings = at(in.run, "settings");
  Json identity = at(settings, "run");
  if (identity.is_object()) identity.erase("config"), identity.erase("model_files");  // long
  if (settings.is_object()) settings.erase("run");
  const std::string subtitle = show(at(in.run, "settings/model")) + " on " +
                               show(at(in.run, "settings/data")) + " \u00b7 " +
                               show(at(in.run, "device/name")) + ", " + show(at(in.run, "dtype"));
  return page_html(
      report_state(in) + " \u00b7 " + folder_name(out), out, subtitle,
      report_head(in) + cards(in) + charts(in) + samples(in) +
          table("Settings", table_rows(settings, "") + table_rows(identity, "")) +
          table("Data and machine", table_rows(at(in.run, "data"), "") +
                                        table_rows({{"device", at(in.run, "device/description")},
                                                    {"load_seconds", at(in.run, "load_seconds")},
                                                    {"lorikeet", at(in.run, "version")}},
                                                   "") +
                                        table_rows(at(in.run, "base"), "base.")) +
          memory(in.run) + proved(in.proofs),
      at(in.run, "status") == "running" ? kRefreshSeconds : 0);
}

MetricsCurves read_metrics(const std::string& folder) {
  const std::string path = folder + "/metrics.jsonl";
  MetricsCurves curves;
  if (file_bytes(path) == 0) return curves;
  const std::pair<const char*, MetricsCurves::Points*> keys[] = {
      {"loss", &curves.loss},
      {"eval_loss", &curves.eval_loss},
      {"lr", &curves.lr},
      {"grad_norm", &curves.grad_norm},
      {"tokens_per_second", &curves.tokens_per_second}};
  for_each_json_row(path, [&](const Json& line, const std::string& where) {
    const double step = json_number(line, "step", where);
    if (line.contains("sample")) {
      const Json& s = line.at("sample");
      curves.samples.emplace_back(
          step, Sample{json_string(s, "prompt", where), json_string(s, "reference", where), "",
                       json_string(s, "text", where)});
    }
    for (const auto& [key, points] : keys)
      if (line.contains(key) && !line.at(key).is_null())
        points->emplace_back(step, json_number(line, key, where));
    return true;
  });
  return curves;
}

}  // namespace lk
