// Row look-up and its backward; see kernels/embedding.py.
//
// Memory sets the pace: the forward reads and writes 8 bytes a number; the backward reads dy, and reads and writes the
// table's row once a token that occurs: 4 bytes a number of dy and 8 a number of those rows.
//
// In all: `weight`, `dweight` (V, C), `y`, `dy` (N, C), N tokens.
#include "warp.cuh"

// ------------------------------------------------------------------------------------------------ forward

// v1: a thread a number; each divides to find its row, and reads the token again.
extern "C" __global__ void embedding_forward_v1(const long long* ids, const float* weight, float* y, int N, int C) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<long long>(N) * C) return;
    y[i] = weight[ids[i / C] * C + i % C];
}

template <int W>
__device__ void copy_row(const float* from, float* to, int C) {
    for (int c = threadIdx.x * W; c < C; c += blockDim.x * W) store<W>(to + c, load<W>(from + c));
}

// v2: a block a row; four numbers a load where rows are aligned.
extern "C" __global__ void embedding_forward_v2(const long long* ids, const float* weight, float* y, int N, int C) {
    long long row = blockIdx.x;
    if (row >= N) return;
    if (packs(C, weight, y))
        copy_row<4>(weight + ids[row] * C, y + row * C, C);
    else
        copy_row<1>(weight + ids[row] * C, y + row * C, C);
}

// ------------------------------------------------------------------------------------------------ backward

// v1: a thread a number, added atomically. Sums of several rows come in an order that differs from run to run, and with it
// their last bits; threads of a frequent token wait for each other.
extern "C" __global__ void embedding_backward_v1(const float* dy, const long long* ids, float* dweight, int N, int C) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<long long>(N) * C) return;
    atomicAdd(&dweight[ids[i / C] * C + i % C], dy[i]);
}

// v2: a block a row of the table, which looks through all tokens for its own: always the same order, but V·N looks.
extern "C" __global__ void embedding_backward_v2(const float* dy, const long long* ids, float* dweight, int N, int C) {
    long long token = blockIdx.x;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float sum = 0;
        for (long long row = 0; row < N; row++)
            if (ids[row] == token) sum += dy[row * C + c];
        dweight[token * C + c] += sum;
    }
}

// v3: the tokens come sorted, with the rows they stood in: a block a run of equal ones. The block of a run's first place
// adds up the run, those of its other places have nothing to do. The sort is stable, so the order is fixed.
extern "C" __global__ void embedding_backward_v3(const float* dy, const long long* tokens, const long long* rows,
                                                 float* dweight, int N, int C) {
    long long first = blockIdx.x, token = tokens[first];
    if (first > 0 && tokens[first - 1] == token) return;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float sum = 0;
        for (long long i = first; i < N && tokens[i] == token; i++) sum += dy[rows[i] * C + c];
        dweight[token * C + c] += sum;
    }
}
