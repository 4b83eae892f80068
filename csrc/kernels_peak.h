// What one core of this machine can do at most, measured: for benchmarks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flyweight {

// 8-bit multiplications and additions a second of the widest instruction that a set has for them,
// or 0 where there is none.
double peak_operations(const char* isa);

// Reads all bytes, from sixteen places at once; returns a sum of them, so that nothing is left out.
uint64_t read_all(const uint8_t* data, size_t bytes);

// Bytes a second that so many threads together read from memory: the best of a few rounds. Throws
// Error where there is not that much memory, or not so many threads.
double read_bandwidth(int threads);

}  // namespace flyweight
