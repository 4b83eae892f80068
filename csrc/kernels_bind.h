// The kernels as Python functions, for their tests and benchmark.
#pragma once

#include <nanobind/nanobind.h>

namespace flyweight {

// Adds a submodule `kernels`.
void bind_kernels(nanobind::module_& m);

}  // namespace flyweight
