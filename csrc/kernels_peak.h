// What one core of this machine can do at most, measured: for benchmarks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flyweight {

// 8-bit multiplications and additions a second of the widest instruction that a set has for them,
// or 0 where there is none.
double peak_operations(const char* isa);

// Reads all bytes, 64 at a time; returns their sum, so that nothing is left out.
uint64_t read_all(const uint8_t* data, size_t bytes);

}  // namespace flyweight
