// Runs CUDA C on one CPU core: enough of CUDA's language for the kernels of kernels/cuda, unmodified, under g++.
//
// Every thread of a block is a fiber, which runs until it waits for others or ends; blocks run one after another.
// Harder than the machine it stands in for, so that mistakes show:
// - threads and blocks run in ascending or in descending order, at the caller's choice, each warp as far as barriers
//   let it go before the next one starts: results must not depend on it;
// - shared memory is full of NaN when a block starts;
// - a barrier that some thread of the block (or of the warp) does not reach, or reaches at another line, is an error;
// - parameters are checked against the arguments' types by whoever calls (see emulated.py).
// What it cannot show: races that any order of whole fibers hides, tensor-core code, speed.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("cuda_shared")))

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

dim3 threadIdx, blockIdx, blockDim, gridDim;

extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

namespace cuda_on_cpu {

// ------------------------------------------------------------------------------------------------ fibers

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
// Saves what a called function must preserve, changes stacks, restores: a few nanoseconds, where swapcontext
// asks the operating system about signals every time.
extern "C" void cuda_on_cpu_switch(void** save, void* load);
asm(R"(
    .text
    .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cuda_on_cpu_switch, . - cuda_on_cpu_switch
)");
struct Fiber {
    void* stack_pointer = nullptr;
    void start(char* stack, std::size_t size, void (*entry)()) {
        void** top = reinterpret_cast<void**>(stack + size);  // 16-byte aligned
        *--top = nullptr;                                      // where `entry` would return to, were it to return
        *--top = reinterpret_cast<void*>(entry);
        for (int i = 0; i < 6; i++) *--top = nullptr;
        stack_pointer = top;
    }
    void switch_to(Fiber& other) { cuda_on_cpu_switch(&stack_pointer, other.stack_pointer); }
};
#else
#include <ucontext.h>
struct Fiber {
    ucontext_t context;
    void start(char* stack, std::size_t size, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = size;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    void switch_to(Fiber& other) { swapcontext(&context, &other.context); }
};
#endif

// ------------------------------------------------------------------------------------------------ scheduling

constexpr int WARP = 32;
constexpr int MAX_THREADS = 1024;
constexpr std::size_t STACK = 128 * 1024;

struct Barrier {  // of a block or of a warp
    int size = 0, arrived = 0, line = 0, round = 0;
};

struct Thread {
    Fiber fiber;
    dim3 index;
    int lane = 0;
    Barrier* warp = nullptr;
    Barrier* waits_at = nullptr;
    int waits_in_round = 0;
    bool done = false;
    int parity = 0;
    alignas(8) char handed[2][8];  // what it gives to a shuffle; two, so that the next one cannot overtake a reader
};

struct Machine {
    Fiber scheduler;
    std::vector<Thread> threads;
    std::vector<char> stacks;
    Barrier block;
    Barrier warps[MAX_THREADS / WARP];
    Thread* current = nullptr;
    void (*body)(void*) = nullptr;
    void* arguments = nullptr;
    char message[200] = "";
};
static Machine machine;

[[noreturn]] inline void fail(const char* format, int a = 0, int b = 0) {
    std::snprintf(machine.message, sizeof machine.message, format, a, b);
    machine.current->fiber.switch_to(machine.scheduler);  // never resumed
    __builtin_unreachable();
}

inline void wait(Barrier& barrier, int line) {
    if (barrier.arrived == 0) barrier.line = line;
    if (barrier.line != line) fail("threads wait at different barriers, lines %d and %d", barrier.line, line);
    if (++barrier.arrived == barrier.size) {  // the last one goes straight on
        barrier.arrived = 0;
        barrier.round++;
        return;
    }
    Thread& me = *machine.current;
    me.waits_at = &barrier;
    me.waits_in_round = barrier.round;
    me.fiber.switch_to(machine.scheduler);
}

inline void run_thread() {
    machine.body(machine.arguments);
    machine.current->done = true;
    machine.current->fiber.switch_to(machine.scheduler);
}

// Plain stores, unseen by the address sanitizer, which keeps red zones between shared arrays.
__attribute__((no_sanitize("address", "undefined"))) inline void poison_shared() {
    for (volatile char* p = __start_cuda_shared; p != __stop_cuda_shared; ++p) *p = static_cast<char>(0xff);
}

inline bool run_block(int n_threads, bool reversed) {
    Machine& m = machine;
    if (__start_cuda_shared) poison_shared();
    m.block = Barrier{n_threads};
    for (int w = 0; w * WARP < n_threads; w++)
        m.warps[w] = Barrier{n_threads - w * WARP < WARP ? n_threads - w * WARP : WARP};
    for (int i = 0; i < n_threads; i++) {
        Thread& t = m.threads[i];
        unsigned u = static_cast<unsigned>(i);
        t.index = {u % blockDim.x, u / blockDim.x % blockDim.y, u / (blockDim.x * blockDim.y)};
        t.lane = i % WARP;
        t.warp = &m.warps[i / WARP];
        t.waits_at = nullptr;
        t.done = false;
        t.parity = 0;
        t.fiber.start(m.stacks.data() + i * STACK, STACK, run_thread);
    }
    // A warp runs until all its threads are done or wait for the rest of the block, and only then the next one starts:
    // warps are as far apart as barriers allow.
    int n_warps = (n_threads + WARP - 1) / WARP;
    for (int left = n_threads; left > 0;) {
        bool any = false;
        for (int k = 0; k < n_warps; k++) {
            int first = (reversed ? n_warps - 1 - k : k) * WARP, size = m.warps[first / WARP].size;
            for (bool moved = true; moved; any |= moved) {
                moved = false;
                for (int l = 0; l < size; l++) {
                    Thread& t = m.threads[first + (reversed ? size - 1 - l : l)];
                    if (t.done || (t.waits_at && t.waits_at->round == t.waits_in_round)) continue;
                    t.waits_at = nullptr;
                    m.current = &t;
                    threadIdx = t.index;
                    m.scheduler.switch_to(t.fiber);
                    if (m.message[0]) return false;
                    moved = true;
                    left -= t.done;
                }
            }
        }
        if (!any) {
            int line = 0;
            for (int i = 0; i < n_threads; i++)
                if (!m.threads[i].done) line = m.threads[i].waits_at->line;
            std::snprintf(m.message, sizeof m.message, "a barrier, line %d, that %d threads never reach", line,
                          n_threads - left);
            return false;
        }
    }
    return true;
}

// ------------------------------------------------------------------------------------------------ launching

template <class T> struct Code;  // the letter of a parameter's type: struct.pack's, capitals for pointers
template <> struct Code<float> { static constexpr char value = 'f'; };
template <> struct Code<double> { static constexpr char value = 'd'; };
template <> struct Code<int> { static constexpr char value = 'i'; };
template <> struct Code<long long> { static constexpr char value = 'q'; };
template <> struct Code<bool> { static constexpr char value = 'b'; };
template <class T> struct Code<T*> {
    static constexpr char value = static_cast<char>(Code<std::remove_const_t<T>>::value - 'a' + 'A');
};

template <class... A> const char* parameters(void (*)(A...)) {
    static const char codes[] = {Code<std::remove_cv_t<A>>::value..., '\0'};
    return codes;
}

template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}

template <auto kernel> struct Entry;
template <class... A, void (*kernel)(A...)> struct Entry<kernel> {
    static void body(void* arguments) {
        call(kernel, static_cast<void**>(arguments), std::index_sequence_for<A...>{});
    }
};

inline const char* launch(void (*body)(void*), const unsigned* shape, void** arguments, int reversed) {
    Machine& m = machine;
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    int n_threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    m.message[0] = '\0';
    if (n_threads < 1 || n_threads > MAX_THREADS) return "a block has 1 to 1024 threads";
    if (gridDim.x < 1 || gridDim.y < 1 || gridDim.z < 1) return "a grid has at least one block";
    if (gridDim.y > 65535 || gridDim.z > 65535) return "a grid has at most 65535 blocks along y and z";
    if (static_cast<int>(m.threads.size()) < n_threads) {
        m.threads.resize(static_cast<std::size_t>(n_threads));
        m.stacks.resize(static_cast<std::size_t>(n_threads) * STACK);
    }
    m.body = body;
    m.arguments = arguments;
    long long n_blocks = static_cast<long long>(gridDim.x) * gridDim.y * gridDim.z;
    for (long long k = 0; k < n_blocks; k++) {
        long long b = reversed ? n_blocks - 1 - k : k;
        blockIdx = {static_cast<unsigned>(b % gridDim.x), static_cast<unsigned>(b / gridDim.x % gridDim.y),
                    static_cast<unsigned>(b / gridDim.x / gridDim.y)};
        if (!run_block(n_threads, reversed)) return m.message;
    }
    return m.message;
}

// ------------------------------------------------------------------------------------------------ warps

template <class T> T shuffle(int line, unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8);
    Thread& me = *machine.current;
    if (mask != 0xffffffffu) fail("a shuffle, line %d, of part of a warp", line);
    int parity = me.parity ^= 1;
    std::memcpy(me.handed[parity], &value, sizeof(T));
    wait(*me.warp, line);
    if (source < 0 || source >= WARP) return value;  // CUDA: beyond the end a lane gets its own value back
    if (source >= me.warp->size) fail("a shuffle, line %d, reads lane %d of a shorter warp", line, source);
    std::memcpy(&value, (&me + (source - me.lane))->handed[parity], sizeof(T));
    return value;
}

inline int lane() { return machine.current->lane; }

}  // namespace cuda_on_cpu

#define __syncthreads() cuda_on_cpu::wait(cuda_on_cpu::machine.block, __LINE__)
#define __syncwarp() cuda_on_cpu::wait(*cuda_on_cpu::machine.current->warp, __LINE__)
#define __shfl_xor_sync(mask, v, d) cuda_on_cpu::shuffle(__LINE__, mask, v, cuda_on_cpu::lane() ^ (d))
#define __shfl_down_sync(mask, v, d) cuda_on_cpu::shuffle(__LINE__, mask, v, cuda_on_cpu::lane() + (d))
#define __shfl_up_sync(mask, v, d) cuda_on_cpu::shuffle(__LINE__, mask, v, cuda_on_cpu::lane() - (d))
#define __shfl_sync(mask, v, source) cuda_on_cpu::shuffle(__LINE__, mask, v, source)

// ------------------------------------------------------------------------------------------------ functions

template <class T> T atomicAdd(T* address, T value) {  // fibers are never interrupted
    T old = *address;
    *address = old + value;
    return old;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
template <class T> T __ldg(const T* address) { return *address; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }

// One line a kernel, written by emulated.py below the included .cu file.
#define CUDA_ON_CPU_KERNEL(name)                                                                               \
    extern "C" const char* name##__parameters() { return cuda_on_cpu::parameters(&name); }                     \
    extern "C" const char* name##__launch(const unsigned* shape, void** arguments, int reversed) {             \
        return cuda_on_cpu::launch(cuda_on_cpu::Entry<&name>::body, shape, arguments, reversed);               \
    }
