// report.html: a run as one page that needs no network, no script and no other file.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "io/json.h"
#include "run/samples.h"

namespace lk {

// (step, value) of each line of metrics.jsonl that has the value; values that are not finite are
// left out.
struct MetricsCurves {
  using Points = std::vector<std::pair<double, double>>;
  Points loss, eval_loss, lr, grad_norm, tokens_per_second;
  std::vector<std::pair<double, Sample>> samples;  // made along the way, by --sample-every
};

inline constexpr int kRefreshSeconds = 10;  // of the page of a run that is under way

struct ReportInput {
  Json run;  // the content of run.json: settings, device, data, memory, result
  MetricsCurves curves;
  std::vector<Sample> samples;      // made at the end; may be empty
  std::vector<std::string> proofs;  // what was proved at the end, one sentence each
  double seconds_left = -1;         // of a run under way; negative: not known
  std::string failure = {};         // the error that ended the run
  std::string written = {};         // when the page is written
};

// The page as HTML. All text from outside (paths, data, what models write) is escaped, and a policy
// in the head forbids scripts and all external content, should any text ever slip through.
std::string report_html(const ReportInput& input);

// Reads the curves of folder/metrics.jsonl; they are empty if there is none. Throws InputError,
// IoError.
MetricsCurves read_metrics(const std::string& folder);

}  // namespace lk
