// Questions about paths, asked through io/fs.h. "No" means that there is no such thing; whatever
// keeps the system from answering (a folder that may not be searched, a loop of links, a failing
// disk) is an IoError naming the path. Links are followed, and one that leads nowhere is an
// InputError: somebody meant a file to be there, so it is not absent.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lk {

// Whether something, of any kind, is at `path`.
bool exists(const std::string& path);
// Whether a link or anything else is at `path`, wherever it leads: false only where a new name can
// be made.
bool is_taken(const std::string& path);
// Whether `path` itself is a link, wherever it leads.
bool is_link(const std::string& path);
// Whether `path` is a folder, or a link to one.
bool is_folder(const std::string& path);
// Whether `path` is a named pipe, or a link to one.
bool is_pipe(const std::string& path);
// Whether both paths lead to the same file or folder. False if either leads to nothing.
bool is_same(const std::string& a, const std::string& b);
// The size in bytes of the file at `path`, 0 if there is none.
std::uint64_t file_bytes(const std::string& path);
// The components of the absolute path that `path` leads to, without links, "." and "..": "home",
// "me", "m.gguf".
std::vector<std::string> real_path_parts(const std::string& path);
// The names in a folder, sorted.
std::vector<std::string> list_folder(const std::string& path);

// The last component of a path: "m.gguf" of "models/m.gguf", "" of "models/".
std::string file_name(const std::string& path);
// The folder that a path lies in: "models" of "models/m.gguf", "." of "m.gguf".
std::string parent_folder(const std::string& path);
// What a folder is called: "tiny" of "models/tiny", "models/tiny/" and "models/tiny/.". "" of "/".
std::string folder_name(const std::string& path);

}  // namespace lk
