// What a program that embeds the library gives it: wrong values are a UsageError naming the field,
// never a crash and never "a bug".
#include <cmath>
#include <limits>

#include "cpu/cpu_backend.h"
#include "hostile.h"
#include "lora/adapter_io.h"
#include "lora/trainer.h"
#include "nn/evaluation.h"
#include "nn/generate.h"
#include "nn/sampling.h"
#include "run/finetune.h"
#include "run/inference.h"
#include "run/scoring.h"
#include "tensor/sample.h"
#include "text/chat_template.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();

template <class F>
void refused(const std::string& part, F&& f) {
  check_throws<UsageError>(part, {part}, std::forward<F>(f));
}

struct Subject {
  std::unique_ptr<Backend> backend = make_cpu_backend();
  std::unique_ptr<Transformer> model = tiny_transformer(*backend, DType::F32);
};

}  // namespace

TEST_CASE("rows and batches that are not well made are refused, in training and in evaluation") {
  Subject s;
  Adapter adapter(*s.model, tiny_lora());
  Trainer trainer(*s.model, adapter, {});
  auto both = [&](const std::string& part, const std::vector<Row>& rows) {
    refused(part, [&] { trainer.step(rows); });
    refused(part, [&] { evaluate(*s.model, rows, 64); });
  };
  std::vector<Row> rows = random_rows({5, 7}, 3);
  auto with = [&](auto&& change) {
    std::vector<Row> other = rows;
    change(other[1]);
    return other;
  };
  both("rows[1]: 7 ids but 6", with([](Row& r) { r.supervised.pop_back(); }));
  both("rows[1].ids: no tokens", with([](Row& r) { r = {}; }));
  both("HostBatch.ids[11]: 61", with([](Row& r) { r.ids[6] = 61; }));
  both("HostBatch.ids[11]: -1", with([](Row& r) { r.ids[6] = -1; }));
  both("HostBatch.positions[256]: 256", random_rows({300}, 1));
  refused("at least one row", [&] { trainer.step(std::span<const Row>{}); });
  refused("supervised token", [&] { trainer.step(random_rows({1}, 1)); });

  const HostBatch good = make_host_batch(pointers(rows));
  auto wrong = [&](const std::string& part, auto&& change) {
    HostBatch batch = good;
    change(batch);
    refused(part, [&] { trainer.step(std::array{batch}); });
  };
  wrong("positions", [](HostBatch& b) { b.positions.pop_back(); });
  wrong("targets", [](HostBatch& b) { b.targets.pop_back(); });
  wrong("HostBatch.targets[0]: 61", [](HostBatch& b) { b.targets[0] = 61; });
  wrong("HostBatch.rows[0]: 12", [](HostBatch& b) { b.rows[0] = 12; });
  wrong("offsets", [](HostBatch& b) { b.offsets.back() = 99; });
  wrong("offsets", [](HostBatch& b) { b.offsets = {}; });
  wrong("offsets", [](HostBatch& b) { std::swap(b.offsets[0], b.offsets[1]); });
  CHECK(trainer.steps_done() == 0);
  CHECK(trainer.step(rows).step == 1);  // refusals left it as it was
}

TEST_CASE("settings out of their range are refused by the field's name") {
  Subject s;
  {
    auto wrong = [&](const std::string& part, auto&& change) {
      LoraConfig c = tiny_lora();
      change(c);
      refused(part, [&] { Adapter(*s.model, c); });
    };
    for (double alpha : {0.0, -1.0, double{kNan}})
      wrong("alpha", [&](LoraConfig& c) { c.shape.alpha = alpha; });
    for (double alpha : {1e300, 1e-300})
      wrong("float32 does not hold", [&](LoraConfig& c) { c.shape.alpha = alpha; });
    wrong("`init`", [](LoraConfig& c) { c.init = static_cast<LoraInit>(9); });
    wrong("DoRA", [](LoraConfig& c) { c.init = LoraInit::Pissa, c.shape.dora = true; });
    for (float dropout : {-0.1f, 1.0f, kNan})
      wrong("dropout", [&](LoraConfig& c) { c.shape.dropout = dropout; });
    for (std::int64_t rank : {0, -3, 999})
      wrong("rank", [&](LoraConfig& c) { c.shape.rank = rank; });
    wrong("'nothing'", [](LoraConfig& c) { c.targets = {"nothing"}; });
    wrong("all-linear", [](LoraConfig& c) { c.targets = {"q_proj", "all-linear"}; });
    wrong("layers.9", [](LoraConfig& c) { c.exceptions["layers.9.q_proj"] = {2, 4.0}; });
    wrong("alpha", [](LoraConfig& c) {
      c.exceptions["model.layers.0.self_attn.q_proj"] = {2, 0.0};
    });
  }
  Adapter adapter(*s.model, tiny_lora());
  refused("already carries", [&] { Adapter(*s.model, tiny_lora()); });
  auto wrong = [&](const std::string& part, auto&& change) {
    TrainerConfig c;
    change(c);
    refused(part, [&] { Trainer(*s.model, adapter, c); });
  };
  for (double lr : {-1.0, double{kNan}, double{INFINITY}})
    wrong("lr", [&](TrainerConfig& c) { c.schedule.lr = lr; });
  wrong("warmup_steps", [](TrainerConfig& c) { c.schedule.warmup_steps = -1; });
  wrong("total_steps", [](TrainerConfig& c) { c.schedule.kind = ScheduleKind::Cosine; });
  wrong("total_steps", [](TrainerConfig& c) { c.schedule.kind = ScheduleKind::Linear; });
  for (double clip : {-1.0, double{kNan}}) wrong("clip", [&](TrainerConfig& c) { c.clip = clip; });
  for (float beta : {-0.1f, 1.0f, kNan}) {
    wrong("beta1", [&](TrainerConfig& c) { c.adamw.beta1 = beta; });
    wrong("beta2", [&](TrainerConfig& c) { c.adamw.beta2 = beta; });
  }
  for (float eps : {0.0f, -1.0f, kNan}) wrong("eps", [&](TrainerConfig& c) { c.adamw.eps = eps; });
  wrong("weight_decay", [](TrainerConfig& c) { c.adamw.weight_decay = -1; });
  refused("a prompt needs", [&] { make_prompt(*s.backend, {}, 0); });
  refused("rows[0]: null", [&] {
    const std::vector<const Row*> none{nullptr};
    make_host_batch(none);
  });
  Trainer trainer(*s.model, adapter, {});
  refused("resume_at", [&] { trainer.resume_at(-1, 0); });
  refused("resume_at", [&] { trainer.resume_at(3, 2); });
  refused("max_batch", [&] { Generator(*s.model, nullptr, {.max_batch = 0}); });
  refused("capacity", [&] { Generator(*s.model, nullptr, {.capacity = -1}); });
  refused("prefill_rows", [&] { Generator(*s.model, nullptr, {.prefill_rows = -1}); });
  auto ask = [&](const GenerationRequest& request) {
    Generator(*s.model, nullptr).run(std::span(&request, 1));
  };
  for (std::int32_t id : {-1, 61}) refused("token", [&] { ask({{1, id}, {}, -1}); });
  for (std::int32_t variant : {-2, 0, 5}) refused("variant", [&] { ask({{1}, {}, variant}); });
  refused("max_tokens", [&] { ask({{1}, {.max_tokens = 0}, -1}); });
  ask({{1}, {.max_tokens = INT64_MAX, .stop_ids = {}}, -1});
}

TEST_CASE("what a program asks of the library in vain is refused, not ignored and no bug") {
  Subject s;
  const std::string tiny = std::string(LK_TEST_DATA) + "/golden/peft/tiny";
  auto tokenizer = Tokenizer::from_folder(tiny);
  // Positions beyond the model's, ids that are no tokens.
  auto logits = [&](std::vector<std::int32_t> ids, std::int64_t first) {
    s.model->logits(make_prompt(*s.backend, ids, first));
  };
  refused("positions", [&] { logits({1}, -3); });
  refused("not in 0 .. 255", [&] { logits({1}, 1 << 20); });
  refused("not in 0 .. 60", [&] { logits({1 << 30}, 0); });
  refused("batch_tokens", [&] { evaluate(*s.model, random_rows({4}, 1), 0); });
  const GenerationRequest one{{1}, {}, -1};
  refused("on_text", [&] {
    Generator(*s.model, nullptr).run(std::span(&one, 1), {.on_text = [](auto, auto) {
                                       return true;
                                     }});
  });
  refused("sample_token", [] { sample_token({}, {}, 0); });

  {  // a method of another model, a loss that is none
    Subject other;
    Adapter adapter(*other.model, tiny_lora());
    Trainer trainer(*s.model, adapter, {});
    refused("nothing trainable", [&] { trainer.step(random_rows({5}, 1)); });
  }
  Adapter adapter(*s.model, tiny_lora());
  TrainerConfig config;
  config.loss = [](Tape&, const Var&, const TokenBatch&, double) { return Var(); };
  Trainer trainer(*s.model, adapter, config);
  refused("TrainerConfig::loss", [&] { trainer.step(random_rows({5}, 1)); });
  ScratchFolder scratch;
  auto save = [&](const BaseIdentity& base) { save_adapter(scratch.path(), adapter, base); };
  refused("BaseIdentity.precision", [&] { save({"m", "f", "int3", {}}); });
  refused("BaseIdentity.keep_dense", [&] { save({"m", "f", "nf4", {"a,b"}}); });
  refused("`adapter` is empty", [] { open_adapter(""); });
  CHECK(scratch.names().empty());

  // Texts and templates.
  using Spans = std::vector<std::pair<std::size_t, std::size_t>>;
  for (const Spans& spans : {Spans{{5, 2}}, Spans{{2, 500}}, Spans{{4, 5}, {0, 2}}})
    refused("plain span", [&] { tokenizer->encode("abcdef", spans); });
  const ChatTemplate chatml = ChatTemplate::choose(*tokenizer, "chatml");
  const std::vector<Message> user{{"user", "x"}};
  for (std::size_t i : {0, 7}) refused("render_turn", [&] { chatml.render_turn(user, i); });
  refused("Message.more", [&] {
    chatml.render({{"user", "x", std::make_shared<OrderedJson>(3)}}, true);
  });

  // Tensors.
  refused("3 values for a shape of 4", [&] {
    tensor_from(*s.backend, DType::F32, {2, 2}, {1, 2, 3});
  });
  refused("no floating dtype", [&] { random_tensor(*s.backend, DType::I32, {2}, 1); });
  refused("negative", [&] { s.backend->empty(Tag::Workspace, DType::F32, {-2, 3}); });
  refused("overflows", [&] {
    s.backend->empty(Tag::Workspace, DType::F32, {INT64_MAX, INT64_MAX});
  });
  refused("wrong dtype",
          [&] { to_host<std::int32_t>(random_tensor(*s.backend, DType::F32, {2}, 1)); });
  refused("score_choices", [] {
    const std::vector<ChoiceRow> rows(1);
    score_choices(rows, {});
  });

  // Settings of whole runs.
  auto open = [&](const std::string& part, auto&& change) {
    InferenceSettings in;
    in.model = tiny, in.device = "cpu";
    change(in);
    refused(part, [&] { open_inference(in); });
  };
  open("`model`", [](auto& in) { in.model = ""; });
  open("`max_positions`", [](auto& in) { in.max_positions = -5; });
  open("`base_precision`", [](auto& in) { in.base_precision = "int3"; });
  open("`keep_dense`", [](auto& in) { in.keep_dense = {"q_proj"}; });
  open("`keep_dense` zzz", [](auto& in) { in.base_precision = "nf4", in.keep_dense = {"zzz"}; });
  auto train = [&](const std::string& part, auto&& change) {
    FinetuneSettings run;
    run.model = tiny, run.out = scratch.file("run"), run.device = "cpu", run.steps = 1;
    change(run);
    FinetuneRows rows;
    rows.train = {make_row(*tokenizer, "a ", "b")};
    FinetuneListener listener;
    refused(part, [&] { finetune(run, rows, listener, std::atomic<int>{0}); });
  };
  train("given in memory", [](auto& run) { run.chat_template = "zzz"; });
  train("given in memory", [](auto& run) { run.system = "Be kind."; });
  train("`eval_rows`", [](auto& run) { run.eval_rows = -5; });
  train("`show_rows`", [](auto& run) { run.show_rows = -1; });
  train("`init`", [](auto& run) { run.init = static_cast<LoraInit>(9); });
  train("`fp8_products`", [](auto& run) { run.fp8_products = "zzz"; });
  train("`base_precision`", [](auto& run) { run.base_precision = static_cast<BasePrecision>(99); });
  CHECK(scratch.names().empty());
}
