// Each kernel has one source, which is compiled into a namespace for each instruction set and selected at run time.
//
// A kernel file kernels/cpu/X.cpp opens `namespace ar_fast::CPU_CAPABILITY`; the header X_cpu.h declares its functions
// with AR_FAST_DECLARE_CPU_KERNEL, and the ops floor calls AR_FAST_CPU_KERNEL(function)(arguments).
// Per-ISA files must not instantiate std containers or at::parallel_for: their weak symbols, compiled for AVX-512,
// could be merged into baseline code.
#pragma once

namespace ar_fast {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

// At most what was compiled, and what ATEN_CPU_CAPABILITY allows; defined in ops/cpu/isa.cpp.
Isa current_isa();

}  // namespace ar_fast

#if defined(AR_FAST_AVX512)
#define AR_FAST_DECLARE_CPU_KERNEL(name, ...)  \
  namespace DEFAULT { void name(__VA_ARGS__); } \
  namespace AVX2 { void name(__VA_ARGS__); }    \
  namespace AVX512 { void name(__VA_ARGS__); }
#define AR_FAST_CPU_KERNEL(name)                             \
  (::ar_fast::current_isa() == ::ar_fast::Isa::avx512 ? ::ar_fast::AVX512::name \
   : ::ar_fast::current_isa() == ::ar_fast::Isa::avx2 ? ::ar_fast::AVX2::name   \
                                                      : ::ar_fast::DEFAULT::name)
#elif defined(AR_FAST_X86)
#define AR_FAST_DECLARE_CPU_KERNEL(name, ...)  \
  namespace DEFAULT { void name(__VA_ARGS__); } \
  namespace AVX2 { void name(__VA_ARGS__); }
#define AR_FAST_CPU_KERNEL(name) \
  (::ar_fast::current_isa() == ::ar_fast::Isa::baseline ? ::ar_fast::DEFAULT::name : ::ar_fast::AVX2::name)
#else
#define AR_FAST_DECLARE_CPU_KERNEL(name, ...) \
  namespace DEFAULT { void name(__VA_ARGS__); }
#define AR_FAST_CPU_KERNEL(name) (::ar_fast::DEFAULT::name)
#endif
