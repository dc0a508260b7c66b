// Runs a fuzz target over the files of a folder, each from a heap block of exactly its size, so
// that a sanitizer sees the first byte read beyond it. Without files it exits with 77 (skipped).
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int argc, char** argv) {
  int files = 0;
  for (int i = 1; i < argc; ++i)
    for (const auto& item : std::filesystem::directory_iterator(argv[i])) {
      std::ifstream in(item.path(), std::ios::binary);
      const std::string bytes{std::istreambuf_iterator<char>(in), {}};
      auto block = std::make_unique<std::uint8_t[]>(bytes.size());
      std::memcpy(block.get(), bytes.data(), bytes.size());
      std::fprintf(stderr, "%s\n", item.path().c_str());  // first: the last line names a crash
      LLVMFuzzerTestOneInput(block.get(), bytes.size());
      ++files;
    }
  // The target counts as one test case: it read every file without a crash.
  std::printf("%d files\nlorikeet-tests: %d passed, 0 failed, %d skipped\n", files, files > 0,
              files == 0);
  return files == 0 ? 77 : 0;
}
