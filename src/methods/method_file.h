// MethodFile: a trained method on disk, checked, of which only configs and headers were read.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "nn/method.h"
#include "nn/transformer.h"

namespace lk {

class MethodFile {
 public:
  virtual ~MethodFile() = default;
  // As --method calls it.
  virtual std::string method() const = 0;
  // The base that the file names; parts that it does not name are empty.
  virtual BaseIdentity base() const = 0;
  // What it is, in one line for messages: "20 virtual tokens".
  virtual std::string summary() const = 0;
  // Virtual tokens before each document (nn/places.h): a Transformer needs positions for them.
  virtual std::int64_t virtual_tokens() const { return 0; }
  // Positions that stand before all documents (Transformer::set_first_position).
  virtual std::int64_t first_position() const { return 0; }
  // Where the file and a model disagree, a line each, for warnings.
  virtual std::vector<std::string> disagreements(const ModelConfig&) const { return {}; }
  // Puts the method on `model`, shapes equal and values finite. Throws InputError naming file and
  // key or tensor; the model is then as it was.
  virtual std::unique_ptr<Method> attach(Transformer& model) const = 0;
};

}  // namespace lk
