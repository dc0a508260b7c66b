// What tests of tensor files share: reading a whole tensor, and files that must be refused.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "hostile.h"
#include "io/tensor_reader.h"

namespace lk::test {

inline std::vector<float> read_all(const TensorReader& file, const std::string& name) {
  const Shape shape = file.shape(name);
  std::vector<float> values(static_cast<std::size_t>(shape.numel()), -1e30f);
  file.read_rows(name, 0, shape.rows(), values.data());
  return values;
}

// Opening these bytes as a File must quickly throw an InputError that names the file and contains
// each of `parts`.
template <class File>
void refuses_file(const std::string& what, const std::string& bytes,
                  std::initializer_list<std::string> parts) {
  ScratchFolder folder;
  const std::string path = folder.write("bad", bytes);
  const CpuClock clock;
  check_throws<InputError>(what, parts, [&] { File f(path); });
  check_throws<InputError>(what, {path}, [&] { File f(path); });
  CHECK(clock.within(4));
}
template <class File>
void accepts_file(const std::string& what, const std::string& bytes) {
  ScratchFolder folder;
  CHECK_NOTHROW_MESSAGE(File{folder.write("good", bytes)}, what);
}

}  // namespace lk::test
