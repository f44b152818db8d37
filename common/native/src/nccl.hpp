// The part of NCCL's C API (stable since 2.4) that is used here. libtorch_cuda brings the library: its functions are
// looked up when it has been opened, so that this program builds and starts without CUDA.
#pragma once
#include <ATen/core/Tensor.h>

#include <dlfcn.h>

#include <cstddef>

namespace nccl {

using Comm = struct Opaque*;
struct UniqueId {
  char bytes[128];
};
constexpr int SUCCESS = 0, SUM = 0;

struct Api {
  int (*get_unique_id)(UniqueId*);
  int (*comm_init_rank)(Comm*, int size, UniqueId, int rank);
  int (*all_reduce)(const void*, void*, size_t count, int type, int op, Comm, void* stream);
  int (*all_gather)(const void*, void*, size_t count, int type, Comm, void* stream);
  int (*broadcast)(const void*, void*, size_t count, int type, int root, Comm, void* stream);
  const char* (*error_string)(int);
  const char* (*last_error)(Comm);
};

template <class F>
void find(F& function, const char* name) {
  function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
  TORCH_CHECK(function, name, " not found: this libtorch has no NCCL, or its CUDA half is not open");
}

// The functions of the library that libtorch_cuda has opened.
inline const Api& api() {
  static const Api found = [] {
    Api api{};
    find(api.get_unique_id, "ncclGetUniqueId");
    find(api.comm_init_rank, "ncclCommInitRank");
    find(api.all_reduce, "ncclAllReduce");
    find(api.all_gather, "ncclAllGather");
    find(api.broadcast, "ncclBroadcast");
    find(api.error_string, "ncclGetErrorString");
    find(api.last_error, "ncclGetLastError");
    return api;
  }();
  return found;
}

inline void check(int code, const char* what, Comm comm) {
  if (code == SUCCESS) return;
  const char* detail = api().last_error(comm);
  TORCH_CHECK(false, what, ": ", api().error_string(code), detail && *detail ? " (" : "", detail && *detail ? detail : "",
              detail && *detail ? ")" : "");
}

// ncclDataType_t of a tensor.
inline int type_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kByte: return 1;
    case at::kInt: return 2;
    case at::kLong: return 4;
    case at::kFloat: return 7;
    case at::kDouble: return 8;
    case at::kBFloat16: return 9;
    default: TORCH_CHECK(false, "NCCL: unsupported type ", x.scalar_type());
  }
}

}  // namespace nccl
