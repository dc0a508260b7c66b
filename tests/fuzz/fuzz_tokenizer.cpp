// Any text as a tokenizer.json: it is refused, or the tokenizer encodes and decodes without a
// crash, its offsets lie in the text in order, and its ids in the vocabulary.
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "memory_file.h"
#include "tensor/error.h"
#include "text/tokenizer.h"

namespace {

// The tokenizer is opened from a folder, so this target needs a place on disk.
struct Folder {
  std::string path = (std::filesystem::temp_directory_path() / "lk-fuzz-tokenizer-XXXXXX").string();
  Folder() { lk::fuzz::require(::mkdtemp(path.data()) != nullptr); }
  ~Folder() { ::rmdir(path.c_str()); }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using lk::fuzz::require;
  static const Folder folder;
  const std::string path = folder.path + "/tokenizer.json";
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const auto tokenizer = lk::Tokenizer::from_folder(folder.path);
    const std::string text = "Hi  a\xC3\xA9 1234 \xF0\x9F\xA6\x9C\n\t<s> abc'll cafe\xCC\x81 ";
    const auto e = tokenizer->encode_with_offsets(text);
    require(e.ids.size() == e.begins.size());
    for (std::size_t i = 0; i < e.ids.size(); ++i) {
      require(e.ids[i] >= 0 && e.ids[i] < tokenizer->n_tokens());
      require(e.begins[i] <= text.size() && (i == 0 || e.begins[i - 1] <= e.begins[i]));
    }
    require(tokenizer->encode(text) == e.ids);
    tokenizer->decode(e.ids);
    tokenizer->decode(e.ids, false);
  } catch (const lk::InputError&) {
  }
  std::filesystem::remove(path);
  return 0;
}
