// HostPlanes: a quantised matrix in the host's memory, on its way from a file to a device.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "tensor/backend.h"

namespace lk {

struct HostPlanes {
  QuantisedFormat format;
  Shape shape;
  float offset = 0;
  std::array<std::vector<std::byte>, kPlanes> planes;

  HostPlanes(const QuantisedFormat& f, const Shape& s);  // with room for all planes, zero
  template <class T>
  T* data(Plane p) {
    return reinterpret_cast<T*>(planes[static_cast<std::size_t>(p)].data());
  }
  std::size_t bytes(Plane p) const { return planes[static_cast<std::size_t>(p)].size(); }
  HostQuantised view() const;
  // In memory of `backend`, Tag::Weights. With `held`, as a matrix of that format, which may have a
  // scale for each row where this one has one for all.
  QuantisedMatrix upload(Backend& backend, const QuantisedFormat* held = nullptr) const;
};

}  // namespace lk
