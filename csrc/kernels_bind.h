// The kernels as Python functions, for their tests and benchmark.
#pragma once

#include <nanobind/nanobind.h>

namespace flyweight {

// Adds a submodule `kernels`.
void bind_kernels(nanobind::module_& m);
// What training calls, into the same submodule.
void bind_training(nanobind::module_& kernels);

}  // namespace flyweight
