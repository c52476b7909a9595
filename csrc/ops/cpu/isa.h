// The instruction set that the CPU kernels use.
#pragma once

#include <string>

namespace ar_fast {

std::string isa_name();

// Whether torch's products of bfloat16 matrices run on AMX tiles.
bool has_amx_bfloat16();

// "auto", "DEFAULT", "AVX2" or "AVX512"; raises if the machine or ATEN_CPU_CAPABILITY does not allow it.
void set_isa(const std::string& name);

}  // namespace ar_fast
