// What CUDA C++ has and C++ has not, on a CPU: each thread of a kernel is a fiber, and who waits lets others
// run.
//
// Copies are done at random times and in random order, so that a kernel that reads too early reads something
// else.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

using std::max;
using std::min;

struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float __uint_as_float(unsigned v) {
    float f;
    memcpy(&f, &v, 4);
    return f;
}
inline unsigned __float_as_uint(float f) {
    unsigned v;
    memcpy(&v, &f, 4);
    return v;
}
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return expf(v); }
inline float rsqrtf(float v) { return 1 / sqrtf(v); }
[[noreturn]] inline void __trap() { abort(); }
template <class Value>
inline Value __ldg(const Value* at) {
    return *at;
}

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned which) {
    unsigned char bytes[8];
    memcpy(bytes, &low, 4), memcpy(bytes + 4, &high, 4);
    unsigned found = 0;
    for (int i = 0; i < 4; ++i) found |= (unsigned)bytes[which >> 4 * i & 7] << 8 * i;
    return found;
}

namespace emulator {

struct Warp {
    int arrived = 0;
    unsigned generation = 0;
    alignas(16) unsigned char slots[2][32][64];
};

struct Rendezvous {
    unsigned arrived = 0, generation = 0;
};

struct Block {
    std::vector<unsigned char> memory;
    std::vector<Warp> warps;
    Rendezvous all, named;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    unsigned thread, block, looks = 0;
    bool done = false;
    bool (*ready)(void*) = nullptr;
    void* argument = nullptr;
    std::deque<struct Copy> copies;  // That are done in their order.
};

struct Copy {
    void* to;
    const void* from;
    unsigned bytes;
    uint64_t* bar;  // Of a copy whose bytes it counts, or where to arrive.
};

inline std::vector<Block> blocks;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<Copy> bulk;  // Copies that are done in any order.
inline Fiber* current;
inline ucontext_t scheduler;
inline unsigned random_state = 1;
inline void (*body)();

inline unsigned random() { return (random_state = random_state * 1664525u + 1013904223u) >> 8; }
inline Block& block() { return blocks[current->block]; }
inline Warp& warp() { return block().warps[current->thread / 32]; }
inline unsigned lane() { return current->thread % 32; }

template <class Condition>
void until(Condition condition) {
    if (condition()) return;
    current->ready = [](void* of) { return (*(Condition*)of)(); };
    current->argument = &condition;
    swapcontext(&current->context, &scheduler);
    current->ready = nullptr;
}

inline void yield() {
    bool again = false;
    until([&] { return std::exchange(again, true); });
}

inline void meet(unsigned& arrived, unsigned& generation, unsigned all) {
    const unsigned own = generation;
    if (++arrived == all) arrived = 0, ++generation;
    else until([&] { return generation != own; });
}

inline void meet_warp() {
    Warp& own = warp();
    meet((unsigned&)own.arrived, own.generation, 32);
}

// Give the lanes of a warp each other's values.
template <class Value>
const Value* exchange(const Value& value) {
    static_assert(sizeof(Value) <= 64);
    Warp& own = warp();
    auto& slots = own.slots[own.generation % 2];
    memcpy(slots[lane()], &value, sizeof(Value));
    meet_warp();
    return (const Value*)slots;
}

template <class Value>
const Value& at(const Value* slots, int lane) {
    return *(const Value*)((const char*)slots + 64 * lane);
}

// An mbarrier in its eight bytes.
struct Bar {
    uint8_t phase, arrivals, pending, unused;
    int32_t bytes;

    void check() {
        if (pending == 0 && bytes == 0) phase ^= 1, pending = arrivals;
    }
};

inline void do_copy(const Copy& copy) {
    Bar& bar = *(Bar*)copy.bar;
    if (copy.bytes) memcpy(copy.to, copy.from, copy.bytes);
    if (!copy.bar) return;
    if (copy.bytes) bar.bytes -= copy.bytes;
    else --bar.pending;
    bar.check();
}

inline void entry() {
    body();
    current->done = true;
    swapcontext(&current->context, &scheduler);
}

// Run a kernel; return whether it came to its end.
inline bool run(unsigned block_count, unsigned threads, unsigned bytes, unsigned seed, void (*kernel)()) {
    random_state = seed, body = kernel;
    blocks.clear(), fibers.clear(), bulk.clear();
    blocks.resize(block_count);
    for (auto& block : blocks) block.memory.assign(bytes + 128, 0xA5), block.warps.resize(threads / 32);
    for (unsigned i = 0; i < block_count * threads; ++i) {
        auto fiber = std::make_unique<Fiber>();
        constexpr size_t size = 1 << 16;
        fiber->stack.reset(new char[size]);
        fiber->thread = i % threads, fiber->block = i / threads;
        getcontext(&fiber->context);
        fiber->context.uc_stack.ss_sp = fiber->stack.get(), fiber->context.uc_stack.ss_size = size;
        fiber->context.uc_link = nullptr;
        makecontext(&fiber->context, entry, 0);
        fibers.push_back(std::move(fiber));
    }
    size_t left = fibers.size();
    for (long round = 0; left && round < 4000000; ++round) {
        bool moved = false;
        for (auto& fiber : fibers) {
            if (!fiber->copies.empty() && random() % 4 == 0) {
                do_copy(fiber->copies.front()), fiber->copies.pop_front();
                moved = true;
            }
            if (fiber->done || (fiber->ready && !fiber->ready(fiber->argument))) continue;
            moved = true;
            if (random() % 4 == 0) continue;  // Who may go on does so at random times.
            current = fiber.get();
            swapcontext(&scheduler, &fiber->context);
            left -= fiber->done;
        }
        for (size_t i = bulk.size() / 2 + 1; i > 0 && !bulk.empty(); --i) {
            std::swap(bulk[random() % bulk.size()], bulk.back());
            do_copy(bulk.back()), bulk.pop_back();
            moved = true;
        }
        for (auto& fiber : fibers) moved |= !fiber->copies.empty();
        if (!moved) break;
    }
    return left == 0;
}

struct Index {
    unsigned Fiber::* of;
    operator unsigned() const { return current->*of; }
};
struct Place {
    Index x;
};

}  // namespace emulator

inline emulator::Place threadIdx{{&emulator::Fiber::thread}}, blockIdx{{&emulator::Fiber::block}};

inline void __syncwarp() { emulator::meet_warp(); }
inline void __syncthreads() {
    auto& block = emulator::block();
    emulator::meet(block.all.arrived, block.all.generation, 32 * block.warps.size());
}
inline float __shfl_xor_sync(unsigned, float value, int by) {
    const unsigned from = emulator::lane() ^ by;
    return emulator::at(emulator::exchange(value), from);
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
    const unsigned* all = emulator::exchange(value);
    unsigned found = 0;
    for (int i = 0; i < 32; ++i) found = max(found, emulator::at(all, i));
    return found;
}
