// Line charts as inline SVG: axes with round numbers, light and dark by the page's CSS variables.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace lk {

struct ChartLine {
  std::string name;                               // for the legend; plain text
  std::vector<std::pair<double, double>> points;  // (step, value); not finite: left out
  bool dots = false;                              // few points: each is drawn
};

// A figure of all lines, x in steps, y in `unit` (may be empty). Lines of more than 400 points are
// drawn as the mean of equal groups, with a band from each group's least to its largest value.
// Nothing to draw: a figure that says so. Names and units are escaped.
std::string chart_svg(const std::string& title, const std::string& unit,
                      const std::vector<ChartLine>& lines);

// Text for HTML: & < > " ' as entities, bytes that are not UTF-8 and control characters (but
// newline and tab) as U+FFFD.
std::string html_escape(const std::string& text);

// "1,234", "0.0123", "1.2e-05": at most four digits that matter.
std::string short_number(double value);

}  // namespace lk
