// Layer normalisation, with the residual addition before it where there is one; see kernels/layernorm.py.
//
// Nothing here computes much: the roofline is the memory. Least traffic a number, each array passing once:
//   forward   read x, write y: 8 bytes; with a residual read x and delta, write total and y: 16 bytes
//   backward  to the input: read dy and x, write dx: 12 bytes; with a residual dtotal too: 16 bytes
//             to the parameters: read dy and x: 8 bytes
// The backward makes the normalised rows again from x, mean and 1/σ, so the forward need not write them.
//
// In all: rows (N, C); `delta`, `total` and `dtotal` null where there is no residual.
#include "warp.cuh"

// ------------------------------------------------------------------------------------------------ forward

// v1: a thread a row. Neighbouring threads read addresses a whole row apart, so that each load of a warp touches
// 32 lines of memory to use 4 bytes of each, and few rows leave most of the machine idle.
extern "C" __global__ void layernorm_forward_v1(const float* x, const float* delta, const float* weight,
                                                const float* bias, float* total, float* y, float* mean, float* rstd,
                                                int N, int C, float eps) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= N) return;
    long long start = static_cast<long long>(row) * C;
    if (delta) {
        for (int c = 0; c < C; c++) total[start + c] = x[start + c] + delta[start + c];
        x = total;
    }
    float sum = 0;
    for (int c = 0; c < C; c++) sum += x[start + c];
    float mu = sum / C;
    float squares = 0;
    for (int c = 0; c < C; c++) squares += (x[start + c] - mu) * (x[start + c] - mu);
    float s = rsqrtf(squares / C + eps);
    for (int c = 0; c < C; c++) y[start + c] = (x[start + c] - mu) * s * weight[c] + bias[c];
    mean[row] = mu;
    rstd[row] = s;
}

// A warp a row; lane l has the packs l, l + 32, … in every loop, so it reads back only what it wrote itself.
template <int W>
__device__ void forward_row(const float* x, const float* delta, const float* weight, const float* bias, float* total,
                            float* y, float* mean, float* rstd, int row, int C, float eps) {
    int first = threadIdx.x % WARP * W;
    long long start = static_cast<long long>(row) * C;
    x += start;
    y += start;
    float sum = 0;
    if (delta) {
        delta += start;
        total += start;
        for (int c = first; c < C; c += WARP * W) {
            Pack<W> a = load<W>(x + c), b = load<W>(delta + c);
            for (int j = 0; j < W; j++) sum += a.v[j] += b.v[j];
            store<W>(total + c, a);
        }
        x = total;
    } else {
        for (int c = first; c < C; c += WARP * W) {
            Pack<W> a = load<W>(x + c);
            for (int j = 0; j < W; j++) sum += a.v[j];
        }
    }
    float mu = warp_sum(sum) / C;
    float squares = 0;
    for (int c = first; c < C; c += WARP * W) {
        Pack<W> a = load<W>(x + c);
        for (int j = 0; j < W; j++) squares += (a.v[j] - mu) * (a.v[j] - mu);
    }
    float s = rsqrtf(warp_sum(squares) / C + eps);
    for (int c = first; c < C; c += WARP * W) {
        Pack<W> a = load<W>(x + c), w = load<W>(weight + c), b = load<W>(bias + c);
        for (int j = 0; j < W; j++) a.v[j] = (a.v[j] - mu) * s * w.v[j] + b.v[j];
        store<W>(y + c, a);
    }
    if (first == 0) {
        mean[row] = mu;
        rstd[row] = s;
    }
}

// v2: a warp a row. Its 32 lanes read 128 bytes side by side, one line of memory, and add up by shuffles. The row comes
// from memory once; the second and third look find it in the first-level cache.
extern "C" __global__ void layernorm_forward_v2(const float* x, const float* delta, const float* weight,
                                                const float* bias, float* total, float* y, float* mean, float* rstd,
                                                int N, int C, float eps) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (row < N) forward_row<1>(x, delta, weight, bias, total, y, mean, rstd, row, C, eps);
}

// v3: four numbers a load, where rows are aligned to 16 bytes: a quarter of the instructions and more bytes on their way
// at any time.
extern "C" __global__ void layernorm_forward_v3(const float* x, const float* delta, const float* weight,
                                                const float* bias, float* total, float* y, float* mean, float* rstd,
                                                int N, int C, float eps) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (row >= N) return;
    if (packs(C, x, delta, weight, bias, total, y))
        forward_row<4>(x, delta, weight, bias, total, y, mean, rstd, row, C, eps);
    else
        forward_row<1>(x, delta, weight, bias, total, y, mean, rstd, row, C, eps);
}

// ------------------------------------------------------------------------------------------------ backward, input

// v1: a thread a row.
extern "C" __global__ void layernorm_backward_input_v1(const float* dtotal, const float* dy, const float* x,
                                                       const float* weight, const float* mean, const float* rstd,
                                                       float* dx, int N, int C) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= N) return;
    long long start = static_cast<long long>(row) * C;
    float mu = mean[row], s = rstd[row];
    float shift = 0, stretch = 0;
    for (int c = 0; c < C; c++) {
        float g = dy[start + c] * weight[c];
        shift += g;
        stretch += g * (x[start + c] - mu) * s;
    }
    shift /= C;
    stretch /= C;
    for (int c = 0; c < C; c++) {
        float g = dy[start + c] * weight[c];
        float d = s * (g - shift - (x[start + c] - mu) * s * stretch);
        dx[start + c] = dtotal ? dtotal[start + c] + d : d;
    }
}

template <int W>
__device__ void backward_row(const float* dtotal, const float* dy, const float* x, const float* weight,
                             const float* mean, const float* rstd, float* dx, int row, int C) {
    int first = threadIdx.x % WARP * W;
    long long start = static_cast<long long>(row) * C;
    dy += start;
    x += start;
    dx += start;
    float mu = mean[row], s = rstd[row];
    float shift = 0, stretch = 0;
    for (int c = first; c < C; c += WARP * W) {
        Pack<W> d = load<W>(dy + c), a = load<W>(x + c), w = load<W>(weight + c);
        for (int j = 0; j < W; j++) {
            float g = d.v[j] * w.v[j];
            shift += g;
            stretch += g * (a.v[j] - mu) * s;
        }
    }
    shift = warp_sum(shift) / C;
    stretch = warp_sum(stretch) / C;
    for (int c = first; c < C; c += WARP * W) {
        Pack<W> d = load<W>(dy + c), a = load<W>(x + c), w = load<W>(weight + c);
        for (int j = 0; j < W; j++) a.v[j] = s * (d.v[j] * w.v[j] - shift - (a.v[j] - mu) * s * stretch);
        if (dtotal) {
            Pack<W> t = load<W>(dtotal + start + c);
            for (int j = 0; j < W; j++) a.v[j] += t.v[j];
        }
        store<W>(dx + c, a);
    }
}

// v2: a warp a row. Both sums are taken in one look at the row.
extern "C" __global__ void layernorm_backward_input_v2(const float* dtotal, const float* dy, const float* x,
                                                       const float* weight, const float* mean, const float* rstd,
                                                       float* dx, int N, int C) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (row < N) backward_row<1>(dtotal, dy, x, weight, mean, rstd, dx, row, C);
}

// v3: four numbers a load.
extern "C" __global__ void layernorm_backward_input_v3(const float* dtotal, const float* dy, const float* x,
                                                       const float* weight, const float* mean, const float* rstd,
                                                       float* dx, int N, int C) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (row >= N) return;
    if (packs(C, dtotal, dy, x, weight, dx))
        backward_row<4>(dtotal, dy, x, weight, mean, rstd, dx, row, C);
    else
        backward_row<1>(dtotal, dy, x, weight, mean, rstd, dx, row, C);
}

// ------------------------------------------------------------------------------------------------ backward, parameters

// v1: a thread a column, down all rows. Loads of a warp stand side by side, but there are only C threads: far too few to
// keep the memory busy.
extern "C" __global__ void layernorm_backward_params_v1(const float* dy, const float* x, const float* mean,
                                                        const float* rstd, float* dweight, float* dbias, int N,
                                                        int C) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float dw = 0, db = 0;
    for (int row = 0; row < N; row++) {
        long long i = static_cast<long long>(row) * C + c;
        dw += dy[i] * (x[i] - mean[row]) * rstd[row];
        db += dy[i];
    }
    dweight[c] = dw;
    dbias[c] = db;
}

// v2: blocks of 32 columns × 8 rows that stride down their share of the rows, blockIdx.y; `partial` (shares, 2, C) takes
// each share's sums. The order of every sum is fixed, so the result is the same each time, which atomic additions
// would not give.
extern "C" __global__ void layernorm_backward_params_v2(const float* dy, const float* x, const float* mean,
                                                        const float* rstd, float* partial, int N, int C) {
    __shared__ float dw_of[8][WARP], db_of[8][WARP];
    int c = blockIdx.x * WARP + threadIdx.x;
    float dw = 0, db = 0;
    if (c < C) {
        for (int row = blockIdx.y * 8 + threadIdx.y; row < N; row += gridDim.y * 8) {
            long long i = static_cast<long long>(row) * C + c;
            dw += dy[i] * (x[i] - mean[row]) * rstd[row];
            db += dy[i];
        }
    }
    dw_of[threadIdx.y][threadIdx.x] = dw;
    db_of[threadIdx.y][threadIdx.x] = db;
    __syncthreads();
    if (threadIdx.y == 0 && c < C) {
        for (int k = 1; k < 8; k++) {
            dw += dw_of[k][threadIdx.x];
            db += db_of[k][threadIdx.x];
        }
        float* share = partial + static_cast<long long>(blockIdx.y) * 2 * C;
        share[c] = dw;
        share[C + c] = db;
    }
}

// The shares of v2 added up, a thread a column of the 2·C.
extern "C" __global__ void layernorm_backward_params_v2_finish(const float* partial, float* dweight, float* dbias,
                                                               int shares, int C) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= 2 * C) return;
    float sum = 0;
    for (int k = 0; k < shares; k++) sum += partial[static_cast<long long>(k) * 2 * C + c];
    if (c < C)
        dweight[c] = sum;
    else
        dbias[c - C] = sum;
}
