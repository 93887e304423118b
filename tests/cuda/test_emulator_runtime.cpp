// The emulator's runtime API: memory, streams, graphs, and the failures that a test can ask for.
#include <thread>

#include "emulator/selftest.h"
#include "harness.h"

#if defined(__SANITIZE_ADDRESS__)
// A kernel that is stopped leaves what was on its stack as it is.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
#endif

namespace {

void expect(const std::string& name, bool right) { test::report(name, right ? "" : "is wrong"); }
void expect(const std::string& name, cudaError_t got, cudaError_t want = cudaSuccess) {
    test::report(name, got == want ? "" : std::string("got ") + cudaGetErrorName(got) + ", not " + cudaGetErrorName(want));
}

// Sets options for a scope, and leaves no fault behind.
struct With {
    explicit With(const char* text) : saved(cudaemu::options) { expect(text, cudaemu::configure(text)); }
    ~With() {
        cudaemu::options = saved;
        cudaemu::clear_fault();
    }
    cudaemu::Options saved;
};

constexpr size_t kBytes = 4 << 16;

struct Buffers {
    float *device = nullptr, *pinned = nullptr;
    cudaStream_t stream = nullptr;
    Buffers() {
        cudaMalloc(reinterpret_cast<void**>(&device), kBytes);
        cudaHostAlloc(reinterpret_cast<void**>(&pinned), kBytes, cudaHostAllocDefault);
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
        cudaMemset(device, 0, kBytes);
        cudaDeviceSynchronize();  // a stream that does not block does not wait for the cudaMemset()
        std::memset(pinned, 0, kBytes);
    }
    ~Buffers() {
        cudaemu::clear_fault();
        cudaStreamDestroy(stream);
        cudaFreeHost(pinned);
        cudaFree(device);
    }
    float first() const {
        float out = 0;
        cudaMemcpy(&out, device, 4, cudaMemcpyDeviceToHost);
        return out;
    }
};

void memory() {
    void *a = nullptr, *b = nullptr, *c = nullptr;
    size_t free = 0, total = 0;
    {
        const With options("limit=1000000");
        expect("first", cudaMalloc(&a, 600000));
        expect("over the limit", cudaMalloc(&b, 600000), cudaErrorMemoryAllocation);
        expect("null when out of memory", b == nullptr);
        expect("its text", std::string(cudaGetErrorString(cudaErrorMemoryAllocation)) == "out of memory");
        expect("remembered once", cudaGetLastError(), cudaErrorMemoryAllocation);
        expect("and no longer", cudaGetLastError());
        expect("total", cudaMemGetInfo(&free, &total) == cudaSuccess && total == 1000000 && free < 400000 && free > 399000);
        expect("free", cudaFree(a));
        expect("room again", cudaMalloc(&b, 900000));
        expect("the same place", a == b);
        expect("aligned", reinterpret_cast<uintptr_t>(b) % 256 == 0);
        cudaFree(b);
        expect("freed twice", cudaFree(b), cudaErrorInvalidValue);
        expect("nothing", cudaMalloc(&c, 0) == cudaSuccess && c == nullptr && cudaFree(nullptr) == cudaSuccess);
    }
    {
        const With options("no_reuse");
        cudaMalloc(&a, 1000);
        cudaFree(a);
        cudaMalloc(&b, 1000);
        expect("another place", a != b);
        cudaFree(b);
    }
    {  // Holes grow together again.
        const With options("");
        void *parts[4] = {}, *whole = nullptr;
        for (void*& part : parts) cudaMalloc(&part, 1 << 16);
        for (int i : {1, 3, 0, 2}) cudaFree(parts[i]);
        expect("whole again", cudaMalloc(&whole, 4 << 16) == cudaSuccess && whole == parts[0]);
        cudaFree(whole);
    }
    const test::DeviceArray<float> array(size_t(8));
    expect("not written: NaN", std::isnan(array.host()[3]));
    float host[16] = {};
    expect("past its end", cudaMemcpy(host, array.data, 36, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    expect("wrong direction", cudaMemcpy(host, array.data, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    expect("set past its end", cudaMemset(array.data, 0, 33), cudaErrorInvalidValue);
    cudaPointerAttributes attributes{};
    cudaPointerGetAttributes(&attributes, array.data + 7);
    expect("device pointer", attributes.type == cudaMemoryTypeDevice);
    cudaHostRegister(host, sizeof host, cudaHostRegisterDefault);
    cudaPointerGetAttributes(&attributes, host + 1);
    expect("registered", attributes.type == cudaMemoryTypeHost);
    expect("registered twice", cudaHostRegister(host, 4, 0), cudaErrorHostMemoryAlreadyRegistered);
    expect("unregister", cudaHostUnregister(host));
    expect("unregistered twice", cudaHostUnregister(host), cudaErrorHostMemoryNotRegistered);
    cudaGetLastError();
}

// A staging buffer that is used again too early, a result that is read too early: seen where streams are deferred.
void deferred(bool is) {
    const With options(is ? "deferred" : "");
    const Buffers b;
    b.pinned[0] = 1;
    cudaMemcpyAsync(b.device, b.pinned, 4, cudaMemcpyHostToDevice, b.stream);
    b.pinned[0] = 2;  // too early
    cudaStreamSynchronize(b.stream);
    expect("staging buffer", b.first() == (is ? 2 : 1));

    b.pinned[0] = -1;
    cudaMemcpyAsync(b.pinned, b.device, 4, cudaMemcpyDeviceToHost, b.stream);
    expect("read too early", (b.pinned[0] == -1) == is);
    expect("asked", cudaStreamQuery(b.stream), is ? cudaErrorNotReady : cudaSuccess);
    expect("asked again", cudaStreamQuery(b.stream));
    expect("arrived", b.pinned[0] == (is ? 2 : 1));

    float pageable = 5;  // read before the call comes back
    cudaMemcpyAsync(b.device, &pageable, 4, cudaMemcpyHostToDevice, b.stream);
    pageable = 6;
    selftest::launch("ones", 1, b.device, b.stream);
    cudaMemcpyAsync(&pageable, b.device, 4, cudaMemcpyDeviceToHost, b.stream);  // waits
    expect("pageable", pageable == 6);

    cudaEvent_t event = nullptr, never = nullptr;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    cudaEventCreate(&never);
    expect("an event that was never recorded", cudaEventSynchronize(never));
    b.pinned[1] = b.pinned[2] = -1;
    cudaMemcpyAsync(b.pinned + 1, b.device, 4, cudaMemcpyDeviceToHost, b.stream);
    cudaEventRecord(event, b.stream);
    cudaMemcpyAsync(b.pinned + 2, b.device, 4, cudaMemcpyDeviceToHost, b.stream);
    expect("event", cudaEventSynchronize(event));
    expect("up to the event", b.pinned[1] == 6);
    expect("and no further", (b.pinned[2] == -1) == is);

    cudaStream_t other = nullptr;
    cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
    cudaMemsetAsync(b.device, 0, 4, b.stream);
    selftest::launch("ones", 1, b.device, b.stream);
    cudaEventRecord(event, b.stream);
    cudaStreamWaitEvent(other, event, 0);
    cudaMemcpyAsync(b.pinned, b.device, 4, cudaMemcpyDeviceToHost, other);
    expect("the other stream", cudaStreamSynchronize(other));
    expect("waited for the first", b.pinned[0] == 1);
    cudaMemsetAsync(b.device, 0, 4, b.stream);
    cudaMemcpyAsync(b.pinned, b.device, 4, cudaMemcpyDeviceToHost, other);  // without waiting
    cudaStreamSynchronize(other);
    expect("did not wait", b.pinned[0] == (is ? 1 : 0));
    cudaDeviceSynchronize();

    cudaStream_t blocking = nullptr;
    cudaStreamCreate(&blocking);
    selftest::launch("ones", 1, b.device, blocking);
    expect("the default stream waits for it", b.first() == 1);
    int calls = 0;
    cudaLaunchHostFunc(other, [](void* p) { ++*static_cast<int*>(p); }, &calls);
    expect("destroy", cudaStreamDestroy(other));
    expect("its work was done", calls == 1);
    expect("destroyed twice", cudaStreamDestroy(other), cudaErrorInvalidResourceHandle);
    expect("launch on it", selftest::launch("ones", 1, b.device, other), cudaErrorInvalidResourceHandle);
    cudaStreamDestroy(blocking);
    cudaEventDestroy(event);
    cudaEventDestroy(never);
    cudaGetLastError();
}

void graphs(bool deferred) {
    const With options(deferred ? "deferred" : "");
    const Buffers b;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    expect("begin", cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeThreadLocal));
    cudaStreamCaptureStatus status{};
    expect("capturing", cudaStreamIsCapturing(b.stream, &status) == cudaSuccess && status == cudaStreamCaptureStatusActive);
    selftest::launch("ones", 1, b.device, b.stream);
    selftest::launch("ones", 1, b.device, b.stream);
    cudaMemcpyAsync(b.pinned, b.device, 4, cudaMemcpyDeviceToHost, b.stream);
    expect("end", cudaStreamEndCapture(b.stream, &graph));
    expect("nothing ran", b.first() == 0);
    expect("instantiate", cudaGraphInstantiate(&executable, graph, 0));
    expect("the graph is not needed any more", cudaGraphDestroy(graph));
    for (int i = 0; i < 3; ++i) expect("launch", cudaGraphLaunch(executable, b.stream));
    cudaStreamSynchronize(b.stream);
    expect("ran three times", b.first() == 6 && b.pinned[0] == 6);

    cudaemu::options.fail_launch = 4;  // the second kernel of the second launch
    cudaGraphLaunch(executable, b.stream);
    const cudaError_t queued = cudaGraphLaunch(executable, b.stream);
    expect("a kernel in a graph fails", cudaStreamSynchronize(b.stream), cudaErrorIllegalAddress);
    expect("seen at the launch", (queued != cudaSuccess) == !deferred);
    cudaemu::clear_fault();
    expect("destroy", cudaGraphExecDestroy(executable));
    expect("destroyed twice", cudaGraphExecDestroy(executable), cudaErrorInvalidValue);
    expect("launch it", cudaGraphLaunch(executable, b.stream), cudaErrorInvalidValue);

    const auto capture_with = [&](const char* name, cudaStreamCaptureMode mode, auto call, cudaError_t inside,
                                  cudaError_t end) {
        cudaStreamBeginCapture(b.stream, mode);
        expect(name, call(), inside);
        expect(name, cudaStreamEndCapture(b.stream, &graph), end);
        expect(name, (graph == nullptr) == (end != cudaSuccess));
        if (graph) cudaGraphDestroy(graph);
    };
    void* memory = nullptr;
    constexpr auto kUnsupported = cudaErrorStreamCaptureUnsupported, kInvalidated = cudaErrorStreamCaptureInvalidated;
    capture_with(
        "cudaMalloc", cudaStreamCaptureModeGlobal, [&] { return cudaMalloc(&memory, 4); }, kUnsupported, kInvalidated);
    capture_with(
        "cudaMalloc, relaxed", cudaStreamCaptureModeRelaxed, [&] { return cudaMalloc(&memory, 4); }, cudaSuccess,
        cudaSuccess);
    capture_with(
        "synchronize", cudaStreamCaptureModeRelaxed, [&] { return cudaStreamSynchronize(b.stream); }, kUnsupported,
        kInvalidated);
    capture_with(
        "cudaMalloc of another thread", cudaStreamCaptureModeThreadLocal,
        [&] {
            cudaError_t error = cudaSuccess;
            std::thread([&] { error = cudaMalloc(&memory, 4) != cudaSuccess ? cudaErrorUnknown : cudaFree(memory); }).join();
            return error;
        },
        cudaSuccess, cudaSuccess);
    capture_with(
        "copy at once", cudaStreamCaptureModeGlobal, [&] { return cudaMemcpy(b.device, &memory, 4, cudaMemcpyDefault); },
        kUnsupported, kInvalidated);
    expect("end without begin", cudaStreamEndCapture(b.stream, &graph), cudaErrorInvalidValue);
    expect("of the default stream", cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal), kUnsupported);
    cudaGetLastError();
}

void failures() {
    int count = 1, version = 0;
    const Buffers b;
    void* memory = nullptr;
    for (const char* machine : {"device=none", "device=no_driver", "device=old_driver"}) {
        const With options(machine);
        const bool driver = std::string(machine) == "device=none";
        const cudaError_t want = driver ? cudaErrorNoDevice : cudaErrorInsufficientDriver;
        expect(machine, cudaGetDeviceCount(&count), want);
        expect(machine, count == 0);
        expect(machine, cudaMalloc(&memory, 4), want);
        expect(machine, cudaDriverGetVersion(&version) == cudaSuccess && (version >= CUDART_VERSION) == driver);
        expect(machine, (version == 0) == (std::string(machine) == "device=no_driver"));
    }
    cudaDeviceProp properties{};
    expect("one device", cudaGetDeviceCount(&count) == cudaSuccess && count == 1 && cudaSetDevice(0) == cudaSuccess);
    expect("its properties", cudaGetDeviceProperties(&properties, 0) == cudaSuccess && properties.major == 8);
    expect("no second", cudaSetDevice(1), cudaErrorInvalidDevice);
    {
        const With options("fail=3:2");
        const uint64_t before = cudaemu::call_count();
        expect("first call", cudaSetDevice(0));
        expect("second call", cudaMemset(b.device, 0, 4));
        expect("third call", cudaMemset(b.device, 0, 4), cudaErrorMemoryAllocation);
        expect("fourth call", cudaMemset(b.device, 0, 4));
        expect("count of calls", cudaemu::call_count() == before + 4);
        expect("peek", cudaPeekAtLastError() == cudaErrorMemoryAllocation &&
                           cudaGetLastError() == cudaErrorMemoryAllocation && cudaPeekAtLastError() == cudaSuccess);
    }
    {
        const With options("fail=2:214:sticky");
        expect("before", cudaSetDevice(0));
        expect("now", cudaSetDevice(0), cudaErrorECCUncorrectable);
        expect("from now on", cudaFreeHost(b.pinned), cudaErrorECCUncorrectable);
        expect("even when asked",
               cudaGetLastError() == cudaErrorECCUncorrectable && cudaGetLastError() == cudaErrorECCUncorrectable);
    }
    expect("no longer", cudaSetDevice(0));
    for (const char* text : {"fault=2", "fault=2,deferred"}) {
        const With options(text);
        selftest::launch("ones", 1, b.device, b.stream);
        selftest::launch("ones", 1, b.device, b.stream);
        expect(text, cudaStreamSynchronize(b.stream), cudaErrorIllegalAddress);
        expect(text, std::string(cudaGetErrorString(cudaErrorIllegalAddress)).rfind("an illegal memory access", 0) == 0);
        expect(text, selftest::launch("ones", 1, b.device, b.stream), cudaErrorIllegalAddress);
        expect(text, cudaMalloc(&memory, 4), cudaErrorIllegalAddress);
    }
    selftest::launch("trap", 1, b.device);
    expect("a fault of a kernel stays", cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    cudaemu::clear_fault();
    expect("a launch that is not one", selftest::launch("ones", 1, b.device, nullptr, 2000), cudaErrorInvalidConfiguration);
    expect("and the next", selftest::launch("ones", 1, b.device));
    for (const char* wrong : {"order=sideways", "fault", "frobnicate", "device=two", "fail=3"})
        expect(wrong, cudaemu::configure(wrong) == (std::string(wrong) == "fault"));
    cudaGetLastError();
}

void reset() {
    void* memory = nullptr;
    cudaStream_t stream = nullptr;
    cudaMalloc(&memory, 1 << 20);
    cudaStreamCreate(&stream);
    selftest::launch("trap", 1, static_cast<float*>(memory));
    size_t free = 0, total = 0;
    expect("reset", cudaDeviceReset());
    expect("all memory is free", cudaMemGetInfo(&free, &total) == cudaSuccess && free == total);
    expect("no stream", cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
    cudaGetLastError();
}

void threads() {
    const With options("deferred");
    std::vector<std::thread> all;
    std::vector<int> right(4, 0);
    for (size_t t = 0; t < right.size(); ++t)
        all.emplace_back([&right, t] {
            const Buffers b;
            for (int i = 0; i < 20; ++i) selftest::launch("ones", 1, b.device, b.stream);
            cudaMemcpyAsync(b.pinned, b.device, 128, cudaMemcpyDeviceToHost, b.stream);
            cudaStreamSynchronize(b.stream);
            right[t] = b.pinned[0] == 20 && b.pinned[31] == 20;
        });
    for (std::thread& t : all) t.join();
    for (int r : right) expect("host threads", r != 0);
}

}  // namespace

int main(int argc, char** argv) {
    return test::run_all(argc, argv, [] {
        memory();
        for (const bool late : {false, true}) {
            deferred(late);
            graphs(late);
        }
        failures();
        threads();
        reset();
    });
}
