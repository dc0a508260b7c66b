#include "run/compare.h"

#include <algorithm>
#include <map>
#include <set>

#include "io/paths.h"
#include "io/printable.h"
#include "run/chart.h"
#include "run/page.h"
#include "tensor/error.h"

namespace lk {
namespace {

// Adds the leaves of `object`, named by their last key, which no two of run.json's settings share
// unless they say the same ("format").
void add_leaves(const Json& object, std::map<std::string, Json>& leaves) {
  for (const auto& [key, value] : object.items())
    if (value.is_object() && !value.empty())
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
std::string setting_text(const std::string& name, const Json& value) {
  const std::string text = show(value);
  return name.ends_with("sha256") && text.size() > 12 ? text.substr(0, 12) : text;
}

std::string change(const Json& from, const Json& to) {
  if (!from.is_number() && !to.is_number()) return "-";
  return number(from) + " \u2192 " + number(to);
}

// "1.693 at step 40", of the lowest evaluation.
std::string best(const MetricsCurves::Points& points) {
  if (points.empty()) return "-";
  const auto lowest =
      std::min_element(points.begin(), points.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return short_number(lowest->second) + " at step " + short_number(lowest->first);
}

std::string mebibytes(const Json& bytes) {
  return bytes.is_number() ? short_number(bytes.get<double>() / (1 << 20)) + " MiB" : "-";
}

std::vector<ComparisonTable::Row> results_of(const std::vector<ComparedRun>& runs) {
  std::vector<ComparisonTable::Row> rows;
  auto row = [&](const std::string& name, auto&& value) {
    rows.push_back({name, {}});
    for (const ComparedRun& r : runs) rows.back().values.push_back(value(r));
  };
  row("status", [](const ComparedRun& r) { return show(at(r.run, "status")); });
  row("steps done", [](const ComparedRun& r) { return number(at(r.run, "result/steps")); });
  row("training loss", [](const ComparedRun& r) {
    return change(at(r.run, "result/first_loss"), at(r.run, "result/last_loss"));
  });
  row("evaluation loss", [](const ComparedRun& r) {
    return change(at(r.run, "result/eval_before/loss"), at(r.run, "result/eval_after/loss"));
  });
  row("best evaluation", [](const ComparedRun& r) { return best(r.curves.eval_loss); });
  row("trained parameters",
      [](const ComparedRun& r) { return number(at(r.run, "parameters/trainable")); });
  row("peak memory",
      [](const ComparedRun& r) { return mebibytes(at(r.run, "memory/peak_bytes")); });
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
                       const std::vector<ComparisonTable::Row>& rows) {
  std::string out = "<div class=\"scroll\"><table><tr><th></th>";
  for (std::size_t i = 0; i < runs.size(); ++i)
    out += concat("<th><span class=\"key s", i % kLineColours, "\"><b>", html_escape(runs[i].name),
                  "</b></span></th>");
  out += "</tr>\n";
  for (const auto& row : rows) {
    out += "<tr><th>" + html_escape(row.name) + "</th>";
    for (const std::string& value : row.values) out += "<td>" + html_escape(value) + "</td>";
    out += "</tr>\n";
  }
  return out + "</table></div>\n";
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
      row.values.push_back(found == own.end() ? "-" : setting_text(name, found->second));
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
  const std::string settings = table.settings.empty()
                                   ? "<p class=\"quiet\">The runs have the same settings.</p>\n"
                                   : table_html(runs, table.settings);
  return page_html(std::to_string(runs.size()) + " runs compared", "",
                   "<h2>Settings that differ</h2>" + settings + "<h2>Results</h2>" +
                       table_html(runs, table.results) + charts);
}

}  // namespace lk
