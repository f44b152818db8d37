// libtorch's CUDA classes: the one part that links against libtorch_cuda. It is a shared object of its own, carried inside
// the program and opened after libtorch_cuda.so, so that the program starts on machines without CUDA.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <exception>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace {

thread_local std::string last_error;

template <class F>
int guarded(F f) {
  try {
    f();
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

// A graph, and the events that tell when its replays of even and odd number have ended.
struct Graph {
  // Kept, so that it can be looked at.
  at::cuda::CUDAGraph graph{true};
  cudaEvent_t ended[2] = {nullptr, nullptr};
  bool started[2] = {false, false};
  int next = 0;
};

void check(cudaError_t code) { TORCH_CHECK(code == cudaSuccess, cudaGetErrorString(code)); }

// A thread's two streams on a device, and the events by which they wait for each other.
struct Aside {
  std::optional<c10::cuda::CUDAStream> first, second;
  cudaEvent_t begun = nullptr, ended = nullptr;

  static Aside& of(int device) {
    thread_local std::map<int, Aside> all;
    Aside& aside = all[device];
    if (!aside.second) {
      for (auto event : {&aside.begun, &aside.ended}) check(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
      aside.second = c10::cuda::getStreamFromPool(false, static_cast<c10::DeviceIndex>(device));
    }
    return aside;
  }
};

}  // namespace

extern "C" const char* lcf_graph_error() { return last_error.c_str(); }

// Makes a device this thread's current one, with a stream of its own: the default stream cannot be captured.
extern "C" int lcf_graph_use_stream(int device) {
  return guarded([&] {
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(device));
    c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromPool(false, static_cast<c10::DeviceIndex>(device)));
  });
}

extern "C" int lcf_graph_begin(Graph** graph) {
  return guarded([&] {
    *graph = new Graph();
    for (auto& event : (*graph)->ended) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    (*graph)->graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
  });
}

extern "C" int lcf_graph_end(Graph* graph) {
  return guarded([&] {
    graph->graph.capture_end();
    graph->graph.instantiate();
  });
}

// Makes another stream this thread's current one, which starts after what the one before was asked for so far.
extern "C" int lcf_graph_step_aside(int device) {
  return guarded([&] {
    Aside& aside = Aside::of(device);
    aside.first = c10::cuda::getCurrentCUDAStream();
    check(cudaEventRecord(aside.begun, *aside.first));
    check(cudaStreamWaitEvent(*aside.second, aside.begun));
    c10::cuda::setCurrentCUDAStream(*aside.second);
  });
}

// Back to the stream before.
extern "C" int lcf_graph_step_back(int device) {
  return guarded([&] {
    Aside& aside = Aside::of(device);
    check(cudaEventRecord(aside.ended, *aside.second));
    c10::cuda::setCurrentCUDAStream(*aside.first);
  });
}

// What the current stream is asked for from now on starts after what the other one was asked for.
extern "C" int lcf_graph_join(int device) {
  return guarded([&] { check(cudaStreamWaitEvent(c10::cuda::getCurrentCUDAStream(), Aside::of(device).ended)); });
}

// How many kernels a replay starts.
extern "C" int lcf_graph_kernels(Graph* graph, int64_t* kernels) {
  return guarded([&] {
    size_t count = 0;
    check(cudaGraphGetNodes(graph->graph.raw_cuda_graph(), nullptr, &count));
    std::vector<cudaGraphNode_t> nodes(count);
    check(cudaGraphGetNodes(graph->graph.raw_cuda_graph(), nodes.data(), &count));
    *kernels = std::count_if(nodes.begin(), nodes.end(), [](cudaGraphNode_t node) {
      cudaGraphNodeType type;
      check(cudaGraphNodeGetType(node, &type));
      return type == cudaGraphNodeTypeKernel;
    });
  });
}

// Starts a replay, and waits for the one before the last: the device always has one waiting, the host is never further
// ahead.
extern "C" int lcf_graph_replay(Graph* graph) {
  return guarded([&] {
    const int slot = graph->next;
    graph->next = 1 - slot;
    if (graph->started[slot]) check(cudaEventSynchronize(graph->ended[slot]));
    graph->graph.replay();
    check(cudaEventRecord(graph->ended[slot], c10::cuda::getCurrentCUDAStream()));
    graph->started[slot] = true;
  });
}

extern "C" void lcf_graph_free(Graph* graph) {
  guarded([&] {
    c10::cuda::getCurrentCUDAStream().synchronize();
    for (auto& event : graph->ended) cudaEventDestroy(event);
    delete graph;
  });
}

// Most bytes of the device that tensors ever took.
extern "C" int lcf_graph_peak_bytes(int device, int64_t* bytes) {
  return guarded([&] {
    *bytes = c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(device)).allocated_bytes[0].peak;
  });
}
