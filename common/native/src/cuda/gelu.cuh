// GELU by tanh: u = sqrt(2 / pi) (x + 0.044715 x^3), gelu = x (1 + tanh u) / 2.
#pragma once

namespace lcf {

constexpr float GELU_A = 0.7978845608028654f, GELU_B = 0.044715f;

// Error below 2^-10.9: a quarter of what bf16 rounds by.
__device__ inline float fast_tanh(float x) {
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(x));
  return t;
}

__device__ inline float gelu(float x) {
  const float t = fast_tanh(x * (GELU_A + GELU_A * GELU_B * (x * x))), half = 0.5f * x;
  return half + half * t;
}

// Its derivative: (1 + t) / 2 + x (1 - t^2) u' / 2 with t = tanh u.
__device__ inline float gelu_slope(float x) {
  const float square = x * x;
  const float t = fast_tanh(x * (GELU_A + GELU_A * GELU_B * square));
  return (0.5f + 0.5f * t) + (1.0f - t * t) * (x * (0.5f * GELU_A + 1.5f * GELU_A * GELU_B * square));
}

}  // namespace lcf
