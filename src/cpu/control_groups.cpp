#include "cpu/control_groups.h"

#include <fstream>
#include <sstream>

namespace lk::cpu {

void visit_control_groups(const std::string& root, const std::string& controller,
                          const std::function<void(const std::string& folder, int version)>& f) {
  std::ifstream groups(root + "/proc/self/cgroup");
  auto walk = [&](const std::string& mounted, std::string group, int version) {
    for (; group.size() > 1; group.resize(group.rfind('/')))
      f(root + "/sys/fs/cgroup" + mounted + group, version);
    f(root + "/sys/fs/cgroup" + mounted, version);
  };
  for (std::string line; std::getline(groups, line);) {  // id:controllers:/path
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1),
                      group = line.substr(second + 1);
    if (group.empty() || group[0] != '/') continue;
    if (names.empty()) walk("", group, 2);
    std::istringstream each(names);
    for (std::string name; std::getline(each, name, ',');) {
      if (name != controller) continue;
      walk("/" + controller, group, 1);
      if (names != controller) walk("/" + names, group, 1);  // "cpu,cpuacct"
    }
  }
}

}  // namespace lk::cpu
