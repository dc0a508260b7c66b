#include "run/report_head.h"

#include <algorithm>
#include <cmath>

#include "run/adapter_use.h"
#include "run/chart.h"
#include "run/evaluation_watch.h"
#include "run/page.h"
#include "tensor/error.h"

namespace lk {
namespace {

// Whether all weights were trained, so that the folder is a whole model's.
bool is_model(const ReportInput& in) { return at(in.run, "parameters/base") == 0; }
const char* saved(const ReportInput& in) { return is_model(in) ? "model" : "adapter"; }

// "12 s", "1 min 12 s", "3 h 5 min".
std::string duration(double seconds) {
  const auto s = static_cast<std::int64_t>(std::round(seconds));
  if (seconds < 1) return "less than 1 s";
  if (s < 60) return concat(s, " s");
  if (s < 3600) return concat(s / 60, " min ", s % 60, " s");
  return concat(s / 3600, " h ", s / 60 % 60, " min");
}

std::string paragraph(const std::string& text, const char* style = "") {
  return concat("<p", style, ">", html_escape(text), "</p>\n");
}

std::string command(const std::string& what, const std::string& line) {
  return "<p>" + html_escape(what) + "</p><pre>" + html_escape(line) + "</pre>\n";
}

std::string out_folder(const ReportInput& in) {
  std::string out = show(at(in.run, "settings/out"));
  while (out.size() > 1 && out.ends_with('/')) out.pop_back();
  return out;
}

// What a finished run says of its lesson.
std::string lesson(const ReportInput& in) {
  const Json before = at(in.run, "result/eval_before/loss");
  const Json after = kept_loss(in.run);
  if (!before.is_number() || !after.is_number())
    return paragraph(concat("The training loss went from ", number(at(in.run, "result/first_loss")),
                            " to ", number(at(in.run, "result/last_loss")),
                            ". No rows were kept for evaluation, so nothing is known of rows that "
                            "it was not trained on."));
  const double b = before.get<double>(), a = after.get<double>();
  std::string out;
  if (a > kTaught * b)
    out = paragraph(concat("It learnt next to nothing that helps on other rows: the evaluation "
                           "loss went from ",
                           short_number(b), " to ", short_number(a),
                           ". More epochs, a higher learning rate or other rows may help."),
                    " class=\"bad\"");
  else
    out = paragraph(concat("It learnt: on the ", show(at(in.run, "result/eval_before/rows")),
                           " evaluation rows the loss fell from ", short_number(b), " to ",
                           short_number(a), ", the perplexity from ", short_number(std::exp(b)),
                           " to ", short_number(std::exp(a)), "."));
  if (const std::string step = kept_earlier(in.run); !step.empty())
    out += paragraph(
        concat("The ", saved(in), " is that of ", step, ", where the evaluation loss was lowest."));
  return out;
}

// How to use what was saved, as commands to copy.
std::string next_commands(const ReportInput& in) {
  const std::string out = out_folder(in);
  if (is_model(in))
    return "<p>Model: <code>" + html_escape(out + "/model.safetensors") + "</code></p>\n" +
           command("Try it:", "generate --model " + shell_word(out) +
                                  use_flags(adapter_use(in.run).value_or(AdapterUse{})) +
                                  " --prompt '...'") +
           command("Make a file for llama.cpp of it:",
                   "merge --model " + shell_word(out) + " --out " + shell_word(out + ".gguf"));
  const std::string both = " --model " + shell_word(show(at(in.run, "settings/model"))) +
                           " --adapter " + shell_word(out);
  const std::string chat = use_flags(adapter_use(in.run).value_or(AdapterUse{}));
  return "<p>Adapter: <code>" + html_escape(out + "/adapter_model.safetensors") + "</code></p>\n" +
         command("Try it:", "generate" + both + chat + " --prompt '...'") +
         command("Make a plain model of it, or a file for llama.cpp's --lora:",
                 "merge" + both + " --out " + shell_word(out + "-merged") + "\nexport" + both +
                     " --out " + shell_word(out + ".gguf"));
}

std::string resume_command(const ReportInput& in) {
  if (!at(in.run, "settings/data").is_string()) return "";  // rows of a program: no run.toml
  return command("Go on from there:",
                 "finetune --config " + shell_word(out_folder(in) + "/run.toml") + " --resume");
}

std::string steps_of(const ReportInput& in) {
  const Json planned = at(in.run, "settings/run/steps");
  return concat("step ", short_number(static_cast<double>(last_step(in))),
                planned.is_number() ? " of " + number(planned) : "");
}

std::string track(const ReportInput& in) {
  const Json planned = at(in.run, "settings/run/steps");
  if (!planned.is_number() || planned.get<double>() < 1) return "";
  const double share = 100 * static_cast<double>(last_step(in)) / planned.get<double>();
  return concat("<div class=\"track\"><div style=\"width:",
                static_cast<int>(std::clamp(share, 0.0, 100.0)), "%\"></div></div>\n");
}

}  // namespace

std::int64_t last_step(const ReportInput& in) {
  const Json done = at(in.run, "result/steps");
  if (done.is_number_integer()) return done.get<std::int64_t>();
  return in.curves.lr.empty() ? 0 : static_cast<std::int64_t>(in.curves.lr.back().first);
}

const std::pair<double, double>* lowest_evaluation(const MetricsCurves& curves) {
  const std::pair<double, double>* lowest = nullptr;
  for (const auto& point : curves.eval_loss)
    if (point.first > 0 && (!lowest || point.second < lowest->second)) lowest = &point;
  return lowest;
}

std::string kept_earlier(const Json& run) {
  const Json kept = at(run, "result/kept_step");
  return kept.is_number() && kept != at(run, "result/steps") ? "step " + show(kept) : "";
}

Json kept_loss(const Json& run) {
  return at(run, kept_earlier(run).empty() ? "result/eval_after/loss" : "result/best/loss");
}

std::string report_state(const ReportInput& in) {
  const Json status = at(in.run, "status");
  return status == "running" ? steps_of(in) : show(status);
}

std::string report_head(const ReportInput& in) {
  const std::string status = show(at(in.run, "status")), out = out_folder(in);
  auto card = [&](const std::string& first, const std::string& rest) {
    return "<div class=\"card lead\"><b>" + html_escape(first) + "</b>\n" + rest + "</div>\n";
  };
  if (status == "running") {
    const bool known = in.seconds_left >= 0 && std::isfinite(in.seconds_left);
    return card(
        "Running: " + steps_of(in) +
            (known ? ", about " + duration(in.seconds_left) + " left" : ""),
        track(in) +
            paragraph(concat("The ", saved(in), " will be in ") + out +
                      " when the run ends. Ctrl-C ends it early and saves what it has "
                      "learnt.") +
            paragraph(concat("Written at ", in.written, ". The page loads itself again every ",
                             kRefreshSeconds, " s; if that time stands still, the run was killed."),
                      " class=\"quiet\""));
  }
  if (status == "finished") {
    const Json seconds = at(in.run, "result/seconds");
    const std::string time = seconds.is_number() ? " in " + duration(seconds.get<double>()) : "";
    const bool early = at(in.run, "result/out_of_patience") == true;
    return card(early ? "Finished early: " + steps_of(in) + time
                      : concat("Finished: ", short_number(static_cast<double>(last_step(in))),
                               last_step(in) == 1 ? " step" : " steps", time),
                (early ? paragraph(concat(show(at(in.run, "settings/patience")),
                                          " evaluations in a row were no better."))
                       : "") +
                    lesson(in) + next_commands(in));
  }
  if (status == "stopped")
    return card("Stopped at " + steps_of(in),
                track(in) +
                    paragraph("Everything is saved; " + out + " holds the " + saved(in) +
                              " as it is now.") +
                    resume_command(in));
  return card((status == "failed" ? "Failed at " : status + " at ") + steps_of(in),
              track(in) + (in.failure.empty() ? "" : paragraph(in.failure, " class=\"bad\"")) +
                  paragraph("What was saved before, if anything was, is as it was."));
}

}  // namespace lk
