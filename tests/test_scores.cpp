// BLEU and ROUGE-L against sacrebleu's and rouge_score's own numbers (golden/make_score_golden.py).
#include <cmath>

#include "harness.h"
#include "io/json.h"
#include "tensor/error.h"
#include "text/bleu.h"
#include "text/e2e_scores.h"
#include "text/rouge.h"

using namespace lk;

namespace {

Json golden() { return read_json(std::string(LK_TEST_DATA) + "/golden/text_scores.json"); }

// Python and C++ perform the same operations, except for the last bits of log, exp and a sum.
void check_close(double ours, double theirs) {
  CHECK_MESSAGE(std::abs(ours - theirs) <= 1e-12 * std::max(1.0, std::abs(theirs)), ours, " for ",
                theirs);
}

}  // namespace

TEST_CASE("13a: the words of every line are sacrebleu's") {
  const Json tokens = golden().at("tokens");
  REQUIRE(tokens.size() >= 20);
  for (const Json& pair : tokens) {
    CAPTURE(pair[0].dump());
    CHECK(tokenize_13a(pair[0].get<std::string>()) == pair[1].get<std::vector<std::string>>());
  }
}

TEST_CASE("scores of each corpus are sacrebleu's, rouge_score's and the published formulas'") {
  const Json corpora = golden().at("corpora");
  REQUIRE(corpora.size() == 8);
  for (std::size_t c = 0; c < corpora.size(); ++c) {
    CAPTURE(c);
    const Json& corpus = corpora[c];
    Bleu bleu;
    E2eScores e2e;
    for (std::size_t i = 0; i < corpus.at("hypotheses").size(); ++i) {
      const auto hypothesis = corpus.at("hypotheses")[i].get<std::string>();
      const auto references = corpus.at("references")[i].get<std::vector<std::string>>();
      bleu.add(hypothesis, references);
      e2e.add(hypothesis, references);
      const RougeL rouge = rouge_l(hypothesis, references);
      CAPTURE(hypothesis);
      check_close(rouge.precision, corpus.at("rouge_l")[i][0].get<double>());
      check_close(rouge.recall, corpus.at("rouge_l")[i][1].get<double>());
      check_close(rouge.f1, corpus.at("rouge_l")[i][2].get<double>());
    }
    const Json& challenge = corpus.at("e2e");
    check_close(e2e.bleu(), challenge.at("bleu").get<double>());
    check_close(e2e.nist(), challenge.at("nist").get<double>());
    check_close(e2e.rouge_l(), challenge.at("rouge_l").get<double>());
    check_close(e2e.cider(), challenge.at("cider").get<double>());
    const Json& wanted = corpus.at("bleu");
    check_close(bleu.score(), wanted.at("score").get<double>());
    check_close(bleu.brevity_penalty(), wanted.at("bp").get<double>());
    CHECK(bleu.hypothesis_tokens() == wanted.at("sys_len").get<std::int64_t>());
    CHECK(bleu.reference_tokens() == wanted.at("ref_len").get<std::int64_t>());
    for (std::size_t n = 0; n < kBleuOrder; ++n)
      check_close(bleu.precisions()[n], wanted.at("precisions")[n].get<double>());
  }
}

TEST_CASE("scores: a text without references is refused") {
  Bleu bleu;
  CHECK_THROWS_AS(bleu.add("x", {}), UsageError);
  CHECK_THROWS_AS(rouge_l("x", {}), UsageError);
  CHECK_THROWS_AS(E2eScores().add("x", {}), UsageError);
}
