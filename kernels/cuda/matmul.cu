// C (M, N) = A (M, K) @ B (K, N), six times, for teaching: the model's products are the library's, which uses tensor cores
// and a decade of tuning. All matrices lie dense by rows.
//
// 2·M·N·K operations on at least 4·(M·K + K·N + M·N) bytes: 1024³ could make 170 operations a byte. A GPU makes some 10 to
// 15 in float32 a byte of memory, so memory would not matter, if only each number were fetched once. What the steps gain is
// reuse: how many operations are made for each number that is fetched, from memory first, then from shared memory.
#include "warp.cuh"

// v1: a thread an element, neighbouring threads in neighbouring rows. Two loads for two operations, and a warp's loads of A
// and stores to C stand a row apart.
extern "C" __global__ void matmul_v1(const float* A, const float* B, float* C, int M, int N, int K) {
    int row = blockIdx.x * blockDim.x + threadIdx.x, column = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= M || column >= N) return;
    float sum = 0;
    for (int k = 0; k < K; k++) sum += A[static_cast<long long>(row) * K + k] * B[static_cast<long long>(k) * N + column];
    C[static_cast<long long>(row) * N + column] = sum;
}

// v2: neighbouring threads in neighbouring columns. A warp reads one number of A for all and 128 bytes of B side by side.
extern "C" __global__ void matmul_v2(const float* A, const float* B, float* C, int M, int N, int K) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= M || column >= N) return;
    float sum = 0;
    for (int k = 0; k < K; k++) sum += A[static_cast<long long>(row) * K + k] * B[static_cast<long long>(k) * N + column];
    C[static_cast<long long>(row) * N + column] = sum;
}

// v3: a block fetches tiles of 32 × 32 into shared memory and uses each number 32 times: a thirty-second of v2's traffic.
// Now shared memory is the limit: two loads for two operations.
extern "C" __global__ void matmul_v3(const float* A, const float* B, float* C, int M, int N, int K) {
    __shared__ float a[WARP][WARP], b[WARP][WARP];
    int x = threadIdx.x, y = threadIdx.y;
    int row = blockIdx.y * WARP + y, column = blockIdx.x * WARP + x;
    float sum = 0;
    for (int start = 0; start < K; start += WARP) {
        a[y][x] = row < M && start + x < K ? A[static_cast<long long>(row) * K + start + x] : 0.0f;
        b[y][x] = start + y < K && column < N ? B[static_cast<long long>(start + y) * N + column] : 0.0f;
        __syncthreads();
        for (int k = 0; k < WARP; k++) sum += a[y][k] * b[k][x];
        __syncthreads();
    }
    if (row < M && column < N) C[static_cast<long long>(row) * N + column] = sum;
}

// Rows `row` … of a matrix (rows, columns) into a tile (HEIGHT, WIDTH) of shared memory, zeros outside.
template <int HEIGHT, int WIDTH, int THREADS>
__device__ __forceinline__ void fetch(float (*tile)[WIDTH], const float* x, int row, int column, int rows, int columns,
                                      int thread) {
    for (int i = thread; i < HEIGHT * WIDTH; i += THREADS) {
        int r = row + i / WIDTH, c = column + i % WIDTH;
        tile[i / WIDTH][i % WIDTH] = r < rows && c < columns ? x[static_cast<long long>(r) * columns + c] : 0.0f;
    }
}

// v4: a thread a column of 8 elements in registers: it loads a number of B once for 8 rows, nine loads for sixteen
// operations. 512 threads compute 64 × 64.
extern "C" __global__ void __launch_bounds__(512) matmul_v4(const float* A, const float* B, float* C, int M, int N,
                                                            int K) {
    constexpr int TILE = 64, DEPTH = 8, ROWS = 8;
    __shared__ float a[TILE][DEPTH], b[DEPTH][TILE];
    int thread = threadIdx.x, first = thread / TILE * ROWS, x = thread % TILE;
    int row = blockIdx.y * TILE, column = blockIdx.x * TILE;
    float sum[ROWS] = {};
    for (int start = 0; start < K; start += DEPTH) {
        fetch<TILE, DEPTH, 512>(a, A, row, start, M, K, thread);
        fetch<DEPTH, TILE, 512>(b, B, start, column, K, N, thread);
        __syncthreads();
        for (int k = 0; k < DEPTH; k++) {
            float number = b[k][x];
            for (int i = 0; i < ROWS; i++) sum[i] += a[first + i][k] * number;
        }
        __syncthreads();
    }
    for (int i = 0; i < ROWS; i++)
        if (row + first + i < M && column + x < N)
            C[static_cast<long long>(row + first + i) * N + column + x] = sum[i];
}

// v5: a thread a square of 8 × 8 elements in registers: sixteen loads for 128 operations. 256 threads compute 128 × 128.
extern "C" __global__ void __launch_bounds__(256) matmul_v5(const float* A, const float* B, float* C, int M, int N,
                                                            int K) {
    constexpr int TILE = 128, DEPTH = 8, SIDE = 8, ACROSS = TILE / SIDE;
    __shared__ float a[TILE][DEPTH], b[DEPTH][TILE];
    int thread = threadIdx.x, y = thread / ACROSS * SIDE, x = thread % ACROSS * SIDE;
    int row = blockIdx.y * TILE, column = blockIdx.x * TILE;
    float sum[SIDE][SIDE] = {};
    for (int start = 0; start < K; start += DEPTH) {
        fetch<TILE, DEPTH, 256>(a, A, row, start, M, K, thread);
        fetch<DEPTH, TILE, 256>(b, B, start, column, K, N, thread);
        __syncthreads();
        for (int k = 0; k < DEPTH; k++) {
            float of_a[SIDE], of_b[SIDE];
            for (int i = 0; i < SIDE; i++) of_a[i] = a[y + i][k];
            for (int j = 0; j < SIDE; j++) of_b[j] = b[k][x + j];
            for (int i = 0; i < SIDE; i++)
                for (int j = 0; j < SIDE; j++) sum[i][j] += of_a[i] * of_b[j];
        }
        __syncthreads();
    }
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++)
            if (row + y + i < M && column + x + j < N)
                C[static_cast<long long>(row + y + i) * N + column + x + j] = sum[i][j];
}

// v6: four numbers a load, from memory where rows are aligned, from shared memory always: A's tile is turned while it is
// stored, so that what a thread needs of a column of A lies side by side. Four loads for 128 operations.
extern "C" __global__ void __launch_bounds__(256) matmul_v6(const float* A, const float* B, float* C, int M, int N,
                                                            int K) {
    constexpr int TILE = 128, DEPTH = 8, SIDE = 8, ACROSS = TILE / SIDE;
    __shared__ __align__(16) float a[DEPTH][TILE], b[DEPTH][TILE];
    int thread = threadIdx.x, y = thread / ACROSS * SIDE, x = thread % ACROSS * SIDE;
    int row = blockIdx.y * TILE, column = blockIdx.x * TILE;
    int a_row = row + thread / 2, a_column = thread % 2 * 4;          // each thread brings one pack of A, turned,
    int b_row = thread / 32, b_column = column + thread % 32 * 4;     // and one of B
    bool a_packs = packs(K, A), b_packs = packs(N, B), c_packs = packs(N, C);
    float sum[SIDE][SIDE] = {};
    for (int start = 0; start < K; start += DEPTH) {
        Pack<4> of_a = {}, of_b = {};
        const float* from_a = A + static_cast<long long>(a_row) * K + start + a_column;
        const float* from_b = B + static_cast<long long>(start + b_row) * N + b_column;
        if (a_row < M) {
            if (a_packs && start + a_column < K)
                of_a = load<4>(from_a);
            else
                for (int c = 0; c < 4; c++) of_a.v[c] = start + a_column + c < K ? from_a[c] : 0.0f;
        }
        if (start + b_row < K) {
            if (b_packs && b_column < N)
                of_b = load<4>(from_b);
            else
                for (int c = 0; c < 4; c++) of_b.v[c] = b_column + c < N ? from_b[c] : 0.0f;
        }
        for (int c = 0; c < 4; c++) a[a_column + c][thread / 2] = of_a.v[c];
        store<4>(&b[b_row][thread % 32 * 4], of_b);
        __syncthreads();
        for (int k = 0; k < DEPTH; k++) {
            Pack<4> left[2] = {load<4>(&a[k][y]), load<4>(&a[k][y + 4])};
            Pack<4> right[2] = {load<4>(&b[k][x]), load<4>(&b[k][x + 4])};
            for (int i = 0; i < SIDE; i++)
                for (int j = 0; j < SIDE; j++) sum[i][j] += left[i / 4].v[i % 4] * right[j / 4].v[j % 4];
        }
        __syncthreads();
    }
    for (int i = 0; i < SIDE; i++) {
        if (row + y + i >= M) continue;
        float* to = C + static_cast<long long>(row + y + i) * N + column + x;
        for (int j = 0; j < SIDE; j += 4) {
            if (c_packs && column + x + j < N)
                store<4>(to + j, {sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]});
            else
                for (int c = j; c < j + 4; c++)
                    if (column + x + c < N) to[c] = sum[i][c];
        }
    }
}
