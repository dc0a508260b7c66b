// How a sweep is shown: a table as text, and sweep.html.
#include <algorithm>
#include <functional>
#include <limits>

#include "io/printable.h"
#include "run/chart.h"
#include "run/page.h"
#include "run/report.h"
#include "run/sweep.h"

namespace lk {
namespace {

double value_or_infinity(const Json& value) {
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::infinity();
}
double result(const Json& trial, const char* key) {
  return value_or_infinity(at(trial, concat("result/", key)));
}

// Places of the trials in sweep.json, those with the lowest value first and those without one last.
std::vector<std::size_t> sorted_by(const Json& trials, const char* key) {
  std::vector<std::size_t> order(trials.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return result(trials[a], key) < result(trials[b], key);
  });
  return order;
}

struct Column {
  std::string name;
  bool numeric;
  std::function<std::string(const Json& trial)> value;
};

std::string number_of_mebibytes(const Json& bytes) {
  return bytes.is_number() ? short_number(bytes.get<double>() / (1 << 20)) : "-";
}

std::vector<Column> columns_of(const Json& trials) {
  std::vector<Column> all;
  if (!trials.empty())
    for (const auto& [flag, ignored] : trials[0]["flags"].items())
      all.push_back({flag, true, [flag = flag](const Json& t) { return show(t["flags"][flag]); }});
  auto add = [&](const char* name, const char* key) {
    all.push_back(
        {name, true, [key](const Json& t) { return number(at(t, concat("result/", key))); }});
  };
  add("evaluation loss", "eval_loss");
  add("last training loss", "last_loss");
  add("trained parameters", "trainable_parameters");
  all.push_back({"peak MiB", true,
                 [](const Json& t) { return number_of_mebibytes(at(t, "result/peak_bytes")); }});
  add("seconds", "seconds");
  add("tokens/s", "tokens_per_second");
  all.push_back({"state", false, [](const Json& t) {
                   const int code = t["exit_code"].get<int>();
                   return show(t["state"]) + (code ? concat(" (", code, ")") : "");
                 }});
  return all;
}

std::string table_html(const Json& trials, const std::vector<std::size_t>& order) {
  const std::vector<Column> columns = columns_of(trials);
  std::string out = "<div class=\"scroll\"><table><tr><th>trial</th>";
  for (const Column& c : columns)
    out += concat("<th", c.numeric ? " class=\"number\"" : "", ">", html_escape(c.name), "</th>");
  out += "</tr>\n";
  for (std::size_t i : order) {
    const std::string name = html_escape(trials[i]["name"].get<std::string>());
    out += concat("<tr><td><span class=\"key s", i % kLineColours, "\"><b><a href=\"", name,
                  "/report.html\">", name, "</a></b></span></td>");
    for (const Column& c : columns)
      out += concat("<td", c.numeric ? " class=\"number\"" : "", ">",
                    html_escape(c.value(trials[i])), "</td>");
    out += "</tr>\n";
  }
  return out + "</table></div>\n";
}

// The same table in several orders, of which the chosen one is shown: no script is needed for that.
std::string tables_html(const Json& trials) {
  constexpr std::pair<const char*, const char*> kOrders[] = {
      {"evaluation loss", "eval_loss"},
      {"trained parameters", "trainable_parameters"},
      {"peak memory", "peak_bytes"},
      {"seconds", "seconds"}};
  std::string style = "<style>.order { display: none; }", inputs, tables;
  int n = 0;
  for (const auto& [name, key] : kOrders) {
    style += concat(" #by", n, ":checked ~ #table", n, " { display: block; }");
    inputs += concat("<input type=\"radio\" name=\"order\" id=\"by", n, "\"",
                     n == 0 ? " checked" : "", "> <label for=\"by", n, "\">", name, "</label>\n");
    tables += concat("<div class=\"order\" id=\"table", n, "\">",
                     table_html(trials, sorted_by(trials, key)), "</div>\n");
    ++n;
  }
  return style + "</style>\n<div><span class=\"quiet\">sorted by</span>\n" + inputs + tables +
         "</div>\n";
}

std::string charts_html(const Json& trials, const std::string& out) {
  std::vector<ChartLine> loss, eval;
  std::vector<ChartPoint> parameters, memory, time;
  for (std::size_t i = 0; i < trials.size(); ++i) {
    const std::string name = trials[i]["name"].get<std::string>();
    MetricsCurves curves;
    try {
      curves = read_metrics(out + "/" + name);
    } catch (const Error&) {  // a trial that was cut off in its first line has no curve yet
    }
    loss.push_back({name, curves.loss, false});
    eval.push_back({name, curves.eval_loss, curves.eval_loss.size() <= 40});
    const double quality = result(trials[i], "eval_loss");
    parameters.push_back({name, result(trials[i], "trainable_parameters"), quality, i});
    memory.push_back({name, result(trials[i], "peak_bytes") / (1 << 20), quality, i});
    time.push_back({name, result(trials[i], "seconds"), quality, i});
  }
  return "<h2>Curves</h2><div class=\"charts\">\n" +
         chart_svg("Training loss", "nats per token", loss) +
         chart_svg("Evaluation loss", "nats per token", eval) +
         "</div>\n<h2>What quality costs</h2><div class=\"charts\">\n" +
         scatter_svg("Evaluation loss against trained parameters", "parameters", parameters) +
         scatter_svg("Evaluation loss against peak memory", "MiB", memory) +
         scatter_svg("Evaluation loss against time", "seconds in steps", time) + "</div>\n";
}

}  // namespace

std::string sweep_text(const Json& record) {
  const Json& trials = record["trials"];
  std::vector<std::vector<std::string>> lines(1);
  const std::vector<Column> columns = columns_of(trials);
  for (const Column& c : columns) lines[0].push_back(without_controls(c.name, Lines::One));
  for (std::size_t i : sorted_by(trials, "eval_loss")) {
    lines.emplace_back();
    for (const Column& c : columns)
      lines.back().push_back(without_controls(c.value(trials[i]), Lines::One));
  }
  std::string out;
  for (const auto& line : lines) {
    for (std::size_t c = 0; c < line.size(); ++c) {
      std::size_t width = 0;
      for (const auto& other : lines) width = std::max(width, other[c].size());
      const std::string space(width - line[c].size(), ' ');
      out += (c ? "  " : "") + (columns[c].numeric ? space + line[c] : line[c]);
    }
    out += "\n";
  }
  return out;
}

std::string sweep_html(const Json& record, const std::string& out) {
  const Json& trials = record["trials"];
  const auto done = std::count_if(trials.begin(), trials.end(),
                                  [](const Json& t) { return t["state"] == "finished"; });
  std::string errors;
  for (const Json& t : trials)
    if (t.contains("error"))
      errors += "<li>" + html_escape(show(t["name"]) + ": " + show(t["error"])) + "</li>\n";
  if (!errors.empty()) errors = "<h2>Failures</h2><ul>\n" + errors + "</ul>\n";
  const std::string title = concat("A sweep of ", trials.size(), " trials");
  return page_html(title, title, concat(done, " finished; base ", show(record["model"])),
                   "<h2>Trials</h2>" + tables_html(trials) + errors + charts_html(trials, out));
}

}  // namespace lk
