// A pass of Gemma's decoder for a few tokens as one kernel: see decoder_pass.py, which puts these files
// together and defines the constants in capitals and the macros PARAMETERS (of the kernel) and TAKE (pointers
// to where they are kept).
//
// One block a multiprocessor, all of them there at once. Eight warps compute (Compute); a ninth copies
// weights into a ring in shared memory (read_weights), and goes on with those of the next stages while the
// others wait for other blocks. A unit of work is eight outputs of KU inputs; each of the eight warps
// multiplies an eighth of the inputs by all tokens, and sums over warps are taken for four units at a time.

// All stages, by the same warps.
struct Compute : Attend {
    using Attend::Attend;

    __device__ void project(const Layer& layer, u32 number) {
        take<true>(words + AT_LAYER, WIDTH / 2, number, layer.pointers[GAIN_ATTENTION]);
        products((QKV_UNITS - block + CTAS - 1) / CTAS, [&](int unit, int token, int output, float2 value) {
            send(words + AT_PROJECTED + (token * QKV + 8 * (block + unit * CTAS) + output) / 2,
                 packed(value.x, value.y), number);
        });
    }

    // Add two numbers of bfloat16, rounded, to those of a word that is there.
    static __device__ __forceinline__ u32 added(const u64* word, float2 value) {
        const u32 own = (u32)look(word);
        return packed(low_of(own) + rounded(value.x), high_of(own) + rounded(value.y));
    }

    __device__ void add_output(u32 number) {
        take<false>(words + AT_MIXED, WIDTH / 2, number, nullptr);
        products((OUT_UNITS - block + CTAS - 1) / CTAS, [&](int unit, int token, int output, float2 value) {
            const int at = (token * WIDTH + 8 * (block + unit * CTAS) + output) / 2;
            send(words + AT_MIDDLE + at, added(words + AT_LAYER + at, value), number);
        });
    }

    __device__ void feed_forward(const Layer& layer, u32 number, u32* y) {
        take<true>(words + AT_MIDDLE, WIDTH / 2, number, layer.pointers[GAIN_FEED_FORWARD]);
        gated_products((PAIRS - block + CTAS - 1) / CTAS, [&](int pair, int token, int output, float2 value) {
            send(words + AT_HIDDEN + (token * HIDDEN + 8 * (block + pair * CTAS) + output) / 2,
                 packed(value.x, value.y), number);
        });
        const int slice = block % SLICES, first = 8 * OWN * (block / SLICES);  // Output.
        take<false>(words + AT_HIDDEN + slice * KU / 2, HIDDEN / 2, number, nullptr);
        products(OWN, [&](int unit, int token, int output, float2 value) {
            u64* to = words + AT_SUMS + (slice * T + token) * WIDTH + first + 8 * unit + output;
            send(to, __float_as_uint(value.x), number);
            send(to + 1, __float_as_uint(value.y), number);
        });
        // Over the slices: each block adds up some outputs.
        if (thread < SLICES * ROWS) {
            u32 part[T];
            receive<T>(words + AT_SUMS + thread / ROWS * T * WIDTH + first + slice * ROWS + thread % ROWS,
                       WIDTH, number, part);
#pragma unroll
            for (int t = 0; t < T; ++t) s.parts[t][thread] = __uint_as_float(part[t]);
        }
        together();
        if (thread < T * ROWS / 2) {
            const int t = thread / (ROWS / 2), output = 2 * thread % ROWS;
            float2 sum = make_float2(0.f, 0.f);
#pragma unroll
            for (int i = 0; i < SLICES; ++i) {
                const float2 own = *(const float2*)&s.parts[t][i * ROWS + output];
                sum.x += own.x, sum.y += own.y;
            }
            const int at = (t * WIDTH + first + slice * ROWS + output) / 2;
            const u32 found = added(words + AT_MIDDLE + at, sum);
            if (number < LAYERS) send(words + AT_LAYER + at, found, number + 1);
            else y[at] = found;
        }
    }

    __device__ void run(u32* y) {
        const int first = __ldg((const int*)s.taken[BOUNDS]), end = __ldg((const int*)s.taken[BOUNDS] + 1);
        for (int at = block * THREADS + thread; at < T * WIDTH / 2; at += CTAS * THREADS)
            send(words + AT_LAYER + at, __ldg((const u32*)s.taken[X] + at), 1);
#pragma unroll 1
        for (int index = 0; index < LAYERS; ++index) {
            const Layer layer(s, index);
            const u32 number = index + 1;
            project(layer, number);
            Slots slots;
            load(slots, layer, first, end);
            attend(slots, layer, number, first, end);
            add_output(number);
            feed_forward(layer, number, y);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS + 32, 1) decoder_pass(PARAMETERS) {
    u8* memory = shared_memory();
    Shared& s = *(Shared*)(memory + STAGES * SLOT_BYTES);
    const int thread = threadIdx.x, warp = thread / 32;
    TAKE(s.taken, warp, thread % 32)
    if (thread == 0) {
        for (int i = 0; i < STAGES; ++i) {
            prepare(&s.full[i], BITS < 16 ? 33 : 1);
            prepare(&s.empty[i], WARPS);
        }
        publish_barriers();
    }
    __syncthreads();
    if (warp == WARPS) read_weights(s, memory, blockIdx.x, thread % 32);
    else Compute(s, memory, blockIdx.x, thread).run((u32*)s.taken[FIRST_LAYER + LAYERS * PER_LAYER]);
}
