// The kernels for any processor.
#include "kernels_lanes_portable.h"
#include "kernels_table.h"

namespace flyweight {

const Kernels* kernels_portable() {
  static constexpr Kernels table = make_table();
  return &table;
}

}  // namespace flyweight
