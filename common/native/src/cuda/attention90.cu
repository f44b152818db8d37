// The attention of attention.cu for 129 to 256 tokens by Hopper's own matrix products. Two groups of four warps; the
// arithmetic, the layouts and the order of sums within a head are described there.
#include <cuda_runtime.h>

#include "attention.cuh"
#include "wgmma.cuh"

namespace {

using namespace lcf;

constexpr int TOKENS = 256;   // rows of a tile in shared memory, those beyond the tokens zero
constexpr int BYTES = 128;    // of a row
constexpr int TILE = TOKENS * BYTES;
constexpr int THREADS = 256;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// ---- forward: one block a (sample, head), 128 queries a group, 64 at a time ----

__device__ void forward(const bf16* qkv, bf16* out, float* lse, int tokens, int heads, char* shared) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = warp / 4;
  const long sample = blockIdx.x / heads, head = blockIdx.x % heads, stride = 3L * heads * HEAD;
  const uint32_t queries = shared_address(shared), keys = queries + TILE, values = keys + TILE;
  const bf16* q = qkv + sample * tokens * stride + head * HEAD;
  copy_rows(queries, q, stride, 0, TOKENS, tokens);
  copy_rows(keys, q + heads * HEAD, stride, 0, TOKENS, tokens);
  copies_commit();
  copy_rows(values, q + 2 * heads * HEAD, stride, 0, TOKENS, tokens);
  copies_commit();
  copies_wait<1>();
  publish_to_products();
  __syncthreads();
  bool values_there = false;
  for (int first = group * 128; first < group * 128 + 128; first += 64) {
    float sum[32] = {}, total[2] = {}, most[2] = {-INFINITY, -INFINITY};
    for (int key = 0; key < TOKENS; key += 64) {
      float score[32];
      keep(score);
      products_begin();
#pragma unroll
      for (int k = 0; k < 4; k++)
        product<0, 0>(score, tile(queries + first * BYTES + k * ALONG), tile(keys + key * BYTES + k * ALONG), k > 0);
      products_commit();
      products_wait<0>();
      keep(score);
      uint32_t weight[4][4];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float high = most[half];
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            float& s = score[n * 4 + half * 2 + i];
            s = key + n * 8 + lane % 4 * 2 + i < tokens ? s * (SCALE * LOG2E) : -INFINITY;
            high = fmaxf(high, s);
          }
        high = fmaxf(high, __shfl_xor_sync(ALL, high, 1));
        high = fmaxf(high, __shfl_xor_sync(ALL, high, 2));
        const float shrink = power2(most[half] - high);
        most[half] = high;
        float part = 0;
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            float& s = score[n * 4 + half * 2 + i];
            s = power2(s - high);
            part += s;
          }
        total[half] = total[half] * shrink + part;
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
          for (int i = 0; i < 2; i++) sum[n * 4 + half * 2 + i] *= shrink;
      }
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int part = 0; part < 4; part++) {
          const float* s = &score[(2 * k + part / 2) * 4 + part % 2 * 2];
          weight[k][part] = pack(s[0], s[1]);
        }
      if (!values_there) {
        copies_wait<0>();
        publish_to_products();
        __syncthreads();
        values_there = true;
      }
      keep(sum);
      products_begin();
#pragma unroll
      for (int k = 0; k < 4; k++) product<1>(sum, weight[k], tile(values + key * BYTES + k * ACROSS), 1);
      products_commit();
      products_wait<0>();
      keep(sum);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float all = total[half];
      all += __shfl_xor_sync(ALL, all, 1);
      all += __shfl_xor_sync(ALL, all, 2);
      const int row = first + warp % 4 * 16 + half * 8 + lane / 4;
      const float by = 1.0f / all;
      // These queries are done with: their place takes the output.
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const float* s = &sum[n * 4 + half * 2];
        store4_shared(row_address(queries, row, n) + lane % 4 * 4, pack(s[0] * by, s[1] * by));
      }
      if (lse && row < tokens && lane % 4 == 0) lse[(sample * heads + head) * tokens + row] = most[half] + log2f(all);
    }
    const int own = first + warp % 4 * 16;
    write_rows<8>(queries, own, 0, out + (sample * tokens * heads + head) * HEAD, heads * HEAD, own, tokens);
  }
}

// ---- backward: persistent blocks, a (sample, head) at a time, 128 keys a group, queries in blocks of 64 ----

// Shared memory: keys and values of this head and the next, dS^T, two slots of (queries, dout, out), sums, lse of the
// slots, delta.
constexpr int SLOT = 3 * BLOCK * BYTES;
constexpr int AT_VALUES = 2 * TILE, AT_DS = 4 * TILE, AT_SLOTS = 5 * TILE, AT_SUMS = AT_SLOTS + 2 * SLOT;
constexpr int WARPS = THREADS / WARP;

__device__ void backward(const Gradient& g, char* shared) {
  const int blocks = (g.tokens + BLOCK - 1) / BLOCK;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = warp / 4;
  const uint32_t base = shared_address(shared), ds = base + AT_DS;
  float* sums = reinterpret_cast<float*>(shared + AT_SUMS);  // [3][WARPS][64]
  float *lses = sums + 3 * WARPS * HEAD, *deltas = lses + 2 * BLOCK;
  const int count = g.samples * g.heads;
  const int mine = (count - static_cast<int>(blockIdx.x) + gridDim.x - 1) / gridDim.x;
  const auto head_at = [&](int i) { return Head(g, blockIdx.x + i * gridDim.x); };
  const auto fetch_keys = [&](int i) {
    if (i >= mine) return;
    const Head h = head_at(i);
    copy_rows(base + i % 2 * TILE, h.q + g.heads * HEAD, h.stride, 0, TOKENS, g.tokens);
    copy_rows(base + AT_VALUES + i % 2 * TILE, h.q + 2 * g.heads * HEAD, h.stride, 0, TOKENS, g.tokens);
  };
  const auto fetch_queries = [&](int step) {
    if (step < mine * blocks) {
      const Head h = head_at(step / blocks);
      const int first = step % blocks * BLOCK;
      const uint32_t slot = base + AT_SLOTS + step % 2 * SLOT;
      copy_rows(slot, h.q, h.stride, first, BLOCK, g.tokens);
      copy_rows(slot + BLOCK * BYTES, h.dout, h.out_stride, first, BLOCK, g.tokens);
      copy_rows(slot + 2 * BLOCK * BYTES, h.out, h.out_stride, first, BLOCK, g.tokens);
      if (threadIdx.x < BLOCK) {
        const int token = first + threadIdx.x;
        const bool valid = token < g.tokens;
        copy4_async(shared_address(lses + step % 2 * BLOCK + threadIdx.x), h.lse + (valid ? token : 0), valid);
      }
    }
    copies_commit();
  };
  fetch_keys(0);
  fetch_queries(0);
  fetch_queries(1);

  float dk[2][32], dv[2][32], dq_sum[8];
  for (int step = 0; step < mine * blocks; step++) {
    const int block = step % blocks;
    const Head h = head_at(step / blocks);
    const uint32_t queries = base + AT_SLOTS + step % 2 * SLOT, douts = queries + BLOCK * BYTES;
    const uint32_t keys = base + step / blocks % 2 * TILE, values = keys + AT_VALUES;
    const float* lse = lses + step % 2 * BLOCK;
    copies_wait<1>();
    publish_to_products();
    __syncthreads();
    // delta = sum of out * dout over a head: four threads a row.
    {
      const int row = threadIdx.x / 4;
      float delta = 0;
#pragma unroll
      for (int chunk = 0; chunk < 2; chunk++) {
        const int at = threadIdx.x % 4 * 2 + chunk;
        const uint4 d = load16_shared(row_address(douts, row, at));
        const uint4 o = load16_shared(row_address(douts + BLOCK * BYTES, row, at));
        const uint32_t ds4[4] = {d.x, d.y, d.z, d.w}, os[4] = {o.x, o.y, o.z, o.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float2 a = unpack(ds4[j]), b = unpack(os[j]);
          delta += a.x * b.x + a.y * b.y;
        }
      }
      delta += __shfl_xor_sync(ALL, delta, 1);
      delta += __shfl_xor_sync(ALL, delta, 2);
      if (threadIdx.x % 4 == 0) deltas[row] = delta;
    }
    if (block == 0) {
#pragma unroll
      for (int i = 0; i < 32; i++) dk[0][i] = dk[1][i] = dv[0][i] = dv[1][i] = 0;
#pragma unroll
      for (int i = 0; i < 8; i++) dq_sum[i] = 0;
    }
    __syncthreads();

#pragma unroll
    for (int m = 0; m < 2; m++) {
      const int key = group * 128 + m * 64;
      // S^T = K Q^T and dP^T = V dO^T.
      float score[32], dp[32];
      keep(score);
      keep(dp);
      products_begin();
#pragma unroll
      for (int k = 0; k < 4; k++)
        product<0, 0>(score, tile(keys + key * BYTES + k * ALONG), tile(queries + k * ALONG), k > 0);
#pragma unroll
      for (int k = 0; k < 4; k++)
        product<0, 0>(dp, tile(values + key * BYTES + k * ALONG), tile(douts + k * ALONG), k > 0);
      products_commit();
      products_wait<0>();
      keep(score);
      keep(dp);
      keep(dk[0]);
      keep(dv[0]);
      const int row = key + warp % 4 * 16 + lane / 4;
      uint32_t p[4][4], d[4][4];
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const float2 of_lse = *reinterpret_cast<const float2*>(lse + n * 8 + lane % 4 * 2);
        const float2 delta = *reinterpret_cast<const float2*>(deltas + n * 8 + lane % 4 * 2);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const bool valid = row + half * 8 < g.tokens;
          const float *s = &score[n * 4 + half * 2], *e = &dp[n * 4 + half * 2];
          const float a = valid ? power2(s[0] * (SCALE * LOG2E) - of_lse.x) : 0.0f;
          const float b = valid ? power2(s[1] * (SCALE * LOG2E) - of_lse.y) : 0.0f;
          const int part = n % 2 * 2 + half;
          p[n / 2][part] = pack(a, b);
          const uint32_t both = pack(a * (e[0] - delta.x), b * (e[1] - delta.y));
          d[n / 2][part] = both;
          store4_shared(row_address(ds, row + half * 8, n) + lane % 4 * 4, both);
        }
      }
      // dV += P^T dO and dK += dS^T Q.
      keep(dk[m]);
      keep(dv[m]);
      products_begin();
#pragma unroll
      for (int k = 0; k < 4; k++) product<1>(dv[m], p[k], tile(douts + k * ACROSS), 1);
#pragma unroll
      for (int k = 0; k < 4; k++) product<1>(dk[m], d[k], tile(queries + k * ACROSS), 1);
      products_commit();
    }
    publish_to_products();
    __syncthreads();

    // dQ = dS K: 32 columns a group.
    float dq[16];
    keep(dq);
    products_begin();
#pragma unroll
    for (int k = 0; k < TOKENS / 16; k++)
      product_transposed(dq, tile(ds + k * ACROSS), tile(keys + k * ACROSS + group * 64), k > 0);
    products_commit();
    products_wait<0>();
    keep(dq);
#pragma unroll
    for (int m = 0; m < 2; m++) {
      keep(dk[m]);
      keep(dv[m]);
    }
    // The rows of `out` are done with: their place takes dQ.
    const uint32_t done = douts + BLOCK * BYTES;
    const int own = warp % 4 * 16;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const float a = dq[n * 4 + half * 2] * SCALE, b = dq[n * 4 + half * 2 + 1] * SCALE;
        store4_shared(row_address(done, own + half * 8 + lane / 4, group * 4 + n) + lane % 4 * 4, pack(a, b));
        dq_sum[n * 2] += a;
        dq_sum[n * 2 + 1] += b;
      }
    write_rows<4>(done, own, group * 4, h.dq + block * BLOCK * h.stride + group * 32, h.stride, own,
                  g.tokens - block * BLOCK);
    __syncthreads();
    if (block == 0) fetch_keys(step / blocks + 1);
    fetch_queries(step + 2);

    if (block == blocks - 1) {
      // dK and dV of the group's keys, and the sums of all three over tokens.
      // The keys and values are done with: their place takes dK and dV.
#pragma unroll
      for (int m = 0; m < 2; m++) {
        const int token = group * 128 + m * 64 + own;
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
          for (int n = 0; n < 8; n++) {
            const float *a = &dk[m][n * 4 + half * 2], *b = &dv[m][n * 4 + half * 2];
            const int row = token + half * 8 + lane / 4;
            store4_shared(row_address(keys, row, n) + lane % 4 * 4, pack(a[0] * SCALE, a[1] * SCALE));
            store4_shared(row_address(values, row, n) + lane % 4 * 4, pack(b[0], b[1]));
          }
        write_rows<8>(keys, token, 0, h.dq + g.heads * HEAD, h.stride, token, g.tokens);
        write_rows<8>(values, token, 0, h.dq + 2 * g.heads * HEAD, h.stride, token, g.tokens);
      }
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const auto rows = [&](const float (&x)[2][32]) {
            return over_rows((x[0][n * 4 + i] + x[0][n * 4 + i + 2]) + (x[1][n * 4 + i] + x[1][n * 4 + i + 2]));
          };
          const float a = rows(dk) * SCALE, b = rows(dv);
          const int column = n * 8 + lane % 4 * 2 + i;
          if (lane < 4) {
            sums[warp * HEAD + column] = 0;
            sums[(WARPS + warp) * HEAD + column] = a;
            sums[(2 * WARPS + warp) * HEAD + column] = b;
          }
        }
      __syncwarp();
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const float a = over_rows(dq_sum[n]);
        if (lane < 4) sums[warp * HEAD + group * 32 + n / 2 * 8 + lane * 2 + n % 2] = a;
      }
      __syncthreads();
      if (threadIdx.x < 3 * HEAD) {
        const int which = threadIdx.x / HEAD, column = threadIdx.x % HEAD;
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += sums[(which * WARPS + w) * HEAD + column];
        h.bias[which * g.heads * HEAD + column] = sum;
      }
    }
  }
  copies_wait<0>();
}

#else
__device__ void forward(const bf16*, bf16*, float*, int, int, char*) {}
__device__ void backward(const Gradient&, char*) {}

#endif

__global__ void __launch_bounds__(THREADS, 2)
    attention_forward90(const bf16* qkv, bf16* out, float* lse, int tokens, int heads) {
  extern __shared__ __align__(1024) char shared[];
  forward(qkv, out, lse, tokens, heads, shared);
}

__global__ void __launch_bounds__(THREADS, 1) attention_backward90(Gradient g) {
  extern __shared__ __align__(1024) char shared[];
  backward(g, shared);
}

}  // namespace

namespace lcf {

int attention_forward_hopper(const bf16* qkv, bf16* out, float* lse, int tokens, int heads, int samples,
                             cudaStream_t stream) {
  constexpr int bytes = 3 * TILE;
  cudaFuncSetAttribute(attention_forward90, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  attention_forward90<<<samples * heads, THREADS, bytes, stream>>>(qkv, out, lse, tokens, heads);
  return cudaGetLastError();
}

int attention_backward_hopper(const Gradient& g, int processors, cudaStream_t stream) {
  constexpr int bytes = 5 * TILE + 2 * 3 * BLOCK * BYTES + (3 * (THREADS / WARP) * HEAD + 3 * BLOCK) * 4;
  cudaFuncSetAttribute(attention_backward90, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  attention_backward90<<<min(g.samples * g.heads, processors), THREADS, bytes, stream>>>(g);
  return cudaGetLastError();
}

}  // namespace lcf
