#include "run/page.h"

#include "run/chart.h"
#include "tensor/error.h"

namespace lk {
namespace {

constexpr const char* kStyle = R"css(
:root { --page: #fafaf7; --card: #ffffff; --ink: #1d2126; --quiet: #5f6873; --rule: #dcdfe3;
        --s0: #1764ab; --s1: #c2410c; --s2: #1a7f4b; --s3: #7c3aed;
        --s4: #b0126b; --s5: #0e7490; --s6: #7a5b00; --s7: #4b5563; --good: #1a7f4b; --bad: #b42318; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --card: #1e2329; --ink: #e7eaee; --quiet: #a0a9b4; --rule: #363d46;
          --s0: #6fb1f0; --s1: #ff9d66; --s2: #63c994; --s3: #b79cf7;
          --s4: #f08cc0; --s5: #5fd0e0; --s6: #d9b84a; --s7: #b6bec9; --good: #63c994; --bad: #ff8a7a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 16px; background: var(--page); color: var(--ink);
       font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 28px 0 8px; }
h1, p, b, summary, li { overflow-wrap: anywhere; }
.quiet, small { color: var(--quiet); } p { margin: 4px 0; }
code { font: .92em ui-monospace, monospace; }
.card.lead { margin-top: 14px; } .lead > b { font-size: 1.15rem; } .lead p { margin: 6px 0; }
.lead pre { margin: 2px 0 8px; padding: 6px 10px; background: var(--page); border: 1px solid var(--rule);
            border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.5 ui-monospace, monospace; }
.bad { color: var(--bad); }
.track { height: 8px; background: var(--rule); border-radius: 4px; margin: 8px 0; overflow: hidden; }
.track div { height: 100%; background: var(--s0); }
.cards, .charts { display: grid; gap: 12px; }
.cards { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin-top: 12px; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.card, figure { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
                padding: 10px 14px; margin: 0; min-width: 0; }
.cards b { display: block; font-size: 1.15rem; overflow-wrap: anywhere; }
figure { display: flex; flex-direction: column; justify-content: space-between; }
figcaption { font-size: .9rem; overflow-wrap: anywhere; }
figure > svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
.grid { stroke: var(--rule); } .axis { stroke: var(--quiet); } .mark { stroke: var(--quiet); stroke-dasharray: 2 3; }
.line { fill: none; stroke: var(--line); stroke-width: 1.8; stroke-linejoin: round; } .band { stroke: none; opacity: .18; }
.s0 { --line: var(--s0); } .s1 { --line: var(--s1); } .s2 { --line: var(--s2); } .s3 { --line: var(--s3); }
.s4 { --line: var(--s4); } .s5 { --line: var(--s5); } .s6 { --line: var(--s6); } .s7 { --line: var(--s7); }
.line.s1 { stroke-dasharray: 7 3; } .line.s2 { stroke-dasharray: 2 2.5; } .line.s3 { stroke-dasharray: 9 3 2 3; }
.line.s5 { stroke-dasharray: 4 2; } .line.s6 { stroke-dasharray: 1 3; } .line.s7 { stroke-dasharray: 9 3 2 3 2 3; }
.line.s4 { stroke-width: 3; }
.key { color: var(--line); } .band, .dot { fill: var(--line); }
.key { display: inline-block; margin-right: 14px; } .key b { color: var(--ink); font-weight: 500; }
.swatch { width: 28px; height: 8px; margin-right: 5px; vertical-align: middle; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top; font-weight: 400; }
.pairs td, .sample td { overflow-wrap: anywhere; } .pairs th { width: 13em; }
.cell { width: max-content; max-width: 15em; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.runs th:first-child { position: sticky; left: 0; background: var(--page); white-space: nowrap; }
.best { font-weight: 600; }
th { color: var(--quiet); } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { background: var(--s0); height: 10px; border-radius: 2px; min-width: 1px; margin-top: 6px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; text-align: start; margin: 0; font: inherit;
        max-height: 14em; overflow-y: auto; }
.sample { margin-bottom: 12px; } .sample th { width: 9.5em; } .sample tr:last-child > * { border: 0; }
.sample .ours { font-weight: 600; } .sample th.ours { color: var(--ink); }
details { margin-top: 12px; } summary { cursor: pointer; font-size: 1.1rem; font-weight: 600; }
.proved { padding-left: 24px; } .proved li::marker { content: "\2713\a0"; color: var(--good); }
@media (max-width: 560px) {
  svg text { font-size: 17px; }
  .sample tr, .sample th, .sample td, .pairs tr, .pairs th, .pairs td { display: block; width: auto; }
  .sample tr, .pairs tr { border-bottom: 1px solid var(--rule); padding: 3px 0; }
  .sample tr:last-child { border: 0; }
  .sample th, .sample td, .pairs th, .pairs td { border: 0; padding: 1px 0; } .pairs th, .sample th { font-size: .85rem; }
  .cell { max-width: 11em; } .runs th:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7em; }
}
)css";

}  // namespace

std::string show(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "none";
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_number_float()) return short_number(value.get<double>());
  if (value.is_array()) {
    std::string out;
    for (const Json& item : value) out += (out.empty() ? "" : ", ") + show(item);
    return out;
  }
  return json_text(value);
}

// The value at "a/b/c", or null if there is none.
Json at(const Json& json, const std::string& pointer) {
  const Json::json_pointer p("/" + pointer);
  return json.contains(p) ? json.at(p) : Json(nullptr);
}

std::string number(const Json& value) {
  return value.is_number() ? short_number(value.get<double>()) : "-";
}

std::string page_html(const std::string& title, const std::string& heading,
                      const std::string& subtitle, const std::string& body, int refresh_seconds) {
  const std::string refresh =
      refresh_seconds > 0
          ? concat("<meta http-equiv=\"refresh\" content=\"", refresh_seconds, "\">\n")
          : "";
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
         "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
         "'unsafe-inline'\">\n" +
         refresh +
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>" +
         html_escape(title) + "</title>\n<style>" + kStyle + "</style></head><body>\n<h1>" +
         html_escape(heading) + "</h1>\n<p class=\"quiet\">" + html_escape(subtitle) + "</p>\n" +
         body + "</body></html>\n";
}

}  // namespace lk
