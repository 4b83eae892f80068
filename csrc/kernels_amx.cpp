// The kernels with AVX-512 and AMX's 8-bit tiles.
#define FLYWEIGHT_AMX
#include "kernels_lanes_avx512.h"
#include "kernels_table.h"

namespace flyweight {

const Kernels* kernels_amx() {
  static constexpr Kernels table = make_table();
  return &table;
}

}  // namespace flyweight
