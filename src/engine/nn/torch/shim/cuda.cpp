// What libtorch can do on a card and its C interface does not offer: the allocator's figures, pinned
// memory, events, and whole computations as CUDA graphs. A shared object of its own, which is opened
// when the program runs: so one program serves with a card and without.
//
// Every function returns 0, or 1 with `last_error()` saying why.

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>

namespace {

thread_local std::string error;

template <typename F>
int guarded(F&& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& e) {
    error = e.what();
  } catch (...) {
    error = "an unknown exception";
  }
  return 1;
}

void check(cudaError_t code) {
  TORCH_CHECK(code == cudaSuccess, cudaGetErrorString(code));
}

struct Memory {
  uint64_t allocated, reserved, peak, device_total, device_free;
};

const char* last_error() { return error.c_str(); }

// Before anything else on that card: all work goes to a stream of its own, since the default one cannot
// be recorded; sums of fp16 are kept in fp32, and fp32 is fp32; convolutions are measured once for each
// shape.
int prepare(int card) {
  return guarded([&] {
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(card));
    c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromPool(true, card));
    at::globalContext().setBenchmarkCuDNN(true);
    at::globalContext().setAllowTF32CuDNN(false);
    at::globalContext().setAllowTF32CuBLAS(false);
    at::globalContext().setAllowFP16ReductionCuBLAS(false);
    at::globalContext().setAllowBF16ReductionCuBLAS(false);
  });
}

int memory(int card, Memory* out) {
  return guarded([&] {
    namespace ca = c10::CachingAllocator;
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(card);
    const auto all = static_cast<size_t>(ca::StatType::AGGREGATE);
    out->allocated = stats.allocated_bytes[all].current;
    out->reserved = stats.reserved_bytes[all].current;
    out->peak = stats.allocated_bytes[all].peak;
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total));
    out->device_total = total;
    out->device_free = free;
  });
}

int reset_peak(int card) {
  return guarded([&] { c10::cuda::CUDACachingAllocator::resetPeakStats(card); });
}

int empty_cache() {
  return guarded([] {
    check(cudaDeviceSynchronize());
    c10::cuda::CUDACachingAllocator::emptyCache();
  });
}

int limit(int card, double fraction) {
  return guarded([&] { c10::cuda::CUDACachingAllocator::setMemoryFraction(fraction, card); });
}

// As text that ends in 0.
int name(int card, char* out, size_t room) {
  return guarded([&] {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, card));
    snprintf(out, room, "%s", properties.name);
  });
}

// Of bytes; the caller owns it.
int pinned(int64_t bytes, at::Tensor** out) {
  return guarded([&] {
    const auto options = at::TensorOptions().dtype(at::kByte).pinned_memory(true);
    *out = new at::Tensor(at::empty({bytes}, options));
  });
}

int event_new(void** out) {
  return guarded([&] {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync));
    *out = event;
  });
}

int event_record(void* event) {
  return guarded([&] {
    check(cudaEventRecord(static_cast<cudaEvent_t>(event), c10::cuda::getCurrentCUDAStream()));
  });
}

int event_wait(void* event) {
  return guarded([&] { check(cudaEventSynchronize(static_cast<cudaEvent_t>(event))); });
}

void event_free(void* event) { cudaEventDestroy(static_cast<cudaEvent_t>(event)); }

int graph_begin(void** out) {
  return guarded([&] {
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    // Other threads may go on with what they do.
    graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    *out = graph.release();
  });
}

int graph_end(void* graph) {
  return guarded([&] { static_cast<at::cuda::CUDAGraph*>(graph)->capture_end(); });
}

int graph_replay(void* graph) {
  return guarded([&] { static_cast<at::cuda::CUDAGraph*>(graph)->replay(); });
}

void graph_free(void* graph) {
  guarded([&] { delete static_cast<at::cuda::CUDAGraph*>(graph); });
}

struct Table {
  uint32_t version;
  decltype(&last_error) last_error_;
  decltype(&prepare) prepare_;
  decltype(&memory) memory_;
  decltype(&reset_peak) reset_peak_;
  decltype(&empty_cache) empty_cache_;
  decltype(&limit) limit_;
  decltype(&name) name_;
  decltype(&pinned) pinned_;
  decltype(&event_new) event_new_;
  decltype(&event_record) event_record_;
  decltype(&event_wait) event_wait_;
  decltype(&event_free) event_free_;
  decltype(&graph_begin) graph_begin_;
  decltype(&graph_end) graph_end_;
  decltype(&graph_replay) graph_replay_;
  decltype(&graph_free) graph_free_;
};

}  // namespace

// The order of its fields is that of `Table` in cuda.rs; another order is another version.
extern "C" const void* diffused_cuda() {
  static const Table table = {
      1,           &last_error, &prepare,   &memory,       &reset_peak, &empty_cache, &limit,      &name,         &pinned,
      &event_new, &event_record, &event_wait, &event_free, &graph_begin, &graph_end, &graph_replay, &graph_free,
  };
  return &table;
}
