// Renders a chat template in a subset of Jinja2. It can reach nothing but the variables it is
// given, and is bounded in time, memory, nesting and output, whatever it says.
// Source: Jinja2's documentation, and the settings with which transformers renders templates.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/value.h"

namespace lk::jinja {

using Variables = std::vector<std::pair<std::string, Value>>;

struct Rendered {
  Text text;        // marked where it came from marked strings of the variables
  Marks generated;  // bytes written inside {% generation %} ... {% endgeneration %}
};

class Template {
 public:
  static constexpr std::size_t kMaxSource = std::size_t{1} << 20;

  // Parses `source`; `where` names the template in messages. InputError "where: line N: ..." for
  // what is no Jinja, and, by name, for what is not in the subset.
  Template(std::string_view source, const std::string& where);
  ~Template();
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;

  // Renders the template. InputError "where: line N: ..." if the template raises an exception or
  // uses what is undefined, OverBudget if it takes more than `work` steps, or makes more than
  // `bytes` of text and lists in all. The default takes some tenths of a second; long variables need more.
  static constexpr std::uint64_t kWork = 5'000'000, kBytes = std::uint64_t{128} << 20;
  Rendered render(const Variables& variables, std::uint64_t work = kWork,
                  std::uint64_t bytes = kBytes) const;

 private:
  struct Tree;
  std::unique_ptr<Tree> tree_;
  std::string where_;
};

}  // namespace lk::jinja
