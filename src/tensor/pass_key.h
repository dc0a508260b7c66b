// PassKey: permission as a type.
#pragma once

namespace lk {

// Only T can make one: an argument of this type proves who is calling.
template <class T>
class PassKey {
  friend T;
  PassKey() = default;
};

}  // namespace lk
