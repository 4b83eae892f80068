// Which table of kernels a processor can run.
#include "kernels.h"

#include <cstring>

#include "kernels_layout.h"

namespace flyweight {
namespace {

constexpr int kMost = 6;

struct Available {
  const Kernels* tables[kMost] = {};
  const char* names[kMost] = {};
  int count = 0;

  void add(const Kernels* table) {
    tables[count] = table;
    names[count++] = table->isa;
  }
};

// Best first. __builtin_cpu_supports asks the operating system too (XGETBV).
Available find() {
  Available found;
#ifdef FLYWEIGHT_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("avx");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  if (avx512) found.add(kernels_avx512());
  if (avx2) found.add(kernels_avx2());
#endif
  found.add(kernels_portable());
  return found;
}

const Available& available() {
  static const Available found = find();
  return found;
}

}  // namespace

const Kernels* kernels(const char* isa) {
  const Available& found = available();
  if (!isa || !*isa) return found.tables[0];
  for (int i = 0; i < found.count; ++i) {
    if (!std::strcmp(isa, found.names[i])) return found.tables[i];
  }
  return nullptr;
}

const char* const* instruction_sets() { return available().names; }

}  // namespace flyweight
