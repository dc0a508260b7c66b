#include "run/live_report.h"

#include <algorithm>
#include <ctime>

#include "io/durable.h"

namespace lk {
namespace {

constexpr std::chrono::seconds kPause{5};
constexpr int kShare = 50;  // pages take at most one part in so many of a run's time

// "2026-01-31 13:05:09 UTC".
std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  char text[40] = "";
  if (gmtime_r(&now, &parts)) std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

}  // namespace

bool LiveReport::is_due() const {
  return Clock::now() - written_ > std::max<Clock::duration>(kPause, kShare * took_);
}

void LiveReport::write(ReportInput input) {
  const Clock::time_point start = Clock::now();
  written_ = start;  // a page that can't be written is not tried again at once either
  input.curves = read_metrics(folder_);
  input.written = now_utc();
  write_file_durably(folder_ + "/report.html", report_html(input));
  took_ = Clock::now() - start;
}

}  // namespace lk
