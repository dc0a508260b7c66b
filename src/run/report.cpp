#include "run/report.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "io/json.h"
#include "io/paths.h"
#include "run/chart.h"
#include "run/page.h"
#include "tensor/error.h"
#include "text/data_file.h"

namespace lk {
namespace {

constexpr int kRefreshSeconds = 10;  // of the page of a run that is under way

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

std::string cards(const ReportInput& in) {
  const Json& run = in.run;
  const Json before = at(run, "result/eval_before/loss"), after = at(run, "result/eval_after/loss");
  std::string out =
      card("Training loss",
           number(at(run, "result/first_loss")) + " \u2192 " + number(at(run, "result/last_loss")),
           show(at(run, "result/steps")) + " steps done");
  if (before.is_number() || after.is_number())
    out += card("Evaluation loss", number(before) + " \u2192 " + number(after),
                "perplexity " + number(at(run, "result/eval_before/perplexity")) + " \u2192 " +
                    number(at(run, "result/eval_after/perplexity")));
  out += card("Speed", number(at(run, "result/tokens_per_second")) + " tokens/s",
              number(at(run, "result/seconds")) + " s in steps");
  out += card("Peak memory", mib(at(run, "memory/peak_bytes")) + " MiB", "of all purposes at once");
  const Json base = at(run, "parameters/base"), trained = at(run, "parameters/trainable");
  if (base.is_number() && trained.is_number())
    out += card(
        "Trained parameters", show(trained),
        short_number(100 * trained.get<double>() / (base.get<double>() + trained.get<double>())) +
            " % of all");
  return "<div class=\"cards\">\n" + out + "</div>\n";
}

std::string charts(const MetricsCurves& c) {
  std::vector<ChartLine> loss{{"training", c.loss, false}};
  if (!c.eval_loss.empty()) loss.push_back({"evaluation", c.eval_loss, c.eval_loss.size() <= 40});
  return "<h2>Curves</h2><div class=\"charts\">\n" + chart_svg("Loss", "nats per token", loss) +
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

// A row of a sample's card.
std::string row(const std::string& name, const std::string& text) {
  return "<tr><th>" + html_escape(name) + "</th><td><pre class=\"text\">" + html_escape(text) +
         "</pre></td></tr>\n";
}

std::string samples(const std::vector<Sample>& all) {
  if (all.empty()) return "";
  std::string out =
      "<h2>Before and after</h2><p class=\"quiet\">Rows of the evaluation file, continued "
      "greedily, " +
      std::to_string(kSampleTokens) + " tokens at most.</p>\n";
  for (const Sample& s : all) {
    out += "<div class=\"card sample\"><table>" + row("prompt", s.prompt) +
           row("without the adapter", s.base) + row("with the adapter", s.adapted) +
           row("in the file", s.reference) + "</table></div>\n";
  }
  return out;
}

// What the model wrote at several steps, for the same prompts.
std::string samples_along(const std::vector<std::pair<double, Sample>>& all) {
  if (all.empty()) return "";
  std::vector<std::string> prompts;
  for (const auto& [step, s] : all)
    if (std::find(prompts.begin(), prompts.end(), s.prompt) == prompts.end())
      prompts.push_back(s.prompt);
  std::string out = "<h2>Along the way</h2>\n";
  for (const std::string& prompt : prompts) {
    out += "<div class=\"card sample\"><table>" + row("prompt", prompt);
    for (const auto& [step, s] : all)
      if (s.prompt == prompt) out += row("step " + short_number(step), s.adapted);
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

std::string table(const std::string& title, const std::string& rows) {
  return "<h2>" + title + "</h2><table>\n" + rows + "</table>\n";
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
  const std::string subtitle = show(at(in.run, "status")) + " \u00b7 " +
                               show(at(in.run, "settings/model")) + " on " +
                               show(at(in.run, "settings/data")) + " \u00b7 " +
                               show(at(in.run, "device/name")) + ", " + show(at(in.run, "dtype"));
  return page_html(
      out, subtitle,
      cards(in) + charts(in.curves) + samples(in.samples) + samples_along(in.curves.samples) +
          memory(in.run) + proved(in.proofs) +
          table("Settings", table_rows(settings, "") + table_rows(identity, "")) +
          table("Data and machine", table_rows(at(in.run, "data"), "") +
                                        table_rows({{"device", at(in.run, "device/description")},
                                                    {"load_seconds", at(in.run, "load_seconds")},
                                                    {"lorikeet", at(in.run, "version")}},
                                                   "") +
                                        table_rows(at(in.run, "base"), "base.")),
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
      if (line.contains(key) && line.at(key).is_number())
        points->emplace_back(step, line.at(key).get<double>());
    return true;
  });
  return curves;
}

}  // namespace lk
