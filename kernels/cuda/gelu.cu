// GELU of u + bias; see kernels/gelu.py.
//
// Memory sets the pace: forward 8 bytes a number (read u, write y), backward 12 (read dy and u, write du), for some 15
// operations. The backward computes the tanh again: fetching it would cost 4 bytes more, twice.
//
// In all: rows (N, C), `bias` (C) or null.
#include "warp.cuh"

constexpr float SCALE = 0.7978845608028654f;  // √(2/π)
constexpr float CUBIC = 0.044715f;

// tanh(z) = 1 − 2/(exp(2z) + 1), by the fast exponential. Where z is small the relative error is large, but the result
// is only used in 1 + tanh(z), where the absolute error counts. Both ends come out right: exp is then 0 or infinite.
__device__ __forceinline__ float fast_tanh(float z) { return 1.0f - 2.0f / (__expf(2.0f * z) + 1.0f); }

__device__ __forceinline__ float gelu(float u, float t) { return 0.5f * u * (1.0f + t); }

__device__ __forceinline__ float argument(float u) { return SCALE * (u + CUBIC * u * u * u); }

__device__ __forceinline__ float slope(float u, float t) {
    return 0.5f * (1.0f + t) + 0.5f * u * (1.0f - t * t) * SCALE * (1.0f + 3.0f * CUBIC * u * u);
}

// ------------------------------------------------------------------------------------------------ forward

// v1: a thread a number. The division that finds its column and the exact tanh take longer than the memory does.
extern "C" __global__ void bias_gelu_forward_v1(const float* u, const float* bias, float* y, int N, int C) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<long long>(N) * C) return;
    float a = bias ? u[i] + bias[i % C] : u[i];
    y[i] = gelu(a, tanhf(argument(a)));
}

// A thread has one pack of columns, or several far apart, and strides down the rows from blockIdx.y on: it reads its bias
// once.
template <int W> __device__ void forward_columns(const float* u, const float* bias, float* y, int N, int C) {
    for (int c = (blockIdx.x * blockDim.x + threadIdx.x) * W; c < C; c += gridDim.x * blockDim.x * W) {
        Pack<W> b = {};
        if (bias) b = load<W>(bias + c);
        for (int row = blockIdx.y; row < N; row += gridDim.y) {
            long long i = static_cast<long long>(row) * C + c;
            Pack<W> a = load<W>(u + i);
            for (int j = 0; j < W; j++) {
                float x = a.v[j] + b.v[j];
                a.v[j] = gelu(x, fast_tanh(argument(x)));
            }
            store<W>(y + i, a);
        }
    }
}

// v2: four numbers a load where rows are aligned, no division, the fast exponential. y may be u.
extern "C" __global__ void bias_gelu_forward_v2(const float* u, const float* bias, float* y, int N, int C) {
    if (packs(C, u, bias, y))
        forward_columns<4>(u, bias, y, N, C);
    else
        forward_columns<1>(u, bias, y, N, C);
}

// ------------------------------------------------------------------------------------------------ backward

// v1: a thread a number.
extern "C" __global__ void bias_gelu_backward_v1(const float* dy, const float* u, const float* bias, float* du, int N,
                                                 int C) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<long long>(N) * C) return;
    float a = bias ? u[i] + bias[i % C] : u[i];
    du[i] = dy[i] * slope(a, tanhf(argument(a)));
}

template <int W>
__device__ void backward_columns(const float* dy, const float* u, const float* bias, float* du, int N, int C) {
    for (int c = (blockIdx.x * blockDim.x + threadIdx.x) * W; c < C; c += gridDim.x * blockDim.x * W) {
        Pack<W> b = {};
        if (bias) b = load<W>(bias + c);
        for (int row = blockIdx.y; row < N; row += gridDim.y) {
            long long i = static_cast<long long>(row) * C + c;
            Pack<W> a = load<W>(u + i), d = load<W>(dy + i);
            for (int j = 0; j < W; j++) {
                float x = a.v[j] + b.v[j];
                d.v[j] *= slope(x, fast_tanh(argument(x)));
            }
            store<W>(du + i, d);
        }
    }
}

// v2: as the forward. du may be dy.
extern "C" __global__ void bias_gelu_backward_v2(const float* dy, const float* u, const float* bias, float* du, int N,
                                                 int C) {
    if (packs(C, dy, u, bias, du))
        backward_columns<4>(dy, u, bias, du, N, C);
    else
        backward_columns<1>(dy, u, bias, du, N, C);
}
