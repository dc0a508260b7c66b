// Jinja2's filters of sequences, which filters.cpp lists under their names.
#pragma once

#include "text/jinja/builtins.h"

namespace lk::jinja {

// Follows an attribute as map, selectattr and their like do: "a.b" from part to part, digits as an
// index; or an integer. `otherwise` (may be null) stands for parts that are undefined.
Value path(const Value& value, const Value& attribute, Budget& budget,
           const Value* otherwise = nullptr);

Value sort(const Value& input, const Arguments& args, Budget& budget);
// Pairs of a dict's keys, sorted, and their values.
Value dictsort(const Value& input, const Arguments& args, Budget& budget);
// The filters select, reject, selectattr and rejectattr.
Value select(const Value& input, const Arguments& args, bool by_attribute, bool want,
             Budget& budget);
Value map(const Value& input, const Arguments& args, Budget& budget);
Value unique(const Value& input, const Arguments& args, Budget& budget);
// The filters min and max.
Value extreme(const Value& input, const Arguments& args, bool smallest, Budget& budget);
Value batch(const Value& input, const Arguments& args, Budget& budget);
Value groupby(const Value& input, const Arguments& args, Budget& budget);

}  // namespace lk::jinja
