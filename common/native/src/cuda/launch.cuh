// Kernels that follow each other closely, on Hopper (PTX ISA, "griddepcontrol"): one starts on the processors that the one
// before it has left, sets itself up there, and waits until that has ended.
#pragma once
#include <cuda_runtime.h>

#include "device.h"

namespace lcf {

// By every thread before it touches global memory, and in every block: waits until the kernel before this one has ended and
// what it wrote is there. Only then may the next one start, so that never more than two are under way: whatever a kernel does
// ahead of this goes on beside the kernel before it, and no other.
__device__ inline void await_kernel_before() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Whether this thread's launches follow each other apart, each after the end of the one before.
inline thread_local bool apart = false;

struct Grid {
  dim3 blocks;
  int threads, bytes;  // of a block: threads, and shared memory beside what the kernel declares
  int cluster = 1;     // blocks
};

// Launches a kernel that calls await_kernel_before.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Grid& grid, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.bytes;
  config.stream = stream;
  config.attrs = attributes;
  const auto add = [&](cudaLaunchAttributeID id) -> cudaLaunchAttributeValue& {
    cudaLaunchAttribute& next = attributes[config.numAttrs++];
    next.id = id;
    return next.val;
  };
  if (grid.cluster > 1) add(cudaLaunchAttributeClusterDimension).clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
  // What other cards run does not wait.
  if (!apart && is_hopper(current_device()))
    add(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed = 1;
  if (grid.bytes > 0) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.bytes);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace lcf
