// Settings of libtorch that tch does not reach. CPU headers only: this links against libtorch_cpu alone.
#include <ATen/Context.h>

extern "C" void lcf_set_tf32(int on) {
  at::globalContext().setAllowTF32CuBLAS(on != 0);
  at::globalContext().setAllowTF32CuDNN(on != 0);
}
