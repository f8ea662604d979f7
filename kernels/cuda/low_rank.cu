// A linear layer with a low-rank product beside it, y = x·W + b + s·(x·A)·B, for teaching; see kernels/low_rank.py.
//
// Beside 2·in·out operations a row the low-rank part makes 2·r·(in + out): 2 % at r = 8, in = out = 768. As products of
// their own they read x again, and read and write y again: 4·in + 8·out bytes a row, which takes longer than the
// operations do.
//
// x (N, I), weight (I, O), bias (O) or null, A (I, R), B (R, O), y (N, O); z (N, R) = x·A, which the backward reads. R ≤ 16.
#include "warp.cuh"

constexpr int MOST = 16;  // rank
constexpr int TILE = 64, DEPTH = 16, SIDE = 4, ACROSS = TILE / SIDE;

// v1: y is there, x·W + b, and so is z: a thread an element adds the second product. One kernel fewer than a product and
// an addition, and y is read and written once instead of twice.
extern "C" __global__ void low_rank_v1(const float* z, const float* B, float* y, int N, int O, int R, float scaling) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= N || column >= O) return;
    float sum = 0;
    for (int r = 0; r < R; r++) sum += z[static_cast<long long>(row) * R + r] * B[static_cast<long long>(r) * O + column];
    y[static_cast<long long>(row) * O + column] += scaling * sum;
}

// v2: all in one. A block makes 64 × 64 of y, as matmul.cu's v5 does, and from the same tiles of x, while they are in shared
// memory, 64 rows of z; these meet B at the end, and y is written once. Each block of a row of blocks makes z again:
// r/64 more operations than needed, and no second look at x. The blocks of the first column write z down.
extern "C" __global__ void __launch_bounds__(256) low_rank_v2(const float* x, const float* weight, const float* bias,
                                                              const float* A, const float* B, float* y, float* z,
                                                              int N, int I, int O, int R, float scaling) {
    __shared__ __align__(16) float of_x[DEPTH][TILE + 4], of_w[DEPTH][TILE], of_a[DEPTH][MOST], of_z[TILE][MOST],
        of_b[MOST][TILE];
    int thread = threadIdx.x, top = thread / ACROSS * SIDE, left = thread % ACROSS * SIDE;
    int row = blockIdx.y * TILE, column = blockIdx.x * TILE;
    int z_row = thread / 4, z_column = thread % 4 * 4;  // and four numbers of z for each thread
    float sum[SIDE][SIDE] = {}, low[4] = {};
    for (int start = 0; start < I; start += DEPTH) {
        for (int i = thread; i < TILE * DEPTH; i += 256) {
            int r = i / DEPTH, k = i % DEPTH;
            of_x[k][r] = row + r < N && start + k < I ? x[static_cast<long long>(row + r) * I + start + k] : 0.0f;
        }
        for (int i = thread; i < DEPTH * TILE; i += 256) {
            int k = i / TILE, c = i % TILE;
            of_w[k][c] =
                start + k < I && column + c < O ? weight[static_cast<long long>(start + k) * O + column + c] : 0.0f;
        }
        {
            int k = thread / MOST, r = thread % MOST;
            of_a[k][r] = start + k < I && r < R ? A[static_cast<long long>(start + k) * R + r] : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < DEPTH; k++) {
            Pack<4> a = load<4>(&of_x[k][top]), b = load<4>(&of_w[k][left]), c = load<4>(&of_a[k][z_column]);
            for (int i = 0; i < SIDE; i++)
                for (int j = 0; j < SIDE; j++) sum[i][j] += a.v[i] * b.v[j];
            for (int j = 0; j < 4; j++) low[j] += of_x[k][z_row] * c.v[j];
        }
        __syncthreads();
    }
    for (int j = 0; j < 4; j++) {
        of_z[z_row][z_column + j] = low[j];
        if (blockIdx.x == 0 && row + z_row < N && z_column + j < R)
            z[static_cast<long long>(row + z_row) * R + z_column + j] = low[j];
    }
    for (int i = thread; i < MOST * TILE; i += 256) {
        int r = i / TILE, c = i % TILE;
        of_b[r][c] = r < R && column + c < O ? B[static_cast<long long>(r) * O + column + c] : 0.0f;
    }
    __syncthreads();
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            if (row + top + i >= N || column + left + j >= O) continue;
            float beside = 0;
            for (int r = 0; r < MOST; r++) beside += of_z[top + i][r] * of_b[r][left + j];
            float shift = bias ? bias[column + left + j] : 0.0f;
            y[static_cast<long long>(row + top + i) * O + column + left + j] = sum[i][j] + shift + scaling * beside;
        }
}
