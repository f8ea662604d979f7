// Softmax over rows (N, V), for teaching: cross_entropy.cu and attention.cu have it inside their own kernels.
//
// Memory sets the pace: read x, write y: 8 bytes a number, for one exponential, or two where it is made anew.
#include "warp.cuh"

// v1: a thread a row, in four looks: maximum, exponentials, their sum, division. 20 bytes a number, and a warp's loads
// stand V apart.
extern "C" __global__ void softmax_v1(const float* x, float* y, int N, int V) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= N) return;
    x += static_cast<long long>(row) * V;
    y += static_cast<long long>(row) * V;
    float largest = x[0], sum = 0;
    for (int j = 1; j < V; j++) largest = fmaxf(largest, x[j]);
    for (int j = 0; j < V; j++) y[j] = expf(x[j] - largest);
    for (int j = 0; j < V; j++) sum += y[j];
    for (int j = 0; j < V; j++) y[j] /= sum;
}

// v2: a block a row: loads of a warp stand side by side, maximum and sum go through shuffles and shared memory. Three looks
// at x; a row that fits into the cache comes from memory once.
extern "C" __global__ void softmax_v2(const float* x, float* y, int N, int V) {
    __shared__ float of_warp[WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x += static_cast<long long>(blockIdx.x) * V;
    y += static_cast<long long>(blockIdx.x) * V;
    float largest = LOWEST, sum = 0;
    for (int j = threadIdx.x; j < V; j += blockDim.x) largest = fmaxf(largest, x[j]);
    for (int d = WARP / 2; d > 0; d /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, d));
    if (lane == 0) of_warp[warp] = largest;
    __syncthreads();
    for (int w = 0; w < warps; w++) largest = fmaxf(largest, of_warp[w]);
    for (int j = threadIdx.x; j < V; j += blockDim.x) sum += __expf(x[j] - largest);
    sum = block_sum(sum, of_warp);
    for (int j = threadIdx.x; j < V; j += blockDim.x) y[j] = __expf(x[j] - largest) / sum;
}

// v3: online. A running maximum, and the sum of exponentials under it, brought down whenever the maximum rises: two looks
// at x instead of three, which counts for rows that no cache holds.
// Milakov, Gimelshein (2018), arXiv:1805.02867, algorithm 3.
extern "C" __global__ void softmax_v3(const float* x, float* y, int N, int V) {
    __shared__ float largest_of[WARP], sum_of[WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x += static_cast<long long>(blockIdx.x) * V;
    y += static_cast<long long>(blockIdx.x) * V;
    float largest = LOWEST, sum = 0;
    for (int j = threadIdx.x; j < V; j += blockDim.x) {
        float higher = fmaxf(largest, x[j]);
        sum = sum * __expf(largest - higher) + __expf(x[j] - higher);
        largest = higher;
    }
    for (int d = WARP / 2; d > 0; d /= 2) {
        float other = __shfl_xor_sync(ALL, largest, d), other_sum = __shfl_xor_sync(ALL, sum, d);
        float higher = fmaxf(largest, other);
        sum = sum * __expf(largest - higher) + other_sum * __expf(other - higher);
        largest = higher;
    }
    if (lane == 0) {
        largest_of[warp] = largest;
        sum_of[warp] = sum;
    }
    __syncthreads();
    largest = LOWEST;
    for (int w = 0; w < warps; w++) largest = fmaxf(largest, largest_of[w]);
    sum = 0;
    for (int w = 0; w < warps; w++) sum += sum_of[w] * __expf(largest_of[w] - largest);
    float inverse = 1.0f / sum;
    for (int j = threadIdx.x; j < V; j += blockDim.x) y[j] = __expf(x[j] - largest) * inverse;
}
