#include "run/chart.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "io/utf8.h"
#include "tensor/error.h"

namespace lk {
namespace {

// Sizes in the drawing's own units; the page scales it to its column.
constexpr double kWidth = 480, kHeight = 230, kLeft = 64, kRight = 24, kTop = 14, kBottom = 36;
constexpr std::size_t kMostPoints = 200, kMostPointsOfMany = 50;
constexpr std::size_t kMany = 3;  // lines: with so many, noise would hide which is which

template <class... Args>
std::string print(const char* format, Args... args) {
  char text[256];
  std::snprintf(text, sizeof text, format, args...);
  return text;
}

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  void include(double x) { low = std::min(low, x), high = std::max(high, x); }
};

// 1, 2 or 5 times a power of ten, so that about `wanted` steps fill the range.
double tick_step(double span, int wanted) {
  const double raw = span / wanted, power = std::pow(10, std::floor(std::log10(raw)));
  for (double factor : {1.0, 2.0, 5.0})
    if (factor * power >= raw) return factor * power;
  return 10 * power;
}

// A range with some extent: a constant line gets one around it.
Range widened(Range r) {
  if (r.high > r.low) return r;
  const double margin = r.low == 0 ? 1 : std::abs(r.low) / 2;
  return {r.low - margin, r.high + margin};
}

struct Group {
  double x, mean, low, high;
  std::size_t n;  // points
};

// Means of the finite points of each `width` steps.
std::vector<Group> grouped(const std::vector<std::pair<double, double>>& points, double width) {
  std::vector<Group> groups;
  double bin = -1;
  for (const auto& [x, y] : points) {
    if (!std::isfinite(y)) continue;
    if (groups.empty() || std::floor(x / width) != bin) groups.push_back({0, 0, y, y, 0});
    bin = std::floor(x / width);
    Group& g = groups.back();
    ++g.n;
    g.x += (x - g.x) / static_cast<double>(g.n);
    g.mean += (y - g.mean) / static_cast<double>(g.n);
    g.low = std::min(g.low, y), g.high = std::max(g.high, y);
  }
  return groups;
}

// The steps of a group, so that the longest line has at most `most` groups.
double group_width(const std::vector<ChartLine>& lines, std::size_t most) {
  Range x;
  for (const ChartLine& line : lines)
    if (!line.points.empty())
      x.include(line.points.front().first), x.include(line.points.back().first);
  return x.high < x.low ? 1 : std::ceil((x.high - x.low + 1) / static_cast<double>(most));
}

struct Plot {
  Range x, y;
  double px(double v) const {
    return kLeft + (v - x.low) / (x.high - x.low) * (kWidth - kLeft - kRight);
  }
  double py(double v) const {
    return kHeight - kBottom - (v - y.low) / (y.high - y.low) * (kHeight - kTop - kBottom);
  }

  // `whole`: only whole numbers stand along x.
  std::string axes(const std::string& x_name, bool whole) const {
    std::string out;
    const double dy = tick_step(y.high - y.low, 4);
    for (double v = std::ceil(y.low / dy - 1e-9) * dy; v <= y.high + dy * 1e-9; v += dy) {
      const double at = std::abs(v) < dy / 1000 ? 0 : v;
      out += print("<line class=\"grid\" x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\"/>", kLeft,
                   kWidth - kRight, py(v), py(v));
      out += print("<text x=\"%.0f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", kLeft - 6,
                   py(v) + 4, short_number(at).c_str());
    }
    const double dx = std::max(whole ? 1.0 : 0.0, tick_step(x.high - x.low, 5));
    for (double v = std::ceil(x.low / dx - 1e-9) * dx; v <= x.high + dx * 1e-9; v += dx)
      out += print("<text x=\"%.1f\" y=\"%.0f\" text-anchor=\"middle\">%s</text>\n", px(v),
                   kHeight - kBottom + 16, short_number(v).c_str());
    out += print("<line class=\"axis\" x1=\"%.0f\" x2=\"%.0f\" y1=\"%.0f\" y2=\"%.0f\"/>", kLeft,
                 kWidth - kRight, kHeight - kBottom, kHeight - kBottom);
    return out +
           print("<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"end\">", kWidth - kRight, kHeight - 5) +
           html_escape(x_name) + "</text>\n";
  }

  std::string mark(const ChartMark& m) const {
    if (m.x < x.low || m.x > x.high) return "";
    const bool left = px(m.x) > kWidth / 2;  // the side with more room
    return print("<line class=\"mark\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.0f\" y2=\"%.0f\"/>", px(m.x),
                 px(m.x), kTop - 4, kHeight - kBottom) +
           print("<text x=\"%.1f\" y=\"%.0f\" text-anchor=\"%s\">", px(m.x) + (left ? -5 : 5),
                 kTop + 7, left ? "end" : "start") +
           html_escape(m.label) + "</text>\n";
  }

  std::string line(const std::vector<Group>& groups, std::size_t index, bool dots,
                   bool bands) const {
    std::string path, upper, lower;
    for (std::size_t i = 0; i < groups.size(); ++i) {
      path += print("%s%.1f,%.1f", i ? " " : "", px(groups[i].x), py(groups[i].mean));
      upper += print("%.1f,%.1f ", px(groups[i].x), py(groups[i].high));
      const Group& back = groups[groups.size() - 1 - i];
      lower += print("%.1f,%.1f ", px(back.x), py(back.low));
    }
    const bool banded = bands && std::any_of(groups.begin(), groups.end(),
                                             [](const Group& g) { return g.high > g.low; });
    std::string out;
    if (banded)
      out += concat("<polygon class=\"band s", index % kLineColours, "\" points=\"", upper, lower,
                    "\"/>");
    out += concat("<polyline class=\"line s", index % kLineColours, "\" points=\"", path, "\"/>\n");
    if (dots || groups.size() == 1)
      for (const Group& g : groups) out += dot(g.x, g.mean, index, 3);
    return out;
  }

  std::string dot(double at_x, double at_y, std::size_t index, int radius) const {
    return print("<circle class=\"dot s%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"%d\"/>",
                 index % kLineColours, px(at_x), py(at_y), radius);
  }

  // Widens the ranges to what is drawn, with some air above and below.
  void settle() {
    x = widened(x), y = widened(y);
    const double air = (y.high - y.low) * 0.05;
    y.high += air;
    y.low = y.low >= 0 ? std::max(0.0, y.low - air) : y.low - air;
  }
};

// A chart with its caption; an empty body says that there is nothing to draw.
std::string figure(const std::string& title, const std::string& unit, const std::string& legend,
                   const std::string& body) {
  const std::string head = "<figcaption><strong>" + html_escape(title) + "</strong>" +
                           (unit.empty() ? "" : " <small>" + html_escape(unit) + "</small>") +
                           "<br>" + legend + "</figcaption>";
  if (body.empty()) return "<figure>" + head + "<p>nothing was recorded</p></figure>\n";
  return "<figure>" + head +
         print("<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"", kWidth, kHeight) +
         html_escape(title) + "\">\n" + body + "</svg></figure>\n";
}

}  // namespace

std::string html_escape(const std::string& text) {
  std::string out;
  std::size_t i = 0;
  while (i < text.size()) {
    const std::size_t good = utf8_valid_prefix(std::string_view(text).substr(i));
    for (std::size_t end = i + good; i < end; ++i) {
      const char c = text[i];
      if (c == '&')
        out += "&amp;";
      else if (c == '<')
        out += "&lt;";
      else if (c == '>')
        out += "&gt;";
      else if (c == '"')
        out += "&quot;";
      else if (c == '\'')
        out += "&#39;";
      else if ((static_cast<unsigned char>(c) < 32 && c != '\n' && c != '\t') || c == 127)
        out += "\xEF\xBF\xBD";
      else
        out += c;
    }
    if (i < text.size()) out += "\xEF\xBF\xBD", ++i;
  }
  return out;
}

std::string short_number(double v) {
  const double size = std::abs(v);
  if (v == 0) return "0";
  if (size >= 1e9 || size < 1e-4) {
    std::string text = print("%.2e", v);
    const std::size_t e = text.find('e');
    std::size_t last = text.find_last_not_of('0', e - 1);
    if (text[last] == '.') --last;
    return text.substr(0, last + 1) + text.substr(e);
  }
  if (size >= 1000) {
    std::string text = print("%.0f", v);
    const std::size_t sign = v < 0;
    for (std::size_t comma = text.size() - 3; comma > sign; comma -= 3) {
      text.insert(comma, ",");
      if (comma < 3) break;
    }
    return text;
  }
  const int before_point = static_cast<int>(std::floor(std::log10(size))) + 1;
  std::string text = print("%.*f", std::max(0, 4 - before_point), v);
  if (text.find('.') != std::string::npos) text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

std::string line_swatch(std::size_t index) {
  return concat(
      "<svg class=\"swatch\" viewBox=\"0 0 28 8\" aria-hidden=\"true\"><path class=\"line s",
      index % kLineColours, "\" d=\"M1 4H27\"/></svg>");
}

std::string first_to_last(const std::vector<std::pair<double, double>>& points) {
  auto finite = [](const auto& p) { return std::isfinite(p.second); };
  const auto first = std::find_if(points.begin(), points.end(), finite);
  const auto last = std::find_if(points.rbegin(), points.rend(), finite);
  if (first == points.end()) return "-";
  if (&*first == &*last) return short_number(first->second);
  return short_number(first->second) + " \u2192 " + short_number(last->second);
}

std::string chart_svg(const std::string& title, const std::string& unit,
                      const std::vector<ChartLine>& lines, const std::vector<ChartMark>& marks) {
  const bool many = lines.size() >= kMany;
  const double width = group_width(lines, many ? kMostPointsOfMany : kMostPoints);
  bool is_grouped = false;
  std::string legend, body;
  Plot plot;
  std::vector<std::vector<Group>> groups;
  for (const ChartLine& line : lines) {
    groups.push_back(grouped(line.points, line.dots ? 1 : width));
    for (const Group& g : groups.back()) {
      is_grouped = is_grouped || g.n > 1;
      plot.x.include(g.x);
      plot.y.include(many ? g.mean : g.low), plot.y.include(many ? g.mean : g.high);
    }
  }
  const bool empty = plot.x.high < plot.x.low;
  if (!empty) {
    plot.settle();
    body = plot.axes("step", true);
    for (const ChartMark& mark : marks) body += plot.mark(mark);
  }
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (groups[i].empty()) continue;
    body += plot.line(groups[i], i, lines[i].dots, !many);
    legend +=
        concat("<span class=\"key s", i % kLineColours, "\">", line_swatch(i),
               html_escape(lines[i].name), " <b>", first_to_last(lines[i].points), "</b></span> ");
  }
  std::string note = unit;
  if (is_grouped)
    note += concat(note.empty() ? "" : ", ", "means of ", short_number(width), " steps",
                   many ? "" : " and their range");
  return figure(title, note, legend, body);
}

std::string scatter_svg(const std::string& title, const std::string& unit,
                        const std::vector<ChartPoint>& points) {
  auto drawn = [](const ChartPoint& p) { return std::isfinite(p.x) && std::isfinite(p.y); };
  Plot plot;
  for (const ChartPoint& p : points)
    if (drawn(p)) plot.x.include(p.x), plot.y.include(p.y);
  if (plot.x.high < plot.x.low) return figure(title, "", "", "");
  plot.settle();
  std::string legend, body = plot.axes(unit, false);
  for (const ChartPoint& p : points) {
    if (!drawn(p)) continue;
    body += plot.dot(p.x, p.y, p.colour, 5) + "\n";
    legend += concat("<span class=\"key s", p.colour % kLineColours, "\">", line_swatch(p.colour),
                     html_escape(p.name), " <b>", short_number(p.y), "</b></span> ");
  }
  return figure(title, "", legend, body);
}

}  // namespace lk
