// Which model a run or an adapter was made with: the SHA-256 of its weight files.
#pragma once

#include <atomic>
#include <future>
#include <string>
#include <vector>

namespace lk {

// The files that hold the weights of the model at `path`, a .gguf file or a Hugging Face folder.
std::vector<std::string> model_weight_files(const std::string& path);

// SHA-256 of the model file; of a sharded folder: of the lines "<sha256>  <file name>\n", sorted by
// name. Hashed beside whatever else is done: a file of 13 GB takes seconds, in which a run can load
// and train.
class Fingerprint {
 public:
  explicit Fingerprint(const std::string& path);
  // Ends the hashing if nobody asked for its result.
  ~Fingerprint();
  Fingerprint(const Fingerprint&) = delete;
  Fingerprint& operator=(const Fingerprint&) = delete;

  bool ready() const;
  // Waits. Throws InputError or IoError if a file could not be read.
  std::string get() const { return result_.get(); }

 private:
  std::atomic<bool> stop_ = false;
  std::shared_future<std::string> result_;  // last: its end is waited for
};

// The same, waited for.
std::string model_fingerprint(const std::string& path);

}  // namespace lk
