// What a run does where its settings leave it open, and what its evaluations decide.
#include <filesystem>
#include <fstream>

#include "cpu/cpu_backend.h"
#include "heard_run.h"
#include "hostile.h"
#include "io/json.h"
#include "run/defaults.h"
#include "run/evaluation_watch.h"
#include "run/pace.h"
#include "text/dataset.h"
#include "text/rows.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kTiny = std::string(LK_TEST_DATA) + "/golden/peft/tiny";

struct Runs {
  ScratchFolder scratch;
  std::string rows = scratch.file("rows.jsonl"), said;
  explicit Runs(int n) {
    std::ofstream out(rows);
    for (int i = 0; i < n; ++i)
      out << R"({"prompt":"say )" << i << R"( ","completion":"word )" << (i * 7919) % 1000
          << "\"}\n";
  }
  FinetuneSettings settings(const std::string& out) const {
    FinetuneSettings s;
    s.model = kTiny, s.data = rows, s.out = scratch.file(out);
    s.device = "cpu", s.dtype = "f32", s.seq_len = 64, s.rank = 4;
    return s;
  }
  FinetuneResult run(const FinetuneSettings& s, std::int64_t stop_after = -1) {
    return hear_run(s, stop_after, said);
  }
  std::string file(const std::string& name) const { return slurp(scratch.file(name)); }
};

Dataset lines(int n, int rows_each) {
  Dataset data;
  data.format = "messages";
  for (int i = 0; i < n * rows_each; ++i) {
    Row row = random_rows({4}, static_cast<unsigned>(i))[0];
    row.line = static_cast<std::size_t>(i / rows_each) + 1;
    data.rows.push_back(row);
  }
  return data;
}

}  // namespace

TEST_CASE("a run is saved ten times, 50 to 500 steps apart") {
  for (auto [steps, every] : {std::pair<int, int>{1, 50}, {499, 50}, {3000, 300}, {1'000'000, 500}})
    CHECK(default_save_every(steps) == every);
}

TEST_CASE("the default rate falls with the root of the number of parameters") {
  CHECK(default_lr(135'000'000) == doctest::Approx(1.5e-3));
  CHECK(default_lr(1'236'000'000) == doctest::Approx(5e-4));
  CHECK(default_lr(6'738'000'000) == doctest::Approx(2.1e-4));
  CHECK(default_lr(1) == doctest::Approx(3e-3));
  CHECK(default_lr(INT64_MAX) == doctest::Approx(2e-5));
  CHECK(default_epochs(48) == 3);
  CHECK(default_epochs(5000) == 2);
  CHECK(default_epochs(52'000) == 1);
}

TEST_CASE(
    "a rate of one's own is constant; the default one rises and falls; a resumed run keeps it") {
  FinetuneSettings open, own, later;
  own.lr = 5e-4;
  fill_in_rates(open, 135'000'000, 200, nullptr);
  CHECK(*open.lr == doctest::Approx(1.5e-3));
  CHECK(*open.schedule == "linear");
  CHECK(*open.warmup == 20);
  fill_in_rates(own, 135'000'000, 200, nullptr);
  CHECK(*own.schedule == "constant");
  CHECK(*own.warmup == 0);
  const Json before = {{"lr", 1e-3}, {"schedule", "cosine"}, {"warmup", 7}};
  fill_in_rates(later, 135'000'000, 400, &before);
  CHECK(*later.lr == 1e-3);
  CHECK(*later.schedule == "cosine");
  CHECK(*later.warmup == 7);
}

TEST_CASE("evaluations are ten at most, five steps apart, and cost an eighth of the training") {
  auto every = [](std::int64_t steps, std::int64_t train, std::int64_t eval, double epochs = 1) {
    FinetuneSettings s;
    fill_in_evaluation(s, steps, epochs, train, eval);
    CHECK(s.keep == (eval > 0 ? "best" : "last"));
    return *s.eval_every;
  };
  CHECK(every(100, 100'000, 100) == 10);
  CHECK(every(100, 100'000, 7'500) == 20);   // five of them are an eighth
  CHECK(every(100, 100'000, 15'000) == 25);  // four are a fifth
  CHECK(every(100, 100'000, 30'000) == 50);  // two are a fifth, three more than a quarter
  CHECK(every(100, 100'000, 100'000) == 0);
  CHECK(every(21, 4'000, 150, 3) == 6);  // at 6, 12, 18 and 21
  CHECK(every(18, 4'000, 150, 3) == 6);
  CHECK(every(200, 100'000, 100, 20) == 10);  // one an epoch
  CHECK(every(9, 100'000, 10) == 0);
  CHECK(every(4, 100, 1000) == 0);
  CHECK(every(100, 100'000, 0) == 0);
  CHECK(every(1, 100'000, 1) == 0);
}

TEST_CASE("what a run takes is told by medians, which no single slow step moves") {
  Pace pace;
  CHECK(pace.seconds_left(10, 1) < 0);
  CHECK(pace.tokens_per_second() == 0);
  for (int i = 0; i < 9; ++i) pace.stepped(i == 4 ? 60 : 2, 100);
  pace.evaluated(3);
  CHECK(pace.seconds_left(10, 2) == 26);
  CHECK(pace.tokens_per_second() == 50);
  for (int i = 0; i < 30; ++i) pace.stepped(4, 100);  // a lasting change counts
  CHECK(pace.seconds_left(10, 0) == 40);
}

TEST_CASE("rows are split off evenly, all rows of a chat together") {
  auto tokenizer = Tokenizer::from_folder(kTiny);
  Dataset data = lines(50, 1);
  const Dataset eval = split_off(data, *tokenizer, 0.1, 256);
  CHECK(eval.rows.size() == 5);
  CHECK(data.rows.size() == 45);
  CHECK(data.tokens == 180);
  CHECK(eval.tokens == 20);
  for (std::size_t i = 0; i < 5; ++i) CHECK(eval.rows[i].line == 10 * (i + 1));

  Dataset chats = lines(20, 3);
  const Dataset some = split_off(chats, *tokenizer, 0.2, 3);
  CHECK(some.rows.size() == 9);  // of three chats
  for (const Row& row : chats.rows)
    for (const Row& other : some.rows) CHECK(row.line != other.line);

  Dataset few = lines(1, 4);
  check_throws<UsageError>("one line", {"eval_split", "none would be left"},
                           [&] { split_off(few, *tokenizer, 0.5, 256); });
  few.format = "txt";  // windows, however long the line they are of
  CHECK(split_off(few, *tokenizer, 0.5, 256).rows.size() == 2);
}

TEST_CASE("the watch keeps the lowest evaluation's adapter and warns once of a rise") {
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  Adapter adapter(*model, tiny_lora());
  auto values = [&] { return to_host_f64(adapter.layers()[0]->b().value()); };
  RunProgress progress;
  EvaluationWatch watch(true, 2, progress);
  auto hear = [&](std::int64_t step, double loss, double training) {
    randomize_b(adapter, static_cast<unsigned>(step));
    Evaluation e;
    e.loss = loss;
    return watch.evaluated(step, e, training, adapter);
  };
  CHECK(hear(0, 1.0, 0) == "");
  CHECK(watch.kept().empty());  // an adapter that is not trained is none to keep
  CHECK(hear(10, 3.0, 3.0) == "");
  CHECK(hear(20, 2.0, 2.5) == "");
  const auto best = values();
  CHECK(hear(30, 2.5, 2.0).find("rises while the training loss falls") != std::string::npos);
  CHECK(!watch.is_out_of_patience());
  CHECK(hear(40, 2.6, 1.5) == "");
  CHECK(watch.is_out_of_patience());
  CHECK(progress.best->step == 20);
  const auto now = values();
  watch.with_kept(adapter, [&] { CHECK(values() == best); });
  CHECK(values() == now);
  CHECK_THROWS_AS(watch.with_kept(adapter, [] { throw IoError("full"); }), IoError);
  CHECK(values() == now);
}

TEST_CASE("a run of few words evaluates on a tenth of its rows, and says what it does") {
  Runs f(60);
  const FinetuneResult r = f.run(f.settings("run"));
  CHECK(r.steps == 21);  // three passes over 54 rows
  REQUIRE(r.eval_before);
  CHECK(r.eval_before->rows == 6);
  for (const char* part :
       {"6 of the 60 rows are kept", "21 steps of 8 rows, 3.11 passes over 54 rows",
        "rank 4 on all-linear", "linear after 2 of warm-up", "keeps the best"})
    CHECK_MESSAGE(f.said.find(part) != std::string::npos, f.said, " lacks ", part);
  const Json run = parse_json(f.file("run/run.json"), "run.json");
  CHECK(run["settings"]["run"]["lr"].get<double>() == doctest::Approx(3e-3));
  CHECK(f.file("run/metrics.jsonl").find("\"step\":6,\"eval_loss\"") != std::string::npos);

  FinetuneSettings short_model = f.settings("short");  // rows as long as its 256 positions
  short_model.seq_len = {}, short_model.steps = 1;
  f.run(short_model);
  CHECK(parse_json(f.file("short/run.json"), "run")["settings"]["run"]["seq_len"] == 256);

  FinetuneSettings file_order = f.settings("plain");  // a recipe: nothing is taken away
  file_order.shuffle = false, file_order.steps = 2, file_order.lr = 1e-3;
  CHECK(!f.run(file_order).eval_before);
  CHECK(f.said.find("nothing to evaluate on") != std::string::npos);
  CHECK(f.said.find("2 steps are few") != std::string::npos);
}

TEST_CASE("the best adapter is kept, through a stop and a resume too; patience ends a run") {
  Runs f(60);
  auto overfitting = [&](const std::string& out) {
    FinetuneSettings s = f.settings(out);
    s.steps = 40, s.lr = 3e-2, s.schedule = "constant", s.rank = 8, s.eval_every = 2, s.samples = 0;
    return s;
  };
  const FinetuneResult whole = f.run(overfitting("whole"));
  REQUIRE(whole.best);
  CHECK(whole.kept_step == whole.best->step);
  REQUIRE(whole.kept_step < 40);
  CHECK(f.said.find("kept: the adapter of step") != std::string::npos);
  FinetuneSettings last = overfitting("last");
  last.keep = "last";
  CHECK(f.run(last).kept_step == 40);
  CHECK(f.file("last/adapter_model.safetensors") != f.file("whole/adapter_model.safetensors"));
  FinetuneSettings exact = overfitting("exact");  // the adapter of that step
  exact.steps = whole.kept_step, exact.keep = "last";
  f.run(exact);
  CHECK(f.file("exact/adapter_model.safetensors") == f.file("whole/adapter_model.safetensors"));

  FinetuneSettings parts = overfitting("parts");
  CHECK(f.run(parts, whole.kept_step + 3).kept_step == whole.kept_step);  // behind the best
  FinetuneSettings other = parts;  // what is kept may be decided anew
  std::filesystem::copy(parts.out, other.out = f.scratch.file("other"));
  other.resume = true, other.keep = "last";
  CHECK(f.run(other).kept_step == 40);
  CHECK(f.file("other/adapter_model.safetensors") == f.file("last/adapter_model.safetensors"));
  parts.resume = true;
  const FinetuneResult resumed = f.run(parts);
  CHECK(resumed.kept_step == whole.kept_step);
  CHECK(parse_json(f.file("parts/run.json"), "run")["result"]["kept_step"] == whole.kept_step);
  CHECK(f.file("parts/adapter_model.safetensors") == f.file("whole/adapter_model.safetensors"));

  FinetuneSettings patient = overfitting("patient");
  patient.patience = 2;
  const FinetuneResult early = f.run(patient);
  CHECK(early.out_of_patience);
  CHECK(early.steps == early.kept_step + 4);
  CHECK(f.said.find("2 evaluations without a new best") != std::string::npos);
  CHECK(f.file("patient/run.json").find("\"finished\"") != std::string::npos);
  patient.resume = true;  // it is finished: the same steps again are refused, more go on
  check_throws<UsageError>("same", {"holds a finished run"}, [&] { f.run(patient); });
  patient.steps = 42, patient.patience = 0;
  CHECK(f.run(patient).steps == 42);
}

TEST_CASE("samples along the way stand in metrics.jsonl and in the report") {
  Runs f(60);
  FinetuneSettings s = f.settings("run");
  s.steps = 4, s.sample_every = 2, s.samples = 1;
  f.run(s);
  CHECK(f.file("run/metrics.jsonl").find("\"sample\":{\"prompt\":") != std::string::npos);
  CHECK(f.file("run/report.html").find("at step 2") != std::string::npos);
  CHECK(f.file("run/report.html").find("http-equiv=\"refresh\"") == std::string::npos);
}

TEST_CASE("a program trains on rows of its own, chats among them") {
  Runs f(0);
  auto tokenizer = Tokenizer::from_folder(kTiny);
  const ChatTemplate chatml = ChatTemplate::choose(*tokenizer, "chatml");
  FinetuneRows rows;
  for (int i = 0; i < 8; ++i) rows.train.push_back(make_row(*tokenizer, "say ", "hello"));
  for (Row& row : make_chat_rows(*tokenizer, chatml, {{"user", "Hi"}, {"assistant", "Hello."}}))
    rows.train.push_back(row);
  rows.eval = {rows.train[0]};
  FinetuneSettings s = f.settings("own");
  s.data = "", s.steps = 3, s.samples = 0;
  Ear ear;
  const FinetuneResult r = finetune(s, rows, ear, ear.stop);
  CHECK(r.steps == 3);
  CHECK(r.last_loss < r.first_loss);
  CHECK(r.eval_after->rows == 1);
  CHECK(std::filesystem::exists(f.scratch.file("own/adapter_model.safetensors")));
  CHECK(!std::filesystem::exists(f.scratch.file("own/run.toml")));
  CHECK(f.file("own/run.json").find("\"chats\": null") != std::string::npos);
  s.out = f.scratch.file("chats"), rows.chats = true, rows.system = "Be kind.";
  finetune(s, rows, ear, ear.stop);
  CHECK(f.file("chats/run.json").find("\"chats\": 9") != std::string::npos);
  CHECK(f.file("chats/README.md").find("--chat --system 'Be kind.'") != std::string::npos);
  FinetuneRows many;  // enough to split, each on its own as none has a line
  for (int i = 0; i < 60; ++i) many.train.push_back(make_row(*tokenizer, "say ", "hello"));
  s.out = f.scratch.file("many");
  CHECK(finetune(s, many, ear, ear.stop).eval_after->rows == 6);
  s.out = f.scratch.file("files"), s.data = f.rows;
  check_throws<UsageError>("files too", {"in memory"}, [&] { finetune(s, rows, ear, ear.stop); });
  s.data = "";
  FinetuneRows beyond = rows;
  beyond.eval[0].ids[2] = 999999;
  check_throws<UsageError>("no such token",
                           {"evaluation rows in memory: rows[0]", "ids[2]", "999999"},
                           [&] { finetune(s, beyond, ear, ear.stop); });
  rows.train[1].supervised.pop_back();
  check_throws<UsageError>("bad row", {"rows[1]", "`supervised`"},
                           [&] { finetune(s, rows, ear, ear.stop); });
  check_throws<InputError>("no answer", {"no turn to train"}, [&] {
    make_chat_rows(*tokenizer, chatml, {{"user", "Hi"}});
  });
}
