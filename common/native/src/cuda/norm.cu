// The residual stream of the DiT, one warp a token: the update by a gated branch, the norm after it and its modulation in
// one pass each way. No libtorch here: pointers, sizes and a stream.
//
// Forward   x' = x + gate h        (fp32; without a branch x' = x)
//           n  = norm(x')          (bf16, kept for the backward pass), norm without weights
//           y  = n (1 + scale) + shift   (bf16)
// Backward  from dx', dy and what else depends on x': dx, dh, and sums over tokens for dshift, dscale, dgate and the bias
//           of the layer that made h.
//
// gate, shift and scale are bf16 rows of length D, one a sample, `stride` apart; D = 128 V.
#include <cuda_runtime.h>

#include "mma.cuh"

namespace {

using namespace lcf;

constexpr int WARPS = 8;

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL, value, offset);
  return value;
}

// Four consecutive numbers in one access.
__device__ inline float4 load4(const bf16* p) {
  const uint2 raw = *reinterpret_cast<const uint2*>(p);
  const float2 low = unpack(raw.x), high = unpack(raw.y);
  return make_float4(low.x, low.y, high.x, high.y);
}

__device__ inline float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }

__device__ inline void store4(bf16* p, float4 v) {
  *reinterpret_cast<uint2*>(p) = make_uint2(pack(v.x, v.y), pack(v.z, v.w));
}

__device__ inline void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }

__device__ inline float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
__device__ inline float4 operator*(float4 a, float4 b) { return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w}; }
__device__ inline float4 operator+(float4 a, float b) { return {a.x + b, a.y + b, a.z + b, a.w + b}; }
__device__ inline float4 operator*(float4 a, float b) { return {a.x * b, a.y * b, a.z * b, a.w * b}; }
__device__ inline float total(float4 a) { return (a.x + a.y) + (a.z + a.w); }

struct Forward {
  const float* x;
  const bf16 *gate, *h, *shift, *scale;
  long stride;
  float* x_out;
  bf16 *y, *normal;
  float* rstd;
  int tokens;
  long rows;
  float eps;
};

template <int V>
__global__ void __launch_bounds__(WARPS* WARP) norm_forward(Forward f) {
  constexpr int D = 128 * V;
  const long row = static_cast<long>(blockIdx.x) * WARPS + threadIdx.x / WARP;
  if (row >= f.rows) return;
  const int lane = threadIdx.x % WARP;
  const long of_sample = row / f.tokens * f.stride;
  float4 v[V];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < V; i++) {
    const int column = (i * WARP + lane) * 4;
    v[i] = load4(f.x + row * D + column);
    if (f.gate) {
      v[i] = v[i] + load4(f.gate + of_sample + column) * load4(f.h + row * D + column);
      store4(f.x_out + row * D + column, v[i]);
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
  const float rstd = rsqrtf(warp_sum(square) / D + f.eps);
#pragma unroll
  for (int i = 0; i < V; i++) {
    const int column = (i * WARP + lane) * 4;
    v[i] = v[i] * rstd;
    if (f.normal) store4(f.normal + row * D + column, v[i]);
    const float4 by = load4(f.scale + of_sample + column) + 1.0f;
    store4(f.y + row * D + column, v[i] * by + load4(f.shift + of_sample + column));
  }
  if (f.rstd && lane == 0) f.rstd[row] = rstd;
}

struct Backward {
  const bf16* dx_out;   // may be null
  const float* direct;  // what else has a gradient to x', fp32; may be null
  long direct_sample, direct_token;  // strides of it
  const bf16 *dy, *normal;
  const float* rstd;
  const bf16 *scale, *gate, *h;  // gate and h may be null
  long stride;
  bf16 *dx, *dh;
  // Of a chunk of tokens: dshift, dscale and dgate at chunk * chunk_stride + sample * row_stride + column, fp32; the sums
  // of dh at (sample * chunks + chunk) * D + column.
  float *shift_sum, *scale_sum, *gate_sum, *dh_sum;
  long chunk_stride, row_stride;
  int tokens;
};

// Sums what the warps of a block hold for each column.
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

// One block a (chunk of tokens, sample).
template <int V, bool GATED>
__global__ void __launch_bounds__(WARPS* WARP, V <= 3 ? 2 : 1) norm_backward(Backward b) {
  constexpr int D = 128 * V;
  __shared__ float shared[WARPS * D];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const long sample = blockIdx.y, of_sample = sample * b.stride;
  const int each = (b.tokens + gridDim.x - 1) / gridDim.x;
  const int first = blockIdx.x * each, end = min(b.tokens, first + each);
  float4 by[V], of_gate[V], sum_shift[V], sum_scale[V], sum_gate[V], sum_dh[V];
#pragma unroll
  for (int i = 0; i < V; i++) {
    const int column = (i * WARP + lane) * 4;
    by[i] = load4(b.scale + of_sample + column) + 1.0f;
    if (GATED) of_gate[i] = load4(b.gate + of_sample + column);
    sum_shift[i] = sum_scale[i] = sum_gate[i] = sum_dh[i] = make_float4(0, 0, 0, 0);
  }
  for (int token = first + warp; token < end; token += WARPS) {
    const long row = sample * b.tokens + token;
    const float rstd = b.rstd[row];
    float4 normal[V], g[V], direct[V], h[V];
    float sum_g = 0, sum_gn = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
      const int column = (i * WARP + lane) * 4;
      normal[i] = load4(b.normal + row * D + column);
      const float4 d = load4(b.dy + row * D + column);
      direct[i] = b.dx_out ? load4(b.dx_out + row * D + column) : make_float4(0, 0, 0, 0);
      if (GATED) h[i] = load4(b.h + row * D + column);
      if (b.direct)
        direct[i] = direct[i] + load4(b.direct + sample * b.direct_sample + token * b.direct_token + column);
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
      const float4 d = (g[i] + -sum_g + normal[i] * -sum_gn) * rstd + direct[i];
      store4(b.dx + row * D + column, d);
      if (GATED) {
        sum_gate[i] = sum_gate[i] + d * h[i];
        const float4 dh = d * of_gate[i];
        sum_dh[i] = sum_dh[i] + dh;
        store4(b.dh + row * D + column, dh);
      }
    }
  }
  const long part = blockIdx.x * b.chunk_stride + sample * b.row_stride;
  block_sum<V>(sum_shift, shared, b.shift_sum + part);
  block_sum<V>(sum_scale, shared, b.scale_sum + part);
  if (GATED) {
    block_sum<V>(sum_gate, shared, b.gate_sum + part);
    block_sum<V>(sum_dh, shared, b.dh_sum + (sample * gridDim.x + blockIdx.x) * D);
  }
}

template <int V>
int forward(const Forward& f, cudaStream_t stream) {
  norm_forward<V><<<static_cast<unsigned>((f.rows + WARPS - 1) / WARPS), WARPS * WARP, 0, stream>>>(f);
  return cudaGetLastError();
}

template <int V>
int backward(const Backward& b, int samples, int chunks, cudaStream_t stream) {
  const dim3 blocks(chunks, samples);
  if (b.gate)
    norm_backward<V, true><<<blocks, WARPS * WARP, 0, stream>>>(b);
  else
    norm_backward<V, false><<<blocks, WARPS * WARP, 0, stream>>>(b);
  return cudaGetLastError();
}

}  // namespace

// All return 0, a CUDA error code, or -1 for a width that is not 128 times 1, 2, 3, 4, 6 or 8.
#define WIDTHS(CALL)   \
  switch (width) {     \
    case 128: return CALL(1); \
    case 256: return CALL(2); \
    case 384: return CALL(3); \
    case 512: return CALL(4); \
    case 768: return CALL(6); \
    case 1024: return CALL(8); \
    default: return -1; \
  }

extern "C" int lcf_norm_forward(const float* x, const void* gate, const void* h, const void* shift, const void* scale,
                                long stride, float* x_out, void* y, void* normal, float* rstd, int tokens, long rows,
                                int width, float eps, void* stream) {
  const auto in = [](const void* p) { return static_cast<const bf16*>(p); };
  const Forward f = {x,     in(gate), in(h), in(shift), in(scale), stride, x_out, static_cast<bf16*>(y),
                     static_cast<bf16*>(normal), rstd, tokens, rows, eps};
#define CALL(V) forward<V>(f, static_cast<cudaStream_t>(stream))
  WIDTHS(CALL)
#undef CALL
}

extern "C" int lcf_norm_backward(const void* dx_out, const float* direct, long direct_sample, long direct_token,
                                 const void* dy, const void* normal, const float* rstd, const void* scale,
                                 const void* gate, const void* h, long stride, void* dx, void* dh, float* shift_sum,
                                 float* scale_sum, float* gate_sum, float* dh_sum, long chunk_stride, long row_stride,
                                 int tokens, int samples, int chunks, int width, void* stream) {
  const auto in = [](const void* p) { return static_cast<const bf16*>(p); };
  const Backward b = {in(dx_out), direct,   direct_sample, direct_token, in(dy),    in(normal), rstd,
                      in(scale),  in(gate), in(h),         stride,       static_cast<bf16*>(dx), static_cast<bf16*>(dh),
                      shift_sum,  scale_sum, gate_sum,     dh_sum,       chunk_stride, row_stride, tokens};
#define CALL(V) backward<V>(b, samples, chunks, static_cast<cudaStream_t>(stream))
  WIDTHS(CALL)
#undef CALL
}
