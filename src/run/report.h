// report.html: a run as one page that needs no network, no script and no other file.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "io/json.h"
#include "run/samples.h"

namespace lk {

// (step, value) of each line of metrics.jsonl that has the value; what was not finite is left out.
struct MetricsCurves {
  using Points = std::vector<std::pair<double, double>>;
  Points loss, eval_loss, lr, grad_norm, tokens_per_second;
};

struct ReportInput {
  Json run;  // as run.json: settings, device, data, memory, result
  MetricsCurves curves;
  std::vector<Sample> samples;      // may be empty
  std::vector<std::string> proofs;  // what was proved at the end, a sentence each
};

// The page. All text from outside (paths, data, what models write) is escaped; a policy in the head
// forbids scripts and everything from elsewhere, should some text ever get through.
std::string report_html(const ReportInput& input);

// Of folder/metrics.jsonl; empty if there is none. InputError, IoError.
MetricsCurves read_metrics(const std::string& folder);

}  // namespace lk
