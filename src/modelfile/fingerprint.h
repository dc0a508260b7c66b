// Fingerprint: identifies the model that a run or an adapter was made with, by the SHA-256 of its
// weight files and of what says how they are read.
#pragma once

#include <atomic>
#include <future>
#include <string>

namespace lk {

class ModelFile;

// The SHA-256 of the file with the weights; of a folder with several shards: of the lines
// "<sha256>  <file name>\n", sorted by name; of the parts of a split GGUF file, which may be renamed:
// of the lines "<sha256>  <number>\n", from 1. Where config tells how the codes are to be read and no
// tensor does (ModelFile::codes_format()), that of the line "<this>  <format>\n". Hashes beside whatever else is done: a file of 13 GB
// takes seconds, in which a run can load and train.
class Fingerprint {
 public:
  // Begins to hash the files that `model` has open, which must outlive this: the bytes hashed are
  // those that are read, whatever is put at their path meanwhile.
  explicit Fingerprint(const ModelFile& model);
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

// A model's Fingerprint, waited for: 64 hex digits. Throws InputError, IoError.
std::string model_fingerprint(const ModelFile& model);
// The fingerprint of the model at `path`, which it opens.
std::string model_fingerprint(const std::string& path);
// What earlier versions called the fingerprint of a split GGUF file, whose lines had the parts' names:
// adapters and runs may still have it. Empty for any other model. Hashes anew.
std::string earlier_fingerprint(const std::string& path);

}  // namespace lk
