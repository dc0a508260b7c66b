// What the pages about runs share: their head and style, and JSON values as text.
#pragma once

#include <string>

#include "io/json.h"

namespace lk {

// A whole page around `body`, which is HTML; title (of the browser's tab), heading and subtitle are
// plain text. A browser loads it again every refresh_seconds, unless they are 0. The page needs no
// network, no script and no other file, and a policy in its head forbids them. Its style has the
// kLineColours colours and dashes of run/chart.h's lines, for light and dark screens.
std::string page_html(const std::string& title, const std::string& heading,
                      const std::string& subtitle, const std::string& body,
                      int refresh_seconds = 0);

// The value as a reader wants it: text without quotes, "yes" or "no", "none" for null, short
// numbers, lists with commas.
std::string show(const Json& value);

// The value at "a/b/c", or null if there is none.
Json at(const Json& json, const std::string& pointer);

// The number in short, or "-" for anything else.
std::string number(const Json& value);

}  // namespace lk
