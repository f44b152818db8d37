// The MLP's two products that end in GELU, on Hopper: fc1 forward, z = y W1^T + b and gelu(z), and fc2 backward,
// dz = (dh W2) gelu'(z) with the sums of dz over the rows.
//
// Both sum over the width of the model, which is so short that memory traffic takes as long as the arithmetic and the two
// must overlap. A block keeps one weight tile, all K x N of it, in shared memory for good. Tiles of 64 rows pass by, brought
// in pieces of 64 x 64 by one thread through a ring; two groups of four warps take them in turns, one multiplying while the
// other writes what it has. So the weight is read once, the rows once from memory and F / N times from the L2 cache, and
// nothing but them goes through shared memory: the columns of the weight tile are permuted such that a thread ends up with
// eight that follow each other, 16 bytes, which it reads and writes directly.
#include <cuda_runtime.h>

#include "bulk.cuh"
#include "gelu.cuh"
#include "launch.cuh"
#include "wgmma.cuh"

namespace {

using namespace lcf;

constexpr int ROWS = 64;                  // of a tile
constexpr int PIECE = ROWS * 128;         // bytes of 64 x 64 numbers
constexpr int GROUPS = 2, GROUP = 128;    // of threads that multiply
constexpr int THREADS = GROUPS * GROUP + GROUP;
constexpr int STAGES = 4;                 // pieces in the ring
constexpr int Z_AHEAD = 2;                // tiles that z is asked for before it is read
constexpr int PAIR = 2;                   // 32 columns written at once

// Columns of the weight tile that a block keeps, such that it fills shared memory.
template <int K>
constexpr int COLUMNS = 98304 / K;

template <int K>
constexpr int SHARED = K * COLUMNS<K> * 2 + STAGES * PIECE + (2 * STAGES + GROUPS) * 8;

struct Mlp {
  const bf16* weight;  // [F, K], or [K, F] backward
  const bf16* bias;    // forward
  bf16* z;             // written forward, read backward
  bf16* out;
  float* sums;         // backward: [parts, F]
  int rows, columns;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The products leave a thread with columns 8 j + 2 q + {0, 1} of every 32, q = lane % 4, j = 0 .. 3. Those places hold
// columns 8 q + 2 j + {0, 1} of the weight.
__device__ inline int column_at(int place) { return (place & ~30) | (place >> 1 & 3) << 3 | (place >> 3 & 3) << 1; }

// The weight tile in panels of 64 k, a row for each column.
template <int K, int N>
__device__ inline void load_rows(uint32_t to, const bf16* weight, int thread) {
  for (int i = thread; i < K / 8 * N; i += GROUPS * GROUP) {
    const int chunk = i % 8, row = i / 8 % N, panel = i / (8 * N);
    copy16_async(row_address(to + panel * N * 128, row, chunk), weight + column_at(row) * K + panel * 64 + chunk * 8, true);
  }
  copies_commit();
  copies_wait<0>();
}

// In panels of 64 k too, N / 64 times 64 rows each of 64 columns.
template <int K, int N>
__device__ inline void load_transposed_rows(uint32_t to, const bf16* weight, long stride, int thread) {
  constexpr int BATCH = 16;
  static_assert(K / 8 * N % (GROUPS * GROUP * BATCH) == 0);
  for (int first = thread; first < K / 8 * N; first += GROUPS * GROUP * BATCH) {
    const auto split = [&](int b, int& chunk, int& k, int& part) {
      const int i = first + b * GROUPS * GROUP;
      chunk = i % 8, k = i / 8 % K, part = i / (8 * K);
    };
    uint4 v[BATCH];
    int chunk, k, part;
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      split(b, chunk, k, part);
      v[b] = *reinterpret_cast<const uint4*>(weight + k * stride + part * 64 + chunk * 8);
    }
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      split(b, chunk, k, part);
      const uint32_t words[4] = {v[b].x, v[b].y, v[b].z, v[b].w};
#pragma unroll
      for (int j = 0; j < 4; j++)
        store4_shared(row_address(to + k / 64 * N * 128 + part * PIECE, k % 64, chunk / 4 * 4 + j) + chunk % 4 * 4, words[j]);
    }
  }
}

// Predicated rather than branched around, so that the compiler is free to order the arithmetic. 0 where not valid. Relaxed,
// not because anyone else wrote it but to be done here: before the barriers that follow.
__device__ inline uint4 load16(const bf16* from, bool valid) {
  uint4 v;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@p ld.relaxed.gpu.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n}\n"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from), "r"(static_cast<int>(valid))
      : "memory");
  return v;
}

__device__ inline void store16(bf16* to, const float (&v)[8], bool valid) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n@p st.global.v4.u32 [%0], {%1, %2, %3, %4};\n}\n" ::"l"(to),
               "r"(pack(v[0], v[1])), "r"(pack(v[2], v[3])), "r"(pack(v[4], v[5])), "r"(pack(v[6], v[7])),
               "r"(static_cast<int>(valid))
               : "memory");
}

// The sum of v[lane / 4] over the eight lanes that share lane % 4.
__device__ inline float scatter_sums(const float (&v)[8], int lane) {
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float other = __shfl_xor_sync(ALL, lane & 16 ? v[i] : v[i + 4], 16);
    four[i] = (lane & 16 ? v[i + 4] : v[i]) + other;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const float other = __shfl_xor_sync(ALL, lane & 8 ? four[i] : four[i + 2], 8);
    two[i] = (lane & 8 ? four[i + 2] : four[i]) + other;
  }
  return (lane & 4 ? two[1] : two[0]) + __shfl_xor_sync(ALL, lane & 4 ? two[0] : two[1], 4);
}

// What a block of threads works on: every `step`-th tile of rows from `first` on, and weight tile `part` of `parts`.
template <int N>
struct Share {
  int parts, part, first, step, tiles;
  uint32_t weights, ring;
  // Barriers: a piece has come; a piece has been multiplied; a group has begun all products of its tile.
  uint32_t filled, emptied, begun;

  __device__ Share(const Mlp& m, uint32_t shared, int weight_bytes) {
    parts = m.columns / N, part = blockIdx.x % parts, first = blockIdx.x / parts, step = gridDim.x / parts;
    tiles = (m.rows + ROWS - 1) / ROWS;
    weights = shared, ring = weights + weight_bytes;
    filled = ring + STAGES * PIECE, emptied = filled + STAGES * 8, begun = emptied + STAGES * 8;
  }
};

// By one warp. What comes from memory is asked for early, so that only the way from the L2 cache is left when it counts:
// rows a tile ahead, of which the blocks that share them ask for different pieces, and z two tiles ahead.
template <int PIECES, int N, bool BACKWARD>
__device__ inline void bring_rows(const CUtensorMap& map, const Mlp& m, const Share<N>& s) {
  const int lane = threadIdx.x % WARP;
  int count = 0;
  for (int tile = s.first; tile < s.tiles; tile += s.step) {
    int mine = s.part;
    for (int piece = 0; piece < PIECES; piece++, count++) {
      const int stage = count % STAGES;
      if (count >= STAGES) barrier_wait(s.emptied + stage * 8, (count / STAGES - 1) & 1);
      if (lane == 0) {
        barrier_expect(s.filled + stage * 8, PIECE);
        copy_tile(s.ring + stage * PIECE, map, tile * ROWS, piece * 64, s.filled + stage * 8);
        if (piece == mine && tile + s.step < s.tiles) prefetch_tile(map, (tile + s.step) * ROWS, piece * 64);
      }
      if (piece == mine) mine += s.parts;
    }
    if constexpr (BACKWARD) {
      const int first = (tile + Z_AHEAD * s.step) * ROWS;
      for (int row = first + lane; row < min(first + ROWS, m.rows); row += WARP)
#pragma unroll
        for (int c = 0; c < N; c += 64)
          asm volatile("prefetch.global.L2 [%0];" ::"l"(m.z + static_cast<long>(row) * m.columns + s.part * N + c));
    }
  }
}

template <int K, int N, bool BACKWARD>
__device__ inline void multiply_rows(const Mlp& m, const Share<N>& s) {
  constexpr int PIECES = K / 64, PANEL = N * 128;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, turn = warp / 4;
  if constexpr (BACKWARD)
    load_transposed_rows<K, N>(s.weights, m.weight + s.part * N, m.columns, threadIdx.x);
  else
    load_rows<K, N>(s.weights, m.weight + static_cast<long>(s.part) * N * K, threadIdx.x);
  publish_to_products();
  asm volatile("bar.sync 1, %0;" ::"n"(GROUPS * GROUP) : "memory");
  // The weight above needed no waiting: the kernel before does not write it, and all others have ended.
  await_kernel_before();

  // Addresses are counted in units of 16 bytes there.
  const uint64_t ring_tile = tile(s.ring), weight_tile = tile<PIECE>(s.weights);
  const int column = s.part * N + lane % 4 * 8;
  float sums[N / 32] = {};
  for (int tile = s.first + turn * s.step, index = turn; tile < s.tiles; tile += GROUPS * s.step, index += GROUPS) {
    const int row = tile * ROWS + warp % 4 * 16 + lane / 4;
    const bool valid[2] = {row < m.rows, row + 8 < m.rows};
    const long at = static_cast<long>(row) * m.columns + column, half_on = 8L * m.columns;
    // z of a row and of the row 8 further on, 16 bytes of every 32 columns.
    uint32_t pairs[N / 4];
    if constexpr (BACKWARD)
#pragma unroll
      for (int i = 0; i < N / 16; i++) {
        const uint4 z = load16(m.z + at + i % 2 * half_on + i / 2 * 32, valid[i % 2]);
        pairs[4 * i] = z.x, pairs[4 * i + 1] = z.y, pairs[4 * i + 2] = z.z, pairs[4 * i + 3] = z.w;
      }

    float sum[N / 2];
    if (index > 0) barrier_wait(s.begun + (index - 1) % GROUPS * 8, (index - 1) / GROUPS & 1);
    keep(sum);
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
      const int count = index * PIECES + piece, stage = count % STAGES;
      barrier_wait(s.filled + stage * 8, count / STAGES & 1);
      products_begin();
#pragma unroll
      for (int k = 0; k < 4; k++)
        product<BACKWARD>(sum, ring_tile + (stage * PIECE + k * ALONG) / 16,
                          weight_tile + (piece * PANEL + k * (BACKWARD ? ACROSS : ALONG)) / 16, piece + k > 0);
      products_commit();
      if (piece > 0) {
        products_wait<1>();
        if (lane == 0) barrier_arrive(s.emptied + (count - 1) % STAGES * 8);
      }
    }
    if (lane == 0) barrier_arrive(s.begun + turn * 8);
    // Nothing depends on this wait, but the compiler moves no arithmetic past it, in between the products.
    barrier_wait(s.begun + turn * 8, index / GROUPS & 1);
    products_wait<0>();
    keep(sum);
    if (lane == 0) barrier_arrive(s.emptied + (index * PIECES + PIECES - 1) % STAGES * 8);

#pragma unroll
    for (int first = 0; first < N / 32; first += PAIR) {
      float v[PAIR][8], total[PAIR][8] = {};
      uint4 bias[PAIR];
      if constexpr (!BACKWARD)
#pragma unroll
        for (int p = 0; p < PAIR; p++) bias[p] = __ldg(reinterpret_cast<const uint4*>(m.bias + column + (first + p) * 32));
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const long to = at + half * half_on + first * 32;
#pragma unroll
        for (int p = 0; p < PAIR; p++) {
          const int g = first + p;
          const uint32_t add[4] = {bias[p].x, bias[p].y, bias[p].z, bias[p].w};
#pragma unroll
          for (int j = 0; j < 4; j++) {
            const float* s = &sum[(4 * g + j) * 4 + half * 2];
            if constexpr (BACKWARD) {
              const float2 z = unpack(pairs[(2 * g + half) * 4 + j]);
              v[p][2 * j] = s[0] * gelu_slope(z.x);
              v[p][2 * j + 1] = s[1] * gelu_slope(z.y);
            } else {
              const float2 b = unpack(add[j]);
              v[p][2 * j] = s[0] + b.x;
              v[p][2 * j + 1] = s[1] + b.y;
            }
          }
        }
        if constexpr (!BACKWARD) {
#pragma unroll
          for (int p = 0; p < PAIR; p++) store16(m.z + to + p * 32, v[p], valid[half]);
        }
#pragma unroll
        for (int p = 0; p < PAIR; p++)
#pragma unroll
          for (int e = 0; e < 8; e++) {
            if constexpr (BACKWARD)
              total[p][e] += v[p][e];
            else
              v[p][e] = gelu(v[p][e]);
          }
#pragma unroll
        for (int p = 0; p < PAIR; p++) store16(m.out + to + p * 32, v[p], valid[half]);
      }
      if constexpr (BACKWARD)
#pragma unroll
        for (int p = 0; p < PAIR; p++) sums[first + p] += scatter_sums(total[p], lane);
    }
  }
  if constexpr (BACKWARD)
#pragma unroll
    for (int g = 0; g < N / 32; g++)
      m.sums[static_cast<long>(s.first * (GROUPS * GROUP / WARP) + warp) * m.columns + column + g * 32 + lane / 4] = sums[g];
}

template <int K, bool BACKWARD>
__device__ void work(const CUtensorMap& map, const Mlp& m, char* shared) {
  constexpr int N = COLUMNS<K>;
  const Share<N> s(m, shared_address(shared), K * N * 2);
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(s.filled + i * 8, 1);
      barrier_init(s.emptied + i * 8, GROUP / WARP);
    }
    for (int i = 0; i < GROUPS; i++) barrier_init(s.begun + i * 8, GROUP / WARP);
    barriers_publish();
  }
  __syncthreads();
  // A group whose first warp copies leaves its registers to those that multiply.
  if (threadIdx.x >= GROUPS * GROUP) {
    fewer_registers<24>();
    if (threadIdx.x < GROUPS * GROUP + WARP) {
      await_kernel_before();
      bring_rows<K / 64, N, BACKWARD>(map, m, s);
    }
  } else {
    more_registers<240>();
    multiply_rows<K, N, BACKWARD>(m, s);
  }
}

#else
template <int, bool>
__device__ void work(const CUtensorMap&, const Mlp&, char*) {}
#endif

template <int K, bool BACKWARD>
__global__ void __launch_bounds__(THREADS, 1) mlp90(const __grid_constant__ CUtensorMap map, const Mlp m) {
  extern __shared__ __align__(1024) char shared[];
  work<K, BACKWARD>(map, m, shared);
}

// Blocks that share a weight tile, 0 where this device or these sizes are not for this file.
int sharers(int k, int columns) {
  const int wide = k == 384 ? COLUMNS<384> : k == 768 ? COLUMNS<768> : 0;
  if (wide == 0 || columns % wide != 0) return 0;
  const int device = current_device();
  return is_hopper(device) ? attribute(cudaDevAttrMultiProcessorCount, device) / (columns / wide) : 0;
}

template <bool BACKWARD>
int run(const void* rows, const Mlp& m, int k, void* stream) {
  CUtensorMap map;
  const cudaError_t error =
      describe(map, rows, {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(m.rows)}, ROWS);
  if (error != cudaSuccess) return error;
  const auto kernel = k == 384 ? mlp90<384, BACKWARD> : mlp90<768, BACKWARD>;
  const int bytes = k == 384 ? SHARED<384> : SHARED<768>;
  const int blocks = sharers(k, m.columns) * (m.columns / (k == 384 ? COLUMNS<384> : COLUMNS<768>));
  return launch(kernel, {blocks, THREADS, bytes}, static_cast<cudaStream_t>(stream), map, m);
}

}  // namespace

// Whether the current device and these sizes are for lcf_mlp_forward and lcf_mlp_backward: how many rows of sums the
// latter writes, else 0.
extern "C" int lcf_mlp_parts(int k, int columns) { return sharers(k, columns) * (GROUPS * GROUP / WARP); }

// The kernel launched just before either of these may not write the weight or the bias. In a training step it is a norm, and
// what writes them is the update that ends the step before.

// z = y weight^T + bias and out = gelu(z): y [rows, k], weight [columns, k].
extern "C" int lcf_mlp_forward(const void* y, const void* weight, const void* bias, void* z, void* out, int rows, int k,
                               int columns, void* stream) {
  return run<false>(y, {static_cast<const bf16*>(weight), static_cast<const bf16*>(bias), static_cast<bf16*>(z),
                        static_cast<bf16*>(out), nullptr, rows, columns}, k, stream);
}

// dz = (dh weight) gelu'(z): dh [rows, k], weight [k, columns]. sums, [parts, columns], gets its sums over shares of the
// rows. dz may be z: what a thread writes it has read itself, at the same addresses and before, and nobody else reads it.
extern "C" int lcf_mlp_backward(const void* dh, const void* weight, const void* z, void* dz, float* sums, int rows, int k,
                                int columns, void* stream) {
  return run<true>(dh, {static_cast<const bf16*>(weight), nullptr, static_cast<bf16*>(const_cast<void*>(z)),
                        static_cast<bf16*>(dz), sums, rows, columns}, k, stream);
}
