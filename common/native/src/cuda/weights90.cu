// The weight gradients of the linear maps of some blocks, on Hopper, all at once: dW = dY^T X in fp32, dY [tokens, N] and
// X [tokens, K].
//
// These products sum over very many tokens and write little, and they are nearly bound by memory: what they need is as long
// in coming from memory as it is in being multiplied. Two thread blocks, a cluster, have 384 x 192 numbers of a gradient at
// a time, 192 x 192 each, as the sums of three groups of four warps; rows of 64 tokens pass by, copied by a further warp
// through a ring in shared memory. X is the same for both, so each copies half of it to both, which takes a third off what
// the L2 cache has to give. Tokens are summed over, and they are the rows: both operands are transposed ones.
//
// There are more clusters than such tiles, or not much fewer, so tokens are shared out too. Every operand is needed by
// several tiles and is to be read from memory once: clusters that work on the same tokens have to do so at the same time.
// Hence they all go through a share of the tokens in step, as follows, the same arithmetic as Euclid's. With more clusters
// than tiles, as many clusters as possible work on each tile, the same for all, on consecutive shares of the tokens that
// take them the whole time; the clusters left over have the last tokens of all tiles. With fewer, every cluster
// takes a tile, all its remaining tokens, and then the next one, as often as there are tiles for all of them; the tiles left
// over are for all clusters, in the time that is left. Cutting all the work into equal parts one after the other makes as
// few parts, but tiles that lie side by side would be at different tokens.
//
// The sums of parts go to a workspace, in the order of registers; a second kernel adds them up in the order of tokens.
#include <cuda_runtime.h>

#include "bulk.cuh"
#include "launch.cuh"
#include "wgmma.cuh"

namespace {

using namespace lcf;

struct WeightGradient {
  const void *dy, *x;
  float* out;
  int n, k;
};

constexpr int GROUPS = 3, GROUP_WARPS = 4;  // that multiply
constexpr int WARPS = GROUPS * GROUP_WARPS;
constexpr int THREADS = (WARPS + 1) * WARP;
constexpr int BLOCKS = 2;          // in a cluster, one above the other
constexpr int PANELS = 3;          // of 64 columns of either operand, one for each group and row of products
constexpr int SIDE = PANELS * 64;  // of what a block has of a gradient
constexpr int SUMS = SIDE / 2;     // a thread's
constexpr int TOKENS = 64, STAGES = 4;  // of the ring
constexpr int SHARE = TOKENS / BLOCKS;  // of the tokens of X, which a block copies for both
constexpr int PANEL = TOKENS * 128, STAGE = 2 * PANELS * PANEL;  // bytes
constexpr int SHARED = STAGES * STAGE + 2 * STAGES * 8;
constexpr int MOST = 48;    // gradients
constexpr int LEVELS = 12;  // of the plan; each halves the clusters or tiles left, at least every second time

// Some units of work, each a tile and a share of its tokens: unit u is of tile `tile` + u % tiles, its share begins at step
// `step` + u / tiles * steps. Cluster `cluster` + c of `clusters` has every `clusters`-th of them from c on.
struct Level {
  int tile, tiles, parts, cluster, clusters, step, steps;
  int slot;  // of the first unit's sums in the workspace, or -1 where units have all tokens of their tile
};

struct Problem {
  float* out;
  int tile, columns;  // its first tile, and how many tiles side by side
  int k;
};

struct Plan {
  Level levels[LEVELS];
  Problem problems[MOST];
  int count, problem_count;
  int steps;
  int tiles, split;  // tiles, and which is the first whose tokens were shared out
  int slots;
  float* sums;
};

struct Work {
  CUtensorMap dy[MOST], x[MOST];
  Plan plan;
};

// A tile's place.
struct Place {
  int problem, row, column;  // in tiles
};

__device__ inline Place place(const Plan& plan, int tile) {
  int problem = 0;
  while (problem + 1 < plan.problem_count && tile >= plan.problems[problem + 1].tile) problem++;
  const Problem& p = plan.problems[problem];
  const int local = tile - p.tile;
  return {problem, local / p.columns, local % p.columns};
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Calls run(place, first step, steps, slot) for what a cluster has to do.
template <class Run>
__device__ inline void each_unit(const Plan& plan, int cluster, const Run& run) {
  for (int i = 0; i < plan.count; i++) {
    const Level& l = plan.levels[i];
    const int own = cluster - l.cluster;
    if (own < 0 || own >= l.clusters) continue;
    for (int unit = own; unit < l.tiles * l.parts; unit += l.clusters) {
      const int first = l.step + unit / l.tiles * l.steps;
      run(place(plan, l.tile + unit % l.tiles), first, min(l.steps, plan.steps - first), l.slot < 0 ? -1 : l.slot + unit);
    }
  }
}

// By one thread: dY for this block, and its share of X for both.
__device__ inline void bring(const Work& w, int cluster, int rank, uint32_t ring, uint32_t filled, uint32_t emptied) {
  constexpr uint16_t BOTH = (1 << BLOCKS) - 1;
  int stage = 0, parity = 1;
  each_unit(w.plan, cluster, [&](Place p, int first, int steps, int) {
    const int n = (p.row * BLOCKS + rank) * SIDE, k = p.column * SIDE;
    for (int step = first; step < first + steps; step++) {
      const uint32_t full = filled + stage * 8, left = ring + stage * STAGE, right = left + PANELS * PANEL;
      // Passes at once the first time round.
      barrier_wait(emptied + stage * 8, parity);
      // What the other block copies here may come before this is said, but the barrier waits for it to be.
      barrier_expect(full, STAGE);
#pragma unroll
      for (int i = 0; i < PANELS; i++)
        copy_tile(left + i * PANEL, w.dy[p.problem], step * TOKENS, n + i * 64, full);
#pragma unroll
      for (int i = 0; i < PANELS; i++)
        copy_tile(right + i * PANEL + rank * SHARE * 128, w.x[p.problem], step * TOKENS + rank * SHARE, k + i * 64, full,
                  BOTH);
      if (++stage == STAGES) stage = 0, parity ^= 1;
    }
  });
}

__device__ inline void multiply(const Work& w, int cluster, int rank, uint32_t ring, uint32_t filled, uint32_t emptied) {
  const int warp = __shfl_sync(ALL, threadIdx.x / WARP, 0), lane = threadIdx.x % WARP, group = warp / GROUP_WARPS;
  // Addresses are counted in units of 16 bytes there.
  const uint64_t left_tile = tile<PANEL>(ring + group * PANEL), right_tile = tile<PANEL>(ring + PANELS * PANEL);
  int stage = 0, parity = 0;
  // To both blocks: either copies to both.
  const auto release = [&](int stage) {
    if (lane < BLOCKS) barrier_arrive(emptied + stage * 8, rank ^ lane);
  };
  each_unit(w.plan, cluster, [&](Place p, int, int steps, int slot) {
    float sum[SUMS];
    int before = 0;
    keep(sum);
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      barrier_wait(filled + stage * 8, parity);
      products_begin();
#pragma unroll
      for (int k = 0; k < TOKENS / 16; k++) {
        const int at = (stage * STAGE + k * ACROSS) / 16;
        product<1, 1>(sum, left_tile + at, right_tile + at, step > 0 || k > 0);
      }
      products_commit();
      if (step > 0) {
        products_wait<1>();
        release(before);
      }
      before = stage;
      if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    products_wait<0>();
    keep(sum);
    release(before);
    if (slot >= 0) {
      float4* to = reinterpret_cast<float4*>(w.plan.sums) +
                   ((static_cast<long>(slot) * BLOCKS + rank) * WARPS + warp) * (SUMS / 4 * WARP) + lane;
#pragma unroll
      for (int i = 0; i < SUMS / 4; i++) to[i * WARP] = {sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]};
    } else {
      const Problem& q = w.plan.problems[p.problem];
      const int row = (p.row * BLOCKS + rank) * SIDE + warp * 16 + lane / 4, column = p.column * SIDE + lane % 4 * 2;
      float* to = q.out + static_cast<long>(row) * q.k + column;
#pragma unroll
      for (int i = 0; i < SUMS / 4; i++) {
        *reinterpret_cast<float2*>(to + i * 8) = {sum[4 * i], sum[4 * i + 1]};
        *reinterpret_cast<float2*>(to + 8L * q.k + i * 8) = {sum[4 * i + 2], sum[4 * i + 3]};
      }
    }
  });
}

__device__ void work(const Work& w, char* shared) {
  const uint32_t ring = shared_address(shared), filled = ring + STAGES * STAGE, emptied = filled + STAGES * 8;
  const int cluster = blockIdx.x / BLOCKS, rank = blockIdx.x % BLOCKS;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(filled + i * 8, 1);
      barrier_init(emptied + i * 8, BLOCKS * WARPS);
    }
    barriers_publish();
  }
  // Before the other block copies to this one or arrives at its barriers.
  cluster_sync();
  await_kernel_before();
  if (threadIdx.x >= WARPS * WARP) {
    if (threadIdx.x == WARPS * WARP) bring(w, cluster, rank, ring, filled, emptied);
    __syncwarp();
  } else {
    multiply(w, cluster, rank, ring, filled, emptied);
    __syncwarp();
  }
  // Nor may a block end before the other has arrived at its barriers for the last time.
  cluster_sync();
}

#else
__device__ void work(const Work&, char*) {}
#endif

__global__ void __launch_bounds__(THREADS, 1) weights90(const __grid_constant__ Work w) {
  extern __shared__ __align__(1024) char shared[];
  work(w, shared);
}

// Adds up. A thread has two times four numbers of a thread of the other kernel, neighbours in a row.
constexpr int ADD_THREADS = 256, ADD_EACH = 2, AT_ONCE = 4;
constexpr int ADD_BLOCKS = BLOCKS * WARPS * (SUMS / 4 / ADD_EACH) * WARP / ADD_THREADS;  // for a tile

__global__ void __launch_bounds__(ADD_THREADS) weights90_add(const __grid_constant__ Plan plan) {
  constexpr int MOST_PARTS = 256;
  __shared__ int slots[MOST_PARTS];
  __shared__ int parts;
  const int tile = plan.split + blockIdx.x / ADD_BLOCKS;
  if (threadIdx.x == 0) {
    int found = 0;
    for (int i = 0; i < plan.count; i++) {
      const Level& l = plan.levels[i];
      if (tile < l.tile || tile >= l.tile + l.tiles) continue;
      for (int part = 0; part < l.parts; part++) slots[found++] = l.slot + part * l.tiles + tile - l.tile;
    }
    parts = found;
  }
  const Place p = place(plan, tile);
  const Problem& q = plan.problems[p.problem];
  const int lane = threadIdx.x % WARP;
  const int item = (blockIdx.x % ADD_BLOCKS * (ADD_THREADS / WARP) + threadIdx.x / WARP) * ADD_EACH;
  const int first = item % (SUMS / 4), warp = item / (SUMS / 4) % WARPS, rank = item / (SUMS / 4) / WARPS;
  const int row = (p.row * BLOCKS + rank) * SIDE + warp * 16 + lane / 4;
  const int column = p.column * SIDE + first * 8 + lane % 4 * 2;
  __syncthreads();
  await_kernel_before();
  const float4* from = reinterpret_cast<const float4*>(plan.sums) + item * WARP + lane;
  constexpr long SLOT = static_cast<long>(BLOCKS) * WARPS * (SUMS / 4) * WARP;
  float4 total[ADD_EACH] = {};
  for (int begin = 0; begin < parts; begin += AT_ONCE) {
    float4 v[AT_ONCE][ADD_EACH] = {};
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      if (begin + i < parts)
#pragma unroll
        for (int e = 0; e < ADD_EACH; e++) v[i][e] = __ldcg(from + slots[begin + i] * SLOT + e * WARP);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
      for (int e = 0; e < ADD_EACH; e++) {
        total[e].x += v[i][e].x;
        total[e].y += v[i][e].y;
        total[e].z += v[i][e].z;
        total[e].w += v[i][e].w;
      }
  }
  float* to = q.out + static_cast<long>(row) * q.k + column;
#pragma unroll
  for (int e = 0; e < ADD_EACH; e++) {
    *reinterpret_cast<float2*>(to + e * 8) = {total[e].x, total[e].y};
    *reinterpret_cast<float2*>(to + 8L * q.k + e * 8) = {total[e].z, total[e].w};
  }
}

// Clusters that the device runs at a time, 0 where it is not for this file. Devices of a process are taken to be alike.
int clusters() {
  static const int found = [] {
    const int device = current_device();
    if (!is_hopper(device)) return 0;
    cudaFuncSetAttribute(weights90, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED);
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {BLOCKS, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = attribute(cudaDevAttrMultiProcessorCount, device) / BLOCKS * BLOCKS;
    config.blockDim = THREADS;
    config.dynamicSmemBytes = SHARED;
    config.attrs = &cluster;
    config.numAttrs = 1;
    int most = 0;
    if (cudaOccupancyMaxActiveClusters(&most, weights90, &config) == cudaSuccess) return most;
    cudaGetLastError();
    return 0;
  }();
  return found;
}

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// False where these sizes are not for this file.
bool make(Plan& plan, const WeightGradient* list, int count, int tokens, int clusters) {
  plan = {};
  if (count < 1 || count > MOST || tokens < 1 || clusters < 1) return false;
  for (int i = 0; i < count; i++) {
    const WeightGradient& g = list[i];
    if (g.n < 1 || g.k < 1 || g.n % (BLOCKS * SIDE) != 0 || g.k % SIDE != 0) return false;
    plan.problems[i] = {g.out, plan.tiles, g.k / SIDE, g.k};
    plan.tiles += g.n / (BLOCKS * SIDE) * (g.k / SIDE);
  }
  plan.problem_count = count;
  plan.steps = ceil_div(tokens, TOKENS);

  // What is left: tiles from `tile` on and clusters from `cluster` on, all steps from `step` on.
  int tile = 0, cluster = 0, step = 0;
  while (tile < plan.tiles && step < plan.steps) {
    const int tiles = plan.tiles - tile, left = plan.steps - step, free = clusters - cluster;
    const bool share = free >= tiles;
    Level& l = plan.levels[plan.count++];
    l.tile = tile, l.cluster = cluster, l.step = step;
    if (share && plan.count < LEVELS) {
      l.tiles = tiles;
      l.steps = ceil_div(tiles * left, free);
      l.parts = min(free / tiles, ceil_div(left, l.steps));
      l.clusters = tiles * l.parts;
      cluster += l.clusters;
      step = min(step + l.parts * l.steps, plan.steps);
    } else {
      // All that is left, should there be no level any more.
      const int last = plan.count == LEVELS;
      l.parts = 1;
      l.steps = left;
      l.clusters = min(free, tiles);
      l.tiles = last ? tiles : tiles / l.clusters * l.clusters;
      tile += l.tiles;
    }
    if (l.step == 0 && l.steps == plan.steps) {
      l.slot = -1;
      plan.split = l.tile + l.tiles;
    } else {
      l.slot = plan.slots;
      plan.slots += l.tiles * l.parts;
    }
  }
  return true;
}

}  // namespace

// Bytes of workspace for lcf_weight_gradients, or 0 where this device or these sizes are not for this file.
extern "C" long lcf_weight_gradients_workspace(const WeightGradient* list, int count, int tokens) {
  Plan plan;
  if (!make(plan, list, count, tokens, clusters())) return 0;
  return max(plan.slots, 1) * static_cast<long>(BLOCKS) * SIDE * SIDE * sizeof(float);
}

// out = dy^T x for each: dy [tokens, n], x [tokens, k], out [n, k].
extern "C" int lcf_weight_gradients(const WeightGradient* list, int count, int tokens, void* workspace, void* stream) {
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  Work w;
  if (!make(w.plan, list, count, tokens, clusters())) return cudaErrorNotSupported;
  w.plan.sums = static_cast<float*>(workspace);
  for (int i = 0; i < count; i++) {
    const cuuint64_t rows = tokens, n = list[i].n, k = list[i].k;
    cudaError_t error = describe(w.dy[i], list[i].dy, {n, rows}, TOKENS);
    if (error == cudaSuccess) error = describe(w.x[i], list[i].x, {k, rows}, SHARE);
    if (error != cudaSuccess) return error;
  }
  const cudaError_t error = launch(weights90, {clusters() * BLOCKS, THREADS, SHARED, BLOCKS}, s, w);
  const int blocks = (w.plan.tiles - w.plan.split) * ADD_BLOCKS;
  return error != cudaSuccess || blocks == 0 ? error : launch(weights90_add, {blocks, ADD_THREADS, 0}, s, w.plan);
}
