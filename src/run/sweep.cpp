#include "run/sweep.h"

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <sstream>

#include "io/durable.h"
#include "io/output_folder.h"
#include "io/paths.h"
#include "run/page.h"
#include "run/resume.h"
#include "run/run_settings.h"
#include "run/run_toml.h"
#include "run/sweep_workers.h"
#include "version.h"

namespace lk {
namespace {

std::vector<std::string> split(const std::string& text, char mark) {
  std::vector<std::string> parts(1);
  for (char c : text)
    if (c == mark)
      parts.emplace_back();
    else
      parts.back() += c;
  return parts;
}

bool holds(const std::vector<std::string>& all, const std::string& one) {
  return std::find(all.begin(), all.end(), one) != all.end();
}

// The text with everything but letters, digits and . + - as '_'.
std::string as_name(std::string text) {
  for (char& c : text) {
    const bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!fine && c != '.' && c != '+' && c != '-') c = '_';
  }
  return text;
}

// run.toml's lines as they are asked for, but for the folder, which may have been moved.
std::vector<std::string> requested(const FinetuneSettings& s) {
  std::vector<std::string> lines = split(run_toml(s), '\n');
  std::erase_if(lines, [](const std::string& l) {
    return l.empty() || l.starts_with("#") || l.starts_with("out =");
  });
  return lines;
}

// What sweep.json says of a trial that its run.json records. Null where it records nothing.
Json result_of(const std::string& folder) {
  const std::string path = folder + "/run.json";
  if (!exists(path)) return nullptr;
  const Json run = read_json(path);
  if (at(run, "result").is_null()) return nullptr;
  const bool best = at(run, "settings/keep") == "best" && !at(run, "result/best").is_null();
  return {{"trainable_parameters", at(run, "parameters/trainable")},
          {"steps", at(run, "result/steps")},
          {"kept_step", at(run, "result/kept_step")},
          {"first_loss", at(run, "result/first_loss")},
          {"last_loss", at(run, "result/last_loss")},
          {"eval_loss_before", at(run, "result/eval_before/loss")},
          {"eval_loss", at(run, best ? "result/best/loss" : "result/eval_after/loss")},
          {"peak_bytes", at(run, "memory/peak_bytes")},
          {"seconds", at(run, "result/seconds")},
          {"tokens_per_second", at(run, "result/tokens_per_second")}};
}

int worse(int a, int b) {
  if (a == 1 || b == 1) return 1;
  return std::max(a, b);
}

class Sweep {
 public:
  Sweep(const SweepSettings& settings, std::vector<SweepTrial> trials, FinetuneListener& listener,
        const std::atomic<int>& stop)
      : s_(settings), trials_(std::move(trials)), listener_(listener), stop_(stop) {}

  SweepResult go() {
    place_trials(s_, trials_);
    OutputFolder folder(s_.out, !s_.resume);
    const Json before = s_.resume && exists(path()) ? read_json(path()) : Json(nullptr);
    if (s_.resume && before.is_null()) refuse_foreign(folder);
    begin(before);
    write();
    run_all();
    SweepResult result{record_, 0};
    for (const Json& t : record_["trials"])
      result.exit_code = worse(result.exit_code, t["exit_code"].get<int>());
    if (stop_.load()) result.exit_code = 128 + stop_.load();
    return result;
  }

 private:
  std::string path() const { return s_.out + "/sweep.json"; }

  // The folder of something else is none to go on in.
  void refuse_foreign(const OutputFolder& folder) {
    for (const std::string& name : folder.contents())
      throw UsageError(concat("`resume`: ", s_.out, " holds ", name, " and no sweep.json"));
  }

  void begin(const Json& before) {
    record_ = {
        {"version", kVersion}, {"model", trials_[0].settings.model}, {"trials", Json::array()}};
    std::set<std::string> known;
    if (!before.is_null()) {
      const Json& all = json_at(before, "trials", path());
      for (const Json& old : all) known.insert(json_string(old, "name", path()));
    }
    for (const SweepTrial& t : trials_) {
      Json flags = Json::object();
      for (const auto& [name, value] : t.flags) flags[name] = value;
      Json trial = {{"name", t.name},
                    {"flags", flags},
                    {"state", "waiting"},
                    {"exit_code", 0},
                    {"requested", requested(t.settings)},
                    {"result", nullptr}};
      if (known.erase(t.name) > 0) take_over(trial, before);
      record_["trials"].push_back(std::move(trial));
    }
    if (!known.empty())
      throw UsageError(concat("`resume`: ", path(), " has a trial ", *known.begin(),
                              " that is none of this sweep's"));
  }

  // What an earlier part of the sweep made of the trial.
  void take_over(Json& trial, const Json& before) {
    for (const Json& old : before["trials"]) {
      if (old["name"] != trial["name"]) continue;
      const std::string where = concat(path(), ": trial ", old["name"].get<std::string>());
      const Json& lines = json_at(old, "requested", where);
      for (const Json& line : trial["requested"])
        if (std::find(lines.begin(), lines.end(), line) == lines.end())
          throw UsageError(
              concat("`resume`: ", where, " had other settings than ", line.get<std::string>()));
      if (lines.size() != trial["requested"].size())
        throw UsageError(concat("`resume`: ", where, " had more settings than now"));
      const std::int64_t code = json_int(old, "exit_code", 0, 255, where);
      const bool final = code == static_cast<int>(ExitCode::NonFinite) ||
                         code == static_cast<int>(ExitCode::NothingTrained);
      if (json_string(old, "state", where) == "failed" && final) {
        trial["state"] = "failed", trial["exit_code"] = code;
        trial["error"] = json_string_or(old, "error", "", where);
      }
    }
    const std::string folder = s_.out + "/" + trial["name"].get<std::string>();
    if (is_finished(folder)) trial["state"] = "finished", trial["result"] = result_of(folder);
  }

  void run_all() {
    std::deque<std::size_t> waiting;
    for (std::size_t i = 0; i < trials_.size(); ++i)
      if (record_["trials"][i]["state"] == "waiting") waiting.push_back(i);
    if (!s_.workers.empty()) {
      SweepWorkers(s_.workers, trials_, listener_, stop_)
          .run(
              std::move(waiting), [this](std::size_t i) { begins(i); },
              [this](std::size_t i, const TrialOutcome& outcome) { ended(i, outcome); });
      return;
    }
    SharedBase base;
    for (std::size_t i : waiting) {
      if (stop_.load()) return;
      begins(i);
      ended(i, run_trial(trials_[i], s_.resume, base, listener_, stop_));
    }
  }

  void begins(std::size_t i) {
    record_["trials"][i]["state"] = "running";
    write();
    listener_.message(concat("trial ", i + 1, " of ", trials_.size(), ": ", trials_[i].name));
  }

  void ended(std::size_t i, const TrialOutcome& outcome) {
    Json& trial = record_["trials"][i];
    trial["state"] = outcome.state;
    if (outcome.state == "failed") {
      trial["exit_code"] = outcome.exit_code, trial["error"] = outcome.error;
      listener_.message(concat("trial ", trials_[i].name, " failed: ", outcome.error));
    } else {
      trial["result"] = result_of(trials_[i].settings.out);
    }
    write();
  }

  void write() {
    write_file_durably(path(), json_text(record_, 2) + "\n");
    write_file_durably(s_.out + "/sweep.html", sweep_html(record_, s_.out));
  }

  SweepSettings s_;
  std::vector<SweepTrial> trials_;
  FinetuneListener& listener_;
  const std::atomic<int>& stop_;
  Json record_;
};

}  // namespace

void place_trials(const SweepSettings& settings, std::vector<SweepTrial>& trials) {
  const FinetuneSettings& first = trials.at(0).settings;
  require(first.data != "-" && !is_pipe(first.data) && first.eval_data != "-" &&
              !is_pipe(first.eval_data),
          "`data` and `eval_data`: each trial reads them, so a sweep takes no pipe");
  for (SweepTrial& t : trials) {
    FinetuneSettings& s = t.settings;
    s.out = settings.out + "/" + t.name;
    validate_settings(s);
    require(s.model == first.model && s.data == first.data && s.eval_data == first.eval_data &&
                s.device == first.device && s.dtype == first.dtype &&
                s.base_precision == first.base_precision && s.keep_dense == first.keep_dense &&
                s.fp8_products == first.fp8_products && s.verify_base == first.verify_base,
            "a sweep's trials have one base and the same data");
  }
  std::map<std::vector<std::string>, const SweepTrial*> known;
  for (const SweepTrial& t : trials) {
    if (t.flags.empty()) continue;  // a caller's own trials may repeat one
    const auto [same, is_new] = known.emplace(requested(t.settings), &t);
    require(is_new, "`sweep`: the trials ", same->second->name, " and ", t.name,
            " have the same settings");
  }
  FinetuneSettings whole = first;
  whole.out = settings.out;
  refuse_input_folders(whole);
}

std::vector<SweepFlag> parse_sweep(const std::string& text) {
  std::vector<SweepFlag> flags;
  for (const std::string& part : split(text, ';')) {
    const std::size_t equals = part.find('=');
    require(equals != std::string::npos && equals > 0, "`sweep` '", part,
            "': FLAG=VALUE,VALUE... is expected, with ; between flags");
    SweepFlag flag{part.substr(0, equals), {}};
    flag.name.erase(0, std::min(flag.name.find_first_not_of("- "), flag.name.size()));
    require(!flag.name.empty(), "`sweep` '", part, "': names no flag");
    for (const std::string& value : split(part.substr(equals + 1), ',')) {
      require(!value.empty(), "`sweep` '", part, "': an empty value");
      require(!holds(flag.values, value), "`sweep` '", part, "': ", value, " is given twice");
      flag.values.push_back(value);
    }
    for (const SweepFlag& other : flags)
      require(other.name != flag.name, "`sweep`: ", flag.name, " is given twice");
    flags.push_back(std::move(flag));
  }
  return flags;
}

std::vector<SweepTrial> sweep_trials(const std::vector<SweepFlag>& flags) {
  constexpr std::size_t kMost = 10'000;
  std::vector<SweepTrial> trials(1);
  for (const SweepFlag& flag : flags) {
    std::vector<SweepTrial> longer;
    require(trials.size() * flag.values.size() <= kMost, "`sweep`: more than ", kMost, " trials");
    for (const SweepTrial& t : trials)
      for (const std::string& value : flag.values) {
        longer.push_back(t);
        longer.back().flags.emplace_back(flag.name, value);
        longer.back().name +=
            (t.name.empty() ? "" : "_") + as_name(flag.name) + "=" + as_name(value).substr(0, 60);
      }
    trials = std::move(longer);
  }
  std::set<std::string> taken;
  for (SweepTrial& t : trials) {
    const std::string name = t.name.substr(0, 200);
    t.name = name;
    for (int n = 2; !taken.insert(t.name).second; ++n) t.name = concat(name, "-", n);
  }
  return trials;
}

SweepResult sweep(const SweepSettings& settings, std::vector<SweepTrial> trials,
                  FinetuneListener& listener, const std::atomic<int>& stop) {
  return Sweep(settings, std::move(trials), listener, stop).go();
}

}  // namespace lk
