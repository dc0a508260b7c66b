// Finds the demo's base model, for tests that use it when it is present.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace lk::test {

// The path of SmolLM2-135M-Instruct as GGUF: the file that LORIKEET_SMOLLM2 names, or one in the
// repository's models/ folder, or "".
inline std::string smollm2_path() {
  if (const char* path = std::getenv("LORIKEET_SMOLLM2")) return path;
  std::error_code ignored;
  std::filesystem::path folder = std::filesystem::path(LK_TEST_DATA) / ".." / "models";
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    std::string name = entry.path().filename().string();
    if (name.starts_with("SmolLM2-135M-Instruct") && name.ends_with(".gguf"))
      return entry.path().string();
  }
  return "";
}

}  // namespace lk::test
