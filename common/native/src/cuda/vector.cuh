// Four numbers at once, and sums over the lanes of a warp.
#pragma once
#include "mma.cuh"

namespace lcf {

__device__ inline float4 widen(uint2 raw) {
  const float2 low = unpack(raw.x), high = unpack(raw.y);
  return make_float4(low.x, low.y, high.x, high.y);
}

__device__ inline uint2 pack4(float4 v) { return make_uint2(pack(v.x, v.y), pack(v.z, v.w)); }

__device__ inline float4 load4(const bf16* p) { return widen(*reinterpret_cast<const uint2*>(p)); }
__device__ inline float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }

__device__ inline void store4(bf16* p, float4 v) { *reinterpret_cast<uint2*>(p) = pack4(v); }
__device__ inline void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }

__device__ inline float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
__device__ inline float4 operator*(float4 a, float4 b) { return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w}; }
__device__ inline float4 operator+(float4 a, float b) { return {a.x + b, a.y + b, a.z + b, a.w + b}; }
__device__ inline float4 operator*(float4 a, float b) { return {a.x * b, a.y * b, a.z * b, a.w * b}; }

// Sum over lanes that differ in the bits below LANES.
template <int LANES = WARP>
__device__ inline float lane_sum(float value) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL, value, offset);
  return value;
}

}  // namespace lcf
