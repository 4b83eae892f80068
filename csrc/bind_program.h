// flyweight/engine/program.py's objects as C++ ones.
#pragma once

#include <nanobind/nanobind.h>

#include "program.h"

namespace flyweight {

// Reads every field; throws Error, naming the field, where one is of another type or does not fit.
// Weight::data points into the arrays, which the caller keeps alive.
// `arrays` gets the arrays that the weights' data lies in, in their order.
Program read_program(nanobind::handle program, nanobind::list& arrays);

}  // namespace flyweight
