// Attention of a head to some slots, by the same warps.
struct Attend : Multiply {
    using Multiply::Multiply;

    struct Slots {
        uint4 keys[TILES][8], values[TILES][8];
    };

    __device__ __forceinline__ int first_slot(int tile) const {
        return (block % SPLITS * WARPS + warp) * TILE + tile * SHARE;
    }

    // Load what the cache has for this warp.
    __device__ __forceinline__ void load(Slots& slots, const Layer& layer, int first, int end) const {
        const uint4 none = make_uint4(0, 0, 0, 0);
        const uint4 *keys = (const uint4*)layer.pointers[KEYS],
                    *values = (const uint4*)layer.pointers[CACHED_VALUES];
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int key = first_slot(tile) + row, value = first_slot(tile) + i;
                slots.keys[tile][i] =
                    key >= first && key < end ? load4(keys + key * (HEAD / 8) + 4 * i + column) : none;
                slots.values[tile][i] =
                    value >= first && value < end ? load4(values + value * (HEAD / 8) + lane) : none;
            }
    }

    // Attend with one head to some slots, and write new keys and values to theirs.
    __device__ void attend(const Slots& slots, const Layer& layer, u32 number, int first, int end) {
        const uint4 none = make_uint4(0, 0, 0, 0);
        const int head = block / SPLITS, split = block % SPLITS;
        // Queries of this head, or keys: two numbers, and those that they are rotated with. Or values.
        if (thread < HEAD / 2) {
            const bool is_key = thread >= HEAD / 4;
            const int at = 2 * thread % (HEAD / 2);
            const float *cos = (const float*)s.taken[COS] + at, *sin = (const float*)s.taken[SIN] + at;
            const float by = is_key ? 1.f : 0.0625f;
            const u64* from = words + AT_PROJECTED + ((is_key ? HEADS : head) * HEAD + at) / 2;
            u32 one[T], two[T];
            receive<T>(from, QKV / 2, number, one);
            receive<T>(from + HEAD / 4, QKV / 2, number, two);
#pragma unroll
            for (int t = 0; t < T; ++t) {
                const float2 c = __ldg((const float2*)(cos + t * HEAD / 2)),
                             n = __ldg((const float2*)(sin + t * HEAD / 2));
                u16* to = (is_key ? s.keys[t] : s.queries[t]) + at;
                *(u32*)to = packed(by * (low_of(one[t]) * c.x - low_of(two[t]) * n.x),
                                   by * (high_of(one[t]) * c.y - high_of(two[t]) * n.y));
                *(u32*)(to + HEAD / 2) = packed(by * (low_of(two[t]) * c.x + low_of(one[t]) * n.x),
                                                by * (high_of(two[t]) * c.y + high_of(one[t]) * n.y));
            }
        } else {
            u32 value[T];
            receive<T>(words + AT_PROJECTED + (HEADS + 1) * HEAD / 2 + thread - HEAD / 2, QKV / 2, number,
                       value);
#pragma unroll
            for (int t = 0; t < T; ++t) *(u32*)(s.values[t] + 2 * thread - HEAD) = value[t];
        }
        together();
        if (block == 0)
            for (int t = 0; t < T; ++t) {
                ((u16*)layer.pointers[KEYS])[(end + t) * HEAD + thread] = s.keys[t][thread];
                ((u16*)layer.pointers[CACHED_VALUES])[(end + t) * HEAD + thread] = s.values[t][thread];
            }
        float scores[TILES][4] = {};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const uint4 query = row < T ? *(const uint4*)(s.queries[row] + 32 * i + 8 * column) : none;
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                const int fresh = first_slot(tile) + row - end;
                uint4 key = slots.keys[tile][i];
                if (fresh >= 0 && fresh < T) key = *(const uint4*)(s.keys[fresh] + 32 * i + 8 * column);
                multiply(scores[tile], query.x, query.y, key.x, key.y);
                multiply(scores[tile], query.z, query.w, key.z, key.w);
            }
        }
        float top = UNSEEN, total = 0.f;  // Of token `row`.
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int slot = first_slot(tile) + 2 * column + i;
                if (slot < first || slot > end + row) scores[tile][i] = UNSEEN;
                top = fmaxf(top, scores[tile][i]);
            }
#pragma unroll
        for (int i = 1; i < 4; i *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                scores[tile][i] = scores[tile][i] == UNSEEN ? 0.f : __expf(scores[tile][i] - top);
                total += scores[tile][i];
            }
            if (row < T)
                *(float2*)&s.weights[warp][row][tile * TILE + 2 * column] =
                    make_float2(scores[tile][0], scores[tile][1]);
        }
#pragma unroll
        for (int i = 1; i < 4; i *= 2) total += __shfl_xor_sync(~0u, total, i);
        if (row < T && column == 0) s.top[warp][row] = make_float2(top, total);
        together();
        float sums[T][8] = {};
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
            for (int i = 0; i < TILE; ++i) {
                const int fresh = first_slot(tile) + i - end;
                uint4 own = slots.values[tile][i];
                if (fresh >= 0 && fresh < T) own = *(const uint4*)(s.values[fresh] + 8 * lane);
                float value[8];
                unpack(own, value);
#pragma unroll
                for (int t = 0; t < T; ++t) {
                    const float weight = s.weights[warp][t][tile * TILE + i];
#pragma unroll
                    for (int j = 0; j < 8; ++j) sums[t][j] += weight * value[j];
                }
            }
        // Over the warps of this block.
        u64* parts = words + AT_PARTS + (head * SPLITS + split) * T * HEAD;
        u64* tops = words + AT_TOPS + head * SPLITS * T * 2;
#pragma unroll
        for (int t = 0; t < T; ++t) {
            float top = UNSEEN, sum = 0.f;
#pragma unroll
            for (int i = 0; i < WARPS; ++i) top = fmaxf(top, s.top[i][t].x);
            const float by = __expf(s.top[warp][t].x - top);
#pragma unroll
            for (int j = 0; j < 8; j += 4)
                *(float4*)&s.mixed[t % 2][warp][8 * lane + j] = make_float4(
                    by * sums[t][j], by * sums[t][j + 1], by * sums[t][j + 2], by * sums[t][j + 3]);
            if (thread == t) {
                float total = 0.f;
                for (int i = 0; i < WARPS; ++i) total += s.top[i][t].y * __expf(s.top[i][t].x - top);
                send(tops + 2 * (split * T + t), __float_as_uint(top), number);
                send(tops + 2 * (split * T + t) + 1, __float_as_uint(total), number);
            }
            together();
#pragma unroll
            for (int i = 0; i < WARPS; ++i) sum += s.mixed[t % 2][i][thread];
            send(parts + t * HEAD + thread, __float_as_uint(sum), number);
        }
        // Over the blocks of this head: each adds up some numbers of it.
        const int from = thread / DIMS;
        u32 part[T];
        if (thread < SPLITS * T) {
            u32 own[2];
            receive<2>(tops + 2 * thread, 1, number, own);
            s.tops[thread] = make_float2(__uint_as_float(own[0]), __uint_as_float(own[1]));
        }
        together();
        if (thread < SPLITS * T) {
            float top = UNSEEN;
#pragma unroll
            for (int i = 0; i < SPLITS; ++i) top = fmaxf(top, s.tops[i * T + thread % T].x);
            const float2 own = s.tops[thread];
            const float by = __expf(own.x - top);
            s.shares[thread] = make_float2(by, by * own.y);
        }
        receive<T>(words + AT_PARTS + (head * SPLITS + from) * T * HEAD + split * DIMS + thread % DIMS, HEAD,
                   number, part);
        together();
#pragma unroll
        for (int t = 0; t < T; ++t) s.parts[t][thread] = __uint_as_float(part[t]) * s.shares[from * T + t].x;
        together();
        if (thread < T * DIMS / 2) {
            const int t = thread / (DIMS / 2), at = 2 * thread % DIMS;
            float total = 0.f;
            float2 sum = make_float2(0.f, 0.f);
#pragma unroll
            for (int i = 0; i < SPLITS; ++i) {
                const float2 own = *(const float2*)&s.parts[t][i * DIMS + at];
                total += s.shares[i * T + t].y;
                sum.x += own.x, sum.y += own.y;
            }
            send(words + AT_MIXED + (t * WIDTH + head * HEAD + split * DIMS + at) / 2,
                 packed(__fdividef(sum.x, total), __fdividef(sum.y, total)), number);
        }
    }
};
