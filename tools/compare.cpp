// compare: several runs beside each other.
#include "run/compare.h"

#include "io/durable.h"
#include "io/paths.h"
#include "program.h"

int main(int argc, char** argv) {
  using namespace lk;
  CLI::App app(
      "Settings in which runs differ, and their results, as a table.\n\n"
      "  compare runs/a runs/b --out compare.html\n",
      "compare");
  std::vector<std::string> folders;
  std::string out;
  app.add_option("runs", folders, "folders that finetune wrote")->required();
  app.add_option("--out", out,
                 "also write a page with the table and all curves, e.g. compare.html");
  return program::run(app, argc, argv, [&] {
    require(out.empty() || !is_taken(out) || is_comparison_page(out), "--out ", out,
            ": exists already, and is no page of compare's; it is never overwritten");
    const auto runs = read_runs(folders);
    const ComparisonTable table = compare_runs(runs);
    program::write(comparison_text(runs, table));
    if (!out.empty()) write_file_durably(out, comparison_html(runs, table));
    return 0;
  });
}
