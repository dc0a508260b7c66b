#include "modelfile/fingerprint.h"

#include <set>

#include "io/json.h"
#include "io/paths.h"
#include "io/sha256.h"

namespace lk {
namespace {

// The files that a folder's weights are in, in the order in which io/ looks for them.
std::vector<std::string> weight_files(const std::string& folder) {
  std::string single = folder + "/model.safetensors";
  if (exists(single)) return {single};
  std::string index_path = folder + "/model.safetensors.index.json";
  Json index = read_json(index_path);
  std::set<std::string> names;
  for (const auto& [tensor, file] : json_at(index, "weight_map", index_path).items())
    names.insert(file.get<std::string>());
  std::vector<std::string> files;
  for (const std::string& name : names) files.push_back(folder + "/" + name);
  return files;
}

// The hash of each file on a thread of its own.
std::string fingerprint_of(const std::vector<std::string>& files, const std::atomic<bool>& stop) {
  std::vector<std::future<std::string>> hashes;
  for (const std::string& path : files)
    hashes.push_back(std::async(std::launch::async, [&] { return sha256_file(path, &stop); }));
  if (files.size() == 1) return hashes[0].get();
  Sha256 all;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::string line = hashes[i].get() + "  " + file_name(files[i]) + "\n";
    all.update(line.data(), line.size());
  }
  return all.hex();
}

}  // namespace

std::vector<std::string> model_weight_files(const std::string& path) {
  return is_folder(path) ? weight_files(path) : std::vector<std::string>{path};
}

Fingerprint::Fingerprint(const std::string& path)
    : result_(std::async(std::launch::async, [this, files = model_weight_files(path)] {
        return fingerprint_of(files, stop_);
      })) {}

Fingerprint::~Fingerprint() { stop_ = true; }

bool Fingerprint::ready() const {
  return result_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

std::string model_fingerprint(const std::string& path) { return Fingerprint(path).get(); }

}  // namespace lk
