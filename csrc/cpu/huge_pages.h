// New memory comes page by page, zeroed by the kernel when it is first written to: of large results that takes longer
// than writing them. Huge pages are 512 times fewer.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace cone {
namespace CONE_ISA {
namespace {

// Asks for huge pages in a block that is about to be written. Smaller blocks are mostly memory that was in use before.
inline void ask_for_huge_pages(void* first, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  constexpr size_t kLeastBytes = size_t{32} << 20;  // malloc maps blocks from here on anew each time
  if (bytes < kLeastBytes) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(first) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(first) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // refused, it is as it was
#endif
}

}  // namespace
}  // namespace CONE_ISA
}  // namespace cone
