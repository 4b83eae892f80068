// The kernels with AVX2 and AVX-VNNI.
#define FLYWEIGHT_VNNI
#include "kernels_lanes_avx2.h"
#include "kernels_table.h"

namespace flyweight {

const Kernels* kernels_avx2vnni() {
  static constexpr Kernels table = make_table();
  return &table;
}

}  // namespace flyweight
