// Attention over at most 256 tokens with heads of 64, forward and backward, on the packed output of the qkv layer; on
// Hopper attention90.cu has what is longer than 128. No libtorch here: pointers, sizes and a stream.
//
//   qkv   bf16 [samples, tokens, 3, heads, 64]    out  bf16 [samples, tokens, heads, 64]
//   lse   fp32 [samples, heads, tokens]: log2 of the sum over keys of 2^score, a score being q k / 8 * log2(e)
//
// With all keys of a head in shared memory nothing is read twice, no sum needs atomics, and the same inputs give the same
// bits. FlashAttention-2 (Dao 2023, arXiv 2307.08691) is where the recomputation in the backward pass comes from.
#include "attention.cuh"
#include "device.h"

namespace {

using namespace lcf;

// Sums fragments over the eight rows that lanes with the same column hold.
__device__ inline float over_rows(float value) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) value += __shfl_xor_sync(ALL, value, offset);
  return value;
}

// ---- forward: one block a (128 queries, head, sample), 32 queries a warp ----

constexpr int FORWARD_WARPS = 4;
constexpr int QUERIES = FORWARD_WARPS * 32;

__global__ void __launch_bounds__(FORWARD_WARPS* WARP, 3)
    attention_forward(const bf16* qkv, bf16* out, float* lse, int tokens, int heads) {
  extern __shared__ __align__(128) char shared[];
  const int padded = (tokens + 31) / 32 * 32;
  const uint32_t keys = shared_address(shared), values = keys + padded * 128;
  const int head = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const long sample = blockIdx.z, stride = 3L * heads * HEAD;
  const bf16* q = qkv + sample * tokens * stride + head * HEAD;
  copy_rows(keys, q + heads * HEAD, stride, 0, padded, tokens);
  copy_rows(values, q + 2 * heads * HEAD, stride, 0, padded, tokens);
  copies_commit();

  const int first = blockIdx.x * QUERIES + warp * 32;
  uint32_t query[2][4][4];
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
      for (int part = 0; part < 4; part++) {
        const int row = first + m * 16 + lane / 4 + part % 2 * 8, column = k * 16 + part / 2 * 8 + lane % 4 * 2;
        query[m][k][part] = row < tokens ? *reinterpret_cast<const uint32_t*>(q + row * stride + column) : 0;
      }
  float sum[2][8][4] = {}, total[2][2] = {}, most[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}};
  copies_wait<0>();
  __syncthreads();
  if (first >= tokens) return;

  for (int key = 0; key < padded; key += 32) {
    float score[2][4][4] = {};
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
      for (int n = 0; n < 2; n++) {
        uint32_t right[4];
        load_matrices(right, right_address(keys, key + n * 16, k * 2, lane));
#pragma unroll
        for (int m = 0; m < 2; m++) {
          multiply(score[m][2 * n], query[m][k], right[0], right[1]);
          multiply(score[m][2 * n + 1], query[m][k], right[2], right[3]);
        }
      }
    uint32_t weight[2][2][4];
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float high = most[m][half];
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            float& s = score[m][n][half * 2 + i];
            s = key + n * 8 + lane % 4 * 2 + i < tokens ? s * (SCALE * LOG2E) : -INFINITY;
            high = fmaxf(high, s);
          }
        high = fmaxf(high, __shfl_xor_sync(ALL, high, 1));
        high = fmaxf(high, __shfl_xor_sync(ALL, high, 2));
        // The first keys always exist, so high is finite.
        const float shrink = power2(most[m][half] - high);
        most[m][half] = high;
        float part = 0;
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            float& s = score[m][n][half * 2 + i];
            s = power2(s - high);
            part += s;
          }
        total[m][half] = total[m][half] * shrink + part;
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
          for (int i = 0; i < 2; i++) sum[m][n][half * 2 + i] *= shrink;
      }
#pragma unroll
      for (int k = 0; k < 2; k++)
#pragma unroll
        for (int part = 0; part < 4; part++) {
          const float* s = &score[m][2 * k + part / 2][part % 2 * 2];
          weight[m][k][part] = pack(s[0], s[1]);
        }
    }
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
      for (int n = 0; n < 4; n++) {
        uint32_t right[4];
        load_transposed(right, right_transposed_address(values, key + k * 16, n * 2, lane));
#pragma unroll
        for (int m = 0; m < 2; m++) {
          multiply(sum[m][2 * n], weight[m][k], right[0], right[1]);
          multiply(sum[m][2 * n + 1], weight[m][k], right[2], right[3]);
        }
      }
  }

#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float all = total[m][half];
      all += __shfl_xor_sync(ALL, all, 1);
      all += __shfl_xor_sync(ALL, all, 2);
      const int row = first + m * 16 + half * 8 + lane / 4;
      if (row >= tokens) continue;
      bf16* to = out + ((sample * tokens + row) * heads + head) * HEAD + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const float* s = &sum[m][n][half * 2];
        *reinterpret_cast<uint32_t*>(to + n * 8) = pack(s[0] / all, s[1] / all);
      }
      if (lse && lane % 4 == 0) lse[(sample * heads + head) * tokens + row] = most[m][half] + log2f(all);
    }
}

// ---- backward: persistent blocks, a (sample, head) at a time, 32 keys a warp, queries in blocks of 64 ----

constexpr int MAX_WARPS = MAX_SHORT / 32;

__global__ void __launch_bounds__(MAX_WARPS* WARP, 1) attention_backward(Gradient g) {
  extern __shared__ __align__(128) char shared[];
  const int warps = blockDim.x / WARP, padded = warps * 32, blocks = (g.tokens + BLOCK - 1) / BLOCK;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, key = warp * 32;
  const uint32_t keys = shared_address(shared), values = keys + 2 * padded * 128, ds = values + padded * 128;
  const uint32_t ring = ds + padded * 128, slot_bytes = 2 * BLOCK * 128;
  float* of_query = reinterpret_cast<float*>(shared + 4 * padded * 128 + 2 * slot_bytes);  // lse, then delta
  float* bias = of_query + 2 * BLOCK;                                                       // [3][warps][64]
  const int count = g.samples * g.heads;
  const int mine = (count - static_cast<int>(blockIdx.x) + gridDim.x - 1) / gridDim.x;
  const auto head_at = [&](int i) { return Head(g, blockIdx.x + i * gridDim.x); };
  const auto fetch_keys = [&](int i) {
    if (i >= mine) return;
    const Head h = head_at(i);
    copy_rows(keys + i % 2 * padded * 128, h.q + g.heads * HEAD, h.stride, 0, padded, g.tokens);
    copy_rows(values, h.q + 2 * g.heads * HEAD, h.stride, 0, padded, g.tokens);
  };
  // Block `step` of all that this thread block works on, over its heads.
  const auto fetch_queries = [&](int step) {
    if (step < mine * blocks) {
      const Head h = head_at(step / blocks);
      const uint32_t slot = ring + step % 2 * slot_bytes;
      copy_rows(slot, h.q, h.stride, step % blocks * BLOCK, BLOCK, g.tokens);
      copy_rows(slot + BLOCK * 128, h.dout, h.out_stride, step % blocks * BLOCK, BLOCK, g.tokens);
    }
    copies_commit();
  };
  fetch_keys(0);
  fetch_queries(0);
  fetch_queries(1);

  float dk[2][8][4], dv[2][8][4], dq_bias[4][2];
  uint32_t k_left[2][4][4], v_left[2][4][4];
  for (int step = 0; step < mine * blocks; step++) {
    const int block = step % blocks;
    const Head h = head_at(step / blocks);
    const uint32_t queries = ring + step % 2 * slot_bytes, douts = queries + BLOCK * 128;
    const uint32_t own_keys = keys + step / blocks % 2 * padded * 128;
    // The newest group holds the queries of the next block and, where a head has but one block, its keys.
    if (blocks == 1) copies_wait<0>();
    else copies_wait<1>();
    __syncthreads();
    // delta = sum of out * dout over a head: four threads a row.
    for (int i = threadIdx.x; i < BLOCK * 4; i += blockDim.x) {
      const int row = i / 4, token = block * BLOCK + row;
      float delta = 0;
      if (token < g.tokens) {
#pragma unroll
        for (int chunk = 0; chunk < 2; chunk++) {
          const int at = i % 4 * 2 + chunk;
          const uint4 out = *reinterpret_cast<const uint4*>(h.out + token * h.out_stride + at * 8);
          delta = add_products(delta, out, load16_shared(row_address(douts, row, at)));
        }
      }
      delta += __shfl_xor_sync(ALL, delta, 1);
      delta += __shfl_xor_sync(ALL, delta, 2);
      if (i % 4 == 0) {
        of_query[row] = token < g.tokens ? h.lse[token] : 0.0f;
        of_query[BLOCK + row] = delta;
      }
    }
    if (block == 0) {
#pragma unroll
      for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          load_matrices(k_left[m][k], left_address(own_keys, key + m * 16, k * 2, lane));
          load_matrices(v_left[m][k], left_address(values, key + m * 16, k * 2, lane));
        }
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) dk[m][n][i] = dv[m][n][i] = 0;
      }
#pragma unroll
      for (int n = 0; n < 4; n++) dq_bias[n][0] = dq_bias[n][1] = 0;
    }
    __syncthreads();

    for (int query = 0; query < BLOCK; query += 16) {
      // P^T = 2^(K Q^T - lse), and dV += P^T dO.
      float score[2][2][4] = {};
#pragma unroll
      for (int k = 0; k < 4; k++) {
        uint32_t right[4];
        load_matrices(right, right_address(queries, query, k * 2, lane));
#pragma unroll
        for (int m = 0; m < 2; m++) {
          multiply(score[m][0], k_left[m][k], right[0], right[1]);
          multiply(score[m][1], k_left[m][k], right[2], right[3]);
        }
      }
      uint32_t p[2][4];
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int part = 0; part < 4; part++) {
          const int n = part / 2, half = part % 2;
          const float2 of = *reinterpret_cast<const float2*>(of_query + query + n * 8 + lane % 4 * 2);
          const bool valid = key + m * 16 + half * 8 + lane / 4 < g.tokens;
          const float* s = &score[m][n][half * 2];
          const float a = power2(s[0] * (SCALE * LOG2E) - of.x), b = power2(s[1] * (SCALE * LOG2E) - of.y);
          p[m][part] = valid ? pack(a, b) : 0;
        }
#pragma unroll
      for (int n = 0; n < 4; n++) {
        uint32_t right[4];
        load_transposed(right, right_transposed_address(douts, query, n * 2, lane));
#pragma unroll
        for (int m = 0; m < 2; m++) {
          multiply(dv[m][2 * n], p[m], right[0], right[1]);
          multiply(dv[m][2 * n + 1], p[m], right[2], right[3]);
        }
      }
      // dS^T = P^T (V dO^T - delta), and dK += dS^T Q.
      float dp[2][2][4] = {};
#pragma unroll
      for (int k = 0; k < 4; k++) {
        uint32_t right[4];
        load_matrices(right, right_address(douts, query, k * 2, lane));
#pragma unroll
        for (int m = 0; m < 2; m++) {
          multiply(dp[m][0], v_left[m][k], right[0], right[1]);
          multiply(dp[m][1], v_left[m][k], right[2], right[3]);
        }
      }
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int part = 0; part < 4; part++) {
          const int n = part / 2, half = part % 2;
          const float2 of = *reinterpret_cast<const float2*>(of_query + BLOCK + query + n * 8 + lane % 4 * 2);
          const float2 weight = unpack(p[m][part]);
          const float* d = &dp[m][n][half * 2];
          p[m][part] = pack(weight.x * (d[0] - of.x), weight.y * (d[1] - of.y));
          const uint32_t to = row_address(ds, key + m * 16 + half * 8 + lane / 4, query / 8 + n) + lane % 4 * 4;
          store4_shared(to, p[m][part]);
        }
#pragma unroll
      for (int n = 0; n < 4; n++) {
        uint32_t right[4];
        load_transposed(right, right_transposed_address(queries, query, n * 2, lane));
#pragma unroll
        for (int m = 0; m < 2; m++) {
          multiply(dk[m][2 * n], p[m], right[0], right[1]);
          multiply(dk[m][2 * n + 1], p[m], right[2], right[3]);
        }
      }
    }
    __syncthreads();

    // dQ = dS K: tiles of 16 queries and 32 columns are dealt out to the warps. Their number is even, so that a warp has
    // the same columns in all its tiles.
    for (int tile = warp; tile < BLOCK / 16 * 2; tile += warps) {
      const int query = tile / 2 * 16, column = tile % 2 * 4;
      float dq[4][4] = {};
      for (int k = 0; k < padded; k += 16) {
        uint32_t left[4];
        load_transposed(left, left_transposed_address(ds, k, query / 8, lane));
#pragma unroll
        for (int n = 0; n < 2; n++) {
          uint32_t right[4];
          load_transposed(right, right_transposed_address(own_keys, k, column + n * 2, lane));
          multiply(dq[2 * n], left, right[0], right[1]);
          multiply(dq[2 * n + 1], left, right[2], right[3]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int token = block * BLOCK + query + half * 8 + lane / 4;
        bf16* to = h.dq + token * h.stride + column * 8 + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < 4; n++) {
          const float a = dq[n][half * 2] * SCALE, b = dq[n][half * 2 + 1] * SCALE;
          if (token < g.tokens) *reinterpret_cast<uint32_t*>(to + n * 8) = pack(a, b);
          dq_bias[n][0] += a;
          dq_bias[n][1] += b;
        }
      }
    }
    __syncthreads();
    if (block == 0) fetch_keys(step / blocks + 1);
    fetch_queries(step + 2);

    if (block == blocks - 1) {
      // dK and dV of the warp's keys, and the sums of all three over tokens.
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int token = key + m * 16 + half * 8 + lane / 4;
          if (token >= g.tokens) continue;
          bf16* to = h.dq + token * h.stride + lane % 4 * 2;
#pragma unroll
          for (int n = 0; n < 8; n++) {
            const float *a = &dk[m][n][half * 2], *b = &dv[m][n][half * 2];
            *reinterpret_cast<uint32_t*>(to + g.heads * HEAD + n * 8) = pack(a[0] * SCALE, a[1] * SCALE);
            *reinterpret_cast<uint32_t*>(to + 2 * g.heads * HEAD + n * 8) = pack(b[0], b[1]);
          }
        }
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const auto rows = [&](const float (&x)[2][8][4]) {
            return over_rows((x[0][n][i] + x[0][n][i + 2]) + (x[1][n][i] + x[1][n][i + 2]));
          };
          const float a = rows(dk) * SCALE, b = rows(dv);
          const int column = n * 8 + lane % 4 * 2 + i;
          if (lane < 4) {
            bias[(warps + warp) * HEAD + column] = a;
            bias[(2 * warps + warp) * HEAD + column] = b;
            bias[warp * HEAD + column] = 0;
          }
        }
      __syncwarp();
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const float a = over_rows(dq_bias[n][i]);
          if (lane < 4) bias[warp * HEAD + warp % 2 * 32 + n * 8 + lane % 4 * 2 + i] = a;
        }
      __syncthreads();
      for (int i = threadIdx.x; i < 3 * HEAD; i += blockDim.x) {
        float sum = 0;
        for (int w = 0; w < warps; w++) sum += bias[(i / HEAD * warps + w) * HEAD + i % HEAD];
        h.bias[i / HEAD * g.heads * HEAD + i % HEAD] = sum;
      }
    }
  }
  copies_wait<0>();
}

// Whether the current device computes so many tokens by attention90.cu, and how many processors it has.
bool by_hopper(int tokens, int* processors) {
  const int device = current_device();
  *processors = attribute(cudaDevAttrMultiProcessorCount, device);
  return tokens > MAX_SHORT / 2 && is_hopper(device);
}

}  // namespace

// Whether a device computes the attention over so many tokens.
extern "C" int lcf_attention_takes(int device, int tokens) { return tokens <= MAX_SHORT || is_hopper(device); }

extern "C" int lcf_attention_forward(const void* qkv, void* out, float* lse, int tokens, int heads, int samples,
                                     void* stream) {
  int processors = 0;
  if (by_hopper(tokens, &processors))
    return attention_forward_hopper(static_cast<const bf16*>(qkv), static_cast<bf16*>(out), lse, tokens, heads, samples,
                                    processors, static_cast<cudaStream_t>(stream));
  const int bytes = 2 * ((tokens + 31) / 32 * 32) * 128;
  cudaFuncSetAttribute(attention_forward, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  attention_forward<<<dim3((tokens + QUERIES - 1) / QUERIES, heads, samples), FORWARD_WARPS * WARP, bytes,
                      static_cast<cudaStream_t>(stream)>>>(static_cast<const bf16*>(qkv), static_cast<bf16*>(out), lse,
                                                           tokens, heads);
  return cudaGetLastError();
}

// Numbers that the backward pass needs for sums of dQ.
extern "C" long lcf_attention_partial(int tokens, int heads, int samples) {
  int processors = 0;
  if (tokens <= MAX_SHORT || !by_hopper(tokens, &processors)) return 0;
  const long blocks = (tokens + BLOCK - 1) / BLOCK;
  return min(samples * heads, processors) * blocks * BLOCK * HEAD;
}

extern "C" int lcf_attention_backward(const void* qkv, const void* out, const void* dout, const float* lse, void* dqkv,
                                      float* bias, float* partial, int tokens, int heads, int samples, void* stream) {
  const Gradient g = {static_cast<const bf16*>(qkv), static_cast<const bf16*>(out), static_cast<const bf16*>(dout), lse,
                      static_cast<bf16*>(dqkv), bias, partial, tokens, heads, samples};
  int processors = 0;
  if (by_hopper(tokens, &processors))
    return attention_backward_hopper(g, processors, static_cast<cudaStream_t>(stream));
  const int warps = (tokens + BLOCK - 1) / BLOCK * 2, padded = warps * 32;
  const int bytes = 4 * padded * 128 + 2 * 2 * BLOCK * 128 + (2 * BLOCK + 3 * warps * HEAD) * 4;
  cudaFuncSetAttribute(attention_backward, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  int resident = 1;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, attention_backward, warps * WARP, bytes);
  const int blocks = min(samples * heads, processors * max(resident, 1));
  attention_backward<<<blocks, warps * WARP, bytes, static_cast<cudaStream_t>(stream)>>>(g);
  return cudaGetLastError();
}
