// Ends with 0 where the AVX-512 that the kernels are compiled for runs.
int main() {
#if defined(__GNUC__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512bw")
             ? 0
             : 1;
#else
  return 1;
#endif
}
