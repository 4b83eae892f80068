// Threads for a training step's kernels: those that PyTorch computes with, which are awake between
// its operations; others would wait for a processor until they have given up spinning.
#pragma once

#include <cstdint>
#include <functional>

namespace flyweight {

// From here on in the threads of the OpenMP runtime (GNU's libgomp) at `path`, which must be loaded
// already. False, and threads of our own, where it is not.
bool use_openmp(const char* path);

// work(first, last) on parts of [0, count), as many as there are threads. What one throws is thrown
// here.
void in_parts(int threads, int64_t count, const std::function<void(int64_t, int64_t)>& work);

}  // namespace flyweight
