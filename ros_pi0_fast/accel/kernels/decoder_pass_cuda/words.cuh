// Words that blocks give each other: eight bytes, four of them the number of the layer. Who reads one sees by
// itself that it is there, and no barrier is needed (NCCL's protocol LL). A word is written anew a layer
// later, for which its block must have had words of all others that have read it.

// Looks, of about a microsecond each, after which something is wrong: an error is better than to stand still
// for ever.
constexpr u32 MOST_LOOKS = 1 << 24;

// Wait for N words that are `stride` apart.
template <int N>
__device__ __forceinline__ void receive(const u64* at, int stride, u32 number, u32 (&to)[N]) {
    u64 word[N];
    bool there;
    u32 looks = 0;
    do {
        there = true;
#pragma unroll
        for (int i = 0; i < N; ++i) word[i] = look(at + i * stride);
#pragma unroll
        for (int i = 0; i < N; ++i) there &= (u32)(word[i] >> 32) == number;
        if (++looks == MOST_LOOKS) __trap();
    } while (!there);
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = (u32)word[i];
}

// Wait for four words side by side in each of N places.
template <int N>
__device__ __forceinline__ void receive4(const u64* at, int stride, u32 number, uint4 (&to)[N]) {
    u64 word[N][4];
    bool there;
    u32 looks = 0;
    do {
        there = true;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            look(at + i * stride, word[i][0], word[i][1]);
            look(at + i * stride + 2, word[i][2], word[i][3]);
        }
#pragma unroll
        for (int i = 0; i < N; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) there &= (u32)(word[i][j] >> 32) == number;
        if (++looks == MOST_LOOKS) __trap();
    } while (!there);
#pragma unroll
    for (int i = 0; i < N; ++i)
        to[i] = make_uint4((u32)word[i][0], (u32)word[i][1], (u32)word[i][2], (u32)word[i][3]);
}
