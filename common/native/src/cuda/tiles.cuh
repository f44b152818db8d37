// Hopper's copies of tiles of many matrices both ways (PTX ISA, "cp.async.bulk.tensor"), and what groups of warps with work
// of their own need. The tiles are rows of 64 numbers in the layout of row_address.
#pragma once
#include "bulk.cuh"
#include "mma.cuh"

namespace lcf {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

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

// A barrier of the four warps of a group; 0 is that of __syncthreads.
__device__ inline void group_sync(int name) { asm volatile("bar.sync %0, 128;" ::"r"(name) : "memory"); }

#endif
}  // namespace lcf
