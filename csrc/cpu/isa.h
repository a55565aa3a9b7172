// Which instruction set the kernels run with. Each kernel source is compiled once per set, into namespace
// cone::baseline, cone::avx2 or cone::avx512; isa.cpp forwards each kernel to the set in force.
#pragma once

namespace cone {

enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// Built in, and known to this processor.
bool isa_supported(Isa isa);
Isa best_isa();
Isa active_isa();
// Throws std::invalid_argument for a set that is not supported.
void force_isa(Isa isa);

}  // namespace cone
