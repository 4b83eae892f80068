// The kernels with AVX-512 and AMX's tiles of 8-bit numbers and bf16.
#define FLYWEIGHT_AMX
#define FLYWEIGHT_BF16
#include "kernels_lanes_avx512.h"
#include "kernels_table.h"

namespace flyweight {

const Kernels* kernels_amx() {
  static constexpr Kernels table = make_table();
  return &table;
}

}  // namespace flyweight
