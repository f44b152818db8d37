// Which of a graph's alternatives a replay takes. What the kernel calls is in no header's inline code: this file is linked as
// device code once more, see build.rs.
#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"

namespace {

constexpr int MOST_ALTERNATIVES = 8;

// Alternative i takes numbers up to limits[i], the last one any beyond too.
struct Limits {
  const int* number;
  int count, limits[MOST_ALTERNATIVES];
};

__global__ void choose(cudaGraphConditionalHandle handle, Limits l) {
  int i = 0;
  while (i + 1 < l.count && *l.number > l.limits[i]) i++;
  cudaGraphSetConditional(handle, i);
}

}  // namespace

// Whether the current device has machine code for it; what is built for later cards has none.
extern "C" int lcf_can_choose() {
  cudaFuncAttributes attributes;
  const bool can = cudaFuncGetAttributes(&attributes, choose) == cudaSuccess;
  if (!can) cudaGetLastError();
  return can;
}

// What this thread launches from now on starts after the end of the kernel before it, or not: nothing says that a graph within
// a graph keeps edges that let kernels overlap.
extern "C" void lcf_launch_apart(int on) { lcf::apart = on; }

extern "C" int lcf_choose(uint64_t handle, const Limits* limits, void* stream) {
  choose<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(handle, *limits);
  return cudaGetLastError();
}
