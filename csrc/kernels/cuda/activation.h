// Activations of hidden units. In float: at most two special-function instructions each (ex2 and rcp), relative error
// below 8e-7 wherever the result is a normal number; +-infinity gives the limit and NaN gives NaN. In double: the
// library's functions.
#pragma once

#include "runtime.h"

namespace ar_fast::cuda {

// e^-x for x in [-88, 88]. -x log2(e) is rounded to an exponent; how far that is from -x is put right by a first-order
// term.
__device__ __forceinline__ float exp_of_minus(float x) {
  constexpr float log2_e = 1.44269502f, ln_2 = 0.693147182f;  // ln_2 is 2e-9 too large: 2e-7 of the result at 88
  const float exponent = x * -log2_e;
  const float value = exp2_instruction(exponent);
  return fmaf(-value, fmaf(exponent, ln_2, x), value);
}

__device__ __forceinline__ float sigmoid(float a) {
  return reciprocal_instruction(1.0f + exp_of_minus(clamp_keep_nan(a, -88.0f, 88.0f)));
}
__device__ __forceinline__ double sigmoid(double a) { return 1.0 / (1.0 + exp(-a)); }

template <typename T, int N>
__device__ __forceinline__ void sigmoid(const T (&a)[N], T (&h)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) h[i] = sigmoid(a[i]);
}

// Near zero 1 - 2 / (1 + e^2a) loses digits; an odd polynomial is used there, fitted for the least relative error.
__device__ __forceinline__ float tanh_of(float a) {
  if (fabsf(a) < 0.55f) {
    const float square = a * a;
    const float tail =
        fmaf(fmaf(fmaf(0.0164320096f, square, -0.0526680276f), square, 0.133206427f), square, -0.333329409f);
    return fmaf(a * square, tail, a);
  }
  return fmaf(-2.0f, reciprocal_instruction(1.0f + exp_of_minus(clamp_keep_nan(-2.0f * a, -88.0f, 88.0f))), 1.0f);
}
__device__ __forceinline__ double tanh_of(double a) { return tanh(a); }

// h = f(scale a) for all units of a thread, with one branch on the activation.
template <typename T, int N>
__device__ __forceinline__ void activate(Activation activation, T scale, const T (&a)[N], T (&h)[N]) {
  switch (activation) {
    case Activation::sigmoid:
#pragma unroll
      for (int i = 0; i < N; ++i) h[i] = sigmoid(scale * a[i]);
      break;
    case Activation::tanh:
#pragma unroll
      for (int i = 0; i < N; ++i) h[i] = tanh_of(scale * a[i]);
      break;
    default:
#pragma unroll
      for (int i = 0; i < N; ++i) h[i] = scale * a[i] < T(0) ? T(0) : scale * a[i];
      break;
  }
}

// f' from h = f.
template <typename T>
__device__ __forceinline__ T derivative(Activation activation, T h) {
  switch (activation) {
    case Activation::sigmoid:
      return h * (T(1) - h);
    case Activation::tanh:
      return T(1) - h * h;
    default:
      return h > T(0) ? T(1) : T(0);
  }
}

// log(1 + e^x)
template <typename T>
__device__ __forceinline__ T softplus(T x) {
  return (x > T(0) ? x : T(0)) + log1p(exp(x > T(0) ? -x : x));
}

// Activations that cost at most two instructions, and none: for an epilogue that is unrolled over all sums of a thread.
// All others are left out there.
__device__ __forceinline__ bool is_rectifier(Activation activation) {
  return activation == Activation::none || activation == Activation::relu ||
         activation == Activation::leaky_relu;
}

template <typename T>
__device__ __forceinline__ T rectify(Activation activation, T x) {
  if (x > T(0) || x != x) return x;
  return activation == Activation::relu ? T(0) : activation == Activation::leaky_relu ? T(0.01) * x : x;
}

template <typename T>
__device__ __forceinline__ T activate(Activation activation, T x) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return x < T(0) ? T(0) : x;
    case Activation::sigmoid: return sigmoid(x);
    case Activation::tanh: return tanh_of(x);
    case Activation::elu: return x > T(0) ? x : expm1(x);
    case Activation::softplus: return softplus(x);
    case Activation::silu: return x * sigmoid(x);
    case Activation::gelu: return T(0.5) * x * (T(1) + erf(x * T(0.7071067811865475244)));
    default: return x > T(0) ? x : T(0.01) * x;
  }
}

}  // namespace ar_fast::cuda
