// libtorch's memory on the host, in the same account and under the same limit as everything else that
// this process allocates (engine/memory.rs).

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>
#ifdef __APPLE__
#include <malloc/malloc.h>
#else
#include <malloc.h>
#endif

extern "C" {
bool diffused_may_grow(size_t bytes);
void diffused_grown(size_t bytes);
void diffused_shrunk(size_t bytes);
}

namespace {

size_t size_of(void* data) {
#ifdef __APPLE__
  return malloc_size(data);
#else
  return malloc_usable_size(data);
#endif
}

void release(void* data) {
  if (data != nullptr) {
    diffused_shrunk(size_of(data));
    c10::free_cpu(data);
  }
}

struct Counting final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    TORCH_CHECK(diffused_may_grow(bytes), "out of memory: ", bytes, " bytes");
    void* data = c10::alloc_cpu(bytes);
    if (data != nullptr) {
      diffused_grown(size_of(data));
    }
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, std::size_t count) const override {
    default_copy_data(to, from, count);
  }
};

}  // namespace

extern "C" void diffused_count_host_memory() {
  static Counting counting;
  c10::SetCPUAllocator(&counting, 100);
}
