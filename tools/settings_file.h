// The file of --config: a program's flags as the keys of a TOML file.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>

namespace lk::program {

// The name of the kind of a flag whose text is a list with commas, "a,b": a file may give it as an
// array. Options carry it as their type_name().
inline constexpr const char* kList = "LIST";

// Reads top-level `key = value` lines of TOML 1.0 (https://toml.io/en/v1.0.0): strings in one line,
// "basic" with escapes or 'literal', numbers, true and false, comments, and arrays of these, which
// may span lines. Keys may be written as the command line's flags may: with _, or as other tools do. A
// bare word is taken as a string. An array is for a flag that takes a list, whose items are then joined
// by commas, or one that may be given several times. All else (tables, keys that are no flags or stand
// twice, arrays for other flags, text behind a value) is refused as a CLI::ParseError naming file, line
// and key.
std::shared_ptr<CLI::Config> settings_file(const CLI::App& app);

}  // namespace lk::program
