// The kernels with AVX-512 (F, BW, DQ, VL, VNNI, BF16).
#define FLYWEIGHT_BF16
#include "kernels_lanes_avx512.h"
#include "kernels_table.h"

namespace flyweight {

const Kernels* kernels_avx512() {
  static constexpr Kernels table = make_table();
  return &table;
}

}  // namespace flyweight
