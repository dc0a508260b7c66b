#include "run/compare.h"

#include <algorithm>
#include <map>
#include <set>

#include "io/input_file.h"
#include "io/paths.h"
#include "io/printable.h"
#include "run/chart.h"
#include "run/page.h"
#include "run/report_head.h"
#include "tensor/error.h"

namespace lk {
namespace {

constexpr const char* kTitleEnd = " runs compared";

// Adds the leaves of `object`, named by their last key, which no two of run.json's settings share
// unless they say the same ("format").
void add_leaves(const Json& object, std::map<std::string, Json>& leaves) {
  for (const auto& [key, value] : object.items())
    if (value.is_object())
      add_leaves(value, leaves);
    else
      leaves[key] = value;
}

// What was asked for and what it met, by name. The output folder is the run's name already.
std::map<std::string, Json> settings_of(const Json& run) {
  std::map<std::string, Json> all;
  const Json settings = at(run, "settings");
  if (settings.is_object()) add_leaves(settings, all);
  all.erase("out");
  all["device"] = at(run, "device/name");
  all["dtype"] = at(run, "dtype");
  all["rows"] = at(run, "data/rows");
  all["lorikeet"] = at(run, "version");
  return all;
}

// Hashes are told apart by their beginning.
std::string setting_text(const Json& value) {
  constexpr std::size_t kHexOfSha256 = 64;
  const std::string text = show(value);
  const bool hash = text.size() == kHexOfSha256 &&
                    text.find_first_not_of("0123456789abcdef") == std::string::npos;
  return hash ? text.substr(0, 12) : text;
}

std::string change(const Json& from, const Json& to) {
  if (!from.is_number() && !to.is_number()) return "-";
  return number(from) + " \u2192 " + number(to);
}

// "1.693 at step 40", of the lowest evaluation.
std::string best(const MetricsCurves& curves) {
  const auto* lowest = lowest_evaluation(curves);
  return lowest ? short_number(lowest->second) + " at step " + short_number(lowest->first) : "-";
}

// The run whose evaluation loss got lowest; runs.size() if none was evaluated or if they were not
// evaluated on the same rows, as their losses say nothing of each other then.
std::size_t best_run(const std::vector<ComparedRun>& runs) {
  std::size_t best = runs.size();
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const char* rows = "settings/run/eval_rows_sha256";
    if (at(runs[i].run, rows) != at(runs[0].run, rows)) return runs.size();
    const auto* lowest = lowest_evaluation(runs[i].curves);
    if (lowest &&
        (best == runs.size() || lowest->second < lowest_evaluation(runs[best].curves)->second))
      best = i;
  }
  return best;
}

std::string mebibytes(const Json& bytes) {
  return bytes.is_number() ? short_number(bytes.get<double>() / (1 << 20)) + " MiB" : "-";
}

// The result's value, or what the curves say while a run has no result.
Json or_curve(const Json& result, const MetricsCurves::Points& points, bool last) {
  if (!result.is_null() || points.empty()) return result;
  return (last ? points.back() : points.front()).second;
}

Json steps_done(const ComparedRun& r) {
  const Json done = at(r.run, "result/steps");
  return done.is_null() && !r.curves.lr.empty() ? Json(r.curves.lr.back().first) : done;
}

std::vector<ComparisonTable::Row> results_of(const std::vector<ComparedRun>& runs) {
  std::vector<ComparisonTable::Row> rows;
  auto row = [&](const std::string& name, auto&& value) {
    rows.push_back({name, {}});
    for (const ComparedRun& r : runs) rows.back().values.push_back(value(r));
  };
  row("status", [](const ComparedRun& r) { return show(at(r.run, "status")); });
  row("steps done", [](const ComparedRun& r) { return number(steps_done(r)); });
  row("training loss", [](const ComparedRun& r) {
    return change(or_curve(at(r.run, "result/first_loss"), r.curves.loss, false),
                  or_curve(at(r.run, "result/last_loss"), r.curves.loss, true));
  });
  row("evaluation loss, kept", [](const ComparedRun& r) {
    const std::string step = kept_earlier(r.run);
    return change(or_curve(at(r.run, "result/eval_before/loss"), r.curves.eval_loss, false),
                  or_curve(kept_loss(r.run), r.curves.eval_loss, true)) +
           (step.empty() ? "" : " at " + step);
  });
  row("best evaluation", [](const ComparedRun& r) { return best(r.curves); });
  row("trained parameters",
      [](const ComparedRun& r) { return number(at(r.run, "parameters/trainable")); });
  row("peak memory", [](const ComparedRun& r) {
    const Json of_all_parts = at(r.run, "result/peak_bytes");  // runs of earlier versions lack it
    return mebibytes(of_all_parts.is_null() ? at(r.run, "memory/peak_bytes") : of_all_parts);
  });
  row("tokens/s",
      [](const ComparedRun& r) { return number(at(r.run, "result/tokens_per_second")); });
  row("seconds in steps", [](const ComparedRun& r) { return number(at(r.run, "result/seconds")); });
  return rows;
}

// Characters of a text that take a column each: bytes that do not continue a character.
std::size_t columns(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

std::string table_html(const std::vector<ComparedRun>& runs,
                       const std::vector<ComparisonTable::Row>& rows, std::size_t best) {
  std::string out = "<div class=\"scroll\"><table class=\"runs\"><tr><th></th>";
  for (std::size_t i = 0; i < runs.size(); ++i)
    out += concat("<th><div class=\"cell key s", i % kLineColours, "\">", line_swatch(i), "<b>",
                  html_escape(runs[i].name), "</b></div></th>");
  out += "</tr>\n";
  for (const auto& row : rows) {
    out += "<tr><th>" + html_escape(row.name) + "</th>";
    for (std::size_t i = 0; i < runs.size(); ++i)
      out += concat("<td><div class=\"cell", i == best ? " best" : "", "\">",
                    html_escape(row.values[i]), "</div></td>");
    out += "</tr>\n";
  }
  return out + "</table></div>\n";
}

// Which run is best, and where that can't be said, why.
std::string verdict(const std::vector<ComparedRun>& runs, std::size_t best_index) {
  if (best_index < runs.size()) {
    const ComparedRun& r = runs[best_index];
    return "<div class=\"card lead\"><b>Lowest evaluation loss: " + html_escape(r.name) +
           "</b><p>" + best(r.curves) + "</p></div>\n";
  }
  const bool any = std::any_of(runs.begin(), runs.end(), [](const ComparedRun& r) {
    return lowest_evaluation(r.curves) != nullptr;
  });
  return concat("<div class=\"card lead\"><p>",
                any ? "The runs were evaluated on different rows: their evaluation losses say "
                      "nothing of which is better."
                    : "No run was evaluated while it trained: nothing says which is better.",
                "</p></div>\n");
}

}  // namespace

std::vector<ComparedRun> read_runs(const std::vector<std::string>& folders) {
  if (folders.size() < 2) throw UsageError("compare: give the folders of two runs or more");
  std::map<std::string, int> called;
  std::set<std::string> seen;
  for (const std::string& folder : folders) {
    ++called[folder_name(folder)];
    if (!seen.insert(folder).second) throw UsageError(folder + ": named twice");
  }
  std::vector<ComparedRun> runs;
  for (const std::string& folder : folders) {
    ComparedRun r;
    r.name = called[folder_name(folder)] > 1 ? folder : folder_name(folder);
    const std::string path = folder + "/run.json";
    if (!exists(path)) throw InputError(folder + ": no run.json: not the folder of a run");
    r.run = read_json(path);
    if (!r.run.is_object()) throw InputError(path + ": not an object");
    r.curves = read_metrics(folder);
    runs.push_back(std::move(r));
  }
  return runs;
}

ComparisonTable compare_runs(const std::vector<ComparedRun>& runs) {
  ComparisonTable table;
  std::vector<std::map<std::string, Json>> settings;
  std::set<std::string> names;
  for (const ComparedRun& r : runs) {
    settings.push_back(settings_of(r.run));
    for (const auto& [name, value] : settings.back()) names.insert(name);
  }
  for (const std::string& name : names) {
    ComparisonTable::Row row{name, {}};
    for (const auto& own : settings) {
      const auto found = own.find(name);
      row.values.push_back(found == own.end() ? "-" : setting_text(found->second));
    }
    const bool same = std::all_of(row.values.begin(), row.values.end(),
                                  [&](const std::string& v) { return v == row.values.front(); });
    if (!same) table.settings.push_back(std::move(row));
  }
  table.results = results_of(runs);
  return table;
}

std::string comparison_text(const std::vector<ComparedRun>& runs, const ComparisonTable& table) {
  std::vector<std::vector<std::string>> lines(1);
  lines[0].push_back("");
  for (const ComparedRun& r : runs) lines[0].push_back(without_controls(r.name, Lines::One));
  auto add = [&](const std::vector<ComparisonTable::Row>& rows) {
    for (const auto& row : rows) {
      lines.push_back({without_controls(row.name, Lines::One)});
      for (const std::string& v : row.values)
        lines.back().push_back(without_controls(v, Lines::One));
    }
  };
  add(table.settings);
  lines.push_back({});
  add(table.results);
  std::vector<std::size_t> widths(runs.size() + 1);
  for (const auto& line : lines)
    for (std::size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], columns(line[i]));
  std::string out = table.settings.empty() ? "The runs have the same settings.\n" : "";
  for (const auto& line : lines) {
    std::string text;
    for (std::size_t i = 0; i < line.size(); ++i)
      text +=
          line[i] + std::string(i + 1 < line.size() ? widths[i] - columns(line[i]) + 2 : 0, ' ');
    out += text + "\n";
  }
  return out;
}

std::string comparison_html(const std::vector<ComparedRun>& runs, const ComparisonTable& table) {
  auto lines = [&](MetricsCurves::Points MetricsCurves::*curve, bool dots) {
    std::vector<ChartLine> all;
    for (const ComparedRun& r : runs)
      all.push_back({r.name, r.curves.*curve, dots && (r.curves.*curve).size() <= 40});
    return all;
  };
  std::string charts =
      "<h2>Curves</h2><div class=\"charts\">\n" +
      chart_svg("Training loss", "nats per token", lines(&MetricsCurves::loss, false));
  if (std::any_of(runs.begin(), runs.end(),
                  [](const auto& r) { return !r.curves.eval_loss.empty(); }))
    charts +=
        chart_svg("Evaluation loss", "nats per token", lines(&MetricsCurves::eval_loss, true));
  charts +=
      chart_svg("Learning rate", "", lines(&MetricsCurves::lr, false)) +
      chart_svg("Gradient norm", "before clipping", lines(&MetricsCurves::grad_norm, false)) +
      chart_svg("Speed", "tokens per second", lines(&MetricsCurves::tokens_per_second, false)) +
      "</div>\n";
  const std::size_t best_index = best_run(runs);
  const std::string settings = table.settings.empty()
                                   ? "<p class=\"quiet\">The runs have the same settings.</p>\n"
                                   : table_html(runs, table.settings, runs.size());
  const std::string title = std::to_string(runs.size()) + kTitleEnd;
  return page_html(title, title, "",
                   verdict(runs, best_index) + "<h2>Results</h2>" +
                       table_html(runs, table.results, best_index) +
                       "<h2>Settings that differ</h2>" + settings + charts);
}

bool is_comparison_page(const std::string& path) {
  const InputFile file(path);
  std::string page(std::min<std::uint64_t>(file.size(), 4096), ' ');  // its head
  file.read(0, page.data(), page.size());
  const std::size_t title = page.find("<title>"), end = page.find("</title>");
  return page.starts_with("<!doctype html>") && title < end && end != page.npos &&
         std::string_view(page).substr(title, end - title).ends_with(kTitleEnd);
}

}  // namespace lk
