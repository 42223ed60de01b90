// Eight warps that take tokens and multiply units by them.
struct Multiply {
    Shared& s;
    const u8* ring;
    const int block, thread, warp, lane, row, column;  // Of a fragment: lane / 4 and lane % 4.
    Place place;
    uint4 high[PIECES], low[BITS == 16 ? 1 : PIECES];  // Tokens, as tensor cores take them.
    int buffer = 0;
    u64* const words;

    __device__ Multiply(Shared& s, const u8* ring, int block, int thread)
        : s(s),
          ring(ring),
          block(block),
          thread(thread),
          warp(thread / 32),
          lane(thread % 32),
          row(lane / 4),
          column(lane % 4),
          words((u64*)s.taken[WORDS]) {}

    // Take KU inputs of each token, from words x [T, stride] on, normed if there is a gain.
    template <bool NORMED>
    __device__ void take(const u64* x, int stride, u32 number, const void* gain) {
        const uint4 none = make_uint4(0, 0, 0, 0);
        uint4 raw[T], gains = none;
        float v[T][8], by[8];
        if (NORMED) gains = load4((const uint4*)gain + thread);
        receive4<T>(x + 4 * thread, stride, number, raw);
        if (NORMED) unpack(gains, by);
#pragma unroll
        for (int t = 0; t < T; ++t) {
            float squares = 0.f, largest = 0.f;
            unpack(raw[t], v[t]);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                if (NORMED) {
                    squares += v[t][i] * v[t][i];
                    v[t][i] *= rounded(1.f + by[i]);
                }
                largest = fmaxf(largest, fabsf(v[t][i]));
            }
            if (NORMED)
#pragma unroll
                for (int i = 16; i > 0; i /= 2) squares += __shfl_xor_sync(~0u, squares, i);
            if (BITS < 16) largest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest)));
            if ((NORMED || BITS < 16) && lane == 0) s.stat[warp][t] = make_float2(squares, largest);
        }
        if (NORMED || BITS < 16) together();
#pragma unroll
        for (int t = 0; t < T; ++t) {
            float factor = 1.f, unit = 1.f;
            if (NORMED || BITS < 16) {
                float squares = 0.f, largest = 0.f;
#pragma unroll
                for (int i = 0; i < WARPS; ++i) {
                    const float2 stat = s.stat[i][t];
                    squares += stat.x;
                    largest = fmaxf(largest, stat.y);
                }
                if (NORMED) factor = rsqrtf(squares / WIDTH + EPSILON);
                if (BITS < 16) {
                    unit = fmaxf(largest * factor, TINY) / LARGEST;
                    factor = __fdividef(factor, unit);
                }
            }
            if (thread == 0) s.unit[t] = BITS == 4 ? unit / 16 : unit;
            if (BITS == 16) {
                uint4 own = raw[t];
                if (NORMED)
                    own = make_uint4(packed(v[t][0] * factor, v[t][1] * factor),
                                     packed(v[t][2] * factor, v[t][3] * factor),
                                     packed(v[t][4] * factor, v[t][5] * factor),
                                     packed(v[t][6] * factor, v[t][7] * factor));
                *(uint4*)(s.tokens[0][t] + 16 * thread) = own;
            } else {
                // A number rounded to an integer is in the lower bits of its sum with 1.5 * 2^23. Its lower
                // byte is the lower half; the upper half is the byte above, of 128 more.
                u32 number[8], more[8];
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    number[i] = __float_as_uint(fmaf(v[t][i], factor, 12582912.f));
                    more[i] = number[i] + 128;
                }
                uint2 upper, lower;
                upper.x = __byte_perm(__byte_perm(more[0], more[1], 0x51),
                                      __byte_perm(more[2], more[3], 0x51), 0x5410);
                upper.y = __byte_perm(__byte_perm(more[4], more[5], 0x51),
                                      __byte_perm(more[6], more[7], 0x51), 0x5410);
                lower.x = __byte_perm(__byte_perm(number[0], number[1], 0x40),
                                      __byte_perm(number[2], number[3], 0x40), 0x5410);
                lower.y = __byte_perm(__byte_perm(number[4], number[5], 0x40),
                                      __byte_perm(number[6], number[7], 0x40), 0x5410);
                *(uint2*)(s.tokens[0][t] + 8 * thread) = upper;
                *(uint2*)(s.tokens[BITS == 16 ? 0 : 1][t] + 8 * thread) = lower;
            }
        }
        together();
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            const int at = warp * 64 * PIECES + 64 * i + 16 * column;
            high[i] = row < T ? *(const uint4*)(s.tokens[0][row] + at) : none;
            if (BITS < 16) low[i] = row < T ? *(const uint4*)(s.tokens[BITS == 16 ? 0 : 1][row] + at) : none;
        }
    }

    // Multiply the next units, of which a warp has an eighth of the inputs, and leave each warp's results in
    // `sums`.
    __device__ __forceinline__ void multiply_units(int count) {
        buffer ^= 1;
        const u8 *unit[BATCH], *own[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            const int slot = place.slot + i < STAGES ? place.slot + i : place.slot + i - STAGES;
            if (i < count) wait(&s.full[slot], place.phase ^ (place.slot + i >= STAGES));
            unit[i] = ring + slot * SLOT_BYTES;  // Of those beyond `count` nobody reads the results.
            own[i] = unit[i] + row * ROW_BYTES + warp * (ROW_BYTES / WARPS) + column * 16;
        }
        float2 found[BATCH];
        if constexpr (BITS == 16) {
            float one[BATCH][4] = {}, two[BATCH][4] = {};
#pragma unroll
            for (int j = 0; j < PIECES; ++j)
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    const uint4 w = *(const uint4*)(own[i] + 64 * j);
                    multiply(one[i], high[j].x, high[j].y, w.x, w.y);
                    multiply(two[i], high[j].z, high[j].w, w.z, w.w);
                }
#pragma unroll
            for (int i = 0; i < BATCH; ++i)
                found[i] = make_float2(one[i][0] + two[i][0], one[i][1] + two[i][1]);
        } else if constexpr (BITS == 8) {
            int one[BATCH][4] = {}, two[BATCH][4] = {};
#pragma unroll
            for (int j = 0; j < PIECES; ++j)
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    const uint4 w = *(const uint4*)(own[i] + 64 * j);
                    multiply(one[i], high[j].x, low[j].x, high[j].y, low[j].y, w.x, w.y);
                    multiply(two[i], high[j].z, low[j].z, high[j].w, low[j].w, w.z, w.w);
                }
#pragma unroll
            for (int i = 0; i < BATCH; ++i)
                found[i] = make_float2(256.f * (one[i][0] + two[i][0]) + (one[i][2] + two[i][2]),
                                       256.f * (one[i][1] + two[i][1]) + (one[i][3] + two[i][3]));
        } else {
            int sum[BATCH][2][4] = {};
#pragma unroll
            for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    const uint4 w = *(const uint4*)(own[i] + 64 * j);
#pragma unroll
                    for (int upper = 0; upper < 2; ++upper) {
                        const uint4 a = high[2 * upper + j], b = low[2 * upper + j];
                        auto sixteenfold = [&](u32 v) { return (upper ? v : v << 4) & 0xF0F0F0F0u; };
                        multiply(sum[i][upper], a.x, b.x, a.y, b.y, sixteenfold(w.x), sixteenfold(w.y));
                        multiply(sum[i][upper], a.z, b.z, a.w, b.w, sixteenfold(w.z), sixteenfold(w.w));
                    }
                }
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                const u8* scales = unit[i] + 8 * ROW_BYTES + 2 * column * GROUP_BYTES + 2 * warp;
                found[i] = make_float2(0.f, 0.f);
#pragma unroll
                for (int upper = 0; upper < 2; ++upper) {
                    found[i].x += (float)(256 * sum[i][upper][0] + sum[i][upper][2]) * scales[upper];
                    found[i].y +=
                        (float)(256 * sum[i][upper][1] + sum[i][upper][3]) * scales[GROUP_BYTES + upper];
                }
            }
        }
        if (BITS < 16)
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                const float2 by = *(const float2*)(unit[i] + 8 * (ROW_BYTES + GROUP_BYTES) + 8 * column);
                found[i].x *= by.x, found[i].y *= by.y;
            }
        __syncwarp();
        if (lane < count) arrive(&s.empty[(place.slot + lane) % STAGES]);
        place.move(count);
        if (row < T)
#pragma unroll
            for (int i = 0; i < BATCH; ++i)
                *(float2*)&s.sums[buffer][warp][i * SUMS + 8 * row + 2 * column] = found[i];
        together();
    }

    __device__ __forceinline__ float2 sum_of(int index) const {
        float2 sum = make_float2(0.f, 0.f);
#pragma unroll
        for (int i = 0; i < WARPS; ++i) {
            const float2 own = *(const float2*)&s.sums[buffer][i][index];
            sum.x += own.x, sum.y += own.y;
        }
        return sum;
    }

    // Multiply units; give results to out(index of the unit, token, first of two outputs, their values).
    template <class Out>
    __device__ __forceinline__ void products(int units, Out out) {
        const int unit = 2 * thread / SUMS, token = 2 * thread % SUMS / 8, output = 2 * thread % 8;
#pragma unroll 1
        for (int first = 0; first < units; first += BATCH) {
            const int count = min(BATCH, units - first);
            multiply_units(count);
            if (unit >= count) continue;
            const float2 sum = sum_of(2 * thread);
            out(first + unit, token, output, make_float2(sum.x * s.unit[token], sum.y * s.unit[token]));
        }
    }

    static __device__ __forceinline__ float gated(float gate, float up) {
        gate = rounded(gate);
        const float inner = 1.5957691216057308f * (gate + 0.044715f * gate * gate * gate);
        return __fdividef(gate, 1.f + __expf(-inner)) * up;  // GELU by its tanh.
    }

    // Multiply pairs of units, gates and what they gate.
    template <class Out>
    __device__ __forceinline__ void gated_products(int pairs, Out out) {
        const int pair = 2 * thread / SUMS, token = 2 * thread % SUMS / 8, output = 2 * thread % 8;
#pragma unroll 1
        for (int first = 0; first < pairs; first += BATCH / 2) {
            const int count = min(BATCH / 2, pairs - first);
            multiply_units(2 * count);
            if (pair >= count) continue;
            const int index = 2 * pair * SUMS + 2 * thread % SUMS;
            const float2 gate = sum_of(index), up = sum_of(index + SUMS);
            const float by = s.unit[token];
            out(first + pair, token, output,
                make_float2(gated(gate.x * by, up.x * by), gated(gate.y * by, up.y * by)));
        }
    }
};
