// Generation: would catch a KV cache off by one, positions that restart, sampling that ignores its
// seed.
#include <map>
#include <numeric>
#include <set>

#include "cpu/cpu_backend_impl.h"
#include "io/gguf.h"
#include "io/json.h"
#include "io/utf8.h"
#include "modelfile/load.h"
#include "nn/cached_ops.h"
#include "nn/generate.h"
#include "parity.h"
#include "run/conversation.h"
#include "tiny_model.h"
#include "tokenizer_fixture.h"

using namespace lk;
using namespace lk::test;

namespace {

void check_cached_logits(const std::string& family) {
  CAPTURE(family);
  auto backend = make_cpu_backend(CpuMode::Reference);
  auto model = tiny_transformer(*backend, DType::F64, 7, family);
  std::vector<Row> rows = random_rows({23}, 9);
  std::vector<double> whole = to_host_f64(model->logits(make_batch(*backend, pointers(rows))));
  KvCache cache(*backend, model->config(), DType::F64, 23, 2);
  const auto& ids = rows[0].ids;
  const std::size_t V = 61;
  auto row = [&](std::size_t i) {
    return std::vector<double>(whole.begin() + static_cast<std::ptrdiff_t>(i * V),
                               whole.begin() + static_cast<std::ptrdiff_t>((i + 1) * V));
  };
  // A prompt of 10, then three tokens at once, then one at a time.
  std::size_t at = 0;
  for (std::size_t n : {10, 3, 1, 1, 1, 7}) {
    const SequencePart part{1, {ids.begin() + at, ids.begin() + at + n}, -1};
    Tensor logits = model->next_logits(make_cached_batch(cache, std::span(&part, 1)), cache);
    advance_cache(cache, std::span(&part, 1));
    at += n;
    check_close(to_host_f64(logits), row(at - 1), 1e-12, {1e-12}, "cached logits");
  }
  CHECK(cache.length(1) == 23);
  CHECK(cache.length(0) == 0);
  const SequencePart more{1, {1}, -1};
  CHECK_THROWS_AS(make_cached_batch(cache, std::span(&more, 1)), Error);
}

}  // namespace

TEST_CASE("logits with a KV cache equal the logits of the whole sequence, F64, in every family") {
  for (const std::string& family : kFamilies) check_cached_logits(family);
}

TEST_CASE("greedy generation follows the largest logit and stops where told") {
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  std::vector<std::int32_t> prompt{1, 2, 3};
  SamplingSettings settings;
  settings.max_tokens = 20;
  Generation g = generate(*model, prompt, settings);
  REQUIRE(g.ids.size() == 20);
  CHECK(!g.stopped);
  std::vector<std::int32_t> text = prompt;
  for (std::int32_t id : g.ids) {  // the slow way: the whole sequence each time
    TokenBatch b = make_prompt(*backend, text, 0);
    std::vector<double> logits = to_host_f64(model->logits(b));
    auto last = logits.end() - 61;
    CHECK(id == std::max_element(last, logits.end()) - last);
    text.push_back(id);
  }
  settings.stop_ids = {g.ids[5]};
  Generation stopped = generate(*model, prompt, settings);
  CHECK(stopped.stopped);
  CHECK(stopped.ids.size() <= 5);
  CHECK_THROWS_AS(generate(*model, {}, settings), UsageError);
  CHECK_THROWS_AS(generate(*model, std::vector<std::int32_t>(256, 1), settings), UsageError);
}

TEST_CASE("sampling obeys temperature, top-k, top-p and its seed") {
  std::vector<float> logits{0, 1, 2, 3, 4, -50};
  SamplingSettings s;
  CHECK(sample_token(logits, s, 0) == 4);
  s.temperature = 1;
  std::vector<int> counts(6);
  for (int i = 0; i < 20000; ++i) ++counts[static_cast<std::size_t>(sample_token(logits, s, i))];
  double z = 0;
  for (float l : logits) z += std::exp(l);
  for (std::size_t i = 0; i < 6; ++i) {
    double p = std::exp(logits[i]) / z;
    CHECK(std::abs(counts[i] - 20000 * p) < 5 * std::sqrt(20000 * p * (1 - p)) + 1);
  }
  s.top_k = 2;
  for (int i = 0; i < 200; ++i) CHECK(sample_token(logits, s, i) >= 3);
  s.top_k = 0;
  s.top_p = 0.5;  // the largest alone has 0.64
  for (int i = 0; i < 200; ++i) CHECK(sample_token(logits, s, i) == 4);
  s.top_p = 1;
  bool differs = false;
  SamplingSettings other = s;
  other.seed = 1;
  for (int i = 0; i < 50; ++i) {
    CHECK(sample_token(logits, s, i) == sample_token(logits, s, i));
    differs = differs || sample_token(logits, s, i) != sample_token(logits, other, i);
  }
  CHECK(differs);
  std::vector<float> bad{std::nanf(""), std::nanf("")};
  CHECK_THROWS_AS(sample_token(bad, s, 0), NonFiniteError);
}

TEST_CASE("min-p, the repetition penalty and top-p over a large vocabulary do what they say") {
  std::vector<float> logits{0, 1, 2, 3, 4, -50};
  SamplingSettings s;
  s.temperature = 1;
  s.min_p = std::exp(-1.5);  // 4 and 3 remain
  for (int i = 0; i < 200; ++i) CHECK(sample_token(logits, s, i) >= 3);
  SamplingSettings greedy;
  greedy.repetition_penalty = 2;
  CHECK(sample_token(logits, greedy, 0, std::vector<std::int32_t>{4, 4, 0}) == 3);  // 4 / 2 = 2
  CHECK(sample_token(std::vector<float>{-1, -1.5f}, greedy, 0, std::vector<std::int32_t>{0}) == 1);
  // 3000 equal tokens: half of the probability is half of them, and all of these are drawn from.
  SamplingSettings nucleus;
  nucleus.temperature = 1;
  nucleus.top_p = 0.5;
  const std::vector<float> flat(3000, 1.0f);
  std::int32_t highest = 0;
  for (int i = 0; i < 3000; ++i) highest = std::max(highest, sample_token(flat, nucleus, i));
  CHECK(highest < 1500);
  CHECK(highest > 1480);
  for (const auto& change : std::vector<std::function<void(SamplingSettings&)>>{
           [](auto& x) { x.max_tokens = 0; }, [](auto& x) { x.temperature = -1; },
           [](auto& x) { x.temperature = std::nan(""); }, [](auto& x) { x.top_k = -1; },
           [](auto& x) { x.top_p = 0; }, [](auto& x) { x.top_p = 1.5; },
           [](auto& x) { x.min_p = -0.1; }, [](auto& x) { x.repetition_penalty = 0; },
           [](auto& x) { x.stop = {""}; }}) {
    SamplingSettings bad;
    change(bad);
    CHECK_THROWS_AS(check_sampling(bad), UsageError);
  }
}

namespace {

// Prompts of unequal length, greedy and sampled, some longer than others in their answers too.
std::vector<GenerationRequest> mixed_requests() {
  std::vector<GenerationRequest> requests;
  std::vector<Row> rows = random_rows({3, 40, 1, 17, 90, 8, 5, 33, 2, 21, 13, 60}, 4);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    GenerationRequest r{rows[i].ids, {}, -1};
    r.sampling.max_tokens = 5 + static_cast<std::int64_t>(i * 7 % 20);
    r.sampling.temperature = i % 2 ? 1.0 : 0.0;
    r.sampling.top_k = i % 3 ? 0 : 20;
    r.sampling.repetition_penalty = i % 4 ? 1.0 : 1.3;
    r.sampling.seed = i / 2;
    requests.push_back(std::move(r));
  }
  return requests;
}

std::vector<std::int32_t> alone(Transformer& model, const GenerationRequest& r,
                                const GeneratorSettings& settings) {
  return Generator(model, nullptr, settings).run(std::span(&r, 1))[0].ids;
}

}  // namespace

TEST_CASE("a sequence's tokens are the same alone and in any batch, greedy and sampled") {
  std::vector<GenerationRequest> requests = mixed_requests();
  auto check_backend = [&](Backend& backend, DType dtype, const std::string& family = "llama") {
    CAPTURE(dtype_name(dtype));
    CAPTURE(family);
    auto model = tiny_transformer(backend, dtype, 7, family);
    std::vector<std::vector<std::int32_t>> want;
    for (const GenerationRequest& r : requests) {
      want.push_back(alone(*model, r, {.prefill_rows = 32}));
      CHECK(want.back().size() == static_cast<std::size_t>(r.sampling.max_tokens));
    }
    for (std::int64_t batch : {1, 3, 5, 12}) {
      CAPTURE(batch);
      std::vector<std::size_t> order;
      GenerationEvents events;
      events.on_done = [&](std::size_t i, const Generation&) { order.push_back(i); };
      const auto got = Generator(*model, nullptr, {.max_batch = batch, .prefill_rows = 32})
                           .run(requests, events);
      for (std::size_t i = 0; i < requests.size(); ++i) CHECK(got[i].ids == want[i]);
      CHECK(order.size() == requests.size());
      if (batch == 3) CHECK(!std::is_sorted(order.begin(), order.end()));  // the short ones leave
    }
  };
  CpuBackend tiles(CpuMode::Fast, CpuBackend::Products::Tiles);
  for (const std::string& family : kFamilies) {
    check_backend(tiles, DType::F32, family);
    check_backend(tiles, DType::BF16, family);
  }
  check_backend(*make_cpu_backend(CpuMode::Reference), DType::F64);
  check_backend(*make_cpu_backend(), DType::F32);
}

TEST_CASE("choosing the next inputs follows the largest logit, as sampling does") {
  auto backend = make_cpu_backend();
  const std::vector<std::vector<float>> rows{
      {1, 3, NAN, 3, 2},
      {NAN, -INFINITY, -2, -1, -1},
      {NAN, NAN, NAN, NAN, NAN},
      {0, 1, INFINITY, 2, 3},
      {-INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY}};
  std::vector<float> all;
  for (const auto& row : rows) all.insert(all.end(), row.begin(), row.end());
  Tensor logits = backend->empty(Tag::Workspace, DType::F32, {5, 5});
  backend->upload(logits, all.data(), logits.bytes());
  const auto numbers = [&](std::int32_t first) {
    return to_device(*backend, Tag::Workspace,
                     std::vector<std::int32_t>{first, first + 1, first + 2, first + 3, first + 4});
  };
  const NextInputs next{backend->empty(Tag::Workspace, DType::F32, {5}), numbers(0), numbers(10),
                        numbers(20), numbers(30)};
  cached::choose_next(*backend, next, logits);
  const std::vector<float> chosen = to_host<float>(next.chosen);
  const std::vector<std::int32_t> ids = to_host<std::int32_t>(next.ids);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    CAPTURE(i);
    if (i < 2) {
      CHECK(chosen[i] == static_cast<float>(sample_token(rows[i], {}, 0)));
      CHECK(static_cast<float>(ids[i]) == chosen[i]);
    } else {
      CHECK_THROWS_AS(sample_token(rows[i], {}, 0), NonFiniteError);
      CHECK(std::isnan(chosen[i]));
      CHECK(ids[i] == 0);
    }
  }
  CHECK(to_host<std::int32_t>(next.positions) == std::vector<std::int32_t>{11, 12, 13, 14, 15});
  CHECK(to_host<std::int32_t>(next.cache_rows) == std::vector<std::int32_t>{21, 22, 23, 24, 25});
  CHECK(to_host<std::int32_t>(next.key_ends) == std::vector<std::int32_t>{31, 32, 33, 34, 35});
}

// Steps ahead of the host against steps that wait for it: Note [Steps ahead] in nn/generate.cpp.
TEST_CASE("cuda: steps that are ahead of the host give the tokens of steps that wait") {
  LK_NEEDS_GPU();
  auto backend = open_device("auto");
  for (const auto& [dtype, family] : {std::pair{DType::F32, "llama"}, {DType::BF16, "qwen3"}}) {
    CAPTURE(family);
    auto model = tiny_transformer(*backend, dtype, 7, family);
    std::vector<GenerationRequest> requests;
    const std::vector<Row> rows = random_rows({3, 40, 1, 17, 90, 8, 5, 33, 2, 21, 13, 60}, 4);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      GenerationRequest r{rows[i].ids, {}, -1};
      r.sampling.max_tokens = 2 + static_cast<std::int64_t>(i * 11 % 40);
      // What a repetitive model says would end at once: some stop at their own tenth token.
      if (i % 4 == 1) {
        r.sampling.max_tokens = 30;
        r.sampling.stop_ids = {alone(*model, r, {.record = false}).back()};
      }
      if (i == 6) r.sampling.temperature = 1;  // the steps that it is in wait
      requests.push_back(std::move(r));
    }
    for (std::int64_t batch : {1, 3, 12}) {
      CAPTURE(batch);
      const auto run = [&](bool record, bool reuse) {
        std::map<std::size_t, int> said;
        GenerationEvents events;
        events.on_token = [&](std::size_t i, std::int32_t) { return i != 2 || ++said[i] < 7; };
        Generator generator(*model, nullptr,
                            {.max_batch = batch, .reuse_prefix = reuse, .record = record});
        std::vector<std::vector<std::int32_t>> ids;
        for (int turn = 0; turn < 2; ++turn) {  // the second finds what the first left in the slots
          std::vector<GenerationRequest> asked = requests;
          if (turn == 1)
            for (std::size_t i = 0; i < asked.size(); ++i)
              asked[i].prompt.insert(asked[i].prompt.end(), ids[i].begin(), ids[i].end());
          said.clear();
          for (const Generation& g : generator.run(asked, events)) ids.push_back(g.ids);
        }
        return ids;
      };
      CHECK(run(true, false) == run(false, false));
      CHECK(run(true, true) == run(false, true));
    }
  }
}

TEST_CASE(
    "the logits of a sequence have the same bits alone and in a batch, with the CPU's tiles") {
  CpuBackend backend(CpuMode::Fast, CpuBackend::Products::Tiles);
  for (DType dtype : {DType::F32, DType::BF16}) {
    auto model = tiny_transformer(backend, dtype);
    std::vector<Row> rows = random_rows({31, 5, 64, 2, 11, 7, 3, 9, 12, 40}, 5);
    // Prompts, then two single tokens each; slots in another order than rows.
    auto run = [&](const std::vector<std::size_t>& which) {
      KvCache cache(backend, model->config(), dtype, 70, std::ssize(which));
      std::vector<std::vector<double>> logits(which.size());
      for (int step = 0; step < 3; ++step) {
        std::vector<SequencePart> parts;
        for (std::size_t j = 0; j < which.size(); ++j)
          parts.push_back({std::ssize(which) - 1 - static_cast<std::int64_t>(j),
                           step == 0 ? rows[which[j]].ids : std::vector<std::int32_t>{7}, -1});
        const std::vector<double> all =
            to_host_f64(model->next_logits(make_cached_batch(cache, parts), cache));
        advance_cache(cache, parts);
        for (std::size_t j = 0; j < which.size(); ++j)
          logits[j].insert(logits[j].end(), all.begin() + static_cast<std::ptrdiff_t>(61 * j),
                           all.begin() + static_cast<std::ptrdiff_t>(61 * (j + 1)));
      }
      return logits;
    };
    std::vector<std::size_t> all(rows.size());
    std::iota(all.begin(), all.end(), 0);
    const auto together = run(all);
    for (std::size_t i = 0; i < rows.size(); ++i) CHECK(run({i})[0] == together[i]);
  }
}

TEST_CASE("a batch that is filled again gives what a new one gives") {
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  KvCache cache(*backend, model->config(), DType::F32, 20, 2);
  std::vector<SequencePart> parts{{0, {1, 2, 3}, -1}, {1, {4}, -1}};
  model->next_logits(make_cached_batch(cache, parts), cache);
  advance_cache(cache, parts);
  std::vector<SequencePart> first{{0, {5}, -1}, {1, {6}, -1}}, second{{0, {7}, -1}, {1, {8}, -1}};
  CachedBatch batch = make_cached_batch(cache, first);
  model->next_logits(batch, cache);
  advance_cache(cache, first);
  const std::vector<float> want =
      to_host<float>(model->next_logits(make_cached_batch(cache, second), cache));
  refill_cached_batch(batch, cache, second);
  CHECK(to_host<float>(model->next_logits(batch, cache)) == want);
  CHECK_THROWS_AS(refill_cached_batch(batch, cache, parts), Error);
}

TEST_CASE("text leaves in whole characters and never contains a stop text") {
  auto tokenizer = Tokenizer::from_folder(std::string(LK_TEST_DATA) + "/golden/peft/tiny");
  const std::string text = "caf\xC3\xA9 \xE2\x82\xAC 5 \xF0\x9F\x98\x80 END of it";
  const std::vector<std::int32_t> ids = tokenizer->encode(text);
  REQUIRE(std::any_of(ids.begin(), ids.end(), [&](std::int32_t id) {  // characters come in pieces
    const std::string bytes = tokenizer->token_text(id);
    return utf8_valid_prefix(bytes) < bytes.size();
  }));
  for (const std::vector<std::string>& stop : std::vector<std::vector<std::string>>{
           {}, {"END"}, {"zzz"}, {"EN of", "END o"}, {"\xE2\x82\xAC"}, {" it\n"}}) {
    TextStream stream(*tokenizer, {}, stop);
    std::string out;
    for (std::int32_t id : ids) {
      const std::string piece = stream.push(id);
      CHECK(utf8_valid_prefix(piece) == piece.size());
      out += piece;
      if (stream.stopped()) break;
    }
    if (!stream.stopped()) out += stream.finish();
    std::size_t end = text.size();
    for (const std::string& s : stop) end = std::min(end, text.find(s));
    CHECK(out == text.substr(0, end));
    CHECK(stream.stopped() == (end < text.size()));
  }
}

TEST_CASE("a continuation is the whole text without its prompt's, at once and streamed") {
  // A leading space mark, several spaces, a character in byte tokens, a stop text cut by tokens
  // anywhere.
  const std::string text = " Once  upon a caf\xC3\xA9 \xE2\x82\xAC 5 \xF0\x9F\x98\x80 \n END of it";
  const std::string folder = kData + "sentencepiece/";
  std::vector<std::unique_ptr<Tokenizer>> tokenizers;
  tokenizers.push_back(Tokenizer::from_gguf(GgufFile(folder + "llama.gguf")));
  tokenizers.push_back(Tokenizer::from_gguf(GgufFile(folder + "gemma.gguf")));
  tokenizers.push_back(Tokenizer::from_folder(folder));
  tokenizers.push_back(Tokenizer::from_folder(std::string(LK_TEST_DATA) + "/golden/peft/tiny"));
  std::size_t kept = 0;  // continuations that decode() alone would have shortened
  for (const auto& tokenizer : tokenizers) {
    std::vector<std::int32_t> ids = tokenizer->encode(text);
    if (tokenizer->bos() >= 0) ids.insert(ids.begin(), tokenizer->bos());
    const std::string whole = tokenizer->decode(ids);
    for (std::size_t n = 0; n <= ids.size(); ++n) {
      const std::span<const std::int32_t> prompt = std::span(ids).first(n),
                                          rest = std::span(ids).subspan(n);
      const std::string before = tokenizer->decode(prompt), want = whole.substr(before.size());
      REQUIRE(whole.starts_with(before));
      CHECK(tokenizer->decode_after(prompt, rest) == want);
      kept += tokenizer->decode(rest) != want;
      for (const std::string& stop : {std::string(), std::string("END"), std::string(" E"),
                                      std::string("f it"), std::string("\xF0\x9F\x98\x80 ")}) {
        TextStream stream(*tokenizer, prompt,
                          stop.empty() ? std::vector<std::string>{} : std::vector{stop});
        std::string out;
        for (std::int32_t id : rest) {
          const std::string piece = stream.push(id);
          if (utf8_valid_prefix(before) == before.size())
            CHECK(utf8_valid_prefix(piece) == piece.size());
          out += piece;
          if (stream.stopped()) break;
        }
        if (!stream.stopped()) out += stream.finish();
        const std::size_t end = stop.empty() ? std::string::npos : want.find(stop);
        CHECK(out == want.substr(0, end));
        CHECK(stream.stopped() == (end != std::string::npos));
      }
    }
  }
  CHECK(kept > 10);
}

TEST_CASE("a conversation keeps its history in the cache, and forgets it on reset") {
  const std::string folder = std::string(LK_TEST_DATA) + "/golden/peft/tiny";
  auto tokenizer = Tokenizer::from_folder(folder);
  auto backend = make_cpu_backend(CpuMode::Reference);
  ModelConfig config = tiny_config();
  config.vocab_size = tokenizer->n_tokens();
  config.max_position = 2048;
  Transformer model(*backend, config, random_weights(*backend, config, DType::F64, 3), DType::F64,
                    2048);
  SamplingSettings sampling;
  sampling.max_tokens = 12;
  const ChatTemplate chat = ChatTemplate::choose("", "chatml");
  Conversation talk(model, *tokenizer, chat, sampling, 400);
  std::string streamed;
  auto listen = [&](std::string_view piece) {
    streamed += piece;
    return true;
  };
  const Generation first = talk.reply("hello", listen);
  CHECK(streamed == first.text);
  CHECK(first.reused == 0);
  const Generation second = talk.reply("and now?", {});
  CHECK(second.reused > 0);
  // The same conversation from the beginning, without a cache that remembers.
  const RenderedChat whole =
      chat.render({{"user", "hello"}, talk.messages()[1], {"user", "and now?"}}, true);
  GenerationRequest request{tokenizer->encode(whole.text, whole.content), sampling, -1};
  CHECK(Generator(model, tokenizer.get()).run(std::span(&request, 1))[0].ids == second.ids);
  const std::size_t turns = talk.messages().size();
  CHECK_THROWS_AS(talk.reply(std::string(3000, 'x'), {}), UsageError);
  CHECK(talk.messages().size() == turns);
  talk.reset();
  const Generation again = talk.reply("hello", {});
  CHECK(again.text == first.text);
  CHECK(again.reused == 0);
}

TEST_CASE("stop texts and callbacks end one sequence and leave the others alone") {
  const std::string folder = std::string(LK_TEST_DATA) + "/golden/peft/tiny";
  auto tokenizer = Tokenizer::from_folder(folder);
  auto backend = make_cpu_backend();
  ModelConfig config = tiny_config();
  config.vocab_size = tokenizer->n_tokens();
  Transformer model(*backend, config, random_weights(*backend, config, DType::F32, 3), DType::F32,
                    256);
  std::vector<GenerationRequest> requests(2);
  for (auto& r : requests) {
    r.prompt = tokenizer->encode("hello");
    r.sampling.max_tokens = 30;
    r.sampling.temperature = 1;
  }
  requests[1].sampling.seed = 1;
  Generator generator(model, tokenizer.get());
  const auto whole = generator.run(requests);
  CHECK(tokenizer->decode(whole[0].ids) == whole[0].text);
  REQUIRE(whole[0].text.size() > 8);
  const std::string stop = whole[0].text.substr(4, 3);
  requests[0].sampling.stop = {stop};
  const auto cut = generator.run(requests);
  CHECK(cut[0].stopped);
  CHECK(cut[0].text == whole[0].text.substr(0, whole[0].text.find(stop)));
  CHECK(cut[1].ids == whole[1].ids);
  GenerationEvents events;
  events.on_token = [](std::size_t request, std::int32_t) { return request != 1; };
  const auto refused = generator.run(requests, events);
  CHECK(refused[1].ids.size() == 1);
  CHECK(!refused[1].stopped);
  CHECK(refused[0].ids == cut[0].ids);
  CHECK_THROWS_AS(Generator(model, nullptr).run(requests), UsageError);  // stop needs a tokenizer
}

// The cases are golden/make_beam_golden.py's: beams, length penalties, stop tokens, repeated n-grams.
TEST_CASE("beam search finds what transformers finds, alone and among other searches") {
  auto backend = make_cpu_backend();
  const std::string golden = std::string(LK_TEST_DATA) + "/golden/";
  const ModelFile file(golden + "peft/tiny");
  LoadedModel loaded = load_weights(*backend, file, DType::F32);
  Transformer model(*backend, loaded.config, std::move(loaded.weights), DType::F32, 256);
  const Json cases = read_json(golden + "beams.json");
  REQUIRE(cases.size() >= 100);
  std::map<std::int64_t, std::vector<GenerationRequest>> together;  // by number of beams
  std::map<std::int64_t, std::vector<std::vector<std::int32_t>>> wanted;
  for (const Json& c : cases) {
    CAPTURE(c.dump());
    GenerationRequest r;
    r.prompt = c["prompt"].get<std::vector<std::int32_t>>();
    r.sampling.max_tokens = c["max_tokens"];
    r.sampling.beams = c["beams"], r.sampling.length_penalty = c["length_penalty"];
    r.sampling.no_repeat_ngram = c["no_repeat_ngram"];
    r.sampling.repetition_penalty = c["repetition_penalty"];
    r.sampling.stop_ids = c["stop_ids"].get<std::vector<std::int32_t>>();
    const Generation g = std::move(Generator(model, nullptr).run(std::span(&r, 1))[0]);
    wanted[r.sampling.beams].push_back(c["ids"].get<std::vector<std::int32_t>>());
    CHECK(g.ids == wanted[r.sampling.beams].back());
    CHECK(g.stopped == c["stopped"].get<bool>());
    together[r.sampling.beams].push_back(r);
  }
  for (const auto& [beams, requests] : together)
    for (std::int64_t batch : {1, 9, 64}) {
      const auto all =
          Generator(model, nullptr, {.max_batch = batch, .prefill_rows = 4}).run(requests);
      for (std::size_t i = 0; i < all.size(); ++i) CHECK(all[i].ids == wanted[beams][i]);
    }
}

TEST_CASE("beams that can't be are refused, and a Generator serves both kinds in turn") {
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  Generator generator(*model, nullptr, {.capacity = 64, .reuse_prefix = true});
  auto run = [&](auto&&... set) {
    GenerationRequest r{{1, 2, 3}, {.max_tokens = 5}, -1};
    (set(r.sampling), ...);
    return generator.run(std::span(&r, 1))[0];
  };
  auto beams = [](std::int64_t n) { return [n](SamplingSettings& s) { s.beams = n; }; };
  for (std::int64_t n : {0, -3, 31, 1 << 30}) CHECK_THROWS_AS(run(beams(n)), UsageError);
  CHECK_THROWS_AS(run(beams(2), [](auto& s) { s.temperature = 1; }), UsageError);
  CHECK_THROWS_AS(run(beams(2), [](auto& s) { s.top_p = 0.5; }), UsageError);
  CHECK_THROWS_AS(run(beams(2), [](auto& s) { s.stop = {"x"}; }), UsageError);
  CHECK_THROWS_AS(run(beams(2), [](auto& s) { s.length_penalty = INFINITY; }), UsageError);
  CHECK_THROWS_AS(run([](auto& s) { s.length_penalty = 2; }), UsageError);
  CHECK_THROWS_AS(run([](auto& s) { s.no_repeat_ngram = -1; }), UsageError);
  const Generation greedy = run(), wide = run(beams(30));
  CHECK(run().ids == greedy.ids);
  CHECK(run(beams(30)).ids == wide.ids);
  CHECK(run(beams(30), [](auto& s) { s.max_tokens = 60; }).ids.size() == 60);
  // Once every token of the vocabulary stands in the text, no_repeat_ngram 1 rules none out.
  CHECK(run([](auto& s) { s.max_tokens = 61, s.no_repeat_ngram = 1; }).ids.size() == 61);
}

namespace {

// A conversation's cache grows with it, and its tokens are those of a cache large from the start.
void check_growing_cache(std::unique_ptr<Backend> backend) {
  auto model = tiny_transformer(*backend, DType::F32);
  const std::int64_t positions = model->max_positions();
  auto live = [&] { return backend->ledger()[Tag::KvCache].live_bytes; };
  Generator growing(*model, nullptr, {.max_batch = 1, .capacity = positions, .reuse_prefix = true});
  Generator large(*model, nullptr, {.max_batch = 1, .capacity = positions, .reuse_prefix = true});
  const GenerationRequest whole{{9, 8, 7}, {.max_tokens = positions}, -1};
  large.run(std::span(&whole, 1));
  const std::int64_t most = live();
  std::vector<std::int32_t> said{1, 2, 3};
  std::vector<std::int64_t> sizes;
  while (std::ssize(said) + 5 <= positions) {
    // Sampled at a high temperature: another last bit would soon be another token.
    const GenerationRequest r{said, {.max_tokens = 4, .temperature = 2, .seed = 5}, -1};
    const Generation a = growing.run(std::span(&r, 1))[0], b = large.run(std::span(&r, 1))[0];
    REQUIRE(a.ids == b.ids);
    if (sizes.empty()) CHECK(a.reused == 0);
    if (!sizes.empty()) CHECK(a.reused == std::ssize(said) - 2);
    sizes.push_back(live() - most);
    said.insert(said.end(), a.ids.begin(), a.ids.end());
    said.push_back(4);
  }
  CHECK(sizes.front() * positions == most * 7);  // the first prompt and its answer
  CHECK(std::is_sorted(sizes.begin(), sizes.end()));
  const std::set<std::int64_t> distinct(sizes.begin(), sizes.end());
  CHECK((positions >> (distinct.size() - 2)) >= 7);  // by doubling
  CHECK(sizes.back() <= most);
}
}  // namespace

TEST_CASE("a conversation's cache grows with it") { check_growing_cache(make_cpu_backend()); }
TEST_CASE("cuda: a conversation's cache grows with it") {
  LK_NEEDS_GPU();
  check_growing_cache(open_device("auto"));
}
