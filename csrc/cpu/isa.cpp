#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>

namespace cone {

namespace {

bool is_built(Isa isa) {
  switch (isa) {
#ifdef CONE_HAVE_BASELINE
    case Isa::kBaseline:
      return true;
#endif
#ifdef CONE_HAVE_AVX2
    case Isa::kAvx2:
      return true;
#endif
#ifdef CONE_HAVE_AVX512
    case Isa::kAvx512:
      return true;
#endif
    default:
      return false;
  }
}

bool is_known(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return true;
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return is_known(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    default:
      return false;
  }
}

}  // namespace

bool isa_supported(Isa isa) { return is_built(isa) && is_known(isa); }

Isa best_isa() {
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx2, Isa::kBaseline})
    if (isa_supported(isa)) return isa;
  throw std::runtime_error(
      "isa: got a build without instructions that this processor has; build it here, or with CONE_ISAS=all");
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
