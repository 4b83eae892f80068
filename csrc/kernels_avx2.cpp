// The kernels with AVX2, FMA and F16C.
#include "kernels_lanes_avx2.h"
#include "kernels_table.h"

namespace flyweight {

const Kernels* kernels_avx2() {
  static constexpr Kernels table = make_table();
  return &table;
}

}  // namespace flyweight
