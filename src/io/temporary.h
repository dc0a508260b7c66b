// Temporary files and folders: outputs are made under a hidden name and then renamed. While its
// maker lives it holds a lock (flock) on what it makes, so whatever is not locked was left by a
// process that was killed.
#pragma once

#include <string>

#include "io/fs.h"

namespace lk {

// A hidden name beside `path` that no other writer uses: ".NAME.PID-N.lorikeet.tmp".
std::string unique_temporary(const std::string& path);
// The one hidden name beside `path` that all its writers use: ".NAME.lorikeet.tmp".
std::string shared_temporary(const std::string& path);

enum class Hold { Held, Taken, Gone };
// Locks the temporary file or folder at `path` for as long as `lock` stays open. Taken: another
// writer holds it. Gone: somebody has removed or renamed it by now. On a file system without locks
// it counts as held if it is new. Throws IoError.
Hold hold_temporary(const std::string& path, bool is_new, FileDescriptor& lock);

// Removes everything in a temporary folder, which the caller holds. Failures are left to whoever
// uses the folder.
void empty_temporary_folder(const std::string& path);
// Removes the temporary files and folders in `folder` whose makers were killed. What can't be
// removed stays: it is in nobody's way.
void remove_abandoned(const std::string& folder);

}  // namespace lk
