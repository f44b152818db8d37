// The gradient of GELU with the sums that become the bias gradient.
#include <cuda_runtime.h>

#include "gelu.cuh"
#include "mma.cuh"

namespace {

using namespace lcf;

// d *= gelu'(pre) in place, eight columns a thread; sums[block][column] of the result over the rows of the block.
__global__ void gelu_backward(bf16* d, const bf16* pre, float* sums, long rows, int columns) {
  const int column = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
  if (column >= columns) return;
  float sum[8] = {};
#pragma unroll 2
  for (long row = blockIdx.x; row < rows; row += gridDim.x) {
    const uint4 a = *reinterpret_cast<const uint4*>(d + row * columns + column);
    const uint4 b = *reinterpret_cast<const uint4*>(pre + row * columns + column);
    const uint32_t as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
    uint32_t out[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 g = unpack(as[i]), x = unpack(bs[i]);
      const float low = g.x * gelu_slope(x.x), high = g.y * gelu_slope(x.y);
      out[i] = pack(low, high);
      sum[2 * i] += low;
      sum[2 * i + 1] += high;
    }
    *reinterpret_cast<uint4*>(d + row * columns + column) = make_uint4(out[0], out[1], out[2], out[3]);
  }
#pragma unroll
  for (int i = 0; i < 8; i++) sums[static_cast<long>(blockIdx.x) * columns + column + i] = sum[i];
}

}  // namespace

// columns must be a multiple of 8; sums is [blocks, columns].
extern "C" int lcf_gelu_backward(void* d, const void* pre, float* sums, int blocks, long rows, int columns, void* stream) {
  const int threads = 64;
  gelu_backward<<<dim3(blocks, (columns / 8 + threads - 1) / threads), threads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<bf16*>(d), static_cast<const bf16*>(pre), sums, rows, columns);
  return cudaGetLastError();
}
