// Memory that is asked for once: 64-byte aligned, in huge pages where it is large.
#pragma once

#include <cstddef>
#include <memory>

namespace flyweight {

class Region {
 public:
  Region() = default;
  // Throws Error, naming `what`, where there is not so much memory. Not touched, unless `zero`:
  // pages come as they are written. `huge`: all of it will be used, huge pages pay.
  Region(size_t bytes, const char* what, bool zero = false, bool huge = false);
  std::byte* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    size_t mapped;  // 0: from aligned_alloc
    void operator()(std::byte*) const;
  };
  std::unique_ptr<std::byte[], Free> data_;
  size_t bytes_ = 0;
};

constexpr size_t aligned(size_t bytes, size_t to = 64) { return (bytes + to - 1) / to * to; }

// Gives back to the system what was freed and is kept for later: before much is asked for.
void release_freed();

// Reads the pages of [begin, begin + bytes), a mapping of a file, and maps them, many at a time: one
// by one, as they are met, they cost a fault each. Does nothing where the system cannot.
void map_ahead(const void* begin, size_t bytes);

// Gives the whole pages within [begin, begin + bytes), a read-only mapping of a file, back to the
// system: read again they come from the file.
void release_mapped(const void* begin, size_t bytes);

}  // namespace flyweight
