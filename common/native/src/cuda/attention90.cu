// The attention of attention.cu for more than 128 tokens, however many, by Hopper's own matrix products; the layouts are
// described there. Persistent blocks, whose tiles are copied ahead of those who wait for them.
#include "attention.cuh"
#include "launch.cuh"
#include "tiles.cuh"
#include "wgmma.cuh"

namespace {

using namespace lcf;

constexpr int BYTES = 128;            // of a row
constexpr int TILE = BLOCK * BYTES;   // of 64 rows
constexpr int GROUP = 4 * WARP;       // threads that multiply together
constexpr int OWN = 16;               // rows of a product that a warp has

// Tensors as the copies know them: 64 rows at a time are read, 16 written.
struct ForwardMaps {
  CUtensorMap qkv, out;
};
struct BackwardMaps {
  CUtensorMap qkv, out, dout, dqkv;
};

// ---- forward: a (sample, head, 256 queries) at a time, 64 queries a group, keys in blocks of 64 ----

// Shared memory: two slots of queries, and a ring of slots of keys or values, 256 rows each.
constexpr int GROUPS = 4;
constexpr int ROWS = GROUPS * BLOCK;
constexpr int SLOT = GROUPS * TILE;
constexpr int RING = 5;
constexpr int FORWARD_THREADS = (GROUPS + 1) * GROUP;
constexpr int FORWARD_BYTES = (2 + RING) * SLOT + 2 * (2 + RING) * 8;

// Backward, see below.
constexpr int KEYS = 2 * BLOCK;
constexpr int QUERIES = 6;
constexpr int EARLY = 6;  // of 8 groups of columns, those whose powers are taken beside the products of the step before
constexpr int BACKWARD_THREADS = 3 * GROUP;
constexpr int AT_QUERIES = 2 * 4 * TILE, AT_DS = AT_QUERIES + QUERIES * 2 * TILE, AT_OUTS = AT_DS + 2 * 2 * TILE;
constexpr int AT_DQ = AT_OUTS + 2 * TILE, AT_STATS = AT_DQ + TILE, AT_SUMS = AT_STATS + QUERIES * 2 * BLOCK * 4;
constexpr int AT_BARRIERS = AT_SUMS + (2 * 4 * 2 + 4) * HEAD * 4;
constexpr int BACKWARD_BYTES = AT_BARRIERS + (2 * 5 + 2 * QUERIES) * 8;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The barriers of a ring of SLOTS slots, from `first` on; what is numbered in the order of its use takes them in turn.
template <int SLOTS>
struct Ring {
  uint32_t first;
  __device__ uint32_t operator[](int number) const { return first + number % SLOTS * 8; }
  __device__ void start(int arrivals) const {
    for (int i = 0; i < SLOTS; i++) barrier_init(first + i * 8, arrivals);
  }
  // Until phase `number` is over.
  __device__ void await(int number) const { barrier_wait((*this)[number], number / SLOTS % 2); }
  // Until the slot that `number` takes was released by who had it before.
  __device__ void await_free(int number) const { barrier_wait((*this)[number], number / SLOTS % 2 ^ 1); }
};

// Where a lane writes the first of four matrices by store_matrices: those of a warp's 16 rows and 16 columns, as a left
// operand lies in registers. The matrices of columns 16 k on are at `^ k << 5`.
__device__ inline uint32_t fragment(uint32_t tile, int row) {
  const int lane = threadIdx.x % WARP, matrix = lane / 8;
  return row_address(tile, row + matrix % 2 * 8 + lane % 8, matrix / 2);
}

// A warp's 16 rows of 64 sums, times `by`, to shared memory.
__device__ inline void stage(uint32_t tile, int row, const float (&sums)[32], float low, float high) {
  const uint32_t to = fragment(tile, row);
#pragma unroll
  for (int k = 0; k < 4; k++) {
    uint32_t r[4];
#pragma unroll
    for (int part = 0; part < 4; part++) {
      const float *s = &sums[(2 * k + part / 2) * 4 + part % 2 * 2], by = part % 2 ? high : low;
      r[part] = pack(s[0] * by, s[1] * by);
    }
    store_matrices(to ^ (k << 5), r);
  }
}

// Sums over a warp's 16 rows of 64 sums. A lane gets those of the two columns from column_of_lane on.
__device__ inline float2 over_rows(const float (&sums)[32]) {
  float v[16];
#pragma unroll
  for (int n = 0; n < 8; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) v[n * 2 + i] = sums[n * 4 + i] + sums[n * 4 + i + 2];
  // Of what a lane has, it keeps half and gives the other half to the lane that keeps that.
#pragma unroll
  for (int half = 8; half > 1; half /= 2) {
    const bool upper = threadIdx.x & half * 2;
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < half) {
        const float a = v[i], b = v[i + half];
        v[i] = (upper ? b : a) + __shfl_xor_sync(ALL, upper ? a : b, half * 2);
      }
  }
  return {v[0], v[1]};
}

__device__ inline int column_of_lane() { return threadIdx.x % WARP * 2; }

__device__ void forward(const ForwardMaps& maps, float* lse, int tokens, int heads, int samples, char* shared) {
  const uint32_t queries = shared_address(shared), ring = queries + 2 * SLOT, barriers = ring + RING * SLOT;
  const Ring<2> queries_full{barriers}, queries_empty{barriers + 16};
  const Ring<RING> full{barriers + 32}, empty{barriers + 32 + RING * 8};
  const int group = __shfl_sync(ALL, threadIdx.x / GROUP, 0), lane = threadIdx.x % WARP;
  const int parts = (tokens + ROWS - 1) / ROWS, count = samples * heads * parts, blocks = (tokens + BLOCK - 1) / BLOCK;
  if (threadIdx.x == 0) {
    queries_full.start(1);
    queries_empty.start(GROUPS * 4);
    full.start(1);
    empty.start(GROUPS * 4);
    barriers_publish();
  }
  __syncthreads();
  await_kernel_before();

  // Numbers of what the rings hold: queries; keys and, next, values.
  int turn = 0, number = 0;
  if (group == GROUPS) {
    // One thread that copies.
    fewer_registers<24>();
    if (threadIdx.x % GROUP > 0) return;
    for (int index = blockIdx.x; index < count; index += gridDim.x, turn++) {
      const int head = index / parts % heads, sample = index / parts / heads;
      const auto load = [&](uint32_t to, int which, int first, uint32_t barrier) {
        const int tiles = min(GROUPS, blocks - first / BLOCK);
        barrier_expect(barrier, tiles * TILE);
        for (int i = 0; i < tiles; i++)
          load_tile(to + i * TILE, maps.qkv, (which * heads + head) * HEAD, first + i * BLOCK, sample, barrier);
      };
      queries_empty.await_free(turn);
      load(queries + turn % 2 * SLOT, 0, index % parts * ROWS, queries_full[turn]);
      for (int first = 0; first < tokens; first += ROWS)
        for (int which = 1; which < 3; which++, number++) {
          empty.await_free(number);
          load(ring + number % RING * SLOT, which, first, full[number]);
        }
    }
    return;
  }

  more_registers<112>();
  const int own = threadIdx.x / WARP % 4 * OWN;
  const auto release = [&](uint32_t barrier) {
    if (lane == 0) barrier_arrive(barrier);
  };
  // The queries before gave their place to the output, which is free once that was read.
  const auto release_output = [&] {
    if (turn > 0 && lane == 0) {
      stores_read();
      barrier_arrive(queries_empty[turn - 1]);
    }
  };
  for (int index = blockIdx.x; index < count; index += gridDim.x, turn++, number += 2 * parts) {
    const int first = index % parts * ROWS + group * BLOCK;
    queries_full.await(turn);
    if (first >= tokens) {
      // This group has no queries.
      for (int i = 0; i < 2 * parts; i++) {
        full.await(number + i);
        release(empty[number + i]);
      }
      release_output();
      continue;
    }
    const uint32_t query = queries + turn % 2 * SLOT + group * TILE;
    float sum[32], score[32], total[2] = {}, most[2] = {-INFINITY, -INFINITY}, shrink[2];
    uint32_t weight[4][4];
    const auto multiply_keys = [&](int block) {
      const int at = number + block / GROUPS * 2;
      if (block % GROUPS == 0) full.await(at);
      products_begin();
      product_along(score, query, ring + at % RING * SLOT + block % GROUPS * TILE);
      products_commit();
    };
    const auto multiply_values = [&](int block) {
      const int at = number + block / GROUPS * 2 + 1;
      if (block % GROUPS == 0) full.await(at);
      keep(sum);
      products_begin();
      const uint32_t values = ring + at % RING * SLOT + block % GROUPS * TILE;
#pragma unroll
      for (int k = 0; k < 4; k++) product<1>(sum, weight[k], tile(values, k * ACROSS), block > 0 || k > 0);
      products_commit();
    };
    // From scores to weights, and by what the sums so far shrink.
    const auto softmax = [&](int block) {
      if ((block + 1) % GROUPS == 0 || block + 1 == blocks) release(empty[number + block / GROUPS * 2]);
      if ((block + 1) * BLOCK > tokens) {
#pragma unroll
        for (int i = 0; i < 32; i++)
          if (block * BLOCK + i / 4 * 8 + lane % 4 * 2 + i % 2 >= tokens) score[i] = -INFINITY;
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float high = most[half];
#pragma unroll
        for (int n = 0; n < 8; n++) high = fmaxf(high, fmaxf(score[n * 4 + half * 2], score[n * 4 + half * 2 + 1]));
        high = fmaxf(high, __shfl_xor_sync(ALL, high, 1));
        high = fmaxf(high, __shfl_xor_sync(ALL, high, 2));
        // Every block has a key, so that high is finite.
        const float shift = high * (SCALE * LOG2E);
        shrink[half] = power2((most[half] - high) * (SCALE * LOG2E));
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
        total[half] = total[half] * shrink[half] + part;
      }
    };
    const auto pack_weights = [&] {
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int part = 0; part < 4; part++) {
          const float* s = &score[(2 * k + part / 2) * 4 + part % 2 * 2];
          weight[k][part] = pack(s[0], s[1]);
        }
    };
    multiply_keys(0);
    release_output();
    products_wait<0>();
    keep(score);
    softmax(0);
    pack_weights();
#pragma unroll 1
    for (int block = 0; block + 1 < blocks; block++) {
      // The next block's scores and their softmax go along with the products with this one's values.
      multiply_keys(block + 1);
      multiply_values(block);
      products_wait<1>();
      keep(score);
      softmax(block + 1);
      products_wait<0>();
      keep(sum);
      pack_weights();
      if ((block + 1) % GROUPS == 0) release(empty[number + block / GROUPS * 2 + 1]);
#pragma unroll
      for (int i = 0; i < 32; i++) sum[i] *= shrink[i / 2 % 2];
    }
    multiply_values(blocks - 1);
    products_wait<0>();
    keep(sum);
    release(empty[number + 2 * parts - 1]);

    const int head = index / parts % heads, sample = index / parts / heads;
    float by[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float all = total[half];
      all += __shfl_xor_sync(ALL, all, 1);
      all += __shfl_xor_sync(ALL, all, 2);
      by[half] = 1.0f / all;
      const int row = first + own + half * 8 + lane / 4;
      if (lse && row < tokens && lane % 4 == 0)
        lse[(static_cast<long>(sample) * heads + head) * tokens + row] = most[half] * (SCALE * LOG2E) + log2f(all);
    }
    group_sync(1 + group);
    stage(query, own, sum, by[0], by[1]);
    publish_to_products();
    __syncwarp();
    if (lane == 0 && first + own < tokens) {
      store_tile(maps.out, head * HEAD, first + own, sample, query + own * BYTES);
      stores_commit();
    }
  }
  if (lane == 0) stores_read();
}

// ---- backward: a (sample, head) at a time, in passes of 128 keys over all queries, in blocks of 64 ----
//
// Two groups have 64 keys of a pass each: P^T = 2^(K Q^T - lse), dV += P^T dO, dS^T = P^T (V dO^T - delta) and
// dK += dS^T Q, with the sums in registers. A third one has dQ, of all queries where they are at most 256, and of one
// block otherwise, whose sums go through memory between passes; it also computes delta = sum of out * dout over a head,
// and copies ahead: keys and values of the next pass, and the next queries, which are kept for all passes where they are
// at most 256. `ds` connects the groups; that a step's dS is full also tells that what the steps before read is free.
//
// Shared memory: two slots of keys and values, a ring of queries and dout, two slots of dS^T, two of out, one of dQ,
// lse and delta by the ring's slots, and sums of columns.

template <bool LONG>
struct Backward {
  const BackwardMaps& maps;
  const Gradient& g;
  char* shared;
  uint32_t base;
  int blocks, passes, count;

  __device__ Backward(const BackwardMaps& maps, const Gradient& g, char* shared)
      : maps(maps), g(g), shared(shared), base(shared_address(shared)) {
    blocks = (g.tokens + BLOCK - 1) / BLOCK;
    passes = LONG ? (g.tokens + KEYS - 1) / KEYS : MAX_SHORT / KEYS;
    count = g.samples * g.heads;
  }

  // What is numbered in the order of its use lies in a ring: passes, steps, and tiles of queries, of which there is one a
  // step or, where they are kept for all passes of a head, one a block.
  __device__ uint32_t keys(int pass) const { return base + pass % 2 * 4 * TILE; }  // values follow
  __device__ uint32_t queries(int tile) const { return base + AT_QUERIES + tile % QUERIES * 2 * TILE; }  // dout follows
  __device__ uint32_t outs(int tile) const { return base + AT_OUTS + tile % 2 * TILE; }
  __device__ uint32_t ds(int step) const { return base + AT_DS + step % 2 * 2 * TILE; }
  // lse, then delta.
  __device__ float* stats(int tile) const {
    return reinterpret_cast<float*>(shared + AT_STATS) + tile % QUERIES * 2 * BLOCK;
  }
  // Sums over a warp's keys: dK, then dV. Behind those of all warps with keys, sums over a warp's queries: dQ.
  __device__ float* sums(int warp) const { return reinterpret_cast<float*>(shared + AT_SUMS) + warp * 2 * HEAD; }

  __device__ Ring<2> pair(int i) const { return {base + AT_BARRIERS + i * 16}; }
  __device__ Ring<2> keys_full() const { return pair(0); }
  __device__ Ring<2> outs_full() const { return pair(1); }
  __device__ Ring<2> ds_full() const { return pair(2); }
  __device__ Ring<2> ds_empty() const { return pair(3); }
  __device__ Ring<2> sums_full() const { return pair(4); }
  __device__ Ring<QUERIES> queries_full() const { return {base + AT_BARRIERS + 5 * 16}; }
  __device__ Ring<QUERIES> stats_full() const { return {base + AT_BARRIERS + 5 * 16 + QUERIES * 8}; }

  __device__ void start() const {
    if (threadIdx.x == 0) {
      keys_full().start(1);
      outs_full().start(1);
      ds_full().start(8);
      ds_empty().start(4);
      sums_full().start(8);
      queries_full().start(1);
      stats_full().start(4);
      barriers_publish();
    }
    __syncthreads();
    await_kernel_before();
  }

  // The groups that have keys.
  template <int group>
  __device__ void of_keys() const {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, own = warp % 4 * OWN;
    float dk[32], dv[32], score[32], dp[32];
    uint32_t p[4][4] = {}, d[4][4] = {}, query_before = queries(0), keys_before = 0;
    // dK += dS^T Q and dV += P^T dO of the step before.
    const auto end_step = [&](bool add) {
      keep(dk);
      keep(dv);
#pragma unroll
      for (int k = 0; k < 4; k++) product<1>(dk, d[k], tile(query_before, k * ACROSS), add || k > 0);
#pragma unroll
      for (int k = 0; k < 4; k++) product<1>(dv, p[k], tile(query_before + TILE, k * ACROSS), add || k > 0);
      products_commit();
    };
    // dK and dV of a pass: where its keys and values were, then to memory; and their sums over tokens.
    const auto finish = [&](int index, int pass, int last_step) {
      const auto add = [&](const float(&x)[32], float by, float* to) {
        float2 sum = over_rows(x), *at = reinterpret_cast<float2*>(to + column_of_lane());
        sum = {sum.x * by, sum.y * by};
        if (pass > 0) sum = {sum.x + at->x, sum.y + at->y};
        *at = sum;
      };
      add(dk, SCALE, sums(warp));
      add(dv, 1, sums(warp) + HEAD);
      __syncwarp();
      if (pass + 1 == passes && lane == 0) barrier_arrive(sums_full()[last_step / (passes * blocks)]);
      group_sync(1 + group);
      stage(keys_before + 2 * TILE, own, dv, 1, 1);
      ds_empty().await(last_step);
      stage(keys_before, own, dk, SCALE, SCALE);
      publish_to_products();
      __syncwarp();
      const int token = pass * KEYS + group * BLOCK + own;
      if (lane == 0 && token < g.tokens) {
        const int sample = index / g.heads, head = index % g.heads;
        store_tile(maps.dqkv, (g.heads + head) * HEAD, token, sample, keys_before + own * BYTES);
        store_tile(maps.dqkv, (2 * g.heads + head) * HEAD, token, sample, keys_before + 2 * TILE + own * BYTES);
        stores_commit();
      }
    };
    int number = 0, step = 0, first_tile = 0;
    for (int index = blockIdx.x; index < count; index += gridDim.x) {
      for (int pass = 0; pass < passes; pass++, number++) {
        const uint32_t own_keys = keys(number) + group * TILE;
        keys_full().await(number);
#pragma unroll 1
        for (int block = 0; block < blocks; block++, step++) {
          const int at = LONG ? step : first_tile + block;
          const uint32_t query = queries(at), dout = query + TILE;
          queries_full().await(at);
          // S^T = K Q^T, and the end of the step before; the first one has none, and what this adds counts for nothing.
          products_begin();
          product_along(score, own_keys, query);
          products_commit();
          end_step(block != 1);
          if (block == 0 && step > 0) {
            products_wait<0>();
            keep(score);
            keep(dk);
            keep(dv);
            finish(pass > 0 ? index : index - static_cast<int>(gridDim.x), (pass > 0 ? pass : passes) - 1, step - 1);
          }
          stats_full().await(at);
          const float* stat = stats(at) + lane % 4 * 2;
          products_wait<1>();
          keep(score);
          // P^T of columns 8 from to 8 to, 0 where there is no key.
          const auto exponentiate = [&](int from, int to) {
#pragma unroll
            for (int n = from; n < to; n++) {
              const float2 lse = *reinterpret_cast<const float2*>(stat + n * 8);
#pragma unroll
              for (int half = 0; half < 2; half++) {
                float* s = &score[n * 4 + half * 2];
                s[0] = power2(s[0] * (SCALE * LOG2E) - lse.x);
                s[1] = power2(s[1] * (SCALE * LOG2E) - lse.y);
              }
            }
            if ((pass + 1) * KEYS <= g.tokens) return;
            const int key = pass * KEYS + group * BLOCK + own + lane / 4;
#pragma unroll
            for (int i = from * 4; i < to * 4; i++)
              if (key + i / 2 % 2 * 8 >= g.tokens) score[i] = 0;
          };
          exponentiate(0, EARLY);
          // dP^T = V dO^T, in registers of the step before's.
          products_wait<0>();
          keep(dk);
          keep(dv);
          products_begin();
          product_along(dp, own_keys + 2 * TILE, dout);
          products_commit();
          exponentiate(EARLY, 8);
          products_wait<0>();
          keep(dp);
#pragma unroll
          for (int n = 0; n < 8; n++) {
            const float2 delta = *reinterpret_cast<const float2*>(stat + BLOCK + n * 8);
#pragma unroll
            for (int half = 0; half < 2; half++) {
              const float *s = &score[n * 4 + half * 2], *e = &dp[n * 4 + half * 2];
              p[n / 2][n % 2 * 2 + half] = pack(s[0], s[1]);
              d[n / 2][n % 2 * 2 + half] = pack(s[0] * (e[0] - delta.x), s[1] * (e[1] - delta.y));
            }
          }
          ds_empty().await_free(step);
          const uint32_t to = fragment(ds(step) + group * TILE, own);
#pragma unroll
          for (int k = 0; k < 4; k++) store_matrices(to ^ (k << 5), d[k]);
          publish_to_products();
          __syncwarp();
          if (lane == 0) {
            // What the pass before left in the place of its keys and values was read.
            if (block == 0) stores_read();
            barrier_arrive(ds_full()[step]);
          }
          __syncwarp();
          query_before = query;
        }
        keys_before = own_keys;
      }
      first_tile += blocks;
    }
    products_begin();
    end_step(blocks > 1);
    products_wait<0>();
    keep(dk);
    keep(dv);
    finish(blockIdx.x + (number / passes - 1) * gridDim.x, passes - 1, step - 1);
    if (lane == 0) stores_read();
  }

  // The group that has queries.
  __device__ void of_queries() const {
    const int thread = threadIdx.x % GROUP, lane = thread % WARP, warp = thread / WARP, own = warp * OWN;
    const int heads = (count - static_cast<int>(blockIdx.x) + gridDim.x - 1) / gridDim.x;
    const int tiles_each = LONG ? passes * blocks : blocks;
    // Copies that one thread starts. What is after the last head is not there to be copied.
    const auto load_keys = [&](int number) {
      const int head = number / passes, index = blockIdx.x + head * gridDim.x;
      if (head >= heads) return;
      const int sample = index / g.heads, column = index % g.heads * HEAD, row = number % passes * KEYS;
      barrier_expect(keys_full()[number], 4 * TILE);
      for (int i = 0; i < 4; i++)
        load_tile(keys(number) + i * TILE, maps.qkv, (1 + i / 2) * g.heads * HEAD + column, row + i % 2 * BLOCK, sample,
                  keys_full()[number]);
    };
    const auto load_queries = [&](int tile) {
      const int head = tile / tiles_each, index = blockIdx.x + head * gridDim.x;
      if (head >= heads) return;
      const int sample = index / g.heads, column = index % g.heads * HEAD, row = tile % blocks * BLOCK;
      barrier_expect(queries_full()[tile], 2 * TILE);
      load_tile(queries(tile), maps.qkv, column, row, sample, queries_full()[tile]);
      load_tile(queries(tile) + TILE, maps.dout, column, row, sample, queries_full()[tile]);
    };
    const auto load_out = [&](int tile) {
      const int head = tile / tiles_each, index = blockIdx.x + head * gridDim.x;
      if (head >= heads) return;
      barrier_expect(outs_full()[tile], TILE);
      load_tile(outs(tile), maps.out, index % g.heads * HEAD, tile % blocks * BLOCK, index / g.heads, outs_full()[tile]);
    };
    if (thread == 0) {
      load_keys(0);
      for (int i = 0; i < QUERIES; i++) {
        load_queries(i);
        if (i < 2) load_out(i);
      }
      load_keys(1);
    }
    __syncwarp();

    // lse and delta of a tile of queries: two threads a row. lse is fetched one tile ahead.
    float lse = 0;
    const auto fetch_lse = [&](int head, int block) {
      const int token = block * BLOCK + thread / 2;
      lse = head < heads && token < g.tokens
                ? g.lse[(blockIdx.x + static_cast<long>(head) * gridDim.x) * g.tokens + token]
                : 0;
    };
    fetch_lse(0, 0);
    const auto prepare = [&](int head, int block, int tile) {
      if (head >= heads) return;
      const int row = thread / 2;
      queries_full().await(tile);
      outs_full().await(tile);
      float delta = 0;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t at = row_address(0, row, thread % 2 * 4 + i);
        delta = add_products(delta, load16_shared(queries(tile) + TILE + at), load16_shared(outs(tile) + at));
      }
      delta += __shfl_xor_sync(ALL, delta, 1);
      if (thread % 2 == 0) {
        stats(tile)[row] = lse;
        stats(tile)[BLOCK + row] = delta;
      }
      group_sync(3);
      if (lane == 0) barrier_arrive(stats_full()[tile]);
      if (thread == 2 * WARP) load_out(tile + 2);
      __syncwarp();
      const bool last = block + 1 == blocks;
      fetch_lse(last && (tile + 1) % tiles_each == 0 ? head + 1 : head, last ? 0 : block + 1);
    };
#pragma unroll 1
    for (int i = 0; i < 2; i++) prepare(0, i, i);

    constexpr int KEPT = LONG ? 1 : MAX_SHORT / BLOCK;
    float2 bias = {};
    const auto take = [&](float(&sum)[32], int head, int pass, int block) {
      const int index = blockIdx.x + head * gridDim.x, number = head * passes + pass, step = number * blocks + block;
      const bool last_pass = pass + 1 == passes;
      keys_full().await(number);
      ds_full().await(step);
      const uint32_t left = ds(step), right = keys(number);
      if (LONG || pass == 0) {
        products_begin();
        product<1, 1>(sum, tile(left, 0), tile(right, 0));
      } else {
        keep(sum);
        products_begin();
        product<1, 1>(sum, tile(left, 0), tile(right, 0), true);
      }
#pragma unroll
      for (int k = 1; k < KEYS / 16; k++) product<1, 1>(sum, tile(left, k * ACROSS), tile(right, k * ACROSS), true);
      products_commit();
      float4 before[8];
      const long tile_of_partial = static_cast<long>(blockIdx.x) * blocks + block;
      float4* partial = reinterpret_cast<float4*>(g.partial) + tile_of_partial * 8 * GROUP + thread;
      if (LONG && pass > 0)
#pragma unroll
        for (int i = 0; i < 8; i++) before[i] = partial[i * GROUP];
      // The pass before is done with its keys, and the step before with its queries, if that was their last use.
      if (block == 0 && thread == WARP && number > 0) load_keys(number + 1);
      if ((LONG || (block > 0 ? last_pass : pass == 0)) && thread == 0 && step > 0)
        load_queries((LONG ? step : head * blocks + block) - 1 + QUERIES);
      __syncwarp();
      // What the step after the next one needs.
      const int ahead = block + 2;
      if (LONG) {
        const bool more = ahead >= blocks;
        prepare(more && last_pass ? head + 1 : head, more ? ahead - blocks : ahead, step + 2);
      } else if (pass == 0) {
        if (block < 2 && ahead < blocks) prepare(head, ahead, head * blocks + ahead);
      } else {
        if (block > 0 && ahead >= blocks) prepare(head + 1, ahead - blocks, head * blocks + ahead);
      }
      products_wait<0>();
      keep(sum);
      if (lane == 0) barrier_arrive(ds_empty()[step]);
      if (LONG && pass > 0)
#pragma unroll
        for (int i = 0; i < 8; i++) {
          sum[i * 4] += before[i].x;
          sum[i * 4 + 1] += before[i].y;
          sum[i * 4 + 2] += before[i].z;
          sum[i * 4 + 3] += before[i].w;
        }
      if (LONG && !last_pass)
#pragma unroll
        for (int i = 0; i < 8; i++) partial[i * GROUP] = {sum[i * 4], sum[i * 4 + 1], sum[i * 4 + 2], sum[i * 4 + 3]};
      if (!last_pass) return;
      if (lane == 0) stores_read();
      __syncwarp();
      stage(base + AT_DQ, own, sum, SCALE, SCALE);
      publish_to_products();
      __syncwarp();
      const int token = block * BLOCK + own;
      if (lane == 0 && token < g.tokens) {
        store_tile(maps.dqkv, index % g.heads * HEAD, token, index / g.heads, base + AT_DQ + own * BYTES);
        stores_commit();
      }
      const float2 both = over_rows(sum);
      bias = block == 0 ? both : float2{bias.x + both.x, bias.y + both.y};
    };
    for (int head = 0; head < heads; head++) {
      float dq[KEPT][32];
      if constexpr (LONG) {
        for (int pass = 0; pass < passes; pass++)
          for (int block = 0; block < blocks; block++) take(dq[0], head, pass, block);
      } else {
#pragma unroll
        for (int pass = 0; pass < MAX_SHORT / KEYS; pass++)
#pragma unroll
          for (int block = 0; block < KEPT; block++)
            if (block < KEPT - 1 || block < blocks) take(dq[block], head, pass, block);
      }
      // Sums over tokens.
      float* of_dq = sums(8);
      *reinterpret_cast<float2*>(of_dq + warp * HEAD + column_of_lane()) = {bias.x * SCALE, bias.y * SCALE};
      group_sync(3);
      sums_full().await(head);
      const int index = blockIdx.x + head * gridDim.x;
      const int column = thread % HEAD, which = thread / HEAD;
      float* to = g.bias + (static_cast<long>(index / g.heads) * 3 * g.heads + index % g.heads) * HEAD + column;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < 8; w++) sum += sums(w)[thread];
      to[(1 + which) * g.heads * HEAD] = sum;
      if (which == 0)
        *to = (of_dq[column] + of_dq[HEAD + column]) + (of_dq[2 * HEAD + column] + of_dq[3 * HEAD + column]);
    }
    if (lane == 0) stores_read();
  }
};

#endif

__global__ void __launch_bounds__(FORWARD_THREADS, 1)
    attention_forward90(const __grid_constant__ ForwardMaps maps, float* lse, int tokens, int heads, int samples) {
  extern __shared__ __align__(1024) char shared[];
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  forward(maps, lse, tokens, heads, samples, shared);
#endif
}

template <bool LONG>
__global__ void __launch_bounds__(BACKWARD_THREADS, 1)
    attention_backward90(const __grid_constant__ BackwardMaps maps, const __grid_constant__ Gradient g) {
  extern __shared__ __align__(1024) char shared[];
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const Backward<LONG> backward(maps, g, shared);
  backward.start();
  const int group = __shfl_sync(ALL, threadIdx.x / GROUP, 0);
  if (group == 2) {
    backward.of_queries();
  } else {
    if (group == 0)
      backward.template of_keys<0>();
    else
      backward.template of_keys<1>();
  }
#endif
}

}  // namespace

namespace lcf {

// Of [samples, tokens, columns]. False where the driver does not take it.
static bool describe_all(CUtensorMap& map, const void* data, int samples, int tokens, int columns, int rows) {
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(tokens),
                               static_cast<cuuint64_t>(samples)};
  return describe(map, data, sizes, rows) == cudaSuccess;
}

int attention_forward_hopper(const bf16* qkv, bf16* out, float* lse, int tokens, int heads, int samples, int processors,
                             cudaStream_t stream) {
  ForwardMaps maps;
  const int width = heads * HEAD;
  if (!describe_all(maps.qkv, qkv, samples, tokens, 3 * width, BLOCK) ||
      !describe_all(maps.out, out, samples, tokens, width, OWN))
    return cudaErrorNotSupported;
  const int count = samples * heads * ((tokens + ROWS - 1) / ROWS);
  return launch(attention_forward90, {min(count, processors), FORWARD_THREADS, FORWARD_BYTES}, stream, maps, lse, tokens,
                heads, samples);
}

int attention_backward_hopper(const Gradient& g, int processors, cudaStream_t stream) {
  BackwardMaps maps;
  const int width = g.heads * HEAD;
  if (!describe_all(maps.qkv, g.qkv, g.samples, g.tokens, 3 * width, BLOCK) ||
      !describe_all(maps.out, g.out, g.samples, g.tokens, width, BLOCK) ||
      !describe_all(maps.dout, g.dout, g.samples, g.tokens, width, BLOCK) ||
      !describe_all(maps.dqkv, g.dqkv, g.samples, g.tokens, 3 * width, OWN))
    return cudaErrorNotSupported;
  const auto kernel = g.tokens > MAX_SHORT ? attention_backward90<true> : attention_backward90<false>;
  return launch(kernel, {min(g.samples * g.heads, processors), BACKWARD_THREADS, BACKWARD_BYTES}, stream, maps, g);
}

}  // namespace lcf
