// Reads rotary angles from config.json.
//
// Note [Two objects of angles]. transformers 4 writes rope_theta and rope_scaling, version 5
// rope_parameters, which has the base too. Where a file has both objects, version 5 takes
// rope_scaling in place of the other, and with it the base: its own, else that of the top level,
// else the family's default. (Of Gemma it puts the keys of rope_scaling over those of
// rope_parameters.full_attention.) Two objects that mean the same are read; which of two others its
// writer meant can't be known, so they are refused.
#include <algorithm>
#include <vector>

#include "modelfile/config_hf_parts.h"

namespace lk {
namespace {

// Reads rope_scaling of v4 or rope_parameters of v5: every field must be one that its type is known
// to have.
RopeScaling parse_rope(const Json& rope, const char* field, const std::string& where) {
  if (!rope.is_object()) refuse(where, field, ": not an object");
  const std::string inner = where + ": " + field;
  std::string type = "default";
  if (given(rope, "type")) type = json_string(rope, "type", inner);
  if (given(rope, "rope_type")) {
    std::string newer = json_string(rope, "rope_type", inner);
    if (given(rope, "type") && newer != type)
      refuse(inner, "type '", type, "' and rope_type '", newer, "' disagree");
    type = newer;
  }
  std::vector<std::string> allowed = {"type", "rope_type", "rope_theta"};
  RopeScaling s;
  if (type == "default") {
    s.kind = RopeScaling::Kind::None;
  } else if (type == "linear") {
    s.kind = RopeScaling::Kind::Linear;
    s.factor = json_number(rope, "factor", inner);
    allowed.insert(allowed.end(), {"factor", "original_max_position_embeddings"});
  } else if (type == "llama3") {
    s.kind = RopeScaling::Kind::Llama3;
    s.factor = json_number(rope, "factor", inner);
    s.low_freq_factor = json_number(rope, "low_freq_factor", inner);
    s.high_freq_factor = json_number(rope, "high_freq_factor", inner);
    s.original_max_position = json_int(rope, "original_max_position_embeddings", 1, kAnyInt, inner);
    allowed.insert(allowed.end(), {"factor", "low_freq_factor", "high_freq_factor",
                                   "original_max_position_embeddings"});
  } else {
    refuse(inner, "rope_type: '", type, "' is not supported (default, linear, llama3 are)");
  }
  for (const auto& [key, value] : rope.items()) {
    if (value.is_null()) continue;
    if (key == "partial_rotary_factor" && value == 1) continue;
    if (std::find(allowed.begin(), allowed.end(), key) == allowed.end())
      refuse(inner, key, ": not supported for rope_type '", type, "'");
  }
  return s;
}

// `rope` with the length that llama3's scaling begins from, which may stand outside it: transformers reads it
// there first, but not for Gemma.
Json with_original_length(const Json& json, Json rope, const std::string& field, bool gemma,
                          const std::string& where) {
  constexpr const char* kKey = "original_max_position_embeddings";
  const auto is = [&](const char* key) {
    return given(rope, key) && rope[key].is_string() && rope[key] == "llama3";
  };
  if (!given(json, kKey) || !rope.is_object() || !(is("type") || is("rope_type"))) return rope;
  if (given(rope, kKey) && rope[kKey] != json[kKey])
    refuse(where, kKey, " and ", field, ".", kKey, " disagree");
  if (gemma && !given(rope, kKey))
    refuse(where, kKey, ": transformers reads it for this family only inside of ", field);
  rope[kKey] = json[kKey];
  return rope;
}

bool same_scaling(const RopeScaling& a, const RopeScaling& b) {
  return a.kind == b.kind && a.factor == b.factor && a.low_freq_factor == b.low_freq_factor &&
         a.high_freq_factor == b.high_freq_factor &&
         a.original_max_position == b.original_max_position;
}

struct Angles {
  RopeScaling scaling;
  double theta = 0;
  bool own_theta = false;  // the object has the base
};

// See Note [Two objects of angles]. Of Gemma a base that one of them lacks is the other's.
void check_same(const Angles& older, const Angles& newer, const std::string& field, bool gemma,
                const std::string& where) {
  if (!same_scaling(older.scaling, newer.scaling))
    refuse(where, "rope_scaling and ", field, " disagree");
  if (gemma && !(older.own_theta && newer.own_theta)) return;
  if (older.theta != newer.theta)
    refuse(where, "rope_scaling and ", field, " disagree: rope_theta is ", older.theta,
           " by the one and ", newer.theta, " by the other");
}

// The angles of one kind of layers, of which Gemma has two.
const Json& of_layers(const Json& rope, const char* kind, const std::string& where) {
  if (!rope.is_object()) refuse(where, "rope_parameters: not an object");
  for (const auto& [key, value] : rope.items())
    if (key != "full_attention" && key != "sliding_attention")
      refuse(where, "rope_parameters: ", key, ": not supported");
  return json_at(rope, kind, where + ": rope_parameters");
}

}  // namespace

void parse_rope_fields(const Json& json, const FamilyFiles& files, ModelConfig& c,
                       const std::string& where) {
  const bool gemma = files.gemma_keys;
  const double theta = json_number_or(json, "rope_theta", files.default_theta, where);
  // Version 5 writes theta into `rope`; it counts if no older key says another.
  auto read = [&](const Json& rope, const std::string& field, const char* old_key,
                  double otherwise) {
    Angles angles{
        parse_rope(with_original_length(json, rope, field, gemma, where), field.c_str(), where),
        otherwise, given(rope, "rope_theta")};
    if (!angles.own_theta) return angles;
    angles.theta = json_number(rope, "rope_theta", where + ": " + field);
    if (given(json, old_key) && angles.theta != otherwise)
      refuse(where, old_key, " ", otherwise, " and ", field, ".rope_theta ", angles.theta,
             " disagree");
    return angles;
  };
  // An empty object is none, as in transformers.
  const bool old_style = given(json, "rope_scaling") && json["rope_scaling"] != Json::object(),
             new_style = given(json, "rope_parameters");
  Angles older{{}, theta, false}, newer;
  if (old_style) {
    const Json& rope = json["rope_scaling"];
    older = read(rope, "rope_scaling", "rope_theta", theta);
    if (gemma && !new_style && !given(rope, "rope_type") &&
        older.scaling.kind != RopeScaling::Kind::None)
      refuse(where, "rope_scaling: type: transformers reads only rope_type for ", c.architecture,
             ": call it so");
  }
  if (gemma) c.local_rope_theta = json_number_or(json, "rope_local_base_freq", 1e4, where);
  if (new_style) {
    const Json& all = json["rope_parameters"];
    const std::string field = gemma ? "rope_parameters.full_attention" : "rope_parameters";
    newer = read(gemma ? of_layers(all, "full_attention", where) : all, field, "rope_theta", theta);
    if (gemma) {
      const Angles local =
          read(of_layers(all, "sliding_attention", where), "rope_parameters.sliding_attention",
               "rope_local_base_freq", c.local_rope_theta);
      if (local.scaling.kind != RopeScaling::Kind::None)
        refuse(where,
               "rope_parameters.sliding_attention: rope_type other than default is not supported");
      c.local_rope_theta = local.theta;
    }
    if (old_style) check_same(older, newer, field, gemma, where);
  }
  // Of two, both have the same scaling, and only Gemma's newer one may lack the base.
  const Angles& angles = new_style && !(old_style && older.own_theta) ? newer : older;
  c.rope_theta = angles.theta;
  c.rope_scaling = angles.scaling;
}

}  // namespace lk
