// Hopper's copies of tiles between memory and shared memory, which one thread starts, and the barriers that tell when
// they are there (PTX ISA, "cp.async.bulk.tensor" and "mbarrier"). The tiles are rows of 64 numbers in the layout of
// row_address.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include "mma.cuh"

namespace lcf {

// What a copy knows of a tensor [samples, rows, columns]: rows that do not exist are read as zeros and not written.
// False where the driver does not take it.
inline bool describe(CUtensorMap* map, const void* data, long samples, long rows, long columns, int rows_at_once) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  using Size = cuuint64_t;
  const Size sizes[3] = {static_cast<Size>(columns), static_cast<Size>(rows), static_cast<Size>(samples)};
  const Size strides[2] = {static_cast<Size>(columns * 2), static_cast<Size>(rows * columns * 2)};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(rows_at_once), 1}, steps[3] = {1, 1, 1};
  return encode && encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(data), sizes, strides, box, steps,
                          CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                          CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A barrier is passed once per phase; phases are counted from 0, and a wait names the parity of the one it is for.
__device__ inline void barrier_start(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// After barriers were started and before others use them, besides __syncthreads.
__device__ inline void barriers_started() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and has the phase wait for `bytes` of copies.
__device__ inline void arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ inline bool passed(uint32_t barrier, uint32_t parity) {
  uint32_t yes;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(yes)
      : "r"(barrier), "r"(parity)
      : "memory");
  return yes;
}

__device__ inline void wait(uint32_t barrier, uint32_t parity) {
  while (!passed(barrier, parity)) {
  }
}

// Copies the rows from `row` on that the description says, 64 columns of them; `barrier` gets the bytes.
__device__ inline void load_tile(uint32_t to, const CUtensorMap& from, int column, int row, int sample, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(&from), "r"(column), "r"(row), "r"(sample), "r"(barrier)
      : "memory");
}

__device__ inline void store_tile(const CUtensorMap& to, int column, int row, int sample, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&to),
               "r"(column), "r"(row), "r"(sample), "r"(from)
               : "memory");
}

__device__ inline void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until the shared memory that this thread's stores read may be written again.
__device__ inline void stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Four 8 x 8 matrices; lane 8 i + j names row j of matrix i.
__device__ inline void store_matrices(uint32_t to, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(r[0]), "r"(r[1]), "r"(r[2]),
               "r"(r[3])
               : "memory");
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

// A barrier of the four warps of a group; 0 is that of __syncthreads.
__device__ inline void group_sync(int name) { asm volatile("bar.sync %0, 128;" ::"r"(name) : "memory"); }

#endif
}  // namespace lcf
