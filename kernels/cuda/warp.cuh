// What the kernels share: sums over a warp and a block, and loads of several numbers by one instruction.
#pragma once

constexpr int WARP = 32;            // threads that run in step
constexpr unsigned ALL = 0xffffffff;  // every lane of a warp takes part
constexpr float LOWEST = -3.402823466e38f;  // stands in for −∞ where differences of two such must not be NaN

// Every lane gets the sum of all lanes: five exchanges between registers, no shared memory.
template <class T> __device__ __forceinline__ T warp_sum(T x) {
    for (int d = WARP / 2; d > 0; d /= 2) x += __shfl_xor_sync(ALL, x, d);
    return x;
}

// Every thread gets the sum over a block of whole warps, at most 32. `shared` has a place for each warp.
template <class T> __device__ __forceinline__ T block_sum(T x, T* shared) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    __syncthreads();  // an earlier use of `shared` has been read
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? shared[lane] : T(0));
}

// W consecutive numbers, moved by one instruction: 16 bytes for W = 4.
template <int W> struct alignas(4 * W) Pack {
    float v[W];
};
template <int W> __device__ __forceinline__ Pack<W> load(const float* x) {
    return *reinterpret_cast<const Pack<W>*>(x);
}
template <int W> __device__ __forceinline__ void store(float* x, Pack<W> p) { *reinterpret_cast<Pack<W>*>(x) = p; }

// How many numbers stand before the next address that a pack of 4 may be loaded from.
__device__ __forceinline__ int lead(const float* x) {
    return static_cast<int>((16 - reinterpret_cast<unsigned long long>(x) % 16) / 4 % 4);
}

// Whether rows of C numbers can be read in packs of 4. Null pointers, for what is absent, do not object.
template <class... P> __device__ __forceinline__ bool packs(int C, P... pointers) {
    return C % 4 == 0 && (... && (lead(pointers) == 0));
}
