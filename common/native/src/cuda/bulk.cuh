// Hopper's copies of tiles by one thread, and the barriers in shared memory on which they and the threads meet (PTX ISA,
// "cp.async.bulk.tensor" and "mbarrier"). The n-th time that a barrier completes, from 0 on, has parity n % 2.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace lcf {

__device__ inline void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes barriers that this thread has just initialised known to bulk copies.
__device__ inline void barriers_publish() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and has the barrier wait for so many bytes too.
__device__ inline void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Until the barrier has completed with this parity. The loop is the compiler's to see: with one inside the assembly the MLP
// keeps more on the stack.
__device__ inline void barrier_wait(uint32_t barrier, int parity) {
  uint32_t passed;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(passed)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!passed);
}

// Arrives at the barrier that lies where `barrier` does in a block of the cluster, to say that products have read something:
// what this thread has written need not be visible there.
__device__ inline void barrier_arrive(uint32_t barrier, uint32_t block) {
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
      "r"(block)
      : "memory");
}

// Until all threads of the cluster are here. By whole warps.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The tile at (row, column) of the matrix that `map` describes, zeros where there is none; counts its bytes at `barrier`.
__device__ inline void copy_tile(uint32_t to, const CUtensorMap& map, int row, int column, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                   to),
               "l"(&map), "r"(column), "r"(row), "r"(barrier)
               : "memory");
}

// The same tile to the same place in all blocks of the cluster that `blocks` has a bit for, and counted at the barrier of
// each that lies where `barrier` does.
__device__ inline void copy_tile(uint32_t to, const CUtensorMap& map, int row, int column, uint32_t barrier,
                                 uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
      : "memory");
}

// The same tile into the L2 cache only.
__device__ inline void prefetch_tile(const CUtensorMap& map, int row, int column) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(&map), "r"(column), "r"(row) : "memory");
}

// A group gives registers back, or gets more once others gave theirs: per thread, a multiple of 8.
template <int COUNT>
__device__ inline void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ inline void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Describes contiguous bf16, a matrix [rows, columns] or so many of them, in tiles of `tile_rows` x 64 that lie in shared
// memory as row_address says; rows that do not exist are read as zeros and not written. The driver's function is looked up
// when first needed, so that a machine without a driver can start the program.
template <int DIMENSIONS>
inline cudaError_t describe(CUtensorMap& map, const void* data, const cuuint64_t (&sizes)[DIMENSIONS], uint32_t tile_rows) {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  if (!encode) return cudaErrorNotSupported;
  // Columns first, and strides in bytes from the second dimension on.
  const cuuint64_t strides[2] = {sizes[0] * 2, sizes[0] * sizes[1] * 2};
  const cuuint32_t box[3] = {64, tile_rows, 1}, steps[3] = {1, 1, 1};
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, DIMENSIONS, const_cast<void*>(data), sizes, strides,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace lcf
