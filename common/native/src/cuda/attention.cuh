// What both implementations of the attention share.
#pragma once
#include <cuda_runtime.h>

#include "mma.cuh"

namespace lcf {

constexpr int HEAD = 64;
constexpr int MAX_SHORT = 256;   // tokens of which all dQ of a head is in registers at once
constexpr int BLOCK = 64;        // queries that the backward pass takes at a time
constexpr float SCALE = 0.125f;  // 64^-1/2
constexpr float LOG2E = 1.4426950408889634f;

// Copies rows [first, first + rows) of 64 numbers, `stride` apart, of which those below `tokens` exist.
__device__ inline void copy_rows(uint32_t to, const bf16* from, long stride, int first, int rows, int tokens) {
  for (int i = threadIdx.x; i < rows * 8; i += blockDim.x) {
    const int row = i / 8, chunk = i % 8;
    const bool valid = first + row < tokens;
    copy16_async(row_address(to, row, chunk), from + (valid ? first + row : 0) * stride + chunk * 8, valid);
  }
}

// Adds the products of eight numbers each.
__device__ inline float add_products(float sum, uint4 a, uint4 b) {
  const uint32_t as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 x = unpack(as[i]), y = unpack(bs[i]);
    sum += x.x * y.x + x.y * y.y;
  }
  return sum;
}

struct Gradient {
  const bf16 *qkv, *out, *dout;
  const float* lse;
  bf16* dqkv;
  float* bias;     // [samples, 3, heads, 64]: sums over tokens
  float* partial;  // for more than MAX_SHORT tokens: sums of dQ, 64 x 64 numbers a block of queries and processor
  int tokens, heads, samples;
};

// What a head's rows start at.
struct Head {
  const bf16 *q, *out, *dout;
  const float* lse;
  bf16* dq;
  float* bias;
  long stride, out_stride;

  __device__ Head(const Gradient& g, int index) {
    const long sample = index / g.heads, head = index % g.heads;
    stride = 3L * g.heads * HEAD;
    out_stride = static_cast<long>(g.heads) * HEAD;
    q = g.qkv + sample * g.tokens * stride + head * HEAD;
    dq = g.dqkv + sample * g.tokens * stride + head * HEAD;
    out = g.out + sample * g.tokens * out_stride + head * HEAD;
    dout = g.dout + sample * g.tokens * out_stride + head * HEAD;
    lse = g.lse + (sample * g.heads + head) * g.tokens;
    bias = g.bias + (sample * 3 * g.heads + head) * HEAD;
  }
};

// For more than MAX_SHORT / 2 tokens on Hopper.
int attention_forward_hopper(const bf16* qkv, bf16* out, float* lse, int tokens, int heads, int samples, int processors,
                             cudaStream_t stream);
int attention_backward_hopper(const Gradient& g, int processors, cudaStream_t stream);

}  // namespace lcf
