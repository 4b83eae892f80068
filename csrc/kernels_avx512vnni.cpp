// The kernels with AVX-512 (F, BW, DQ, VL, VNNI), without BF16.
#include "kernels_lanes_avx512.h"
#include "kernels_table.h"

namespace flyweight {

const Kernels* kernels_avx512vnni() {
  static constexpr Kernels table = make_table();
  return &table;
}

}  // namespace flyweight
