// Prints which element each thread has of what mma.sync and ldmatrix take and give, from CuTe's traits (NVIDIA's
// CUTLASS, version 4.2): what the emulation's fragments are compared with (tests/build/test_fragments.py, which
// compiles this on the host). A line: a name, threads, values, then an index for every value of every thread.
#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/tensor.hpp>
#include <string>

namespace {

template <typename Layout>
void print(const std::string& name, const Layout& layout) {
  const int threads = cute::size<0>(layout), values = cute::size<1>(layout);
  std::printf("%s %d %d", name.c_str(), threads, values);
  for (int t = 0; t < threads; ++t) {
    for (int v = 0; v < values; ++v) std::printf(" %d", static_cast<int>(layout(t, v)));
  }
  std::printf("\n");
}

template <typename Operation>
void print_product(const std::string& name) {
  using Traits = cute::MMA_Traits<Operation>;
  print(name + "_a", typename Traits::ALayout{});
  print(name + "_b", typename Traits::BLayout{});
  print(name + "_c", typename Traits::CLayout{});
}

template <typename Operation>
void print_load(const std::string& name) {
  print(name + "_from", typename cute::Copy_Traits<Operation>::SrcLayout{});
  print(name + "_to", typename cute::Copy_Traits<Operation>::DstLayout{});
}

}  // namespace

int main() {
  print_product<cute::SM80_16x8x16_F32F16F16F32_TN>("float16");
  print_product<cute::SM80_16x8x16_F32BF16BF16F32_TN>("bfloat16");
  print_product<cute::SM80_16x8x8_F32TF32TF32F32_TN>("tf32");
  print_load<cute::SM75_U32x4_LDSM_N>("ldmatrix");
  print_load<cute::SM75_U16x8_LDSM_T>("ldmatrix_transposed");
}
