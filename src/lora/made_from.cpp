#include "lora/made_from.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

namespace lk {
namespace {

// Two bits take random numbers 0.35 of their size away; those of another model are 1.4 away.
constexpr double kFar = 0.7;
constexpr std::int64_t kRows = 16;
// GGUF has a config's reals in F32, and divisors of frequencies in place of Llama 3's formula.
constexpr double kSameReal = 1e-5, kSameFrequency = 1e-4;

constexpr const char* kNotIt = ": this is not the model that was quantised";

bool is_near(double a, double b, double tolerance) {
  return std::abs(a - b) <= tolerance * std::max(std::abs(a), std::abs(b));
}

const char* activation(MlpKind kind) {
  return kind == MlpKind::SwiGlu ? "silu" : kind == MlpKind::GeGlu ? "gelu, gated" : "gelu";
}

// Bits of the significand that F32, F16 and BF16 have.
constexpr int kF32Bits = 24, kF16Bits = 11, kBf16Bits = 8;

// How many of those say all that is known of the numbers. Converters widen norms and biases, so a file's type
// may have more than the numbers came with. What is stored with one added rounds that sum to F32.
int known_bits(const std::string& type, const std::vector<float>& values, bool one_added) {
  const auto have = [&](int bits, double less, double slack) {
    return std::all_of(values.begin(), values.end(), [&](float v) {
      int exponent = 0;
      const double x = std::frexp(v - less, &exponent);
      return std::abs(std::ldexp(std::nearbyint(std::ldexp(x, bits)) - std::ldexp(x, bits),
                                 exponent - bits)) <= slack;
    });
  };
  for (const int bits : {kBf16Bits, kF16Bits})
    if (have(bits, 0, 0) || (one_added && have(bits, 1, 0x1p-24))) return bits;
  return type == "F32" || type == "F64" ? kF32Bits : type == "F16" ? kF16Bits : kBf16Bits;
}

class MadeFrom {
 public:
  MadeFrom(const ModelFile& dense, const ModelFile& quantised)
      : dense_(dense), quantised_(quantised) {
    for (const WeightSlot& slot : dense.slots()) of_name_[slot.name] = &slot;
  }

  void check_all() {
    if (vectors(dense_) != vectors(quantised_))
      throw InputError(
          concat(dense_.path(), ": has other norms or biases than ", quantised_.path(), kNotIt));
    check_sizes();
    check_maths();
    for (const WeightSlot& slot : quantised_.slots()) check_tensor(slot);
  }

 private:
  static std::set<std::string> vectors(const ModelFile& file) {
    std::set<std::string> all;
    for (const WeightSlot& slot : file.slots())
      if (slot.shape.rank() == 1) all.insert(slot.name);
    return all;
  }

  // A key of config.json by which the models compute.
  template <class T>
  void same(const char* key, const T& here, const T& there, bool is_same) const {
    if (!is_same)
      throw InputError(concat(dense_.path(), ": ", key, " is ", here, ", in ", quantised_.path(),
                              " it is ", there, kNotIt));
  }
  template <class T>
  void same(const char* key, const T& here, const T& there) const {
    same(key, here, there, here == there);
  }
  void same_real(const char* key, double here, double there) const {
    same(key, here, there, is_near(here, there, kSameReal));
  }
  void same_angles(const char* key, const std::vector<double>& here,
                   const std::vector<double>& there) const {
    if (!std::equal(here.begin(), here.end(), there.begin(), there.end(),
                    [](double x, double y) { return is_near(x, y, kSameFrequency); }))
      throw InputError(concat(dense_.path(), ": ", key, " gives other rotary angles than in ",
                              quantised_.path(), kNotIt));
  }

  void check_sizes() const {
    const ModelConfig &a = dense_.config(), &b = quantised_.config();
    same("vocab_size", a.vocab_size, b.vocab_size);
    same("hidden_size", a.hidden_size, b.hidden_size);
    same("intermediate_size", a.intermediate_size, b.intermediate_size);
    same("num_hidden_layers", a.n_layers, b.n_layers);
    same("num_attention_heads", a.n_heads, b.n_heads);
    same("num_key_value_heads", a.n_kv_heads, b.n_kv_heads);
    same("head_dim", a.head_dim, b.head_dim);
  }

  // Not the family, as Mistral is a llama in GGUF, nor a window that one of the two leaves out, as
  // llama.cpp's converter does.
  void check_maths() const {
    const ModelConfig &a = dense_.config(), &b = quantised_.config();
    same("hidden_act", activation(a.mlp), activation(b.mlp), a.mlp == b.mlp);
    same_real("rms_norm_eps", a.rms_eps, b.rms_eps);
    const auto scale = [](const ModelConfig& c) {
      return c.query_scale > 0 ? c.query_scale : static_cast<double>(c.head_dim);
    };
    same_real("query_pre_attn_scalar", scale(a), scale(b));
    // A head of its own may hold the table's numbers; a table can't be two.
    same("tie_word_embeddings", a.tie_embeddings, b.tie_embeddings,
         a.tie_embeddings || !b.tie_embeddings);
    if (!a.learned_positions) {
      same_real("rope_theta", a.rope_theta, b.rope_theta);
      same_angles("rope_scaling", inverse_frequencies(a), inverse_frequencies(b));
    }
    if (a.window == 0 || b.window == 0) return;
    same("sliding_window", a.window, b.window);
    for (std::size_t i = 0; i < static_cast<std::size_t>(a.n_layers); ++i)
      same("layer_types", concat(a.is_local(i) ? "local" : "global", " for layer ", i),
           concat(b.is_local(i) ? "local" : "global"), a.is_local(i) == b.is_local(i));
    if (!a.learned_positions)
      same_angles("rope_local_base_freq", local_inverse_frequencies(a),
                  local_inverse_frequencies(b));
  }

  [[noreturn]] void refuse(const WeightSlot& slot, const std::string& what) const {
    throw InputError(
        concat(dense_.path(), ": ", slot.name, " ", what, " in ", quantised_.path(), kNotIt));
  }

  // What the dense model has in the place of a tensor: its table, if that is its head too.
  const WeightSlot& counterpart(const WeightSlot& slot) const {
    const bool table = slot.role == Role::Head && dense_.config().tie_embeddings;
    const auto at = table ? of_name_.find(dense_.slots()[0].name) : of_name_.find(slot.name);
    if (at == of_name_.end()) refuse(slot, "is missing here, and stands");
    if (!(at->second->shape == slot.shape)) refuse(slot, "has another shape than");
    return *at->second;
  }

  // As many as can be read by themselves.
  static std::int64_t some_rows(const ModelFile& file, const WeightSlot& slot) {
    if (slot.shape.rank() == 1) return 1;
    const StoredTensor stored = file.stored(slot);
    const std::int64_t rows = slot.shape[0], heads = std::max<std::int64_t>(stored.pair_rows, 1);
    return stored.transposed ? rows : std::min((kRows + heads - 1) / heads * heads, rows);
  }

  void check_tensor(const WeightSlot& slot) {
    const WeightSlot& other = counterpart(slot);
    const std::int64_t n = std::max(some_rows(dense_, other), some_rows(quantised_, slot));
    a_.resize(static_cast<std::size_t>(n * slot.shape.cols()));
    b_.resize(a_.size());
    dense_.read_rows(other, 0, n, a_.data());
    quantised_.read_rows(slot, 0, n, b_.data());
    if (quantised_.quantised_format(slot))
      check_distance(slot);
    else
      check_rounded(slot, other);
  }

  void check_distance(const WeightSlot& slot) const {
    double size = 0, apart = 0;
    for (std::size_t i = 0; i < a_.size(); ++i) {
      const double d = static_cast<double>(a_[i]) - b_[i];
      size += static_cast<double>(b_[i]) * b_[i], apart += d * d;
    }
    if (apart > kFar * kFar * size)
      refuse(slot, concat("is ", std::sqrt(apart / std::max(size, 1e-300)),
                          " times its size away from what it is"));
  }

  void check_rounded(const WeightSlot& slot, const WeightSlot& other) const {
    const std::string here = dense_.stored_type(other), there = quantised_.stored_type(slot);
    const bool one_here = dense_.stored(other).minus_one,
               one_there = quantised_.stored(slot).minus_one, one = one_here || one_there;
    const int bits =
        std::min(known_bits(here, a_, one && !one_here), known_bits(there, b_, one && !one_there));
    // Two roundings of one number may lie a unit of its last bit apart.
    const double relative = std::ldexp(1, 1 - bits),
                 least = bits == kF16Bits ? 0x1p-24 : 0;  // between F16's smallest
    for (std::size_t i = 0; i < a_.size(); ++i) {
      const double a = a_[i] + (one_here ? 1 : 0), b = b_[i] + (one_there ? 1 : 0);
      if (std::abs(a - b) > relative * std::max(std::abs(a), std::abs(b)) + least)
        refuse(slot, concat("has ", a, " as value ", i, ", which is ", b));
    }
  }

  const ModelFile &dense_, &quantised_;
  std::map<std::string, const WeightSlot*> of_name_;  // of the dense model
  std::vector<float> a_, b_;                          // rows of a tensor: of dense_, of quantised_
};

}  // namespace

void check_made_from(const ModelFile& dense, const ModelFile& quantised) {
  MadeFrom(dense, quantised).check_all();
}

}  // namespace lk
