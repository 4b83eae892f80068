// Not yet.
#include "kernels_layout.h"

namespace flyweight {

const Kernels* kernels_amx() { return nullptr; }

}  // namespace flyweight
