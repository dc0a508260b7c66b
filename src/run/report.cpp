#include "run/report.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "io/json.h"
#include "io/paths.h"
#include "run/chart.h"
#include "tensor/error.h"
#include "text/data_file.h"

namespace lk {
namespace {

constexpr const char* kStyle = R"css(
:root { --page: #fafaf7; --card: #ffffff; --ink: #1d2126; --quiet: #5f6873; --rule: #dcdfe3;
        --s0: #1764ab; --s1: #c2410c; --good: #1a7f4b; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --card: #1e2329; --ink: #e7eaee; --quiet: #a0a9b4; --rule: #363d46;
          --s0: #6fb1f0; --s1: #ff9d66; --good: #63c994; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 16px; background: var(--page); color: var(--ink);
       font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 28px 0 8px; }
.quiet, small { color: var(--quiet); } p { margin: 4px 0; overflow-wrap: anywhere; }
.cards, .charts { display: grid; gap: 12px; }
.cards { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin-top: 16px; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.card, figure { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
                padding: 10px 14px; margin: 0; }
.card b { display: block; font-size: 1.15rem; overflow-wrap: anywhere; }
figcaption { font-size: .9rem; min-height: 3em; } svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
.grid { stroke: var(--rule); } .axis { stroke: var(--quiet); }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .band { stroke: none; opacity: .2; }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); } .key.s0 { color: var(--s0); }
.key.s1 { color: var(--s1); } .band.s0, .dot.s0 { fill: var(--s0); } .band.s1, .dot.s1 { fill: var(--s1); }
.key { margin-right: 12px; white-space: nowrap; } .key b { color: var(--ink); font-weight: 500; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top;
         overflow-wrap: anywhere; font-weight: 400; }
th { color: var(--quiet); } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: var(--s0); height: 10px; border-radius: 2px; min-width: 1px; margin-top: 6px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; margin: 0; font: inherit;
        max-height: 14em; overflow-y: auto; }
.sample { margin-bottom: 12px; } .sample th { width: 8.5em; } .proved li::marker { content: "\2713\a0"; color: var(--good); }
)css";

std::string show(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "none";
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_number_float()) return short_number(value.get<double>());
  if (value.is_array()) {
    std::string out;
    for (const Json& item : value) out += (out.empty() ? "" : ", ") + show(item);
    return out;
  }
  return json_text(value);
}

// The value at "a/b/c", or null if there is none.
Json at(const Json& json, const std::string& pointer) {
  const Json::json_pointer p("/" + pointer);
  return json.contains(p) ? json.at(p) : Json(nullptr);
}

std::string number(const Json& value) {
  return value.is_number() ? short_number(value.get<double>()) : "-";
}

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

std::string samples(const std::vector<Sample>& all) {
  if (all.empty()) return "";
  std::string out =
      "<h2>Before and after</h2><p class=\"quiet\">Rows of the evaluation file, continued "
      "greedily, " +
      std::to_string(kSampleTokens) + " tokens at most.</p>\n";
  for (const Sample& s : all) {
    auto row = [](const char* name, const std::string& text) {
      return concat("<tr><th>", name, "</th><td><pre class=\"text\">", html_escape(text),
                    "</pre></td></tr>\n");
    };
    out += "<div class=\"card sample\"><table>" + row("prompt", s.prompt) +
           row("without the adapter", s.base) + row("with the adapter", s.adapted) +
           row("in the file", s.reference) + "</table></div>\n";
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
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
         "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
         "'unsafe-inline'\">\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>" +
         html_escape(out) + "</title>\n<style>" + kStyle + "</style></head><body>\n<h1>" +
         html_escape(out) + "</h1>\n<p class=\"quiet\">" + html_escape(show(at(in.run, "status"))) +
         " \u00b7 " + html_escape(show(at(in.run, "settings/model"))) + " on " +
         html_escape(show(at(in.run, "settings/data"))) + " \u00b7 " +
         html_escape(show(at(in.run, "device/name"))) + ", " +
         html_escape(show(at(in.run, "dtype"))) + "</p>\n" + cards(in) + charts(in.curves) +
         samples(in.samples) + memory(in.run) + proved(in.proofs) +
         table("Settings", table_rows(settings, "") + table_rows(identity, "")) +
         table("Data and machine", table_rows(at(in.run, "data"), "") +
                                       table_rows({{"device", at(in.run, "device/description")},
                                                   {"load_seconds", at(in.run, "load_seconds")},
                                                   {"lorikeet", at(in.run, "version")}},
                                                  "") +
                                       table_rows(at(in.run, "base"), "base.")) +
         "</body></html>\n";
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
    for (const auto& [key, points] : keys)
      if (line.contains(key) && line.at(key).is_number())
        points->emplace_back(step, line.at(key).get<double>());
    return true;
  });
  return curves;
}

}  // namespace lk
