// The version, in one place for code (meson.build has the same).
#pragma once

namespace lk {
inline constexpr const char* kVersion = "0.1.0";
}
