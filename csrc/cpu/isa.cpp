#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>

#include "cone/gradients.h"
#include "cone/moments.h"
#include "cone/second_moment.h"
#include "cone/top_eigenvectors.h"

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
  if (!isa_supported(isa)) throw std::invalid_argument("isa: not built in, or not known to this processor");
  isa_in_force().store(isa);
}

#ifdef CONE_HAVE_AVX2
#define CONE_CASE_AVX2(op) \
  case Isa::kAvx2:         \
    return avx2::op(args);
#else
#define CONE_CASE_AVX2(op)
#endif
#ifdef CONE_HAVE_AVX512
#define CONE_CASE_AVX512(op) \
  case Isa::kAvx512:         \
    return avx512::op(args);
#else
#define CONE_CASE_AVX512(op)
#endif

#define CONE_FORWARD(op, Args)     \
  namespace baseline {             \
  void op(const Args& args);       \
  }                                \
  namespace avx2 {                 \
  void op(const Args& args);       \
  }                                \
  namespace avx512 {               \
  void op(const Args& args);       \
  }                                \
  void op(const Args& args) {      \
    switch (active_isa()) {        \
      CONE_CASE_AVX2(op)           \
      CONE_CASE_AVX512(op)         \
      default:                     \
        return baseline::op(args); \
    }                              \
  }

CONE_FORWARD(row_moments, RowMomentsArgs)
CONE_FORWARD(pool_moments, PoolMomentsArgs)
CONE_FORWARD(masked_mean_pool, MaskedMeanPoolArgs)
CONE_FORWARD(mean_pairwise_cosine_backward, MeanPairwiseCosineBackwardArgs)
CONE_FORWARD(masked_mean_pool_backward, MaskedMeanPoolBackwardArgs)
CONE_FORWARD(second_moment, SecondMomentArgs)
CONE_FORWARD(top_eigenvectors, TopEigenvectorsArgs)

}  // namespace cone
