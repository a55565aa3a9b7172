// Which instruction set the kernels run with. Each op's source (every file of csrc/cpu/ but isa.cpp) is compiled once
// per set, into namespace cone::baseline, cone::avx2 or cone::avx512, and ends with CONE_FORWARD.
#pragma once

namespace cone {

enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// Built in, and known to this processor.
bool isa_supported(Isa isa);
// Throws std::runtime_error where this processor knows none that is built in.
Isa best_isa();
Isa active_isa();
// Throws std::invalid_argument for a set that is not supported.
void force_isa(Isa isa);

}  // namespace cone

#ifdef CONE_HAVE_BASELINE
#define CONE_CASE_BASELINE(op) \
  case Isa::kBaseline:         \
    return baseline::op(args);
#else
#define CONE_CASE_BASELINE(op)
#endif
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

// CONE_FORWARD(op, Args), in namespace cone: defines cone::op, which calls the op of the instruction set in force, one
// that is built in. It is empty in all compilations of a source but those for one instruction set.
#ifdef CONE_DEFINES_FORWARDS
#define CONE_FORWARD(op, Args)   \
  namespace baseline {           \
  void op(const Args& args);     \
  }                              \
  namespace avx2 {               \
  void op(const Args& args);     \
  }                              \
  namespace avx512 {             \
  void op(const Args& args);     \
  }                              \
  void op(const Args& args) {    \
    switch (active_isa()) {      \
      CONE_CASE_BASELINE(op)     \
      CONE_CASE_AVX2(op)         \
      CONE_CASE_AVX512(op)       \
      default:                   \
        __builtin_unreachable(); \
    }                            \
  }
#else
#define CONE_FORWARD(op, Args)
#endif
