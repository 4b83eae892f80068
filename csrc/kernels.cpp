// Which tables of kernels this processor can run.
#include "kernels.h"

#include <cstring>

#include "kernels_layout.h"

#ifdef FLYWEIGHT_X86
#include <cpuid.h>
#endif
#if defined(FLYWEIGHT_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace flyweight {
namespace {

constexpr int kMost = 7;  // tables, and the null after their names

struct Available {
  const Kernels* tables[kMost] = {};
  const char* names[kMost] = {};
  int count = 0;

  void add(const Kernels* table) {
    tables[count] = table;
    names[count++] = table->isa;
  }
};

#ifdef FLYWEIGHT_X86
struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

constexpr bool has(uint32_t value, uint32_t bits) { return (value & bits) == bits; }
constexpr uint32_t bit(int n) { return uint32_t{1} << n; }

// The register states that the operating system saves (XCR0).
uint32_t saved_states() {
  if (!has(cpuid(1, 0).c, bit(27))) return 0;  // OSXSAVE
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Linux lends the tile registers to a process that asks (arch_prctl(2)).
bool lend_tiles() {
#ifdef __linux__
  constexpr long kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

void add_x86(Available& found) {
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), more = cpuid(7, 1);
  const uint32_t saved = saved_states();
  const bool avx2 = has(saved, bit(1) | bit(2)) && has(one.c, bit(12) | bit(28) | bit(29)) &&
                    has(seven.b, bit(5));  // FMA, AVX, F16C; AVX2
  if (!avx2) return;
  // Opmask and upper halves saved; F, DQ, BW, VL; VNNI.
  const bool vnni = has(saved, bit(5) | bit(6) | bit(7)) &&
                    has(seven.b, bit(16) | bit(17) | bit(30) | bit(31)) && has(seven.c, bit(11));
  const bool avx512 = vnni && has(more.a, bit(5));  // BF16
  // Tile configuration and data saved; BF16, TILE, INT8.
  const bool amx = avx512 && has(saved, bit(17) | bit(18)) && has(seven.d, bit(22) | bit(24) | bit(25));
  if (amx && kernels_amx() && lend_tiles()) found.add(kernels_amx());
  if (avx512) found.add(kernels_avx512());
  if (vnni) found.add(kernels_avx512vnni());
  if (has(more.a, bit(4))) found.add(kernels_avx2vnni());
  found.add(kernels_avx2());
}
#endif

Available find() {
  Available found;
#ifdef FLYWEIGHT_X86
  add_x86(found);
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
