// Causal attention, forward and backward, without the (T, S) matrices in memory; see kernels/attention.py.
//
// Dao et al. (2022), "FlashAttention", arXiv:2205.14135; the backward in two kernels without atomic additions, so that the
// same arguments give the same bits.
//
// The matrix of weights never leaves the chip: traffic is that of q, k, v and the output, 16·D bytes a query, for 2·D·S
// operations a query in the forward (4·D·S without the mask) and 7/2 of that in the backward: from a few dozen keys on the
// arithmetic sets the pace, on CUDA cores at two operations a clock and lane.
//
// In all:
//   q, dq (B, H, T, D), k, v, dk, dv (B, H, S, D), each with its strides along B, H and T or S, in numbers; D lies dense
//   out, dout (B, T, H·D), dense
//   key_mask (B, S) or null; dropout (B, H, T, S) or null: factors on the weights, dense
//   lse (B, H, T): each query's log Σ exp(score), by which the backward makes its weights anew; 0 if it sees no key
//   delta (B, H, T): each query's Σ dout·out, which is Σ weight·dweight over its keys
// Query t stands at place S − T + t and sees the keys up to there. blockIdx.y is b·H + h.
#include "warp.cuh"

// What every kernel needs to find its way.
struct Strides {
    long long batch, head, time;
};
struct Shape {
    int B, H, T, S, D;
};

// A head's (T, D) matrix out of the array.
template <class F> __device__ __forceinline__ F* of_head(F* x, Strides s, int b, int h) {
    return x + b * s.batch + h * s.head;
}

__device__ __forceinline__ bool sees(const Shape& n, const bool* key_mask, int b, int t, int s) {
    return s <= n.S - n.T + t && (!key_mask || key_mask[static_cast<long long>(b) * n.S + s]);
}

// ------------------------------------------------------------------------------------------------ v1: a thread a query

// Every thread reads all keys and values it sees from memory, twice, and adds up its output there: the traffic is that of
// the matrix of weights times D. A thread's reads stand a whole row from its neighbours'.
extern "C" __global__ void attention_forward_v1(const float* q, const float* k, const float* v, const bool* key_mask,
                                                float* out, float* lse, int B, int H, int T, int S, int D,
                                                long long qb, long long qh, long long qt, long long kb, long long kh,
                                                long long ks, long long vb, long long vh, long long vs, float scale) {
    Shape n = {B, H, T, S, D};
    int t = blockIdx.x * blockDim.x + threadIdx.x, b = blockIdx.y / H, h = blockIdx.y % H;
    if (t >= T) return;
    const float* query = of_head(q, {qb, qh, qt}, b, h) + t * qt;
    const float* keys = of_head(k, {kb, kh, ks}, b, h);
    const float* values = of_head(v, {vb, vh, vs}, b, h);
    float* mixed = out + ((static_cast<long long>(b) * T + t) * H + h) * D;
    float largest = LOWEST, sum = 0;
    for (int s = 0; s <= S - T + t; s++) {
        if (!sees(n, key_mask, b, t, s)) continue;
        float score = 0;
        for (int d = 0; d < D; d++) score += query[d] * keys[s * ks + d];
        score *= scale;
        float higher = fmaxf(largest, score);
        sum = sum * expf(largest - higher) + expf(score - higher);
        largest = higher;
    }
    for (int d = 0; d < D; d++) mixed[d] = 0;
    for (int s = 0; s <= S - T + t; s++) {
        if (!sees(n, key_mask, b, t, s)) continue;
        float score = 0;
        for (int d = 0; d < D; d++) score += query[d] * keys[s * ks + d];
        float weight = expf(score * scale - largest) / sum;
        for (int d = 0; d < D; d++) mixed[d] += weight * values[s * vs + d];
    }
    lse[static_cast<long long>(blockIdx.y) * T + t] = sum > 0 ? largest + logf(sum) : 0.0f;
}

// ------------------------------------------------------------------------------------------------ v2: a warp a query

constexpr int LANE_NUMBERS = 4;  // D ≤ 128: lane l holds numbers l, l + 32, l + 64, l + 96 of a row

struct Row {
    float v[LANE_NUMBERS];
};
__device__ __forceinline__ Row load_row(const float* x, int D) {
    Row row;
    for (int j = 0; j < LANE_NUMBERS; j++) {
        int d = threadIdx.x % WARP + j * WARP;
        row.v[j] = d < D ? x[d] : 0.0f;
    }
    return row;
}
__device__ __forceinline__ void store_row(float* x, const Row& row, float factor, int D) {
    for (int j = 0; j < LANE_NUMBERS; j++) {
        int d = threadIdx.x % WARP + j * WARP;
        if (d < D) x[d] = row.v[j] * factor;
    }
}
__device__ __forceinline__ float dot(const Row& a, const Row& b) {
    float sum = 0;
    for (int j = 0; j < LANE_NUMBERS; j++) sum += a.v[j] * b.v[j];
    return warp_sum(sum);
}
__device__ __forceinline__ void add(Row& a, float factor, const Row& b) {
    for (int j = 0; j < LANE_NUMBERS; j++) a.v[j] += factor * b.v[j];
}

// The lanes share a row, so reads stand side by side and the output stays in registers, with the online softmax: keys and
// values pass once. Still every query reads them all for itself. Used where there are too few queries to fill a tile:
// one at a time, in generation.
extern "C" __global__ void attention_forward_v2(const float* q, const float* k, const float* v, const bool* key_mask,
                                                float* out, float* lse, int B, int H, int T, int S, int D,
                                                long long qb, long long qh, long long qt, long long kb, long long kh,
                                                long long ks, long long vb, long long vh, long long vs, float scale) {
    Shape n = {B, H, T, S, D};
    int t = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, b = blockIdx.y / H, h = blockIdx.y % H;
    if (t >= T) return;
    Row query = load_row(of_head(q, {qb, qh, qt}, b, h) + t * qt, D), mixed = {};
    const float* keys = of_head(k, {kb, kh, ks}, b, h);
    const float* values = of_head(v, {vb, vh, vs}, b, h);
    float largest = LOWEST, sum = 0;
    for (int s = 0; s <= S - T + t; s++) {
        if (!sees(n, key_mask, b, t, s)) continue;
        float score = dot(query, load_row(keys + s * ks, D)) * scale;
        float higher = fmaxf(largest, score);
        float shrink = __expf(largest - higher), weight = __expf(score - higher);
        sum = sum * shrink + weight;
        for (int j = 0; j < LANE_NUMBERS; j++) mixed.v[j] *= shrink;
        add(mixed, weight, load_row(values + s * vs, D));
        largest = higher;
    }
    store_row(out + ((static_cast<long long>(b) * T + t) * H + h) * D, mixed, sum > 0 ? 1.0f / sum : 0.0f, D);
    if (threadIdx.x % WARP == 0)
        lse[static_cast<long long>(blockIdx.y) * T + t] = sum > 0 ? largest + __logf(sum) : 0.0f;
}

// Σ dout·out of each query: a warp each.
extern "C" __global__ void attention_delta(const float* dout, const float* out, float* delta, int B, int H, int T,
                                           int D) {
    long long row = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) / WARP;  // (b·T + t)·H + h
    if (row >= static_cast<long long>(B) * T * H) return;
    float sum = dot(load_row(dout + row * D, D), load_row(out + row * D, D));
    int h = row % H, t = row / H % T;
    if (threadIdx.x % WARP == 0) delta[(row / H / T * H + h) * T + t] = sum;
}

// dq_t = Σ_s dZ_ts k_s·scale, with dZ = P∘(dP − delta), dP_ts = dout_t·v_s: a warp a query.
extern "C" __global__ void attention_backward_query_v2(const float* dout, const float* q, const float* k,
                                                       const float* v, const bool* key_mask, const float* lse,
                                                       const float* delta, float* dq, int B, int H, int T, int S,
                                                       int D, long long qb, long long qh, long long qt, long long kb,
                                                       long long kh, long long ks, long long vb, long long vh,
                                                       long long vs, long long dqb, long long dqh, long long dqt,
                                                       float scale) {
    Shape n = {B, H, T, S, D};
    int t = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, b = blockIdx.y / H, h = blockIdx.y % H;
    if (t >= T) return;
    Row query = load_row(of_head(q, {qb, qh, qt}, b, h) + t * qt, D), sum = {};
    Row dmixed = load_row(dout + ((static_cast<long long>(b) * T + t) * H + h) * D, D);
    const float* keys = of_head(k, {kb, kh, ks}, b, h);
    const float* values = of_head(v, {vb, vh, vs}, b, h);
    long long place = static_cast<long long>(blockIdx.y) * T + t;
    for (int s = 0; s <= S - T + t; s++) {
        if (!sees(n, key_mask, b, t, s)) continue;
        Row key = load_row(keys + s * ks, D);
        float weight = __expf(dot(query, key) * scale - lse[place]);
        add(sum, weight * (dot(dmixed, load_row(values + s * vs, D)) - delta[place]), key);
    }
    store_row(of_head(dq, {dqb, dqh, dqt}, b, h) + t * dqt, sum, scale, D);
}

// dk_s = Σ_t dZ_ts q_t·scale and dv_s = Σ_t P_ts dout_t: a warp a key, over the queries that see it.
extern "C" __global__ void attention_backward_key_v2(const float* dout, const float* q, const float* k, const float* v,
                                                     const bool* key_mask, const float* lse, const float* delta,
                                                     float* dk, float* dv, int B, int H, int T, int S, int D,
                                                     long long qb, long long qh, long long qt, long long kb,
                                                     long long kh, long long ks, long long vb, long long vh,
                                                     long long vs, long long dkb, long long dkh, long long dks,
                                                     long long dvb, long long dvh, long long dvs, float scale) {
    Shape n = {B, H, T, S, D};
    int s = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, b = blockIdx.y / H, h = blockIdx.y % H;
    if (s >= S) return;
    Row key = load_row(of_head(k, {kb, kh, ks}, b, h) + s * ks, D), to_key = {};
    Row value = load_row(of_head(v, {vb, vh, vs}, b, h) + s * vs, D), to_value = {};
    const float* queries = of_head(q, {qb, qh, qt}, b, h);
    for (int t = max(0, s - (S - T)); t < T; t++) {
        if (!sees(n, key_mask, b, t, s)) continue;
        Row query = load_row(queries + t * qt, D);
        Row dmixed = load_row(dout + ((static_cast<long long>(b) * T + t) * H + h) * D, D);
        long long place = static_cast<long long>(blockIdx.y) * T + t;
        float weight = __expf(dot(query, key) * scale - lse[place]);
        add(to_value, weight, dmixed);
        add(to_key, weight * (dot(dmixed, value) - delta[place]), query);
    }
    store_row(of_head(dk, {dkb, dkh, dks}, b, h) + s * dks, to_key, scale, D);
    store_row(of_head(dv, {dvb, dvh, dvs}, b, h) + s * dvs, to_value, 1.0f, D);
}

// ------------------------------------------------------------------------------------------------ v3: tiles
//
// A block of 16 × 16 threads takes ROWS rows (queries; in the backward for keys, keys) and goes through the others in
// tiles of COLUMNS. Both lie in shared memory, where each number is read by sixteen threads, and each thread makes
// R × K scores in registers, for which it reads four numbers a time. It computes
//   scores (ROWS, COLUMNS)  rows ty + 16i, columns tx + 16j
//   results (ROWS, W)       rows ty + 16i, numbers tx + 16m of a row; W = D rounded up to 32, 64 or 128
// Rows are padded by four numbers: sixteen threads that read packs of sixteen rows then meet all banks of the memory evenly.

constexpr int SIDE = 16;  // threads along each side of a block

// ROWS rows of a head from row `first` on into a tile, zeros beyond the last row and beyond D.
template <int ROWS, int W>
__device__ __forceinline__ void fetch(float (*tile)[W + 4], const float* x, long long stride, int first, int limit,
                                      int D) {
    for (int i = threadIdx.y * SIDE + threadIdx.x; i < ROWS * W; i += SIDE * SIDE) {
        int row = i / W, d = i % W;
        tile[row][d] = first + row < limit && d < D ? x[(first + row) * stride + d] : 0.0f;
    }
}

// Products of the rows of two tiles: scores[i][j] = a[ty + 16i]·b[tx + 16j].
template <int R, int K, int W>
__device__ __forceinline__ void products(float (&scores)[R][K], float (*a)[W + 4], float (*b)[W + 4]) {
    for (int i = 0; i < R; i++)
        for (int j = 0; j < K; j++) scores[i][j] = 0;
#pragma unroll 4
    for (int d = 0; d < W; d += 4) {
        Pack<4> of_a[R], of_b[K];
        for (int i = 0; i < R; i++) of_a[i] = load<4>(&a[threadIdx.y + SIDE * i][d]);
        for (int j = 0; j < K; j++) of_b[j] = load<4>(&b[threadIdx.x + SIDE * j][d]);
        for (int i = 0; i < R; i++)
            for (int j = 0; j < K; j++)
                for (int c = 0; c < 4; c++) scores[i][j] += of_a[i].v[c] * of_b[j].v[c];
    }
}

// result += weights @ x, with weights (ROWS, COLUMNS) and x (COLUMNS, W) in tiles. A thread has R rows and M numbers,
// tx + 16m of each: neighbours in a warp read neighbours in the tile.
template <int R, int M, int COLUMNS, int W>
__device__ __forceinline__ void accumulate(float (&result)[R][M], float (*weights)[COLUMNS + 4], float (*x)[W + 4]) {
#pragma unroll 2
    for (int s = 0; s < COLUMNS; s += 4) {
        Pack<4> w[R];
        for (int i = 0; i < R; i++) w[i] = load<4>(&weights[threadIdx.y + SIDE * i][s]);
        for (int c = 0; c < 4; c++)
            for (int m = 0; m < M; m++) {
                float number = x[s + c][threadIdx.x + SIDE * m];
                for (int i = 0; i < R; i++) result[i][m] += w[i].v[c] * number;
            }
    }
}

template <int R, int K, int COLUMNS>
__device__ __forceinline__ void keep(float (*tile)[COLUMNS + 4], float (&scores)[R][K]) {
    for (int i = 0; i < R; i++)
        for (int j = 0; j < K; j++) tile[threadIdx.y + SIDE * i][threadIdx.x + SIDE * j] = scores[i][j];
}

// Over the sixteen threads that share a row: they are one half of a warp.
__device__ __forceinline__ float row_sum(float x) {
    for (int d = SIDE / 2; d > 0; d /= 2) x += __shfl_xor_sync(ALL, x, d);
    return x;
}
__device__ __forceinline__ float row_max(float x) {
    for (int d = SIDE / 2; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, d));
    return x;
}

__device__ __forceinline__ float dropped(const float* dropout, const Shape& n, int t, int s) {
    return dropout ? dropout[(static_cast<long long>(blockIdx.y) * n.T + t) * n.S + s] : 1.0f;
}

// Keys that some query before `stop` sees.
__device__ __forceinline__ int seen_by(const Shape& n, int stop) { return n.S - n.T + min(stop, n.T); }

// Forward. Shared: queries, one tile for keys and then values, weights.
template <int W, int ROWS, int COLUMNS>
__device__ __forceinline__ void forward_tiles(float (*queries)[W + 4], float (*others)[W + 4],
                                              float (*weights)[COLUMNS + 4], const float* q, const float* k,
                                              const float* v, const bool* key_mask, const float* dropout, float* out,
                                              float* lse, const Shape& n, const Strides& sq, const Strides& sk,
                                              const Strides& sv, float scale) {
    constexpr int R = ROWS / SIDE, K = COLUMNS / SIDE, M = W / SIDE;
    int b = blockIdx.y / n.H, h = blockIdx.y % n.H, first = blockIdx.x * ROWS;
    const float* keys = of_head(k, sk, b, h);
    const float* values = of_head(v, sv, b, h);
    fetch<ROWS, W>(queries, of_head(q, sq, b, h), sq.time, first, n.T, n.D);
    float largest[R], sum[R], mixed[R][M] = {};
    for (int i = 0; i < R; i++) {
        largest[i] = LOWEST;
        sum[i] = 0;
    }
    for (int start = 0; start < seen_by(n, first + ROWS); start += COLUMNS) {
        __syncthreads();  // values and weights of the tile before have been used
        fetch<COLUMNS, W>(others, keys, sk.time, start, n.S, n.D);
        __syncthreads();
        float scores[R][K];
        products<R, K, W>(scores, queries, others);
        for (int i = 0; i < R; i++) {
            int t = first + threadIdx.y + SIDE * i;
            bool visible[K];
            float higher = largest[i];
            for (int j = 0; j < K; j++) {
                int s = start + threadIdx.x + SIDE * j;
                visible[j] = t < n.T && s < n.S && sees(n, key_mask, b, t, s);
                scores[i][j] *= scale;
                if (visible[j]) higher = fmaxf(higher, scores[i][j]);
            }
            higher = row_max(higher);
            float part = 0;
            for (int j = 0; j < K; j++) {
                float weight = visible[j] ? __expf(scores[i][j] - higher) : 0.0f;
                part += weight;
                scores[i][j] = visible[j] ? weight * dropped(dropout, n, t, start + threadIdx.x + SIDE * j) : 0.0f;
            }
            float shrink = __expf(largest[i] - higher);
            sum[i] = sum[i] * shrink + row_sum(part);
            for (int m = 0; m < M; m++) mixed[i][m] *= shrink;
            largest[i] = higher;
        }
        keep<R, K, COLUMNS>(weights, scores);
        __syncthreads();  // the keys have been used
        fetch<COLUMNS, W>(others, values, sv.time, start, n.S, n.D);
        __syncthreads();
        accumulate<R, M, COLUMNS, W>(mixed, weights, others);
    }
    for (int i = 0; i < R; i++) {
        int t = first + threadIdx.y + SIDE * i;
        if (t >= n.T) continue;
        float inverse = sum[i] > 0 ? 1.0f / sum[i] : 0.0f;
        float* row = out + ((static_cast<long long>(b) * n.T + t) * n.H + h) * n.D;
        for (int m = 0; m < M; m++) {
            int d = threadIdx.x + SIDE * m;
            if (d < n.D) row[d] = mixed[i][m] * inverse;
        }
        if (threadIdx.x == 0)
            lse[static_cast<long long>(blockIdx.y) * n.T + t] = sum[i] > 0 ? largest[i] + __logf(sum[i]) : 0.0f;
    }
}

// Backward for queries. Shared: queries, the output's gradient, one tile for values and then keys, dZ.
template <int W, int ROWS, int COLUMNS>
__device__ __forceinline__ void query_tiles(float (*queries)[W + 4], float (*dmixed)[W + 4], float (*others)[W + 4],
                                            float (*dscores)[COLUMNS + 4], const float* dout, const float* q,
                                            const float* k, const float* v, const bool* key_mask, const float* dropout,
                                            const float* lse, const float* delta, float* dq, const Shape& n,
                                            const Strides& sq, const Strides& sk, const Strides& sv,
                                            const Strides& sdq, float scale) {
    constexpr int R = ROWS / SIDE, K = COLUMNS / SIDE, M = W / SIDE;
    int b = blockIdx.y / n.H, h = blockIdx.y % n.H, first = blockIdx.x * ROWS;
    const float* keys = of_head(k, sk, b, h);
    const float* values = of_head(v, sv, b, h);
    Strides of_out = {static_cast<long long>(n.T) * n.H * n.D, n.D, static_cast<long long>(n.H) * n.D};
    fetch<ROWS, W>(queries, of_head(q, sq, b, h), sq.time, first, n.T, n.D);
    fetch<ROWS, W>(dmixed, of_head(dout, of_out, b, h), of_out.time, first, n.T, n.D);
    float result[R][M] = {};
    for (int start = 0; start < seen_by(n, first + ROWS); start += COLUMNS) {
        float dweights[R][K], scores[R][K];
        __syncthreads();
        fetch<COLUMNS, W>(others, values, sv.time, start, n.S, n.D);
        __syncthreads();
        products<R, K, W>(dweights, dmixed, others);
        __syncthreads();
        fetch<COLUMNS, W>(others, keys, sk.time, start, n.S, n.D);
        __syncthreads();
        products<R, K, W>(scores, queries, others);
        for (int i = 0; i < R; i++)
            for (int j = 0; j < K; j++) {
                int t = first + threadIdx.y + SIDE * i, s = start + threadIdx.x + SIDE * j;
                long long place = static_cast<long long>(blockIdx.y) * n.T + t;
                bool visible = t < n.T && s < n.S && sees(n, key_mask, b, t, s);
                scores[i][j] = visible ? __expf(scores[i][j] * scale - lse[place]) *
                                             (dweights[i][j] * dropped(dropout, n, t, s) - delta[place])
                                       : 0.0f;
            }
        keep<R, K, COLUMNS>(dscores, scores);
        __syncthreads();
        accumulate<R, M, COLUMNS, W>(result, dscores, others);
    }
    float* to = of_head(dq, sdq, b, h);
    for (int i = 0; i < R; i++)
        for (int m = 0; m < M; m++) {
            int t = first + threadIdx.y + SIDE * i, d = threadIdx.x + SIDE * m;
            if (t < n.T && d < n.D) to[t * sdq.time + d] = result[i][m] * scale;
        }
}

// Backward for keys and values: rows are keys, the tiles that pass are of queries. Shared: keys, values, one tile for
// queries, the output's gradient and queries again, one for weights and then dZ, both (keys, queries).
template <int W, int ROWS, int COLUMNS>
__device__ __forceinline__ void key_tiles(float (*keys)[W + 4], float (*values)[W + 4], float (*others)[W + 4],
                                          float (*weights)[COLUMNS + 4], const float* dout, const float* q,
                                          const float* k, const float* v, const bool* key_mask, const float* dropout,
                                          const float* lse, const float* delta, float* dk, float* dv, const Shape& n,
                                          const Strides& sq, const Strides& sk, const Strides& sv, const Strides& sdk,
                                          const Strides& sdv, float scale) {
    constexpr int R = ROWS / SIDE, K = COLUMNS / SIDE, M = W / SIDE;
    int b = blockIdx.y / n.H, h = blockIdx.y % n.H, first = blockIdx.x * ROWS;
    const float* queries = of_head(q, sq, b, h);
    Strides of_out = {static_cast<long long>(n.T) * n.H * n.D, n.D, static_cast<long long>(n.H) * n.D};
    const float* dmixed = of_head(dout, of_out, b, h);
    fetch<ROWS, W>(keys, of_head(k, sk, b, h), sk.time, first, n.S, n.D);
    fetch<ROWS, W>(values, of_head(v, sv, b, h), sv.time, first, n.S, n.D);
    float to_key[R][M] = {}, to_value[R][M] = {};
    int earliest = max(0, first - (n.S - n.T)) / COLUMNS * COLUMNS;  // queries before it see none of these keys
    for (int start = earliest; start < n.T; start += COLUMNS) {
        float scores[R][K], dscores[R][K];
        __syncthreads();
        fetch<COLUMNS, W>(others, queries, sq.time, start, n.T, n.D);
        __syncthreads();
        products<R, K, W>(scores, keys, others);
        __syncthreads();
        fetch<COLUMNS, W>(others, dmixed, of_out.time, start, n.T, n.D);
        __syncthreads();
        products<R, K, W>(dscores, values, others);
        for (int i = 0; i < R; i++)
            for (int j = 0; j < K; j++) {
                int s = first + threadIdx.y + SIDE * i, t = start + threadIdx.x + SIDE * j;
                long long place = static_cast<long long>(blockIdx.y) * n.T + t;
                bool visible = t < n.T && s < n.S && sees(n, key_mask, b, t, s);
                float weight = visible ? __expf(scores[i][j] * scale - lse[place]) : 0.0f;
                float factor = visible ? dropped(dropout, n, t, s) : 0.0f;
                dscores[i][j] = visible ? weight * (dscores[i][j] * factor - delta[place]) : 0.0f;
                scores[i][j] = weight * factor;
            }
        keep<R, K, COLUMNS>(weights, scores);
        __syncthreads();
        accumulate<R, M, COLUMNS, W>(to_value, weights, others);
        __syncthreads();
        keep<R, K, COLUMNS>(weights, dscores);
        fetch<COLUMNS, W>(others, queries, sq.time, start, n.T, n.D);
        __syncthreads();
        accumulate<R, M, COLUMNS, W>(to_key, weights, others);
    }
    float* key_to = of_head(dk, sdk, b, h);
    float* value_to = of_head(dv, sdv, b, h);
    for (int i = 0; i < R; i++)
        for (int m = 0; m < M; m++) {
            int s = first + threadIdx.y + SIDE * i, d = threadIdx.x + SIDE * m;
            if (s >= n.S || d >= n.D) continue;
            key_to[s * sdk.time + d] = to_key[i][m] * scale;
            value_to[s * sdv.time + d] = to_value[i][m];
        }
}

// One set of kernels for heads of up to W numbers; tiles as large as 48 KB of shared memory allow.
#define ATTENTION(W, FORWARD_ROWS, FORWARD_COLUMNS, ROWS, COLUMNS)                                                     \
    extern "C" __global__ void __launch_bounds__(256) attention_forward_v3_d##W(                                       \
        const float* q, const float* k, const float* v, const bool* key_mask, const float* dropout, float* out,        \
        float* lse, int B, int H, int T, int S, int D, long long qb, long long qh, long long qt, long long kb,         \
        long long kh, long long ks, long long vb, long long vh, long long vs, float scale) {                           \
        __shared__ __align__(16) float queries[FORWARD_ROWS][W + 4], others[FORWARD_COLUMNS][W + 4],                   \
            weights[FORWARD_ROWS][FORWARD_COLUMNS + 4];                                                                \
        forward_tiles<W, FORWARD_ROWS, FORWARD_COLUMNS>(queries, others, weights, q, k, v, key_mask, dropout, out,     \
                                                        lse, {B, H, T, S, D}, {qb, qh, qt}, {kb, kh, ks},              \
                                                        {vb, vh, vs}, scale);                                          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) attention_backward_query_v3_d##W(                                \
        const float* dout, const float* q, const float* k, const float* v, const bool* key_mask,                       \
        const float* dropout, const float* lse, const float* delta, float* dq, int B, int H, int T, int S, int D,      \
        long long qb, long long qh, long long qt, long long kb, long long kh, long long ks, long long vb,              \
        long long vh, long long vs, long long dqb, long long dqh, long long dqt, float scale) {                        \
        __shared__ __align__(16) float queries[ROWS][W + 4], dmixed[ROWS][W + 4], others[COLUMNS][W + 4],              \
            dscores[ROWS][COLUMNS + 4];                                                                                \
        query_tiles<W, ROWS, COLUMNS>(queries, dmixed, others, dscores, dout, q, k, v, key_mask, dropout, lse, delta,  \
                                      dq, {B, H, T, S, D}, {qb, qh, qt}, {kb, kh, ks}, {vb, vh, vs},                   \
                                      {dqb, dqh, dqt}, scale);                                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) attention_backward_key_v3_d##W(                                  \
        const float* dout, const float* q, const float* k, const float* v, const bool* key_mask,                       \
        const float* dropout, const float* lse, const float* delta, float* dk, float* dv, int B, int H, int T, int S,  \
        int D, long long qb, long long qh, long long qt, long long kb, long long kh, long long ks, long long vb,       \
        long long vh, long long vs, long long dkb, long long dkh, long long dks, long long dvb, long long dvh,         \
        long long dvs, float scale) {                                                                                  \
        __shared__ __align__(16) float keys[ROWS][W + 4], values[ROWS][W + 4], others[COLUMNS][W + 4],                 \
            weights[ROWS][COLUMNS + 4];                                                                                \
        key_tiles<W, ROWS, COLUMNS>(keys, values, others, weights, dout, q, k, v, key_mask, dropout, lse, delta, dk,   \
                                    dv, {B, H, T, S, D}, {qb, qh, qt}, {kb, kh, ks}, {vb, vh, vs}, {dkb, dkh, dks},    \
                                    {dvb, dvh, dvs}, scale);                                                           \
    }

ATTENTION(32, 64, 64, 64, 32)
ATTENTION(64, 64, 32, 32, 32)
ATTENTION(128, 32, 32, 32, 16)
