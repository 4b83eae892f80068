#include "memory.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FLYWEIGHT_WATCHED
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define FLYWEIGHT_WATCHED
#endif
#ifdef FLYWEIGHT_WATCHED
#include <sanitizer/asan_interface.h>
#endif

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "error.h"

namespace flyweight {
namespace {

constexpr size_t kHuge = size_t{2} << 20;

uintptr_t page_size() {
  static const auto size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  return size;
}

// The sanitizer watches the ends of what malloc gives, not of mappings, and not what lies between an
// end and the next multiple of 64 unless it is told.
#ifdef FLYWEIGHT_WATCHED
constexpr bool kMap = false;
void end_at(std::byte* data, size_t bytes) {
  ASAN_POISON_MEMORY_REGION(data + bytes, aligned(bytes) - bytes);
}
#else
constexpr bool kMap = true;
void end_at(std::byte*, size_t) {}
#endif

}  // namespace

void Region::Free::operator()(std::byte* data) const {
  if (mapped) {
    munmap(data, mapped);
  } else {
    std::free(data);
  }
}

Region::Region(size_t bytes, const char* what, bool zero, bool huge) : bytes_(bytes) {
  if (bytes == 0) return;
  std::byte* data = nullptr;
  size_t mapped = 0;
  if (bytes > SIZE_MAX / 4) {
    // falls through to the error
  } else if (kMap && bytes >= kHuge) {
    const size_t all = bytes + (huge ? kHuge : 0);
    void* found = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found != MAP_FAILED) {
      data = static_cast<std::byte*>(found);
      mapped = all;
      if (huge) {
        // A huge page needs a boundary of its own; what lies before and after is given back.
        const size_t before = aligned(reinterpret_cast<uintptr_t>(data), kHuge) -
                              reinterpret_cast<uintptr_t>(data);
        if (before) munmap(data, before);
        data += before;
        mapped -= before;
#if defined(MADV_HUGEPAGE)
        // Whole huge pages only: a rounded-up end would count as memory used.
        madvise(data, bytes / kHuge * kHuge, MADV_HUGEPAGE);
#endif
      }
    }
  } else {
    data = static_cast<std::byte*>(std::aligned_alloc(64, aligned(bytes)));
    if (data && zero) std::memset(data, 0, bytes);
    if (data) end_at(data, bytes);
  }
  if (!data) throw Error(text("there is no memory for ", what, ": ", bytes >> 20, " MiB are wanted"));
  data_ = std::unique_ptr<std::byte[], Free>(data, Free{mapped});
}

void release_freed() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

void map_ahead(const void* begin, size_t bytes) {
#ifdef MADV_POPULATE_READ
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / page_size() * page_size();
  const uintptr_t last = reinterpret_cast<uintptr_t>(begin) + bytes;
  // An error is met again, and reported, where the page is read.
  madvise(reinterpret_cast<void*>(first), last - first, MADV_POPULATE_READ);
#else
  (void)begin, (void)bytes;
#endif
}

void release_mapped(const void* begin, size_t bytes) {
  const uintptr_t page = page_size();
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace flyweight
