// Tensor-core building blocks: m16n8k16 products of bf16 with fp32 sums, and the loads that feed them.
// Fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

namespace lcf {

using bf16 = __nv_bfloat16;

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;

// Rows of 64 bf16 (128 bytes) in shared memory. Chunks of 16 bytes are permuted within a row by its number, so that the
// eight rows that ldmatrix reads at once lie in different banks.
__device__ inline uint32_t row_address(uint32_t base, int row, int chunk) {
  return base + row * 128 + ((chunk ^ (row & 7)) << 4);
}

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ inline void copy16_async(uint32_t to, const void* from, bool valid) {
  // A source size of 0 writes zeros.
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ inline void copy4_async(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ inline uint4 load16_shared(uint32_t from) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
  return v;
}

__device__ inline void store4_shared(uint32_t to, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

__device__ inline void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
__device__ inline void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ inline void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ inline void load_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// c += a b.
__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2^x to 2 ulp, one instruction; 0 for minus infinity.
__device__ inline float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ inline float2 unpack(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}

// Where lane reads for load_matrices: the 16 x 16 tile at (row, chunk) as a left operand (rows m, columns k).
__device__ inline uint32_t left_address(uint32_t base, int row, int chunk, int lane) {
  return row_address(base, row + lane % 16, chunk + lane / 16);
}

// As two right operands of 8 columns each, of a matrix stored with a row per column n and k contiguous: r[0], r[1] belong
// to rows row .. row + 7, r[2], r[3] to the next eight.
__device__ inline uint32_t right_address(uint32_t base, int row, int chunk, int lane) {
  return row_address(base, row + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2);
}

// For load_transposed: two right operands of a matrix stored with a row per k and n contiguous: r[0], r[1] belong to
// columns of chunk, r[2], r[3] to those of chunk + 1.
__device__ inline uint32_t right_transposed_address(uint32_t base, int row, int chunk, int lane) {
  return row_address(base, row + lane % 16, chunk + lane / 16);
}

// For load_transposed: the left operand (m, k) of a matrix stored with a row per k and m contiguous.
__device__ inline uint32_t left_transposed_address(uint32_t base, int row, int chunk, int lane) {
  return row_address(base, row + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2);
}

}  // namespace lcf
