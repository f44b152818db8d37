// Several processes through libtorch's c10d: its TCPStore, Gloo for tensors on the CPU, and for those on CUDA the NCCL
// that libtorch_cuda brings, on the current stream (which may be under capture into a CUDA graph).
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "nccl.hpp"

using at::Tensor;
using c10::intrusive_ptr;
using std::chrono::milliseconds;

namespace {

// A process that is dead or stopped is found by its missing heartbeat (dist/watch.rs) and ends the others; a collective
// itself may wait for as long as another rank writes a checkpoint.
constexpr milliseconds COLLECTIVE_TIMEOUT = std::chrono::hours(24 * 7);

thread_local std::string last_error;

template <class F>
int guarded(F body) {
  try {
    body();
    return 0;
  } catch (const c10::Error& error) {
    last_error = error.what_without_backtrace();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown C++ exception";
  }
  return 1;
}

struct Store {
  intrusive_ptr<c10d::TCPStore> tcp;
};

struct Group {
  intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  nccl::Comm comm = nullptr;
  int size = 0;
};

bool on_cuda(const Group* group, const Tensor& x) {
  TORCH_CHECK(x.is_contiguous(), "collectives take contiguous tensors");
  if (x.is_cpu()) return false;
  TORCH_CHECK(group->comm, "no NCCL communicator for a tensor on ", x.device());
  return true;
}

void* stream_of(const Tensor& x) {
  const c10::impl::VirtualGuardImpl guard(x.device().type());
  return guard.getStream(x.device()).native_handle();
}

template <class Options>
Options patient() {
  Options options;
  options.timeout = COLLECTIVE_TIMEOUT;
  return options;
}

}  // namespace

// What the last call that failed on this thread said.
extern "C" const char* lcf_dist_error() { return last_error.c_str(); }

// A connection to the store at host:port. This process serves it where `serve` is set, on the listening socket `fd` where
// that is not negative.
extern "C" Store* lcf_store_open(const char* host, int port, int serve, int fd, long timeout_ms) {
  // Messages with a C++ stack would bury the one line that says what has happened.
  if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
  // c10d's record of past collectives changes a map of all groups of the process without a lock (FlightRecorder::
  // recordWithResetEnabled in 2.11): groups in several threads crash or loop for ever in it. Read once, by the first group.
  static const int recorder_off = setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/0);
  (void)recorder_off;
  Store* store = nullptr;
  guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = static_cast<std::uint16_t>(port);
    options.isServer = serve != 0;
    options.waitWorkers = false;
    if (fd >= 0) options.masterListenFd = fd;
    options.timeout = milliseconds(timeout_ms);
    store = new Store{c10::make_intrusive<c10d::TCPStore>(host, options)};
  });
  return store;
}

extern "C" void lcf_store_close(Store* store) { delete store; }

extern "C" int lcf_store_port(const Store* store) { return store->tcp->getPort(); }

// Sets a key; where `once` is set, only one that is not there yet.
extern "C" int lcf_store_set(Store* store, const char* key, const char* value, int once) {
  return guarded([&] {
    const std::vector<uint8_t> bytes(value, value + std::strlen(value));
    if (once) {
      store->tcp->compareSet(key, std::vector<uint8_t>{}, bytes);
    } else {
      store->tcp->set(key, bytes);
    }
  });
}

// Copies the value of a key to `out`, cut to `capacity`, and sets `length`: -1 where there is no such key.
extern "C" int lcf_store_get(Store* store, const char* key, char* out, long capacity, long* length) {
  return guarded([&] {
    *length = -1;
    if (!store->tcp->check({key})) return;
    const std::vector<uint8_t> value = store->tcp->get(key);
    *length = std::min<long>(static_cast<long>(value.size()), capacity);
    std::memcpy(out, value.data(), *length);
  });
}

extern "C" int lcf_store_add(Store* store, const char* key, long amount, long* sum) {
  return guarded([&] { *sum = store->tcp->add(key, amount); });
}

// Connects rank `rank` of `size` over the network interface, where one is named, else the one that has `address`.
extern "C" Group* lcf_group_join(Store* store, const char* prefix, int rank, int size, const char* address,
                                 const char* interface, long timeout_ms) {
  Group* group = nullptr;
  guarded([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(timeout_ms));
    options->devices.push_back(*interface ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                          : c10d::ProcessGroupGloo::createDeviceForHostname(address));
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>(prefix, store->tcp);
    group = new Group{c10::make_intrusive<c10d::ProcessGroupGloo>(prefixed, rank, size, options), nullptr, size};
  });
  return group;
}

// Nothing is torn down in CUDA: a graph that was captured with the communicator may still be there.
extern "C" void lcf_group_leave(Group* group) { delete group; }

// What rank 0 makes and every rank passes to lcf_group_join_nccl, 128 bytes.
extern "C" int lcf_nccl_id(char* out) {
  return guarded([&] {
    nccl::UniqueId id;
    nccl::check(nccl::api().get_unique_id(&id), "ncclGetUniqueId", nullptr);
    std::memcpy(out, id.bytes, sizeof id.bytes);
  });
}

// Adds CUDA device `device` of this rank, from here on the current one of this thread. Waits for all ranks.
extern "C" int lcf_group_join_nccl(Group* group, const char* id, int rank, int device) {
  return guarded([&] {
    c10::impl::VirtualGuardImpl(at::kCUDA).setDevice(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
    nccl::UniqueId unique;
    std::memcpy(unique.bytes, id, sizeof unique.bytes);
    nccl::Comm comm = nullptr;
    nccl::check(nccl::api().comm_init_rank(&comm, group->size, unique, rank), "ncclCommInitRank", nullptr);
    group->comm = comm;
  });
}

// Sums a tensor over the ranks, in place.
extern "C" int lcf_group_all_reduce(Group* group, const Tensor* x) {
  return guarded([&] {
    if (on_cuda(group, *x)) {
      const c10::DeviceGuard guard(x->device());
      void* data = x->mutable_data_ptr();
      nccl::check(nccl::api().all_reduce(data, data, x->numel(), nccl::type_of(*x), nccl::SUM, group->comm,
                                         stream_of(*x)),
                  "ncclAllReduce", group->comm);
      return;
    }
    std::vector<Tensor> tensors{*x};
    group->gloo->allreduce(tensors, patient<c10d::AllreduceOptions>())->wait();
  });
}

// Stacks the tensors of all ranks, of one shape and type: `[size, ...]`, as a new tensor.
extern "C" int lcf_group_all_gather(Group* group, const Tensor* x, Tensor** out) {
  return guarded([&] {
    std::vector<int64_t> shape = x->sizes().vec();
    shape.insert(shape.begin(), group->size);
    const bool cuda = on_cuda(group, *x);
    const c10::OptionalDeviceGuard guard(cuda ? std::optional(x->device()) : std::nullopt);
    Tensor all = at::empty(shape, x->options().requires_grad(false));
    if (cuda) {
      nccl::check(nccl::api().all_gather(x->const_data_ptr(), all.mutable_data_ptr(), x->numel(), nccl::type_of(*x),
                                         group->comm, stream_of(*x)),
                  "ncclAllGather", group->comm);
    } else {
      std::vector<Tensor> inputs{*x};
      std::vector<std::vector<Tensor>> outputs{all.unbind(0)};
      group->gloo->allgather(outputs, inputs, patient<c10d::AllgatherOptions>())->wait();
    }
    *out = new Tensor(std::move(all));
  });
}

// Overwrites a tensor with that of rank `root`.
extern "C" int lcf_group_broadcast(Group* group, const Tensor* x, int root) {
  return guarded([&] {
    if (on_cuda(group, *x)) {
      const c10::DeviceGuard guard(x->device());
      void* data = x->mutable_data_ptr();
      nccl::check(nccl::api().broadcast(data, data, x->numel(), nccl::type_of(*x), root, group->comm, stream_of(*x)),
                  "ncclBroadcast", group->comm);
      return;
    }
    std::vector<Tensor> tensors{*x};
    auto options = patient<c10d::BroadcastOptions>();
    options.rootRank = root;
    group->gloo->broadcast(tensors, options)->wait();
  });
}
