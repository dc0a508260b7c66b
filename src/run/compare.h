// Several runs beside each other: the settings in which they differ, their results and curves.
#pragma once

#include <string>
#include <vector>

#include "run/report.h"

namespace lk {

struct ComparedRun {
  std::string name;  // the folder's, or the whole path where two folders are called the same
  Json run;          // the content of run.json
  MetricsCurves curves;
};

// Reads run.json and metrics.jsonl of each folder. Throws UsageError if there are fewer than two or
// one is named twice, InputError, IoError.
std::vector<ComparedRun> read_runs(const std::vector<std::string>& folders);

// A table with a column for each run.
struct ComparisonTable {
  struct Row {
    std::string name;
    std::vector<std::string> values;  // one for each run
  };
  std::vector<Row> settings;  // only those that are not the same in all runs
  std::vector<Row> results;
};

ComparisonTable compare_runs(const std::vector<ComparedRun>& runs);

// The table as lines of text, columns aligned, control bytes as \xNN.
std::string comparison_text(const std::vector<ComparedRun>& runs, const ComparisonTable& table);

// The table and the curves, drawn over each other, as one page (run/page.h).
std::string comparison_html(const std::vector<ComparedRun>& runs, const ComparisonTable& table);

// Whether the file at `path` is such a page, which the next comparison may replace.
bool is_comparison_page(const std::string& path);

}  // namespace lk
