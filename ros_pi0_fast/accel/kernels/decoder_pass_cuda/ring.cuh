// Weights on their way to shared memory.

struct Place {
    int slot = 0;
    u32 phase = 0;

    __device__ __forceinline__ void move(int units) {
        if ((slot += units) >= STAGES) slot -= STAGES, phase ^= 1;
    }
};

struct Layer {
    const void* const* pointers;

    __device__ Layer(const Shared& s, int index) : pointers(s.taken + FIRST_LAYER + index * PER_LAYER) {}
    __device__ __forceinline__ const u8* values(int which) const {
        return (const u8*)pointers[VALUES_OF + which];
    }
    __device__ __forceinline__ const u8* groups(int which) const {
        return (const u8*)pointers[GROUPS_OF + which];
    }
    __device__ __forceinline__ const float* scales(int which) const {
        return (const float*)pointers[SCALES_OF + which];
    }
    // Queries, keys and values side by side.
    static __device__ __forceinline__ int projection(int& row) {
        if (row < HEADS * HEAD) return Q;
        row -= HEADS * HEAD;
        if (row < HEAD) return K;
        row -= HEAD;
        return V;
    }
};

// The ninth warp: copy the weights of all stages of all layers, in the order in which they are used.
__device__ void read_weights(Shared& s, u8* ring, int block, int lane) {
    Place place;
    auto push = [&](const Layer& layer, int which, int row, int columns, int at) {
        wait(&s.empty[place.slot], place.phase ^ 1);
        u64* bar = &s.full[place.slot];
        const u32 to = address(ring + place.slot * SLOT_BYTES);
        const u8* from = layer.values(which) + ((u64)row * columns + at) * BITS / 8;
        if (lane == 0) {
            expect(bar, 8 * ROW_BYTES);
            if (columns == KU) copy(to, from, 8 * ROW_BYTES, bar);  // Rows follow one another.
        }
        if (columns != KU) {
            __syncwarp();
            if (lane < 8) copy(to + lane * ROW_BYTES, from + (u64)lane * columns * BITS / 8, ROW_BYTES, bar);
        }
        if (BITS < 16) {
            if (BITS == 4 && lane < 8)
                copy16(to + 8 * ROW_BYTES + lane * GROUP_BYTES,
                       layer.groups(which) + (u64)(row + lane) * (columns / GROUP) + at / GROUP);
            else if (lane == 8 || lane == 9)
                copy16(to + 8 * (ROW_BYTES + GROUP_BYTES) + (lane - 8) * 16,
                       layer.scales(which) + row + (lane - 8) * 4);
            arrive_after_copies(bar);
        }
        place.move(1);
    };
    const int slice = block % SLICES, sharer = block / SLICES;
#pragma unroll 1
    for (int index = 0; index < LAYERS; ++index) {
        const Layer layer(s, index);
        for (int unit = block; unit < QKV_UNITS; unit += CTAS) {
            int row = 8 * unit;
            const int which = Layer::projection(row);
            push(layer, which, row, WIDTH, 0);
        }
        for (int unit = block; unit < OUT_UNITS; unit += CTAS) push(layer, OUT, 8 * unit, WIDTH, 0);
        for (int pair = block; pair < PAIRS; pair += CTAS)
            push(layer, GATE, 8 * pair, WIDTH, 0), push(layer, UP, 8 * pair, WIDTH, 0);
        for (int unit = sharer * OWN; unit < min((sharer + 1) * OWN, OUT_UNITS); ++unit)
            push(layer, LINEAR, 8 * unit, HIDDEN, slice * KU);
    }
}
