// Fused kernels of the DiT's residual stream, one warp a token. No libtorch here: pointers, sizes and a stream.
//
// Forward   x' = x + gate * h                 (fp32; without a gate x' = x)
//           y  = norm(x') * (1 + scale) + shift   (bf16), norm without weights
// Backward  from dx' (may be null) and dy: dx, dh, and sums over tokens for dgate, dshift, dscale.
//
// gate, shift and scale are bf16 rows of length D, one a sample, `stride` apart; D = 128 V.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace {

constexpr int WARP = 32;
constexpr int WARPS = 8;
constexpr unsigned ALL = 0xffffffffu;

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL, value, offset);
  return value;
}

// Four consecutive bf16 in one 8-byte access.
__device__ inline float4 load4(const __nv_bfloat16* p) {
  uint2 raw = *reinterpret_cast<const uint2*>(p);
  float2 low = __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&raw.x));
  float2 high = __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&raw.y));
  return make_float4(low.x, low.y, high.x, high.y);
}

__device__ inline float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }

__device__ inline void store4(__nv_bfloat16* p, float4 v) {
  __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y), high = __floats2bfloat162_rn(v.z, v.w);
  uint2 raw = {*reinterpret_cast<unsigned*>(&low), *reinterpret_cast<unsigned*>(&high)};
  *reinterpret_cast<uint2*>(p) = raw;
}

__device__ inline void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }

__device__ inline float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
__device__ inline float4 operator*(float4 a, float4 b) { return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w}; }
__device__ inline float4 operator+(float4 a, float b) { return {a.x + b, a.y + b, a.z + b, a.w + b}; }
__device__ inline float4 operator*(float4 a, float b) { return {a.x * b, a.y * b, a.z * b, a.w * b}; }
__device__ inline float total(float4 a) { return (a.x + a.y) + (a.z + a.w); }

template <int V>
__global__ void forward(const float* x, const __nv_bfloat16* gate, const __nv_bfloat16* h,
                        const __nv_bfloat16* shift, const __nv_bfloat16* scale, long stride, float* x_out,
                        __nv_bfloat16* y, float* mean_out, float* rstd_out, int tokens, long rows, float eps) {
  constexpr int D = 128 * V;
  const long row = static_cast<long>(blockIdx.x) * WARPS + threadIdx.x / WARP;
  if (row >= rows) return;
  const int lane = threadIdx.x % WARP;
  const long sample = row / tokens;
  float4 v[V];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < V; i++) {
    const int column = (i * WARP + lane) * 4;
    v[i] = load4(x + row * D + column);
    if (gate) {
      v[i] = v[i] + load4(gate + sample * stride + column) * load4(h + row * D + column);
      store4(x_out + row * D + column, v[i]);
    }
    sum += total(v[i]);
  }
  const float mean = warp_sum(sum) / D;
  float square = 0;
#pragma unroll
  for (int i = 0; i < V; i++) {
    v[i] = v[i] + -mean;
    square += total(v[i] * v[i]);
  }
  const float rstd = rsqrtf(warp_sum(square) / D + eps);
#pragma unroll
  for (int i = 0; i < V; i++) {
    const int column = (i * WARP + lane) * 4;
    const float4 by = load4(scale + sample * stride + column) + 1.0f;
    store4(y + row * D + column, v[i] * rstd * by + load4(shift + sample * stride + column));
  }
  if (lane == 0) {
    mean_out[row] = mean;
    rstd_out[row] = rstd;
  }
}

// Sums what the warps of a block hold for each column and writes the block's part.
template <int V>
__device__ void block_sum(const float4 (&mine)[V], float* shared, float* out) {
  constexpr int D = 128 * V;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < V; i++) store4(shared + warp * D + (i * WARP + lane) * 4, mine[i]);
  __syncthreads();
  for (int column = threadIdx.x; column < D; column += WARPS * WARP) {
    float sum = 0;
    for (int w = 0; w < WARPS; w++) sum += shared[w * D + column];
    out[column] = sum;
  }
}

// One block a (chunk of tokens, sample). sums: [3][samples][chunks][D], of shift, scale and gate.
template <int V>
__global__ void backward(const float* dx_out, const __nv_bfloat16* dy, const float* x, const float* mean,
                         const float* rstd, const __nv_bfloat16* scale, const __nv_bfloat16* gate,
                         const __nv_bfloat16* h, long stride, float* dx, __nv_bfloat16* dh, float* sums, int tokens) {
  constexpr int D = 128 * V;
  __shared__ float shared[WARPS * D];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const long sample = blockIdx.y, chunks = gridDim.x;
  const int each = (tokens + gridDim.x - 1) / gridDim.x;
  const int first = blockIdx.x * each, end = min(tokens, first + each);
  float4 by[V], of_gate[V], sum_shift[V], sum_scale[V], sum_gate[V];
#pragma unroll
  for (int i = 0; i < V; i++) {
    const int column = (i * WARP + lane) * 4;
    by[i] = load4(scale + sample * stride + column) + 1.0f;
    of_gate[i] = gate ? load4(gate + sample * stride + column) : make_float4(0, 0, 0, 0);
    sum_shift[i] = sum_scale[i] = sum_gate[i] = make_float4(0, 0, 0, 0);
  }
  for (int token = first + warp; token < end; token += WARPS) {
    const long row = sample * tokens + token;
    const float m = mean[row], r = rstd[row];
    float4 normal[V], g[V];
    float sum_g = 0, sum_gn = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
      const int column = (i * WARP + lane) * 4;
      normal[i] = (load4(x + row * D + column) + -m) * r;
      const float4 d = load4(dy + row * D + column);
      sum_shift[i] = sum_shift[i] + d;
      sum_scale[i] = sum_scale[i] + d * normal[i];
      g[i] = d * by[i];
      sum_g += total(g[i]);
      sum_gn += total(g[i] * normal[i]);
    }
    sum_g = warp_sum(sum_g) / D;
    sum_gn = warp_sum(sum_gn) / D;
#pragma unroll
    for (int i = 0; i < V; i++) {
      const int column = (i * WARP + lane) * 4;
      float4 d = (g[i] + -sum_g + normal[i] * -sum_gn) * r;
      if (dx_out) d = d + load4(dx_out + row * D + column);
      store4(dx + row * D + column, d);
      if (gate) {
        sum_gate[i] = sum_gate[i] + d * load4(h + row * D + column);
        store4(dh + row * D + column, d * of_gate[i]);
      }
    }
  }
  const long part = (sample * chunks + blockIdx.x) * D, all = static_cast<long>(gridDim.y) * chunks * D;
  block_sum<V>(sum_shift, shared, sums + part);
  block_sum<V>(sum_scale, shared, sums + all + part);
  if (gate) block_sum<V>(sum_gate, shared, sums + 2 * all + part);
}

template <int V>
int launch_forward(const float* x, const void* gate, const void* h, const void* shift, const void* scale, long stride,
                   float* x_out, void* y, float* mean, float* rstd, int tokens, long rows, float eps,
                   cudaStream_t stream) {
  using bf16 = __nv_bfloat16;
  const int blocks = static_cast<int>((rows + WARPS - 1) / WARPS);
  forward<V><<<blocks, WARPS * WARP, 0, stream>>>(
      x, static_cast<const bf16*>(gate), static_cast<const bf16*>(h), static_cast<const bf16*>(shift),
      static_cast<const bf16*>(scale), stride, x_out, static_cast<bf16*>(y), mean, rstd, tokens, rows, eps);
  return cudaGetLastError();
}

template <int V>
int launch_backward(const float* dx_out, const void* dy, const float* x, const float* mean, const float* rstd,
                    const void* scale, const void* gate, const void* h, long stride, float* dx, void* dh, float* sums,
                    int tokens, int samples, int chunks, cudaStream_t stream) {
  using bf16 = __nv_bfloat16;
  backward<V><<<dim3(chunks, samples), WARPS * WARP, 0, stream>>>(
      dx_out, static_cast<const bf16*>(dy), x, mean, rstd, static_cast<const bf16*>(scale),
      static_cast<const bf16*>(gate), static_cast<const bf16*>(h), stride, dx, static_cast<bf16*>(dh), sums, tokens);
  return cudaGetLastError();
}

}  // namespace

// Both return 0, a CUDA error code, or -1 for a width that is not 128 times 1, 2, 3, 4, 6 or 8.
extern "C" int lcf_residual_norm_forward(const float* x, const void* gate, const void* h, const void* shift,
                                         const void* scale, long stride, float* x_out, void* y, float* mean,
                                         float* rstd, int tokens, long rows, int width, float eps, void* stream) {
#define FORWARD(V)                                                                                                \
  case 128 * V:                                                                                                   \
    return launch_forward<V>(x, gate, h, shift, scale, stride, x_out, y, mean, rstd, tokens, rows, eps,          \
                             static_cast<cudaStream_t>(stream))
  switch (width) {
    FORWARD(1); FORWARD(2); FORWARD(3); FORWARD(4); FORWARD(6); FORWARD(8);
    default: return -1;
  }
}

extern "C" int lcf_residual_norm_backward(const float* dx_out, const void* dy, const float* x, const float* mean,
                                          const float* rstd, const void* scale, const void* gate, const void* h,
                                          long stride, float* dx, void* dh, float* sums, int tokens, int samples,
                                          int chunks, int width, void* stream) {
#define BACKWARD(V)                                                                                               \
  case 128 * V:                                                                                                   \
    return launch_backward<V>(dx_out, dy, x, mean, rstd, scale, gate, h, stride, dx, dh, sums, tokens, samples,  \
                              chunks, static_cast<cudaStream_t>(stream))
  switch (width) {
    BACKWARD(1); BACKWARD(2); BACKWARD(3); BACKWARD(4); BACKWARD(6); BACKWARD(8);
    default: return -1;
  }
}
