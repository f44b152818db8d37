// The residual stream of the DiT: the update by a gated branch, the norm after it and its modulation in one pass each way.
// No libtorch here: pointers, sizes and a stream.
//
// Forward   x' = x + gate h        (without a branch x' = x)
//           y  = (x' - mean) rstd (1 + scale) + shift   (bf16), a norm without weights
// Backward  from dx', dy, x', mean and rstd: dx, dh, and sums over tokens for dshift, dscale, dgate and the bias of the
//           layer that made h.
//
// Arithmetic is fp32. The stream is stored as bf16 and, where its pointer is not null, a byte that holds the next 8 bits:
// what the bf16 lacks in 1/256 of its last place, so that the two make a number of 16 significant bits. The bytes serve
// the next update; the backward pass reads the bf16 alone.
//
// gate, shift and scale are bf16 rows of length D, one a sample, `stride` apart; D is a multiple of 128.
#include <cuda_runtime.h>

#include "launch.cuh"
#include "vector.cuh"

namespace {

using namespace lcf;

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

// ---- forward ----

// Eight consecutive numbers, 16 bytes of bf16.
struct Eight {
  float v[8];
};

__device__ inline Eight widen8(uint4 raw) {
  const float2 a = unpack(raw.x), b = unpack(raw.y), c = unpack(raw.z), d = unpack(raw.w);
  return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}

__device__ inline uint4 narrow(const Eight& e) {
  return make_uint4(pack(e.v[0], e.v[1]), pack(e.v[2], e.v[3]), pack(e.v[4], e.v[5]), pack(e.v[6], e.v[7]));
}

// Not by the read-only path: the kernel before may still be writing this when the kernel begins.
__device__ inline uint4 load16(const bf16* p) { return *reinterpret_cast<const uint4*>(p); }
__device__ inline void store16(bf16* p, uint4 v) { *reinterpret_cast<uint4*>(p) = v; }

// The number that lies byte `which` of `lows`, with its sign, 256ths of a bf16's last place from `high`.
__device__ inline float refine(float high, uint32_t lows, int which) {
  uint32_t low;  // Bytes 0, low, sign, sign; __byte_perm knows no signs.
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(low) : "r"(lows), "r"(0), "r"(0x8804 | which * 0x1110));
  return __uint_as_float(__float_as_uint(high) + low);
}

// Four values less their bf16 roundings, as `refine` takes them.
__device__ inline uint32_t lacks(const float* value, const float* high) {
  int part[4];
#pragma unroll
  for (int i = 0; i < 4; i++) part[i] = (__float_as_int(value[i]) - __float_as_int(high[i]) + 128) >> 8;
  // Saturates: half a place that was rounded down is 128.
  uint32_t upper, all;
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, 0;" : "=r"(upper) : "r"(part[3]), "r"(part[2]));
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(all) : "r"(part[1]), "r"(part[0]), "r"(upper));
  return all;
}

struct Forward {
  const bf16* x;
  const uint8_t* x_low;  // may be null
  const bf16 *gate, *h, *shift, *scale;
  long stride;
  bf16* x_out;
  uint8_t* x_out_low;  // may be null
  bf16* y;
  float2* stats;  // mean and 1 / standard deviation; may be null
  int tokens, rows;
  float eps;
};

// As many lanes share a row as can all have 16 bytes of it at every access.
template <int D>
constexpr int LANES = D % 256 == 0 ? 32 : 16;

template <int D, bool GATED>
__global__ void __launch_bounds__(THREADS) norm_forward(Forward f) {
  constexpr int V = D / (8 * LANES<D>);
  const int row = static_cast<int>((blockIdx.x * THREADS + threadIdx.x) / LANES<D>);
  await_kernel_before();
  if (row >= f.rows) return;
  const int first = threadIdx.x % LANES<D> * 8, step = LANES<D> * 8;
  const long at = static_cast<long>(row) * D + first, of_sample = row / f.tokens * f.stride + first;
  uint4 raw[V], branch[V], gate[V];
  uint2 low[V];
#pragma unroll
  for (int i = 0; i < V; i++) {
    raw[i] = load16(f.x + at + i * step);
    low[i] = f.x_low ? *reinterpret_cast<const uint2*>(f.x_low + at + i * step) : make_uint2(0, 0);
    if (GATED) branch[i] = load16(f.h + at + i * step);
    if (GATED) gate[i] = load16(f.gate + of_sample + i * step);
  }
  Eight x[V];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < V; i++) {
    x[i] = widen8(raw[i]);
#pragma unroll
    for (int j = 0; j < 8; j++) x[i].v[j] = refine(x[i].v[j], j < 4 ? low[i].x : low[i].y, j % 4);
    if (GATED) {
      const Eight by = widen8(gate[i]), h = widen8(branch[i]);
#pragma unroll
      for (int j = 0; j < 8; j++) x[i].v[j] += by.v[j] * h.v[j];
      const uint4 rounded = narrow(x[i]);
      store16(f.x_out + at + i * step, rounded);
      if (f.x_out_low) {
        const Eight high = widen8(rounded);
        const uint2 rest = make_uint2(lacks(x[i].v, high.v), lacks(x[i].v + 4, high.v + 4));
        *reinterpret_cast<uint2*>(f.x_out_low + at + i * step) = rest;
      }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) sum += x[i].v[j];
  }
  uint4 scale[V], shift[V];
#pragma unroll
  for (int i = 0; i < V; i++) {
    scale[i] = load16(f.scale + of_sample + i * step);
    shift[i] = load16(f.shift + of_sample + i * step);
  }
  const float mean = lane_sum<LANES<D>>(sum) * (1.0f / D);
  float square = 0;
#pragma unroll
  for (int i = 0; i < V; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) {
      x[i].v[j] -= mean;
      square += x[i].v[j] * x[i].v[j];
    }
  const float rstd = rsqrtf(lane_sum<LANES<D>>(square) * (1.0f / D) + f.eps);
#pragma unroll
  for (int i = 0; i < V; i++) {
    const Eight by = widen8(scale[i]), plus = widen8(shift[i]);
#pragma unroll
    for (int j = 0; j < 8; j++) x[i].v[j] = x[i].v[j] * rstd * (by.v[j] + 1.0f) + plus.v[j];
    store16(f.y + at + i * step, narrow(x[i]));
  }
  if (f.stats && first == 0) f.stats[row] = make_float2(mean, rstd);
}

// ---- backward ----

struct Backward {
  const bf16* dx_out;   // may be null
  const float* direct;  // what else has a gradient to x', of all tokens of a sample alike, fp32 [samples, D]; may be null
  const bf16 *dy, *x;
  const float2* stats;
  const bf16 *scale, *gate, *h;  // gate and h may be null
  long stride;
  bf16 *dx, *dh;
  // Of a chunk of tokens: dshift, dscale and dgate at chunk * chunk_stride + sample * row_stride + column, fp32; the sums
  // of dh at (sample * chunks + chunk) * D + column.
  float *shift_sum, *scale_sum, *gate_sum, *dh_sum;
  long chunk_stride, row_stride;
  int tokens;
};

__device__ inline float total(float4 a) { return (a.x + a.y) + (a.z + a.w); }

// What is on its way to a warp: rows of x, dy, dx' and h, and the two numbers of the row.
template <int D>
struct alignas(16) Stage {
  bf16 x[D], dy[D], dx_out[D], h[D];
  float2 stats;
};

// Stages a warp, so that more is on its way than registers could hold: at most three, in the 99 KB that a block can have
// on every card from Ampere on.
template <int D>
constexpr int FIT = 99 * 1024 / (WARPS * static_cast<int>(sizeof(Stage<D>)));
template <int D>
constexpr int STAGES = FIT<D> < 3 ? FIT<D> : 3;
template <int D>
constexpr int RING = WARPS * STAGES<D> * static_cast<int>(sizeof(Stage<D>));
// The registers of wider rows leave room for one block a multiprocessor.
template <int D>
constexpr int RESIDENT = D <= 384 ? 2 : 1;

// Sums what the warps of a block hold for each column.
template <int V>
__device__ void block_sum(const float4 (&mine)[V], float* shared, float* out) {
  constexpr int D = 128 * V;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < V; i++) store4(shared + warp * D + (i * WARP + lane) * 4, mine[i]);
  __syncthreads();
#pragma unroll 1
  for (int column = threadIdx.x; column < D; column += THREADS) {
    float sum = 0;
    for (int w = 0; w < WARPS; w++) sum += shared[w * D + column];
    out[column] = sum;
  }
}

// One block a (chunk of tokens, sample), one warp a token.
template <int D, bool GATED>
__global__ void __launch_bounds__(THREADS, RESIDENT<D>) norm_backward(Backward b) {
  constexpr int V = D / 128;
  extern __shared__ __align__(16) unsigned char shared[];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  Stage<D>* const ring = reinterpret_cast<Stage<D>*>(shared) + warp * STAGES<D>;
  const long sample = blockIdx.y, of_sample = sample * b.stride;
  const int each = (b.tokens + gridDim.x - 1) / gridDim.x;
  const int first = blockIdx.x * each, end = min(b.tokens, first + each);
  const auto fetch = [&](int token, int stage) {
    if (token < end) {
      const long row = sample * b.tokens + token;
      Stage<D>& to = ring[stage];
      const auto copy = [&](bf16* row_to, const bf16* from) {
#pragma unroll
        for (int at = lane * 8; at < D; at += WARP * 8) copy16_async(shared_address(row_to + at), from + row * D + at, true);
      };
      copy(to.x, b.x);
      copy(to.dy, b.dy);
      if (b.dx_out) copy(to.dx_out, b.dx_out);
      if (GATED) copy(to.h, b.h);
      if (lane < 2)
        copy4_async(shared_address(&to.stats) + 4 * lane, reinterpret_cast<const float*>(b.stats + row) + lane, true);
    }
    copies_commit();
  };
  await_kernel_before();
#pragma unroll
  for (int stage = 0; stage + 1 < STAGES<D>; stage++) fetch(first + warp + stage * WARPS, stage);

  uint2 scale[V], gate[V];
  float4 sum_shift[V], sum_scale[V], sum_gate[V], sum_dx[V];
#pragma unroll
  for (int i = 0; i < V; i++) {
    const long at = of_sample + (i * WARP + lane) * 4;
    scale[i] = *reinterpret_cast<const uint2*>(b.scale + at);
    if (GATED) gate[i] = *reinterpret_cast<const uint2*>(b.gate + at);
    sum_shift[i] = sum_scale[i] = sum_gate[i] = sum_dx[i] = make_float4(0, 0, 0, 0);
  }
  int stage = 0;
  for (int token = first + warp; token < end; token += WARPS) {
    // Into the stage that the round before has read.
    const int free = stage == 0 ? STAGES<D> - 1 : stage - 1;
    __syncwarp();
    fetch(token + (STAGES<D> - 1) * WARPS, free);
    copies_wait<STAGES<D> - 1>();
    __syncwarp();
    const Stage<D>& from = ring[stage];
    stage = stage + 1 == STAGES<D> ? 0 : stage + 1;
    const long row = sample * b.tokens + token;
    const float mean = from.stats.x, rstd = from.stats.y;
    float4 normal[V], g[V];
    float sum_g = 0, sum_gn = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
      const int column = (i * WARP + lane) * 4;
      normal[i] = load4(from.x + column) * rstd + -mean * rstd;
      const float4 d = load4(from.dy + column);
      sum_shift[i] = sum_shift[i] + d;
      sum_scale[i] = sum_scale[i] + d * normal[i];
      g[i] = d * (widen(scale[i]) + 1.0f);
      sum_g += total(g[i]);
      sum_gn += total(g[i] * normal[i]);
    }
    sum_g = lane_sum(sum_g) * (1.0f / D);
    sum_gn = lane_sum(sum_gn) * (1.0f / D);
#pragma unroll
    for (int i = 0; i < V; i++) {
      const int column = (i * WARP + lane) * 4;
      float4 d = (g[i] + -sum_g + normal[i] * -sum_gn) * rstd;
      if (b.dx_out) d = d + load4(from.dx_out + column);
      if (b.direct) d = d + load4(b.direct + sample * D + column);
      store4(b.dx + row * D + column, d);
      if (GATED) {
        sum_dx[i] = sum_dx[i] + d;
        sum_gate[i] = sum_gate[i] + d * load4(from.h + column);
        store4(b.dh + row * D + column, d * widen(gate[i]));
      }
    }
  }
  float* const sums = reinterpret_cast<float*>(shared);
  const long part = blockIdx.x * b.chunk_stride + sample * b.row_stride;
  block_sum<V>(sum_shift, sums, b.shift_sum + part);
  block_sum<V>(sum_scale, sums, b.scale_sum + part);
  if (GATED) {
    block_sum<V>(sum_gate, sums, b.gate_sum + part);
#pragma unroll
    for (int i = 0; i < V; i++) sum_dx[i] = sum_dx[i] * widen(gate[i]);
    block_sum<V>(sum_dx, sums, b.dh_sum + (sample * gridDim.x + blockIdx.x) * D);
  }
}

template <int D>
int forward(const Forward& f, cudaStream_t stream) {
  constexpr int ROWS = THREADS / LANES<D>;
  const auto kernel = f.gate ? norm_forward<D, true> : norm_forward<D, false>;
  return launch(kernel, {(f.rows + ROWS - 1) / ROWS, THREADS, 0}, stream, f);
}

template <int D>
int backward(const Backward& b, int samples, int chunks, cudaStream_t stream) {
  const auto kernel = b.gate ? norm_backward<D, true> : norm_backward<D, false>;
  return launch(kernel, {dim3(chunks, samples), THREADS, RING<D>}, stream, b);
}

}  // namespace

// All return 0, a CUDA error code, or -1 for a width that is not 128 times 1, 2, 3, 4, 6 or 8.
#define WIDTHS(CALL)   \
  switch (width) {     \
    case 128: return CALL(128); \
    case 256: return CALL(256); \
    case 384: return CALL(384); \
    case 512: return CALL(512); \
    case 768: return CALL(768); \
    case 1024: return CALL(1024); \
    default: return -1; \
  }

extern "C" int lcf_norm_forward(const void* x, const void* x_low, const void* gate, const void* h, const void* shift,
                                const void* scale, long stride, void* x_out, void* x_out_low, void* y, void* stats,
                                int tokens, int rows, int width, float eps, void* stream) {
  const auto in = [](const void* p) { return static_cast<const bf16*>(p); };
  const auto out = [](void* p) { return static_cast<bf16*>(p); };
  const Forward f = {in(x),     static_cast<const uint8_t*>(x_low), in(gate), in(h), in(shift), in(scale), stride,
                     out(x_out), static_cast<uint8_t*>(x_out_low),  out(y),   static_cast<float2*>(stats), tokens,
                     rows,      eps};
#define CALL(D) forward<D>(f, static_cast<cudaStream_t>(stream))
  WIDTHS(CALL)
#undef CALL
}

extern "C" int lcf_norm_backward(const void* dx_out, const float* direct, const void* dy, const void* x,
                                 const void* stats, const void* scale, const void* gate, const void* h, long stride,
                                 void* dx, void* dh, float* shift_sum, float* scale_sum, float* gate_sum, float* dh_sum,
                                 long chunk_stride, long row_stride, int tokens, int samples, int chunks, int width,
                                 void* stream) {
  const auto in = [](const void* p) { return static_cast<const bf16*>(p); };
  const Backward b = {in(dx_out), direct,  in(dy),    in(x),  static_cast<const float2*>(stats), in(scale), in(gate),
                      in(h),      stride,  static_cast<bf16*>(dx),   static_cast<bf16*>(dh),    shift_sum, scale_sum,
                      gate_sum,   dh_sum,  chunk_stride, row_stride, tokens};
#define CALL(D) backward<D>(b, samples, chunks, static_cast<cudaStream_t>(stream))
  WIDTHS(CALL)
#undef CALL
}
