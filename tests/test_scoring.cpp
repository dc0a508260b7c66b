// Choices and generation scored on a tiny model: would catch a choice that gets another's
// log-probability, a batch that changes a score, an answer read wrongly.
#include <cmath>

#include "run/inference.h"
#include "run/scoring.h"
#include "scratch_folder.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

InferenceModel tiny() {
  InferenceSettings s;
  s.model = std::string(LK_TEST_DATA) + "/golden/peft/tiny";
  s.device = "cpu";
  s.dtype = "f32";
  return open_inference(s);
}

struct File {
  ScratchFolder folder;
  explicit File(const std::string& text) { folder.write("rows.jsonl", text); }
  std::string name() const { return folder.file("rows.jsonl"); }
};

}  // namespace

TEST_CASE("choices: each sum is that of the logits, whatever the batch") {
  InferenceModel m = tiny();
  const File file(R"({"prompt":"abc","choices":[" de"," fghij","k"],"answer":1})"
                  "\n"
                  R"({"prompt":"","choices":["xy","zzz"],"answer":"zzz"})"
                  "\n");
  const auto rows = load_choices(file.name(), *m.tokenizer, {});
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].answer == 1);
  CHECK(rows[1].answer == 1);
  CHECK(rows[0].characters == std::vector<std::int64_t>{3, 6, 1});
  const auto one = choice_log_probabilities(*m.model, rows, 1);
  const auto all = choice_log_probabilities(*m.model, rows, 4096);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    REQUIRE(one[r].size() == rows[r].choices.size());
    for (std::size_t c = 0; c < one[r].size(); ++c) {
      const Row& row = rows[r].choices[c];
      TokenBatch batch = make_prompt(m.model->backend(), row.ids, 0);
      const auto logits = to_host_f64(m.model->logits(batch));
      const auto V = static_cast<std::size_t>(m.model->config().vocab_size);
      double sum = 0;
      for (std::size_t t = 1; t < row.ids.size(); ++t) {
        if (!row.supervised[t]) continue;
        const double* x = &logits[(t - 1) * V];
        double z = 0;
        for (std::size_t v = 0; v < V; ++v) z += std::exp(x[v]);
        sum += x[row.ids[t]] - std::log(z);
      }
      // Float32 logits and log-sum-exp: some ulps of each token's loss.
      const double bound = 1e-5 * static_cast<double>(row.ids.size());
      CHECK_MESSAGE(std::abs(one[r][c] - sum) < bound, r, " ", c);
      CHECK_MESSAGE(std::abs(all[r][c] - sum) < bound, r, " ", c);
    }
  }
}

TEST_CASE("choices: accuracy by sum, and by sum over characters") {
  std::vector<ChoiceRow> rows(3);
  for (ChoiceRow& row : rows) {
    row.choices.resize(2);
    row.characters = {2, 10};
    row.answer = 1;
  }
  // Right by both; right by characters only; a tie, which goes to the first.
  const ChoiceScores s =
      score_choices(rows, std::vector<std::vector<double>>{{-9, -3}, {-2, -5}, {-1, -1}});
  CHECK(s.accuracy == 1.0 / 3);
  CHECK(s.accuracy_norm == 1.0);
  CHECK(s.rows == 3);
  CHECK(s.choices == 6);
}

TEST_CASE("generation: scored rows are those that generate() writes, whatever the batch") {
  InferenceModel m = tiny();
  SamplingSettings sampling;
  sampling.max_tokens = 6;
  sampling.stop_ids = m.tokenizer->stop_ids();
  std::vector<ReferenceRow> rows;
  std::vector<std::string> own;
  for (const char* prompt : {"abc", "x", "a longer prompt than these", "abd"}) {
    const auto ids = m.tokenizer->encode(prompt);
    own.push_back(m.tokenizer->decode(generate(*m.model, ids, sampling).ids));
    rows.push_back({prompt, ids, {"else", own.back()}});
  }
  for (std::int64_t batch : {1, 3, 16}) {
    std::int64_t calls = 0, last = 0;
    const GenerationScores s = score_generation(*m.model, *m.tokenizer, rows, sampling, batch,
                                                [&](std::int64_t done, std::int64_t total) {
                                                  ++calls, last = done;
                                                  CHECK(total == 4);
                                                });
    CHECK(s.texts == own);
    CHECK(s.rows == 4);
    CHECK(calls == 4);
    CHECK(last == 4);
  }
}

TEST_CASE("rows for scoring: kinds by their keys, wrong ones named by file, line and key") {
  InferenceModel m = tiny();
  auto kind = [](const char* line) { return detect_eval_kind(File(line).name()); };
  CHECK(kind(R"({"prompt":"a","choices":["b","c"],"answer":0})") == EvalKind::Choices);
  CHECK(kind(R"({"prompt":"a","references":["b"]})") == EvalKind::Generation);
  CHECK(kind(R"({"prompt":"a","completion":"b","references":["b"]})") == EvalKind::Loss);
  CHECK(kind(R"({"text":"a"})") == EvalKind::Loss);

  for (const auto& [line, named] :
       {std::pair{R"({"prompt":"a","choices":["b"],"answer":0})", "choices"},
        {R"({"prompt":"a","choices":["b",2],"answer":0})", "choices"},
        {R"({"prompt":"a","choices":"bc","answer":0})", "choices"},
        {R"({"prompt":"a","choices":["b","b"],"answer":0})", "twice"},
        {R"({"prompt":"a","choices":["b",""],"answer":0})", "choices[1]"},
        {R"({"prompt":"a","choices":["b","c"],"answer":2})", "answer"},
        {R"({"prompt":"a","choices":["b","c"],"answer":-1})", "answer"},
        {R"({"prompt":"a","choices":["b","c"],"answer":1.5})", "answer"},
        {R"({"prompt":"a","choices":["b","c"],"answer":"B"})", "answer"},
        {R"({"prompt":"a","choices":["b","c"]})", "answer"},
        {R"({"prompt":"a","choices":["b","c"],"answer":0,"id":1,"context":"d"})", "context"},
        {R"({"prompt":"a","choices":["b","c"],"answer":0,"Answer":1})", "Answer"},
        {R"({"choices":["b","c"],"answer":0})", "prompt"},
        {R"({"prompt":"aaaaaaaaaaaaaaaaaaaaaaaaa","choices":["b","c"],"answer":0})",
         "`seq_len`"}}) {
    CAPTURE(line);
    const File file(std::string("{\"prompt\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":0}\n") +
                    line + "\n");
    CHECK_THROWS_WITH_AS(load_choices(file.name(), *m.tokenizer, {10, -1}),
                         doctest::Contains("jsonl:2"), InputError);
    CHECK_THROWS_WITH_AS(load_choices(file.name(), *m.tokenizer, {10, -1}),
                         doctest::Contains(named), InputError);
    CHECK(load_choices(file.name(), *m.tokenizer, {10, 1}).size() == 1);
  }
  for (const auto& [line, named] :
       {std::pair{R"({"prompt":"a","references":[]})", "references"},
        {R"({"prompt":"a","references":[1]})", "references"},
        {R"({"prompt":"a"})", "references"},
        {R"({"prompt":"a","references":["b"],"id":1,"system":"d"})", "system"},
        {R"({"prompt":"","references":["x"]})", "prompt"},
        {R"({"prompt":"aaaaaaaa","references":["x"]})", "`max_tokens`"}}) {
    CAPTURE(line);
    CHECK_THROWS_WITH_AS(load_references(File(line).name(), *m.tokenizer, {10, -1}, 5),
                         doctest::Contains(named), InputError);
  }
  const auto rows =
      load_references(File(R"({"prompt":"a","completion":"b"})").name(), *m.tokenizer, {10, -1}, 5);
  CHECK(rows[0].references == std::vector<std::string>{"b"});
  CHECK_THROWS_AS(load_choices(File("\n").name(), *m.tokenizer, {}), InputError);
}
