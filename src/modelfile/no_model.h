// What a path holds that is no model of ours, and what its user can do about it.
#pragma once

#include <string>

namespace lk {

// InputError naming `path`, what it is and what to do, unless it is a folder with a config.json or
// a file that may be GGUF.
void refuse_what_is_no_model(const std::string& path);

// "hf download ORG/NAME --local-dir DIR" for a name on the Hugging Face hub, also with @REVISION or
// as an address; empty for what is none.
std::string download_command(const std::string& name);

}  // namespace lk
