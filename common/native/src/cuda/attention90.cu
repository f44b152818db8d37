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

// Copies ROWS rows from row `first` on by all threads; with WHOLE all of them exist.
template <int ROWS, bool WHOLE>
__device__ inline void copy_tile(uint32_t to, const bf16* from, long stride, int first, int tokens) {
  const int own = threadIdx.x / 8, chunk = threadIdx.x % 8;
  const uint32_t at = row_address(to, own, chunk);
  const bf16* source = from + (first + own) * stride + chunk * 8;
#pragma unroll
  for (int row = 0; row < ROWS; row += THREADS / 8) {
    const bool valid = WHOLE || first + own + row < tokens;
    copy16_async(at + row * BYTES, valid ? source + row * stride : from, valid);
  }
}

// Where a lane's pair of columns of chunk 0 lies, in the first of the 8 rows that share a swizzle. Chunk n is at
// `place ^ n << 4`, and rows 8 further on 8 * BYTES further on.
__device__ inline uint32_t place(uint32_t tile, int row) {
  const int lane = threadIdx.x % WARP;
  return row_address(tile, row + lane / 4, 0) + lane % 4 * 4;
}

__device__ inline uint32_t chunk_of(uint32_t place, int n, int half) { return (place ^ (n << 4)) + half * 8 * BYTES; }

// ---- forward: one block a (sample, head), 128 queries a group, 64 at a time ----

template <bool WHOLE>
__device__ void forward(const bf16* qkv, bf16* out, float* lse, int tokens, int heads, char* shared) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = warp / 4;
  const long sample = blockIdx.x / heads, head = blockIdx.x % heads, stride = 3L * heads * HEAD;
  const uint32_t queries = shared_address(shared), keys = queries + TILE, values = keys + TILE;
  const bf16* q = qkv + sample * tokens * stride + head * HEAD;
  copy_tile<TOKENS, WHOLE>(queries, q, stride, 0, tokens);
  copy_tile<TOKENS, WHOLE>(keys, q + heads * HEAD, stride, 0, tokens);
  copies_commit();
  copy_tile<TOKENS, WHOLE>(values, q + 2 * heads * HEAD, stride, 0, tokens);
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
            if (!WHOLE && key + n * 8 + lane % 4 * 2 + i >= tokens) s = -INFINITY;
            high = fmaxf(high, s);
          }
        high = fmaxf(high, __shfl_xor_sync(ALL, high, 1));
        high = fmaxf(high, __shfl_xor_sync(ALL, high, 2));
        // A row has a key in every 64 but the last ones, so that high is finite.
        const float shrink = power2((most[half] - high) * (SCALE * LOG2E)), shift = high * (SCALE * LOG2E);
        most[half] = high;
        float part = 0;
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            float& s = score[n * 4 + half * 2 + i];
            s = power2(s * (SCALE * LOG2E) - shift);
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
        store4_shared(chunk_of(place(queries, first + warp % 4 * 16), n, half), pack(s[0] * by, s[1] * by));
      }
      if (lse && row < tokens && lane % 4 == 0) lse[(sample * heads + head) * tokens + row] = most[half] * (SCALE * LOG2E) + log2f(all);
    }
    const int own = first + warp % 4 * 16;
    write_rows<8, WHOLE>(queries, own, 0, out + (sample * tokens * heads + head) * HEAD, heads * HEAD, own, tokens);
  }
}

// ---- backward: persistent blocks, a (sample, head) at a time, 128 keys a group, queries in blocks of 64 ----

// Shared memory: keys and values of this head and the next, dS^T, two slots of (queries, dout, out), sums, lse of the
// slots, delta.
constexpr int SLOT = 3 * BLOCK * BYTES;
constexpr int AT_VALUES = 2 * TILE, AT_DS = 4 * TILE, AT_SLOTS = 5 * TILE, AT_SUMS = AT_SLOTS + 2 * SLOT;
constexpr int WARPS = THREADS / WARP;

template <bool WHOLE>
__device__ void backward(const Gradient& g, char* shared) {
  const int blocks = WHOLE ? TOKENS / BLOCK : (g.tokens + BLOCK - 1) / BLOCK;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = warp / 4, own = warp % 4 * 16;
  const uint32_t base = shared_address(shared), ds = base + AT_DS;
  float* sums = reinterpret_cast<float*>(shared + AT_SUMS);  // [3][WARPS][64]
  float *lses = sums + 3 * WARPS * HEAD, *deltas = lses + 2 * BLOCK;
  const int count = g.samples * g.heads;
  const auto fetch_keys = [&](int index, int parity) {
    if (index >= count) return;
    const Head h(g, index);
    copy_tile<TOKENS, WHOLE>(base + parity * TILE, h.q + g.heads * HEAD, h.stride, 0, g.tokens);
    copy_tile<TOKENS, WHOLE>(base + AT_VALUES + parity * TILE, h.q + 2 * g.heads * HEAD, h.stride, 0, g.tokens);
  };
  const auto fetch_queries = [&](int index, int block, int parity) {
    if (index < count) {
      const Head h(g, index);
      const int first = block * BLOCK;
      const uint32_t slot = base + AT_SLOTS + parity * SLOT;
      copy_tile<BLOCK, WHOLE>(slot, h.q, h.stride, first, g.tokens);
      copy_tile<BLOCK, WHOLE>(slot + BLOCK * BYTES, h.dout, h.out_stride, first, g.tokens);
      copy_tile<BLOCK, WHOLE>(slot + 2 * BLOCK * BYTES, h.out, h.out_stride, first, g.tokens);
      if (threadIdx.x < BLOCK) {
        const int token = first + threadIdx.x;
        const bool valid = WHOLE || token < g.tokens;
        copy4_async(shared_address(lses + parity * BLOCK + threadIdx.x), h.lse + (valid ? token : 0), valid);
      }
    }
    copies_commit();
  };
  fetch_keys(blockIdx.x, 0);
  fetch_queries(blockIdx.x, 0, 0);
  fetch_queries(blockIdx.x, 1, 1);

  int turn = 0, slot_turn = 0;
  for (int index = blockIdx.x; index < count; index += gridDim.x, turn ^= 1) {
    const Head h(g, index);
    const uint32_t keys = base + turn * TILE, values = keys + AT_VALUES;
    float dk[2][32] = {}, dv[2][32] = {}, dq_sum[8] = {};
#pragma unroll 1
    for (int block = 0; block < blocks; block++, slot_turn ^= 1) {
      const uint32_t queries = base + AT_SLOTS + slot_turn * SLOT, douts = queries + BLOCK * BYTES;
      const uint32_t outs = douts + BLOCK * BYTES;
      const float* lse = lses + slot_turn * BLOCK;
      copies_wait<1>();
      publish_to_products();
      __syncthreads();
      {
        // delta = sum of out * dout over a head: four threads a row.
        const int row = threadIdx.x / 4;
        float delta = 0;
#pragma unroll
        for (int chunk = 0; chunk < 2; chunk++) {
          const uint32_t at = row_address(douts, row, threadIdx.x % 4 * 2 + chunk);
          const uint4 d = load16_shared(at), o = load16_shared(at + BLOCK * BYTES);
          const uint32_t d4[4] = {d.x, d.y, d.z, d.w}, o4[4] = {o.x, o.y, o.z, o.w};
#pragma unroll
          for (int j = 0; j < 4; j++) {
            const float2 a = unpack(d4[j]), b = unpack(o4[j]);
            delta += a.x * b.x + a.y * b.y;
          }
        }
        delta += __shfl_xor_sync(ALL, delta, 1);
        delta += __shfl_xor_sync(ALL, delta, 2);
        if (threadIdx.x % 4 == 0) deltas[row] = delta;
      }
      __syncthreads();

#pragma unroll
      for (int m = 0; m < 2; m++) {
        const int key = group * 128 + m * 64;
        // S^T = K Q^T and dP^T = V dO^T, then dV += P^T dO and dK += dS^T Q, each as soon as what it takes is there.
        float score[32], dp[32];
        keep(score);
        keep(dp);
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; k++)
          product<0, 0>(score, tile(keys + key * BYTES + k * ALONG), tile(queries + k * ALONG), k > 0);
        products_commit();
#pragma unroll
        for (int k = 0; k < 4; k++)
          product<0, 0>(dp, tile(values + key * BYTES + k * ALONG), tile(douts + k * ALONG), k > 0);
        products_commit();
        products_wait<1>();
        keep(score);
        keep(dk[0]);
        keep(dv[0]);
        const int row = key + own + lane / 4;
        uint32_t p[4][4], d[4][4];
#pragma unroll
        for (int n = 0; n < 8; n++) {
          const float2 of = *reinterpret_cast<const float2*>(lse + n * 8 + lane % 4 * 2);
#pragma unroll
          for (int half = 0; half < 2; half++) {
            float* s = &score[n * 4 + half * 2];
            s[0] = power2(s[0] * (SCALE * LOG2E) - of.x);
            s[1] = power2(s[1] * (SCALE * LOG2E) - of.y);
            if (!WHOLE && row + half * 8 >= g.tokens) s[0] = s[1] = 0;
            p[n / 2][n % 2 * 2 + half] = pack(s[0], s[1]);
          }
        }
        keep(dv[m]);
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) product<1>(dv[m], p[k], tile(douts + k * ACROSS), 1);
        products_commit();
        products_wait<1>();
        keep(dp);
        const uint32_t to = place(ds, key + own);
#pragma unroll
        for (int n = 0; n < 8; n++) {
          const float2 delta = *reinterpret_cast<const float2*>(deltas + n * 8 + lane % 4 * 2);
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const float *s = &score[n * 4 + half * 2], *e = &dp[n * 4 + half * 2];
            const uint32_t both = pack(s[0] * (e[0] - delta.x), s[1] * (e[1] - delta.y));
            d[n / 2][n % 2 * 2 + half] = both;
            store4_shared(chunk_of(to, n, half), both);
          }
        }
        keep(dk[m]);
        products_begin();
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
      const uint32_t to = place(outs, own);
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float a = dq[n * 4 + half * 2] * SCALE, b = dq[n * 4 + half * 2 + 1] * SCALE;
          store4_shared(chunk_of(to, group * 4 + n, half), pack(a, b));
          dq_sum[n * 2] += a;
          dq_sum[n * 2 + 1] += b;
        }
      write_rows<4, WHOLE>(outs, own, group * 4, h.dq + block * BLOCK * h.stride + group * 32, h.stride, own,
                           g.tokens - block * BLOCK);
      __syncthreads();
      const int next = index + gridDim.x, ahead = block + 2;
      if (block == 0) fetch_keys(next, turn ^ 1);
      if (ahead < blocks)
        fetch_queries(index, ahead, slot_turn);
      else
        fetch_queries(next, ahead - blocks, slot_turn);
    }

    // The keys and values are done with: their place takes dK and dV. Then the sums of all three over tokens.
#pragma unroll
    for (int m = 0; m < 2; m++) {
      const int token = group * 128 + m * 64 + own;
      const uint32_t to_k = place(keys, token), to_v = place(values, token);
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float *a = &dk[m][n * 4 + half * 2], *b = &dv[m][n * 4 + half * 2];
          store4_shared(chunk_of(to_k, n, half), pack(a[0] * SCALE, a[1] * SCALE));
          store4_shared(chunk_of(to_v, n, half), pack(b[0], b[1]));
        }
      write_rows<8, WHOLE>(keys, token, 0, h.dq + g.heads * HEAD, h.stride, token, g.tokens);
      write_rows<8, WHOLE>(values, token, 0, h.dq + 2 * g.heads * HEAD, h.stride, token, g.tokens);
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
  copies_wait<0>();
}

#else
template <bool>
__device__ void forward(const bf16*, bf16*, float*, int, int, char*) {}
template <bool>
__device__ void backward(const Gradient&, char*) {}

#endif

template <bool WHOLE>
__global__ void __launch_bounds__(THREADS, 2)
    attention_forward90(const bf16* qkv, bf16* out, float* lse, int tokens, int heads) {
  extern __shared__ __align__(1024) char shared[];
  forward<WHOLE>(qkv, out, lse, tokens, heads, shared);
}

template <bool WHOLE>
__global__ void __launch_bounds__(THREADS, 1) attention_backward90(Gradient g) {
  extern __shared__ __align__(1024) char shared[];
  backward<WHOLE>(g, shared);
}

}  // namespace

namespace lcf {

int attention_forward_hopper(const bf16* qkv, bf16* out, float* lse, int tokens, int heads, int samples,
                             cudaStream_t stream) {
  constexpr int bytes = 3 * TILE;
  const auto kernel = tokens == TOKENS ? attention_forward90<true> : attention_forward90<false>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<samples * heads, THREADS, bytes, stream>>>(qkv, out, lse, tokens, heads);
  return cudaGetLastError();
}

int attention_backward_hopper(const Gradient& g, int processors, cudaStream_t stream) {
  constexpr int bytes = 5 * TILE + 2 * 3 * BLOCK * BYTES + (3 * (THREADS / WARP) * HEAD + 3 * BLOCK) * 4;
  const auto kernel = g.tokens == TOKENS ? attention_backward90<true> : attention_backward90<false>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<min(g.samples * g.heads, processors), THREADS, bytes, stream>>>(g);
  return cudaGetLastError();
}

}  // namespace lcf
