// In the place of ptx.cuh: see builtins.hpp.

inline u8* shared_memory() { return (u8*)(((uintptr_t)emulator::block().memory.data() + 127) / 128 * 128); }
inline u32 address(const void* shared) { return (const u8*)shared - shared_memory(); }

inline void prepare(u64* bar, u32 arrivals) {
    *(emulator::Bar*)bar = {0, (uint8_t)arrivals, (uint8_t)arrivals, 0, 0};
}
inline void publish_barriers() {}
inline void wait(const u64* bar, u32 parity) {
    emulator::until([=] { return ((const emulator::Bar*)bar)->phase != parity; });
}
inline void arrive(const u64* bar) {
    --((emulator::Bar*)bar)->pending;
    ((emulator::Bar*)bar)->check();
}
inline void expect(const u64* bar, u32 bytes) {
    ((emulator::Bar*)bar)->bytes += bytes;
    arrive(bar);
}
inline void copy(u32 to, const void* from, u32 bytes, const u64* bar) {
    emulator::bulk.push_back({shared_memory() + to, from, bytes, (uint64_t*)bar});
}
inline void copy16(u32 to, const void* from) {
    emulator::current->copies.push_back({shared_memory() + to, from, 16, nullptr});
}
inline void arrive_after_copies(const u64* bar) {
    emulator::current->copies.push_back({nullptr, nullptr, 0, (uint64_t*)bar});
}
inline void together() {
    auto& named = emulator::block().named;
    emulator::meet(named.arrived, named.generation, THREADS);
}
inline uint4 load4(const void* from) { return *(const uint4*)from; }

inline void send(u64* to, u32 what, u32 number) { *to = (u64)number << 32 | what; }
inline u64 look(const u64* at) {
    if (++emulator::current->looks % 8 == 0) emulator::yield();
    return *at;
}
inline void look(const u64* at, u64& one, u64& two) { one = look(at), two = look(at + 1); }

inline u32 packed(float low, float high) {
    auto rounded = [](float v) {  // To the nearest, to even.
        const u32 bits = __float_as_uint(v);
        return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    };
    return rounded(low) | rounded(high) << 16;
}

struct Fragment {
    u32 a[4], b[2];
};

template <class Sum, class Number>
void multiply_as(Sum (&sum)[4], const Fragment& own, Number number) {
    constexpr int EACH = sizeof(Sum) == sizeof(int) && Sum(0.5f) == 0 ? 4 : 2;  // Numbers of a register.
    const Fragment* all = emulator::exchange(own);
    const int lane = emulator::lane();
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4, upper = i / 2, column = lane % 4 * 2 + i % 2;
        for (int j = 0; j < 4; ++j) {
            const Fragment &a = emulator::at(all, 4 * row + j), &b = emulator::at(all, 4 * column + j);
            for (int half = 0; half < 2; ++half)
                for (int k = 0; k < EACH; ++k)
                    sum[i] += number(a.a[2 * half + upper], k) * number(b.b[half], k);
        }
    }
}

inline void multiply(int (&sum)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    multiply_as(sum, {{a0, a1, a2, a3}, {b0, b1}}, [](u32 v, int k) { return (int)(int8_t)(v >> 8 * k); });
}
inline void multiply(float (&sum)[4], u32 a0, u32 a2, u32 b0, u32 b1) {
    multiply_as(sum, {{a0, 0, a2, 0}, {b0, b1}},
                [](u32 v, int k) { return __uint_as_float(v >> 16 * k << 16); });
}
