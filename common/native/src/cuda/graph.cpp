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

void check(cudaError_t code) { TORCH_CHECK(code == cudaSuccess, cudaGetErrorString(code)); }

// A graph, and the events that tell when its replays of even and odd number have ended.
struct Graph {
  // Kept, so that it can be looked at.
  at::cuda::CUDAGraph graph{true};
  cudaEvent_t ended[2] = {nullptr, nullptr};
  bool started[2] = {false, false};
  int next = 0;
  // Of alternatives, of which a replay takes one: they are graphs within it, and share memory of their own.
  std::vector<cudaGraph_t> alternatives;
  std::optional<c10::MempoolId_t> memory;
  c10::DeviceIndex device = 0;

  // What a stream records at present, and what the next thing recorded will wait for.
  struct Recording {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    cudaGraph_t graph = nullptr;
    const cudaGraphNode_t* after = nullptr;
    const cudaGraphEdgeData* edges = nullptr;
    size_t count = 0;

    explicit Recording(cudaStream_t stream) {
      check(cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph, &after, &edges, &count));
    }
  };
};

// The one that this thread records.
thread_local Graph* recorded = nullptr;

// Pieces of work on the second stream that may be waited for at a time.
constexpr int PIECES = 4;

// A thread's streams on a device, and the events by which they wait for each other. The third records alternatives.
struct Aside {
  std::optional<c10::cuda::CUDAStream> first, second, third, outside;
  cudaEvent_t begun = nullptr, ended[PIECES] = {};
  int next = 0;

  static Aside& of(int device) {
    thread_local std::map<int, Aside> all;
    Aside& aside = all[device];
    if (!aside.second) {
      const auto make = [](cudaEvent_t& event) { check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming)); };
      make(aside.begun);
      std::for_each(aside.ended, aside.ended + PIECES, make);
      for (auto stream : {&aside.second, &aside.third})
        *stream = c10::cuda::getStreamFromPool(false, static_cast<c10::DeviceIndex>(device));
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
    recorded = *graph;
  });
}

extern "C" int lcf_graph_end(Graph* graph) {
  return guarded([&] {
    recorded = nullptr;
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

// Back to the stream before. `piece` is what the other one was asked for up to here.
extern "C" int lcf_graph_step_back(int device, int* piece) {
  return guarded([&] {
    Aside& aside = Aside::of(device);
    *piece = aside.next;
    aside.next = (aside.next + 1) % PIECES;
    check(cudaEventRecord(aside.ended[*piece], *aside.second));
    c10::cuda::setCurrentCUDAStream(*aside.first);
  });
}

// What the current stream is asked for from now on starts after that piece.
extern "C" int lcf_graph_join(int device, int piece) {
  return guarded([&] { check(cudaStreamWaitEvent(c10::cuda::getCurrentCUDAStream(), Aside::of(device).ended[piece])); });
}

// Makes room for `count` alternatives in the graph that is being recorded. The handle by which a kernel that comes before them
// chooses one, or 0 where nothing is recorded.
extern "C" int lcf_graph_choice(int count, uint64_t* handle) {
  return guarded([&] {
    *handle = 0;
    const Graph::Recording now(c10::cuda::getCurrentCUDAStream());
    if (now.status == cudaStreamCaptureStatusNone) return;
    TORCH_CHECK(recorded && recorded->alternatives.empty(), "one choice a graph");
    recorded->alternatives.resize(count);
    check(cudaGraphConditionalHandleCreate(reinterpret_cast<cudaGraphConditionalHandle*>(handle), now.graph));
  });
}

// The alternatives come here, after what the current stream was asked for.
extern "C" int lcf_graph_alternatives(int device, uint64_t handle) {
  return guarded([&] {
    Graph& graph = *recorded;
    const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
    const Graph::Recording now(stream);
    cudaGraphNodeParams params = {};
    params.type = cudaGraphNodeTypeConditional;
    params.conditional.handle = handle;
    params.conditional.type = cudaGraphCondTypeSwitch;
    params.conditional.size = graph.alternatives.size();
    cudaGraphNode_t node;
    check(cudaGraphAddNode(&node, now.graph, now.after, now.edges, now.count, &params));
    std::copy_n(params.conditional.phGraph_out, graph.alternatives.size(), graph.alternatives.begin());
    check(cudaStreamUpdateCaptureDependencies(stream, &node, nullptr, 1, cudaStreamSetCaptureDependencies));
    // libtorch knows its graph's memory by what a stream records, and an alternative is recorded apart.
    Aside& aside = Aside::of(device);
    aside.outside = stream;
    graph.device = static_cast<c10::DeviceIndex>(device);
    graph.memory = at::cuda::graph_pool_handle();
    c10::cuda::CUDACachingAllocator::beginAllocateToPool(
        graph.device, *graph.memory, [third = aside.third->stream()](cudaStream_t stream) { return stream == third; });
  });
}

// What is asked for until lcf_graph_alternative_end is alternative `i`.
extern "C" int lcf_graph_alternative_begin(int device, int i) {
  return guarded([&] {
    const c10::cuda::CUDAStream third = *Aside::of(device).third;
    check(cudaStreamBeginCaptureToGraph(third, recorded->alternatives[i], nullptr, nullptr, 0,
                                        cudaStreamCaptureModeThreadLocal));
    c10::cuda::setCurrentCUDAStream(third);
  });
}

extern "C" int lcf_graph_alternative_end(int device) {
  return guarded([&] {
    Aside& aside = Aside::of(device);
    c10::cuda::setCurrentCUDAStream(*aside.outside);
    cudaGraph_t same;
    check(cudaStreamEndCapture(*aside.third, &same));
  });
}

extern "C" int lcf_graph_alternatives_end() {
  return guarded([&] {
    c10::cuda::CUDACachingAllocator::endAllocateToPool(recorded->device, *recorded->memory);
  });
}

// How many kernels a replay starts, with the last alternative.
extern "C" int lcf_graph_kernels(Graph* graph, int64_t* kernels) {
  return guarded([&] {
    *kernels = 0;
    std::vector<cudaGraph_t> parts = {graph->graph.raw_cuda_graph()};
    if (!graph->alternatives.empty()) parts.push_back(graph->alternatives.back());
    for (cudaGraph_t part : parts) {
      size_t count = 0;
      check(cudaGraphGetNodes(part, nullptr, &count));
      std::vector<cudaGraphNode_t> nodes(count);
      check(cudaGraphGetNodes(part, nodes.data(), &count));
      *kernels += std::count_if(nodes.begin(), nodes.end(), [](cudaGraphNode_t node) {
        cudaGraphNodeType type;
        check(cudaGraphNodeGetType(node, &type));
        return type == cudaGraphNodeTypeKernel;
      });
    }
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
    const auto memory = graph->memory;
    const auto device = graph->device;
    delete graph;
    if (memory) c10::cuda::CUDACachingAllocator::releasePool(device, *memory);
  });
}

// Most bytes of the device that tensors ever took.
extern "C" int lcf_graph_peak_bytes(int device, int64_t* bytes) {
  return guarded([&] {
    *bytes = c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(device)).allocated_bytes[0].peak;
  });
}
