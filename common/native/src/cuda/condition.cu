// What a DiT computes for a sample rather than for a token, and sums over tokens and samples: the time embedding, the
// gradients of modulations and biases, the mean of the features. Small work, so what counts is how few kernels it takes.
// Every sum has a fixed order.
#include <cuda_runtime.h>

#include "vector.cuh"

namespace {

using namespace lcf;

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// ---- time embedding ----

struct LinearSilu {
  const bf16 *x, *weight, *bias;  // [rows, K], [columns, K], [columns]
  bf16 *z, *y;                    // x W^T + b and its SiLU, [rows, columns]
  int rows, columns, k;
};

// One block 16 rows and 16 columns, straight from the L2 cache; what takes time is waiting for it, so each warp takes a
// share of K. A thread loads 16 bytes along K where a product wants two pairs from each of two places: both operands are
// permuted alike, and a sum does not mind.
constexpr int LINEAR_WARPS = 4;

__global__ void __launch_bounds__(LINEAR_WARPS* WARP) linear_silu(LinearSilu l) {
  __shared__ float shared[LINEAR_WARPS][8][WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, line = lane / 4, part = lane % 4;
  const int row = blockIdx.y * 16 + line, column = blockIdx.x * 16, share = l.k / LINEAR_WARPS;
  const auto at = [&](const bf16* matrix, int i) { return matrix + static_cast<long>(i) * l.k + warp * share + part * 8; };
  const bf16* upper = at(l.x, min(row, l.rows - 1));
  const bf16* lower = at(l.x, min(row + 8, l.rows - 1));
  const bf16 *left = at(l.weight, column + line), *right = at(l.weight, column + 8 + line);
  float sums[2][4] = {};
#pragma unroll 2
  for (int k = 0; k < share; k += 32) {
    const auto load = [&](const bf16* p) { return *reinterpret_cast<const uint4*>(p + k); };
    const uint4 a = load(upper), b = load(lower), w[2] = {load(left), load(right)};
    const uint32_t first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      multiply(sums[half], first, w[half].x, w[half].y);
      multiply(sums[half], second, w[half].z, w[half].w);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; i++) shared[warp][i][lane] = sums[i / 4][i % 4];
  __syncthreads();
  if (warp != 0) return;
#pragma unroll
  for (int i = 0; i < 8; i++)
    for (int w = 1; w < LINEAR_WARPS; w++) sums[i / 4][i % 4] += shared[w][i][lane];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int c = column + half * 8 + part * 2;
    const float2 bias = unpack(*reinterpret_cast<const uint32_t*>(l.bias + c));
#pragma unroll
    for (int down = 0; down < 2; down++) {
      if (row + 8 * down >= l.rows) continue;
      const long to = static_cast<long>(row + 8 * down) * l.columns + c;
      const uint32_t z = pack(sums[half][2 * down] + bias.x, sums[half][2 * down + 1] + bias.y);
      // Of the rounded numbers, which the backward pass has.
      const float2 v = unpack(z);
      *reinterpret_cast<uint32_t*>(l.z + to) = z;
      *reinterpret_cast<uint32_t*>(l.y + to) = pack(v.x * sigmoid(v.x), v.y * sigmoid(v.y));
    }
  }
}

// d = SiLU'(z) times the sum of the parts, and its sum over rows: 8 columns a block. Parts are loaded so many at once.
constexpr int SILU_COLUMNS = 8, SILU_LINES = 128, SILU_AHEAD = 16;

__global__ void __launch_bounds__(SILU_COLUMNS* SILU_LINES)
    silu_backward(const float* __restrict__ parts, int count, const bf16* __restrict__ z, bf16* __restrict__ d, float* bias,
                  int rows, int columns) {
  __shared__ float lines[SILU_LINES][SILU_COLUMNS + 1];
  const int column = blockIdx.x * SILU_COLUMNS + threadIdx.x;
  const long stride = static_cast<long>(rows) * columns;
  float total = 0;
  for (int row = threadIdx.y; row < rows; row += SILU_LINES) {
    const long at = static_cast<long>(row) * columns + column;
    float sum = 0;
    for (int first = 0; first < count; first += SILU_AHEAD) {
#pragma unroll
      for (int part = 0; part < SILU_AHEAD; part++)
        sum += first + part < count ? parts[(first + part) * stride + at] : 0.0f;
    }
    const float x = __bfloat162float(z[at]), s = sigmoid(x);
    sum *= s * (1.0f + x * (1.0f - s));
    d[at] = __float2bfloat16(sum);
    total += sum;
  }
  lines[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y != 0) return;
  total = 0;
  for (int line = 0; line < SILU_LINES; line++) total += lines[line][threadIdx.x];
  bias[column] = total;
}

// ---- gradients of modulations ----

struct Modulations {
  const float* in;  // [chunks, L + 1, S, C]; of the last matrix its first `head` columns count
  bf16* out;        // sums over chunks, [L + 1, S, C]
  float* gradient;  // of the biases, their sums over samples: block i from block_bias + i * stride on, the last from head_bias
  long block_bias, stride, head_bias;
  int chunks, blocks, samples, columns, head;
};

// 64 columns a block, four a thread.
constexpr int MODULATION_COLUMNS = 64, MODULATION_LINES = 32, MOST_CHUNKS = 8;

__global__ void __launch_bounds__(MODULATION_COLUMNS / 4 * MODULATION_LINES) modulation_sums(Modulations m) {
  __shared__ float lines[MODULATION_LINES][MODULATION_COLUMNS];
  const int first = blockIdx.x * MODULATION_COLUMNS, block = blockIdx.y;
  if (block == m.blocks && first >= m.head) return;
  const int in_block = threadIdx.x * 4;
  const long chunk = static_cast<long>(m.blocks + 1) * m.samples * m.columns;
  float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 2
  for (int sample = threadIdx.y; sample < m.samples; sample += MODULATION_LINES) {
    const long at = (static_cast<long>(block) * m.samples + sample) * m.columns + first + in_block;
    float4 sum = load4(m.in + at);
#pragma unroll
    for (int c = 1; c < MOST_CHUNKS; c++)
      if (c < m.chunks) sum = sum + load4(m.in + c * chunk + at);
    *reinterpret_cast<uint2*>(m.out + at) = pack4(sum);
    total = total + sum;
  }
  *reinterpret_cast<float4*>(&lines[threadIdx.y][in_block]) = total;
  __syncthreads();
  const int column = threadIdx.y * (MODULATION_COLUMNS / 4) + threadIdx.x;
  if (column >= MODULATION_COLUMNS) return;
  float sum = 0;
  for (int line = 0; line < MODULATION_LINES; line++) sum += lines[line][column];
  m.gradient[(block < m.blocks ? m.block_bias + block * m.stride : m.head_bias) + first + column] = sum;
}

// ---- sums over rows ----

// Sums over the rows of fp32 matrices [matrices, rows, columns].
struct Columns {
  const float* in;
  float* out;
  long in_stride, out_stride;  // from matrix to matrix
  int matrices, rows, columns;
};

constexpr int MOST_COLUMNS = 8, COLUMN_LINES = 16;

struct AllColumns {
  Columns of[MOST_COLUMNS];
};

// All of them in one launch, 32 columns a block.
__global__ void __launch_bounds__(32 * COLUMN_LINES) column_sums(const __grid_constant__ AllColumns all) {
  __shared__ float lines[COLUMN_LINES][33];
  int which = 0, block = blockIdx.x;
  for (;; which++) {
    const int blocks = (all.of[which].columns + 31) / 32 * all.of[which].matrices;
    if (block < blocks) break;
    block -= blocks;
  }
  const Columns& c = all.of[which];
  const int tiles = (c.columns + 31) / 32, matrix = block / tiles, column = block % tiles * 32 + threadIdx.x;
  const float* from = c.in + matrix * c.in_stride;
  float sum = 0;
  if (column < c.columns) {
#pragma unroll 8
    for (int row = threadIdx.y; row < c.rows; row += COLUMN_LINES) sum += from[static_cast<long>(row) * c.columns + column];
  }
  lines[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= c.columns) return;
  for (int line = 1; line < COLUMN_LINES; line++) sum += lines[line][threadIdx.x];
  c.out[matrix * c.out_stride + column] = sum;
}

// Sums over shares of the rows of a bf16 matrix [rows, columns], into out [gridDim.x, columns]: V columns a thread, as many
// threads a row as that takes, and as many rows at once as there are threads.
constexpr int SHARE_THREADS = 384, SHARE_AHEAD = 8;

template <int V>
struct Some {
  float of[V];
};

template <int V>
__device__ inline Some<V> load_some(const bf16* p) {
  if constexpr (V == 4) {
    const float4 v = load4(p);
    return {v.x, v.y, v.z, v.w};
  } else {
    return {__bfloat162float(*p)};
  }
}

template <int V>
__device__ void row_share(const bf16* in, float* out, long rows, int columns) {
  __shared__ float lines[SHARE_THREADS * V];
  const int wide = columns / V, width = min(wide, SHARE_THREADS), height = SHARE_THREADS / width;
  const int line = threadIdx.x / width, lane = threadIdx.x % width;
  for (int start = 0; start < wide; start += width) {
    const int column = (start + lane) * V;
    float sum[V] = {};
    if (line < height && start + lane < wide) {
      const auto load = [&](long row) { return load_some<V>(in + row * columns + column); };
      const auto add = [&](const Some<V>& v) {
#pragma unroll
        for (int i = 0; i < V; i++) sum[i] += v.of[i];
      };
      const long step = static_cast<long>(gridDim.x) * height;
      long row = blockIdx.x * height + line;
      for (; row + (SHARE_AHEAD - 1) * step < rows; row += SHARE_AHEAD * step) {
        Some<V> ahead[SHARE_AHEAD];
#pragma unroll
        for (int i = 0; i < SHARE_AHEAD; i++) ahead[i] = load(row + i * step);
#pragma unroll
        for (int i = 0; i < SHARE_AHEAD; i++) add(ahead[i]);
      }
      for (; row < rows; row += step) add(load(row));
    }
    __syncthreads();
    if (line < height)
      for (int i = 0; i < V; i++) lines[(line * width + lane) * V + i] = sum[i];
    __syncthreads();
    for (int i = threadIdx.x; i < width * V && start * V + i < columns; i += SHARE_THREADS) {
      float total = 0;
      for (int l = 0; l < height; l++) total += lines[l * width * V + i];
      out[static_cast<long>(blockIdx.x) * columns + start * V + i] = total;
    }
  }
}

struct Rows {
  const bf16* in;
  float* out;
  long rows;
  int columns;
};

__global__ void __launch_bounds__(SHARE_THREADS) row_shares(Rows first, Rows second) {
  const Rows& r = blockIdx.y == 0 ? first : second;
  if (r.columns % 4 == 0)
    row_share<4>(r.in, r.out, r.rows, r.columns);
  else
    row_share<1>(r.in, r.out, r.rows, r.columns);
}

// ---- tokens ----

// The stream of fp32 from patches embedded in bf16 and positions, which all samples share: four numbers a thread.
__global__ void add_positions(uint2* x, const float4* positions, int quads) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= quads) return;
  const long at = static_cast<long>(blockIdx.y) * quads + i;
  const float4 sum = load4(reinterpret_cast<const bf16*>(x + at)) + positions[i];
  x[at] = pack4(sum);
}

struct Leave {
  bf16 *x, *y;          // [A, N, D]
  int8_t* low;          // likewise; may be null
  const bool* ends;     // of the first `slots` samples, which of them become zero; may be null
  float* mean;          // of x before that, [A, D]
  int slots, tokens, width;
};

constexpr int LEAVE_WARPS = 16;

// One block a sample and 128 columns, one warp a token.
__global__ void __launch_bounds__(LEAVE_WARPS* WARP) mean_and_leave(Leave l) {
  __shared__ float4 lines[LEAVE_WARPS][WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, sample = blockIdx.x;
  const int column = blockIdx.y * 128 + lane * 4;
  const long first = static_cast<long>(sample) * l.tokens * l.width + column;
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 16
  for (int token = warp; token < l.tokens; token += LEAVE_WARPS)
    sum = sum + load4(l.x + first + static_cast<long>(token) * l.width);
  lines[warp][lane] = sum;
  __syncthreads();
  if (warp == 0) {
    for (int w = 1; w < LEAVE_WARPS; w++) sum = sum + lines[w][lane];
    const float n = static_cast<float>(l.tokens);
    *reinterpret_cast<float4*>(l.mean + static_cast<long>(sample) * l.width + column) =
        make_float4(sum.x / n, sum.y / n, sum.z / n, sum.w / n);
  }
  if (!l.ends || sample >= l.slots || !l.ends[sample]) return;
  // A thread wipes what it has read itself.
  for (int token = warp; token < l.tokens; token += LEAVE_WARPS) {
    const long at = first + static_cast<long>(token) * l.width;
    *reinterpret_cast<uint2*>(l.x + at) = make_uint2(0, 0);
    *reinterpret_cast<uint2*>(l.y + at) = make_uint2(0, 0);
    if (l.low) *reinterpret_cast<uint32_t*>(l.low + at) = 0;
  }
}

cudaStream_t on(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

// columns must be a multiple of 16, k of 128.
extern "C" int lcf_linear_silu(const void* x, const void* weight, const void* bias, void* z, void* y, int rows, int columns,
                               int k, void* stream) {
  const auto in = [](const void* p) { return static_cast<const bf16*>(p); };
  const LinearSilu l = {in(x), in(weight), in(bias), static_cast<bf16*>(z), static_cast<bf16*>(y), rows, columns, k};
  linear_silu<<<dim3(columns / 16, (rows + 15) / 16), LINEAR_WARPS * WARP, 0, on(stream)>>>(l);
  return cudaGetLastError();
}

// parts [count, rows, columns], columns a multiple of 8.
extern "C" int lcf_silu_backward(const float* parts, int count, const void* z, void* d, float* bias, int rows, int columns,
                                 void* stream) {
  silu_backward<<<columns / SILU_COLUMNS, dim3(SILU_COLUMNS, SILU_LINES), 0, on(stream)>>>(
      parts, count, static_cast<const bf16*>(z), static_cast<bf16*>(d), bias, rows, columns);
  return cudaGetLastError();
}

// At most four chunks, columns and head multiples of 64.
extern "C" int lcf_modulation_sums(const Modulations* m, void* stream) {
  const dim3 blocks(m->columns / MODULATION_COLUMNS, m->blocks + 1);
  modulation_sums<<<blocks, dim3(MODULATION_COLUMNS / 4, MODULATION_LINES), 0, on(stream)>>>(*m);
  return cudaGetLastError();
}

// At most eight.
extern "C" int lcf_column_sums(const Columns* columns, int count, void* stream) {
  AllColumns all = {};
  int blocks = 0;
  for (int i = 0; i < count; i++) {
    all.of[i] = columns[i];
    blocks += (columns[i].columns + 31) / 32 * columns[i].matrices;
  }
  column_sums<<<blocks, dim3(32, COLUMN_LINES), 0, on(stream)>>>(all);
  return cudaGetLastError();
}

// Two matrices, `shares` sums each.
extern "C" int lcf_row_shares(const Rows* rows, int shares, void* stream) {
  row_shares<<<dim3(shares, 2), SHARE_THREADS, 0, on(stream)>>>(rows[0], rows[1]);
  return cudaGetLastError();
}

// x [samples, numbers], numbers a multiple of 4.
extern "C" int lcf_add_positions(void* x, const float* positions, int samples, int numbers, void* stream) {
  const int quads = numbers / 4;
  add_positions<<<dim3((quads + 255) / 256, samples), 256, 0, on(stream)>>>(
      static_cast<uint2*>(x), reinterpret_cast<const float4*>(positions), quads);
  return cudaGetLastError();
}

// Samples of which the first `slots` may end; width a multiple of 128.
extern "C" int lcf_mean_and_leave(const Leave* l, int samples, void* stream) {
  mean_and_leave<<<dim3(samples, l->width / 128), LEAVE_WARPS * WARP, 0, on(stream)>>>(*l);
  return cudaGetLastError();
}
