// Numbers of bfloat16 in pairs, as they are stored.

__device__ __forceinline__ float low_of(u32 v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high_of(u32 v) { return __uint_as_float(v & 0xFFFF0000u); }
__device__ __forceinline__ float rounded(float v) { return low_of(packed(v, 0.f)); }

__device__ __forceinline__ void unpack(const uint4& v, float* to) {
    to[0] = low_of(v.x), to[1] = high_of(v.x), to[2] = low_of(v.y), to[3] = high_of(v.y);
    to[4] = low_of(v.z), to[5] = high_of(v.z), to[6] = low_of(v.w), to[7] = high_of(v.w);
}
