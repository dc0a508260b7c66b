#include "modelfile/fingerprint.h"

#include "io/input_file.h"
#include "io/paths.h"
#include "io/sha256.h"
#include "modelfile/model_file.h"

namespace lk {
namespace {

// Hashes each file on a thread of its own.
std::string fingerprint_of(const std::vector<const InputFile*>& files,
                           const std::atomic<bool>& stop) {
  std::vector<std::future<std::string>> hashes;
  for (const InputFile* file : files)
    hashes.push_back(
        std::async(std::launch::async, [&stop, file] { return sha256_file(*file, &stop); }));
  if (files.size() == 1) return hashes[0].get();
  Sha256 all;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::string line = hashes[i].get() + "  " + file_name(files[i]->path()) + "\n";
    all.update(line.data(), line.size());
  }
  return all.hex();
}

}  // namespace

Fingerprint::Fingerprint(const ModelFile& model)
    : result_(std::async(std::launch::async, [this, files = model.weight_files()] {
        return fingerprint_of(files, stop_);
      })) {}

Fingerprint::~Fingerprint() { stop_ = true; }

bool Fingerprint::ready() const {
  return result_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

std::string model_fingerprint(const ModelFile& model) { return Fingerprint(model).get(); }
std::string model_fingerprint(const std::string& path) {
  return model_fingerprint(ModelFile(path));
}

}  // namespace lk
