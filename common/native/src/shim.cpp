// Settings of libtorch that tch does not reach. CPU headers only: this links against libtorch_cpu alone.
#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>

extern "C" void lcf_set_tf32(int on) {
  at::globalContext().setAllowTF32CuBLAS(on != 0);
  at::globalContext().setAllowTF32CuDNN(on != 0);
}

// The stream that operations of this thread on a CUDA device go to.
extern "C" void* lcf_current_stream(int device) {
  const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
  return guard.getStream(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device))).native_handle();
}
