#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>

namespace cone {

bool isa_supported(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return true;
#ifdef CONE_HAVE_AVX2
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
#ifdef CONE_HAVE_AVX512
    case Isa::kAvx512:
      return isa_supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    default:
      return false;
  }
}

Isa best_isa() {
  if (isa_supported(Isa::kAvx512)) return Isa::kAvx512;
  return isa_supported(Isa::kAvx2) ? Isa::kAvx2 : Isa::kBaseline;
}

namespace {
std::atomic<Isa>& isa_in_force() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}
}  // namespace

Isa active_isa() { return isa_in_force().load(); }

void force_isa(Isa isa) {
  if (!isa_supported(isa))
    throw std::invalid_argument("isa: got one that is not built in or not known to this processor; it must be both");
  isa_in_force().store(isa);
}

}  // namespace cone
