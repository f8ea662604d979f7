// What a linear layer needs beside its matrix products; see kernels/linear.py.
//
// Memory sets the pace: adding the bias in place moves 8 bytes a number, summing columns 4, one operation each.
#include "warp.cuh"

// ------------------------------------------------------------------------------------------------ bias, in place

// v1: a thread a number, with a division to find its column.
extern "C" __global__ void bias_add_v1(float* y, const float* bias, int N, int C) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < static_cast<long long>(N) * C) y[i] += bias[i % C];
}

template <int W> __device__ void add_to_columns(float* y, const float* bias, int N, int C) {
    for (int c = (blockIdx.x * blockDim.x + threadIdx.x) * W; c < C; c += gridDim.x * blockDim.x * W) {
        Pack<W> b = load<W>(bias + c);
        for (int row = blockIdx.y; row < N; row += gridDim.y) {
            long long i = static_cast<long long>(row) * C + c;
            Pack<W> a = load<W>(y + i);
            for (int j = 0; j < W; j++) a.v[j] += b.v[j];
            store<W>(y + i, a);
        }
    }
}

// v2: a thread keeps its columns' bias and strides down the rows; four numbers a load where rows are aligned.
extern "C" __global__ void bias_add_v2(float* y, const float* bias, int N, int C) {
    if (packs(C, y, bias))
        add_to_columns<4>(y, bias, N, C);
    else
        add_to_columns<1>(y, bias, N, C);
}

// ------------------------------------------------------------------------------------------------ column sums

// v1: a thread a column, down all rows: C threads are too few to keep the memory busy.
extern "C" __global__ void column_sum_v1(const float* x, float* sums, int N, int C) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float sum = 0;
    for (int row = 0; row < N; row++) sum += x[static_cast<long long>(row) * C + c];
    sums[c] = sum;
}

// v2: blocks of 32 columns × 8 rows that stride down their share of the rows, blockIdx.y; `partial` (shares, C) takes each
// share's sums, and v1 adds those up. The order of every sum is fixed.
extern "C" __global__ void column_sum_v2(const float* x, float* partial, int N, int C) {
    __shared__ float sum_of[8][WARP];
    int c = blockIdx.x * WARP + threadIdx.x;
    float sum = 0;
    if (c < C)
        for (int row = blockIdx.y * 8 + threadIdx.y; row < N; row += gridDim.y * 8)
            sum += x[static_cast<long long>(row) * C + c];
    sum_of[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < C) {
        for (int k = 1; k < 8; k++) sum += sum_of[k][threadIdx.x];
        partial[static_cast<long long>(blockIdx.y) * C + c] = sum;
    }
}
