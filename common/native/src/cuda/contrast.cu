// The contrastive loss on features and its gradient, for every reading of it: see lcf_train::contrast, which is the
// reference. Three kernels, and two more where features are scaled to unit length. Every sum has a fixed order.
//
// Rows of z, fp32 [B + K, D]: the batch, whose first rows are the anchors, then the positives of K anchor slots, of which
// the first n = min(low, K) are taken. With d the squared distance,
//   L = 1/n sum_i [ d(z_i, p_i) / tau + log sum_j exp(-d(z_i, z_j) / tau) ],
// where all but z_i is constant.
#include <cuda_runtime.h>

#include "vector.cuh"

namespace {

using namespace lcf;

struct Contrast {
  const float* z;
  const int* low;
  float* distance;  // [K, B + 1]: to the batch, then to the positive
  float* lse;       // [K]: the logarithm of the sum
  float* numbers;   // loss, pull, push
  float* gradient;  // of `by` times the loss, [B, D]
  long len;         // D, a multiple of 128
  float tau, by;
  int batch, slots;
  bool with_positive;  // What is in the sum beside the others: the positive of the anchor, else the anchor itself.
  bool pull, push;     // Which terms there are.
};

constexpr int WARPS = 8;

__device__ inline int anchors(const Contrast& c) { return min(*c.low, c.slots); }

// One warp a pair.
__global__ void __launch_bounds__(WARPS* WARP) distances(Contrast c) {
  const int i = blockIdx.y, j = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (i >= anchors(c) || j > c.batch) return;
  const float* a = c.z + i * c.len;
  const float* b = c.z + (j < c.batch ? j : c.batch + i) * c.len;
  float sum = 0;
#pragma unroll 3
  for (long k = lane * 4; k < c.len; k += 4 * WARP) {
    const float4 x = load4(a + k), y = load4(b + k);
    const float4 d = make_float4(x.x - y.x, x.y - y.y, x.z - y.z, x.w - y.w);
    sum += (d.x * d.x + d.y * d.y) + (d.z * d.z + d.w * d.w);
  }
  sum = lane_sum(sum);
  if (lane == 0) c.distance[static_cast<long>(i) * (c.batch + 1) + j] = sum;
}

__device__ inline bool counts(const Contrast& c, int i, int j) {
  return j != (c.with_positive ? i : c.batch);
}

constexpr int LOSS_WARPS = 16;

// One block, one warp an anchor: its logarithm, and the numbers of the step.
__global__ void __launch_bounds__(LOSS_WARPS* WARP) losses(Contrast c) {
  __shared__ float sums[3][LOSS_WARPS];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n = anchors(c);
  float loss = 0, pull = 0, push = 0;
  for (int i = warp; i < n; i += LOSS_WARPS) {
    const float* d = c.distance + static_cast<long>(i) * (c.batch + 1);
    float most = -INFINITY, all = 0, sum = 0;
    for (int j = lane; j <= c.batch; j += WARP) {
      if (counts(c, i, j)) most = fmaxf(most, -d[j] / c.tau);
      if (j < c.batch) all += d[j];
    }
    for (int offset = 16; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, offset));
    for (int j = lane; j <= c.batch; j += WARP)
      if (counts(c, i, j)) sum += expf(-d[j] / c.tau - most);
    const float lse = most + logf(lane_sum(sum)), to_positive = d[c.batch];
    all = lane_sum(all);
    loss += (c.pull ? to_positive / c.tau : 0.0f) + (c.push ? lse : 0.0f);
    pull += to_positive;
    // The distance to itself is zero.
    push += all / max(c.batch - 1, 1);
    if (lane == 0) c.lse[i] = lse;
  }
  if (lane == 0) sums[0][warp] = loss, sums[1][warp] = pull, sums[2][warp] = push;
  __syncthreads();
  if (threadIdx.x >= 3) return;
  float sum = 0;
  for (int w = 0; w < LOSS_WARPS; w++) sum += sums[threadIdx.x][w];
  c.numbers[threadIdx.x] = sum / max(n, 1);
}

// dL / dd of anchor i and row j of the batch, or its positive at j = B, times tau.
__device__ inline float slope(const Contrast& c, int i, int j) {
  const float pull = c.pull && j == c.batch ? 1.0f : 0.0f;
  if (!c.push || !counts(c, i, j)) return pull;
  return pull - expf(-c.distance[static_cast<long>(i) * (c.batch + 1) + j] / c.tau - c.lse[i]);
}

// One block a row and 128 columns. Whatever depends on the distance of two rows has a gradient along their difference.
__global__ void __launch_bounds__(WARPS* WARP) gradients(Contrast c) {
  __shared__ float4 parts[WARPS][WARP];
  __shared__ float slopes[WARPS * WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, row = blockIdx.x, n = anchors(c);
  const long column = blockIdx.y * 128 + lane * 4;
  const float4 own = load4(c.z + row * c.len + column);
  float4 sum = make_float4(0, 0, 0, 0);
  for (int start = 0; row < n && start <= c.batch; start += WARPS * WARP) {
    const int mine = start + threadIdx.x;
    slopes[threadIdx.x] = mine <= c.batch ? slope(c, row, mine) : 0.0f;
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < WARP; k++) {
      // Beyond the end the slope is zero.
      const int at = k * WARPS + warp, j = start + at;
      const float by = slopes[at];
      const float4 v = load4(c.z + (j < c.batch ? j : c.batch + row) * c.len + column);
      sum.x += by * (own.x - v.x);
      sum.y += by * (own.y - v.y);
      sum.z += by * (own.z - v.z);
      sum.w += by * (own.w - v.w);
    }
    __syncthreads();
  }
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp != 0) return;
  for (int w = 1; w < WARPS; w++) {
    const float4 part = parts[w][lane];
    sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
  }
  const float by = c.by * 2.0f / c.tau / max(n, 1);
  *reinterpret_cast<float4*>(c.gradient + row * c.len + column) =
      make_float4(sum.x * by, sum.y * by, sum.z * by, sum.w * by);
}

// Below it the length of a feature counts as its root: a zero feature has no direction.
constexpr float LEAST = 1e-12f;

// Rows scaled to unit length, one warp a row, and what they were divided by.
__global__ void __launch_bounds__(WARPS* WARP) unit(const float* f, float* z, float* length, int rows, long len) {
  const int row = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= rows) return;
  float square = 0;
  for (long k = row * len + lane; k < (row + 1) * len; k += WARP) square += f[k] * f[k];
  square = lane_sum(square);
  const float root = sqrtf(fmaxf(square, LEAST));
  for (long k = row * len + lane; k < (row + 1) * len; k += WARP) z[k] = f[k] / root;
  if (lane == 0) length[row] = square < LEAST ? -root : root;
}

// The gradient of the features from that of the scaled ones, in place. A negative length was not the feature's own.
__global__ void __launch_bounds__(WARPS* WARP) unit_backward(const float* z, const float* length, float* d, int rows, long len) {
  const int row = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= rows) return;
  float along = 0;
  for (long k = row * len + lane; k < (row + 1) * len; k += WARP) along += z[k] * d[k];
  const float by = length[row];
  along = by > 0 ? lane_sum(along) : 0.0f;
  for (long k = row * len + lane; k < (row + 1) * len; k += WARP) d[k] = (d[k] - z[k] * along) / fabsf(by);
}

}  // namespace

// `features`, where they are scaled to unit length into z, else null; `length` then takes a number a row.
extern "C" int lcf_contrast(const Contrast* c, const float* features, float* length, void* stream) {
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  const int all = c->batch + c->slots, threads = WARPS * WARP;
  if (features)
    unit<<<(all + WARPS - 1) / WARPS, threads, 0, s>>>(features, const_cast<float*>(c->z), length, all, c->len);
  distances<<<dim3((c->batch + WARPS) / WARPS, c->slots), threads, 0, s>>>(*c);
  losses<<<1, LOSS_WARPS * WARP, 0, s>>>(*c);
  gradients<<<dim3(c->batch, c->len / 128), threads, 0, s>>>(*c);
  if (features) unit_backward<<<(c->batch + WARPS - 1) / WARPS, threads, 0, s>>>(c->z, length, c->gradient, c->batch, c->len);
  return cudaGetLastError();
}
