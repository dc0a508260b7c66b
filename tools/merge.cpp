// merge: merges adapters into their base, as a plain model, and back.
#include "lora/merge.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>

#include "io/json.h"
#include "io/paths.h"
#include "program.h"
#include "run/merge_vectors.h"
#include "run/methods.h"
#include "settings_file.h"

namespace {

using namespace lk;

// Thrown to end the merge from within; what was written is removed on the way out.
struct Interrupted {
  int signal;
};

struct Console : MergeListener {
  const std::atomic<int>& signal = program::install_signal_handlers();
  void message(const std::string& text) override { program::message(text); }
  void progress(std::uint64_t done, std::uint64_t of, const std::string& tensor) override {
    if (int number = signal.load()) throw Interrupted{number};
    program::progress(
        concat(done >> 20, of ? concat(" of ", of >> 20) : "", " MiB (F32)  ", tensor), done == of);
  }
};

// Parses "DIR" or "DIR=0.7". If a folder of the whole name exists, the name is taken as it is.
WeightedAdapter parse_adapter(const std::string& text) {
  const std::size_t at = text.rfind('=');
  if (at == std::string::npos || exists(text)) return {text, 1};
  std::string number = text.substr(at + 1);
  if (std::string wrong = program::real_number()(number); !wrong.empty())
    throw UsageError(concat("--adapter ", text, ": the weight after '=': ", wrong));
  return {text.substr(0, at), std::strtod(number.c_str(), nullptr)};
}

OrderedJson to_json(const Survival& s) {
  return {{"matrices", s.matrices},
          {"kept", s.kept()},
          {"least_kept", s.least_kept},
          {"noise", s.noise()}};
}

void add_check(OrderedJson& out, const LogitCheck& r) {
  out["verified"] = r.logit_difference.has_value();
  if (!r.logit_difference) return;
  out["largest_logit"] = *r.largest_logit;
  out["largest_logit_difference"] = *r.logit_difference;
  out["relative_difference"] = *r.logit_difference / *r.largest_logit;
}

void print(const MergeSettings& s, const MergeResult& r) {
  OrderedJson out = {
      {"out", s.out}, {"type", r.type}, {"bytes", r.bytes}, {"update", to_json(r.all)}};
  for (const auto& [name, survival] : r.modules) out["modules"][name] = to_json(survival);
  add_check(out, r);
  out["warnings"] = r.warnings;
  program::write(json_text(out) + "\n");
}

// Throws UsageError for what would do nothing.
void check_flags(const CLI::App& app, const std::string& out, bool unmerge) {
  const std::string ending = out.substr(out.size() - std::min<std::size_t>(out.size(), 5));
  std::string small = ending;
  std::transform(small.begin(), small.end(), small.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  require(small != ".gguf" || ending == small, "--out ", out,
          ": a GGUF file's name ends in .gguf, in small letters");
  require(ending != ".gguf" || app.count("--shard-size") == 0,
          "--shard-size: is for a folder's files, and --out is one");
  for (const char* flag : {"--type", "--shard-size", "--no-verify"})
    require(!unmerge || app.count(flag) == 0, flag,
            ": has no effect beside --unmerge, which writes --base as it is");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "W' = W + s B A as a plain model. One JSON object on stdout.\n\n"
      "  merge --model model.gguf --adapter runs/mine --out merged\n"
      "  merge --model model.gguf --adapter runs/mine --out merged.gguf --type q8_0\n"
      "  merge --model model.gguf --adapter runs/a=0.7 --adapter runs/b=0.3 --out both\n"
      "  merge --model model.gguf --out base      (a Hugging Face folder of the same model)\n",
      "merge");
  MergeSettings s;
  std::vector<std::string> adapters;
  std::string base, shard = "5GB", precision = "auto", keep_dense;
  bool unmerge_it = false, no_verify = false;
  app.add_option("--model", s.model, program::kModelHelp)
      ->required()
      ->transform(program::model_name());
  app.add_option("--adapter", adapters,
                 "PEFT folder, or folder=weight; several add up; without any the model itself is "
                 "written");
  app.add_option("--out", s.out, "a new folder, or a new file ending in .gguf")->required();
  app.add_option("--type", s.type,
                 "f32, f16, bf16; for a folder also nf4, fp4, fp8 (its projections), for .gguf "
                 "q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, q3_k, q2_k. Without it: as the "
                 "base is stored, f32 if it is quantised");
  app.add_option("--shard-size", shard, "of a folder's files")->capture_default_str();
  app.add_flag("--other-base", s.other_base,
               "the adapter may have been trained on another base, and "
               "--onto may be another model");
  app.add_option("--onto", s.onto,
                 "merge into this model instead: --model, which is quantised, before it was so")
      ->transform(program::model_name());
  app.add_option("--base-precision", precision, program::kHeldHelp)->capture_default_str();
  app.add_option("--keep-dense", keep_dense, program::kKeepDenseHelp)->type_name(program::kList);
  app.add_flag("--no-verify", no_verify, "do not load the result and compare its logits");
  auto* flag = app.add_flag("--unmerge", unmerge_it,
                            "check that --model is --base with the adapters, then write the base");
  app.add_option("--base", base, "for --unmerge: the base that was kept")
      ->needs(flag)
      ->transform(program::model_name());
  return program::run(app, argc, argv, [&] {
    check_flags(app, s.out, unmerge_it);
    for (const std::string& text : adapters) s.adapters.push_back(parse_adapter(text));
    s.verify = !no_verify;
    s.storage.precision = parse_base_precision(precision);
    if (!keep_dense.empty()) s.storage.keep_dense = program::parse_list(keep_dense, "--keep-dense");
    s.shard_bytes = static_cast<std::uint64_t>(program::parse_bytes(shard));
    require(s.shard_bytes > 0, "--shard-size: more than 0 is expected");
    Console console;
    try {
      require(!unmerge_it || s.onto.empty(), "--unmerge and --onto: give one of the two");
      if (unmerge_it) {
        if (base.empty())
          throw UsageError("--unmerge needs --base: what rounding lost can't be computed back");
        for (const WeightedAdapter& one : s.adapters)
          require_lora(one.folder, "--adapter " + one.folder, "only A and B are taken out again");
        unmerge(s, base, console);
        program::write(json_text(OrderedJson{{"out", s.out}, {"exact", true}}) + "\n");
        return 0;
      }
      const auto vectors = std::find_if(s.adapters.begin(), s.adapters.end(), [](const auto& one) {
        return merges_as_vectors(open_method(one.folder)->method());
      });
      if (vectors != s.adapters.end()) {
        const std::string& folder = vectors->folder;
        require(s.adapters.size() == 1 && vectors->weight == 1,
                "--adapter: vectors are merged one folder at a time, without a weight");
        require(s.onto.empty(), "--onto: is for adapters of A and B, and ", folder,
                " holds vectors, which are merged into the numbers of --model");
        const VectorMergeResult r = merge_vectors(
            {s.model, folder, s.out, s.type, s.other_base, s.shard_bytes, s.storage, s.verify},
            console);
        if (!r.remark.empty()) program::message(r.remark);
        for (const std::string& warning : r.warnings) program::message("warning: " + warning);
        OrderedJson out = {
            {"out", s.out}, {"type", r.type}, {"bytes", r.bytes}, {"changed", r.changed}};
        add_check(out, r);
        program::write(json_text(out) + "\n");
        return 0;
      }
      const MergeResult result = merge(s, console);
      for (const std::string& warning : result.warnings) program::message("warning: " + warning);
      print(s, result);
      return 0;
    } catch (const Interrupted& i) {
      program::message(concat("stopped by signal ", i.signal, "; nothing was written"));
      return 128 + i.signal;
    }
  });
}
