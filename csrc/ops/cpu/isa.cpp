#include "../../kernels/cpu/dispatch.h"

#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "isa.h"

namespace ar_fast {
namespace {

Isa parse(const std::string& name) {
  if (name == "AVX512") return Isa::avx512;
  if (name == "AVX2") return Isa::avx2;
  return Isa::baseline;
}

#if defined(AR_FAST_AVX512)
constexpr Isa compiled = Isa::avx512;
#elif defined(AR_FAST_X86)
constexpr Isa compiled = Isa::avx2;
#else
constexpr Isa compiled = Isa::baseline;
#endif

const Isa& best_isa() {
  static const Isa isa = std::min(parse(at::get_cpu_capability()), compiled);
  return isa;
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "AVX512";
    case Isa::avx2: return "AVX2";
    default: return "DEFAULT";
  }
}

std::atomic<int> chosen{-1};

}  // namespace

Isa current_isa() {
  const int isa = chosen.load(std::memory_order_relaxed);
  return isa < 0 ? best_isa() : static_cast<Isa>(isa);
}

std::string isa_name() { return name_of(current_isa()); }

bool has_amx_bfloat16() {
#if defined(AR_FAST_X86) && defined(__GNUC__)
  return current_isa() == Isa::avx512 && __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

void set_isa(const std::string& name) {
  if (name == "auto") {
    chosen = -1;
    return;
  }
  TORCH_CHECK(name == "DEFAULT" || name == "AVX2" || name == "AVX512",
              "set_isa: name must be auto, DEFAULT, AVX2 or AVX512, got '", name, "'");
  TORCH_CHECK(parse(name) <= best_isa(), "set_isa: this machine, this build (AR_FAST_CPU) and ATEN_CPU_CAPABILITY allow no more than ",
              name_of(best_isa()), ", got '", name, "'");
  chosen = static_cast<int>(parse(name));
}

}  // namespace ar_fast
