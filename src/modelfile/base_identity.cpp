#include "modelfile/base_identity.h"

#include <algorithm>

#include "io/printable.h"
#include "modelfile/fingerprint.h"
#include "modelfile/model_file.h"
#include "modelfile/origin.h"

namespace lk {
namespace {

constexpr const char *kPrecision = "lorikeet_base_precision", *kKeepDense = "lorikeet_keep_dense";

std::string joined(const std::vector<std::string>& items) {
  std::string text;
  for (const std::string& item : items) text += (text.empty() ? "" : ",") + item;
  return text;
}

std::vector<std::string> parts(const std::string& text) {
  std::vector<std::string> all;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    all.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return all;
}

// "nf4", "nf4 (`keep_dense` down_proj)", "its file has it": what stands behind "held as".
std::string held_text(const std::string& precision, const std::vector<std::string>& keep_dense) {
  if (precision.empty()) return "its file has it";
  return precision + (keep_dense.empty() ? "" : concat(" (`keep_dense` ", joined(keep_dense), ")"));
}

// The base itself, in its file's numbers.
bool is_plain(const Origin& o) { return o.adapters.empty() && o.precision.empty(); }

}  // namespace

std::map<std::string, std::string> base_metadata(const BaseIdentity& base) {
  require(base.precision.empty() || quantising_precision(base.precision), "BaseIdentity.precision ",
          base.precision, ": nf4, fp4, fp8, fp8-head or nothing");
  for (const std::string& module : base.keep_dense)
    require(!module.empty() && module.find(',') == module.npos, "BaseIdentity.keep_dense '", module,
            "': a module's name is expected");
  std::map<std::string, std::string> metadata{{"format", "pt"}};
  if (!base.fingerprint.empty()) metadata[kBaseFingerprint] = base.fingerprint;
  if (!base.precision.empty()) metadata[kPrecision] = base.precision;
  if (!base.keep_dense.empty()) metadata[kKeepDense] = joined(base.keep_dense);
  return metadata;
}

void read_base_metadata(BaseIdentity& base, const std::map<std::string, std::string>& metadata,
                        const std::string& weights_path) {
  auto value = [&](const char* key) {
    const auto at = metadata.find(key);
    return at == metadata.end() ? std::string() : at->second;
  };
  if (base.fingerprint.empty()) base.fingerprint = value(kBaseFingerprint);
  base.precision = value(kPrecision);
  base.keep_dense = parts(value(kKeepDense));
  if (!base.precision.empty() && !quantising_precision(base.precision))
    throw InputError(concat(weights_path, ": __metadata__: ", kPrecision, " = ",
                            printable(base.precision), " is none of nf4, fp4, fp8, fp8-head"));
}

void set_precision(BaseIdentity& base, const BaseStorage& storage) {
  if (!quantises(storage.precision)) return;
  base.precision = base_precision_name(storage.precision);
  base.keep_dense = storage.keep_dense;
}

std::string unproven_base(const std::string& folder, const BaseIdentity& base,
                          const std::string& model) {
  if (!base.fingerprint.empty()) return "";
  return concat(folder, ": no fingerprint of its base (", kBaseFingerprint, "), so whether ", model,
                " is the model that it was trained on is not checked",
                base.name.empty() ? "" : concat("; it names ", printable(base.name)));
}

std::string check_base(const std::string& folder, const BaseIdentity& base,
                       const std::string& fingerprint, const std::string& model) {
  if (base.fingerprint.empty()) return unproven_base(folder, base, model);
  if (base.fingerprint == fingerprint || base.fingerprint == earlier_fingerprint(model)) return "";
  const std::optional<Origin> origin = read_origin(model, fingerprint);
  const bool related = origin && std::find(origin->bases.begin(), origin->bases.end(),
                                           base.fingerprint) != origin->bases.end();
  if (!related)
    throw InputError(concat(folder, ": ", kBaseFingerprint,
                            ": the adapter was trained on another base model (", base.fingerprint,
                            "), ", model, " is ", fingerprint));
  if (!origin->adapters.empty())
    throw InputError(
        concat(folder, ": ", kBaseFingerprint,
               ": the adapter was trained on the base without the adapter that is merged into ",
               model, " (", printable(origin->adapters[0]), ", by its ", kOriginFile, ")"));
  const bool same_precision =
      origin->precision == base.precision && origin->keep_dense == base.keep_dense;
  if (!is_plain(*origin) && !same_precision)
    return concat(folder, ": was trained on a base held as ",
                  held_text(base.precision, base.keep_dense), ", and ", model,
                  " has the numbers of one held as ",
                  held_text(origin->precision, origin->keep_dense));
  if (!origin->exact)
    return concat(folder, ": ", model, " has the numbers of its base rounded to ",
                  printable(origin->type), ", by its ", kOriginFile);
  return "";
}

HeldBase hold_for(const ModelFile& file, const BaseStorage& wanted,
                  const std::vector<AdapterBase>& adapters) {
  HeldBase held{wanted, {}, {}};
  // A folder that merge wrote of a quantised base is dense and has the numbers of that.
  const Origin origin = read_origin(file.path(), "").value_or(Origin{});
  const bool open = wanted.precision == BasePrecision::Auto && origin.precision.empty();
  const auto trained = std::find_if(adapters.begin(), adapters.end(), [](const AdapterBase& one) {
    return !one.base.precision.empty();
  });
  if (open && trained != adapters.end()) {
    const bool agree = std::all_of(adapters.begin(), adapters.end(), [&](const AdapterBase& one) {
      return one.base.precision == trained->base.precision &&
             one.base.keep_dense == trained->base.keep_dense;
    });
    if (agree && !file.is_quantised()) {
      require(wanted.keep_dense.empty(), "`keep_dense`: ", trained->folder,
              " says how its base is held; give `base_precision` to hold it otherwise");
      held.storage = {*quantising_precision(trained->base.precision), trained->base.keep_dense};
      held.storage.recorded = true;
      held.remark = concat(
          file.path(), ": held as ", held_text(trained->base.precision, trained->base.keep_dense),
          ", as ", trained->folder, " was trained (`base_precision` dense: as its file has it)");
    }
  }
  BaseIdentity now;
  set_precision(now, held.storage);
  if (now.precision.empty()) now.precision = origin.precision, now.keep_dense = origin.keep_dense;
  for (const AdapterBase& one : adapters)
    if (one.base.precision != now.precision || one.base.keep_dense != now.keep_dense)
      held.warnings.push_back(
          concat(one.folder, ": was trained on a base held as ",
                 held_text(one.base.precision, one.base.keep_dense), ", and ", file.path(),
                 " is held as ", held_text(now.precision, now.keep_dense),
                 one.base.precision.empty() ? ""
                 : file.is_quantised()
                     ? ", which is quantised already"
                     : concat("; `base_precision` ", one.base.precision,
                              one.base.keep_dense.empty() ? "" : " with `keep_dense` ",
                              joined(one.base.keep_dense), " computes as it was trained")));
  return held;
}

}  // namespace lk
