// What the current device is.
#pragma once
#include <cuda_runtime_api.h>

namespace lcf {

inline int current_device() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

inline int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  cudaDeviceGetAttribute(&value, which, device);
  return value;
}

// Whether a device runs the machine code for Hopper, which is for this one generation: later cards have PTX alone.
inline bool is_hopper(int device) {
  return attribute(cudaDevAttrComputeCapabilityMajor, device) == 9 &&
         attribute(cudaDevAttrComputeCapabilityMinor, device) == 0;
}

}  // namespace lcf
