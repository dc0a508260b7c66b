// The head of report.html: whether the run is done, whether it learnt, where its adapter is and what
// to do next.
#pragma once

#include <string>

#include "run/report.h"

namespace lk {

// What a person wants to know first, as HTML.
std::string report_head(const ReportInput& input);

// The state in a few words for the tab of a browser: "step 8 of 21", "finished", "failed".
std::string report_state(const ReportInput& input);

// The last step that was made; 0 if there is none.
std::int64_t last_step(const ReportInput& input);

// The lowest evaluation after step 0; null if there is none.
const std::pair<double, double>* lowest_evaluation(const MetricsCurves& curves);

// The evaluation loss of what the run saved, which need not be the last step's; null if there is none.
Json kept_loss(const Json& run);

// The step that it is of, if that is not the last: "step 24"; else "".
std::string kept_earlier(const Json& run);

}  // namespace lk
