// Line charts as inline SVG: axes with round numbers, light and dark colours from the page's CSS
// variables.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace lk {

inline constexpr std::size_t kLineColours = 8;  // more lines than that begin anew with the first

struct ChartLine {
  std::string name;                               // for the legend; plain text
  std::vector<std::pair<double, double>> points;  // (step, value); only finite values are drawn
  bool dots = false;                              // draw each point: for lines of few points
};

// A vertical line at x with a word beside it. Plain text.
struct ChartMark {
  double x;
  std::string label;
};

// A figure of all lines, x in steps, y in `unit` (may be empty). Lines of more than 200 steps are
// drawn as the means of equal numbers of steps, with a band from the smallest to the largest value;
// three lines or more are drawn so from 50 steps on, without bands. Lines differ in colour and in
// dashes, which the legend shows too. Marks outside the lines' x are left out. Without any points
// the figure says so. Names, units and labels are escaped.
std::string chart_svg(const std::string& title, const std::string& unit,
                      const std::vector<ChartLine>& lines,
                      const std::vector<ChartMark>& marks = {});

// "first -> last" of the finite values, the only one, or "-".
std::string first_to_last(const std::vector<std::pair<double, double>>& points);

// A short piece of the line of that index, for legends and tables: its colour and dashes.
std::string line_swatch(std::size_t index);

struct ChartPoint {
  std::string name;  // for the legend; plain text
  double x = 0, y = 0;
  std::size_t colour = 0;  // as the line of that index
};

// A figure of single points, x in `unit`; points that are not finite are left out.
std::string scatter_svg(const std::string& title, const std::string& unit,
                        const std::vector<ChartPoint>& points);

// Escapes text for HTML: & < > " ' become entities; bytes that are not UTF-8 and control characters
// (except newline and tab) become U+FFFD.
std::string html_escape(const std::string& text);

// Formats a number with four significant digits at most, or as a whole number: "1,234", "0.0123",
// "1.2e-05", "4,884,480".
std::string short_number(double value);

}  // namespace lk
