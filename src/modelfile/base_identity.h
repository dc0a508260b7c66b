// Which base an adapter was trained on, and as what it was held: how the adapter's files say it, and
// whether a model is that base.
//
// Note [Where the base is named]. PEFT's config has base_model_name_or_path. What PEFT has no key for
// stands in the metadata of the safetensors file, which its readers pass over, while they warn of
// each unknown key of a config:
//   lorikeet_base_sha256      Fingerprint of the base
//   lorikeet_base_precision   nf4, fp4, fp8 or fp8-head, if the base was quantised as it was loaded
//   lorikeet_keep_dense       modules that were not, with commas
// Folders of earlier versions have lorikeet_base_sha256 in the config, which counts if it is there.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "modelfile/base_precision.h"
#include "nn/method.h"

namespace lk {

class ModelFile;

inline constexpr const char* kBaseFingerprint = "lorikeet_base_sha256";

// The metadata of a method's safetensors file, "format" among it.
std::map<std::string, std::string> base_metadata(const BaseIdentity& base);
// Fills in what the metadata of the weights say; a fingerprint that the config gave counts. Throws
// InputError naming file and key.
void read_base_metadata(BaseIdentity& base, const std::map<std::string, std::string>& metadata,
                        const std::string& weights_path);

// What of the storage changes the base's numbers, as BaseIdentity has it: nothing where they are its
// file's own, dequantised or not.
void set_precision(BaseIdentity& base, const BaseStorage& storage);

// What a user should know who puts what is in `folder`, trained on a base without a fingerprint, on
// `model`: that nothing shows whether it belongs there. Empty for one with a fingerprint.
std::string unproven_base(const std::string& folder, const BaseIdentity& base,
                          const std::string& model);
// What a user should know who puts what is in `folder`, trained on `base`, on the model at `model`
// with this fingerprint. Empty if it is that base, or a folder with the same numbers by its record
// (modelfile/origin.h). A warning where nothing shows it, and where the model has the base's numbers
// rounded. InputError if it is another model, or that base with adapters merged in.
std::string check_base(const std::string& folder, const BaseIdentity& base,
                       const std::string& fingerprint, const std::string& model);

// As what a base is held for the adapters that are used on it.
struct AdapterBase {
  std::string folder;
  BaseIdentity base;
};
struct HeldBase {
  BaseStorage storage;                // precision Nf4, Fp4 or Fp8; any other: as without adapters
  std::string remark;                 // if the adapters decided it; else empty
  std::vector<std::string> warnings;  // of adapters that were trained on other numbers
};
// `wanted.precision` Auto: as the adapters were trained, if they agree and the file is dense. Others:
// as it says. Throws UsageError as held_formats() does.
HeldBase hold_for(const ModelFile& file, const BaseStorage& wanted,
                  const std::vector<AdapterBase>& adapters);

}  // namespace lk
