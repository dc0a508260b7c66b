#include "modelfile/fingerprint.h"

#include <algorithm>

#include "io/input_file.h"
#include "io/paths.h"
#include "io/sha256.h"
#include "modelfile/model_file.h"

namespace lk {
namespace {

constexpr std::size_t kMostWorkers = 16;  // each reads a file

std::string sha256_of(const std::string& text) {
  Sha256 hash;
  hash.update(text.data(), text.size());
  return hash.hex();
}

std::string fingerprint_of(const std::vector<const InputFile*>& files, bool numbered,
                           const std::atomic<bool>& stop) {
  std::vector<std::string> hashes(files.size());
  std::atomic<std::size_t> next = 0;
  std::vector<std::future<void>> workers;
  for (std::size_t n = std::min(files.size(), kMostWorkers); n > 0; --n)
    workers.push_back(std::async(std::launch::async, [&] {
      for (std::size_t i = next++; i < files.size(); i = next++)
        hashes[i] = sha256_file(*files[i], &stop);
    }));
  for (std::future<void>& worker : workers) worker.get();
  if (files.size() == 1) return hashes[0];
  std::string lines;
  for (std::size_t i = 0; i < files.size(); ++i)
    lines += concat(hashes[i], "  ", numbered ? std::to_string(i + 1) : file_name(files[i]->path()),
                    "\n");
  return sha256_of(lines);
}

}  // namespace

Fingerprint::Fingerprint(const ModelFile& model)
    : result_(std::async(
          std::launch::async, [this, files = model.weight_files(),
                               numbered = model.gguf() != nullptr, format = model.codes_format()] {
            const std::string of_files = fingerprint_of(files, numbered, stop_);
            return format.empty() ? of_files : sha256_of(of_files + "  " + format + "\n");
          })) {}

Fingerprint::~Fingerprint() { stop_ = true; }

bool Fingerprint::ready() const {
  return result_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

std::string model_fingerprint(const ModelFile& model) { return Fingerprint(model).get(); }
std::string model_fingerprint(const std::string& path) {
  return model_fingerprint(ModelFile(path));
}

std::string earlier_fingerprint(const std::string& path) {
  const ModelFile model(path);
  const std::vector<const InputFile*> parts = model.weight_files();
  return model.gguf() && parts.size() > 1 ? fingerprint_of(parts, false, false) : "";
}

}  // namespace lk
