// Log-probability of each row's target, and the loss with its gradient; see kernels/cross_entropy.py.
//
// Memory sets the pace: the logits (N, V) are by far the largest array of a pass.
//   log-probabilities           read the logits once: 4 bytes a number
//   their backward              read and write them, in place: 8 bytes
//   the loss with its gradient  read them twice, the second time out of the cache, and write: 8 to 12 bytes, and nothing
//                               of this size beside the logits themselves
// One exponential a number and pass.
//
// A row's softmax is kept as two numbers, its largest logit and Σ exp(z − largest): p = exp(z − largest)/Σ.
#include "warp.cuh"

constexpr long long IGNORED = -100;

// ------------------------------------------------------------------------------------------------ a thread a row

// v1: neighbouring threads read addresses V apart, and N threads are few.
extern "C" __global__ void token_logprobs_forward_v1(const float* logits, const long long* targets, float* logprobs,
                                                     float* largest, float* total, int N, int V) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= N) return;
    const float* z = logits + static_cast<long long>(row) * V;
    float m = z[0], sum = 0;
    for (int j = 1; j < V; j++) m = fmaxf(m, z[j]);
    for (int j = 0; j < V; j++) sum += expf(z[j] - m);
    largest[row] = m;
    total[row] = sum;
    logprobs[row] = targets[row] == IGNORED ? 0.0f : z[targets[row]] - m - logf(sum);
}

extern "C" __global__ void token_logprobs_backward_v1(float* logits, const long long* targets, const float* largest,
                                                      const float* total, const float* dlogprobs, int N, int V) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= N) return;
    float* z = logits + static_cast<long long>(row) * V;
    float d = targets[row] == IGNORED ? 0.0f : dlogprobs[row];
    for (int j = 0; j < V; j++) z[j] = d == 0.0f ? 0.0f : -d * expf(z[j] - largest[row]) / total[row];
    if (d != 0.0f) z[targets[row]] += d;
}

// ------------------------------------------------------------------------------------------------ a block a row

// A running maximum, and the sum of exponentials under it: when a larger one comes, the sum is brought down to it.
// Milakov, Gimelshein (2018), "Online normalizer calculation for softmax", arXiv:1805.02867, algorithm 3.
struct Online {
    float largest, sum;
    __device__ __forceinline__ void see(float z) {
        if (z > largest) {
            sum = sum * __expf(largest - z) + 1.0f;
            largest = z;
        } else {
            sum += __expf(z - largest);
        }
    }
    __device__ __forceinline__ void join(float other_largest, float other_sum) {
        float m = fmaxf(largest, other_largest);
        sum = sum * __expf(largest - m) + other_sum * __expf(other_largest - m);
        largest = m;
    }
};

// All threads' looks at a row, joined: a fixed tree, so the bits do not depend on who comes first.
__device__ __forceinline__ Online join_block(Online mine, float* largest_of, float* sum_of) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (int d = WARP / 2; d > 0; d /= 2) {
        float other_largest = __shfl_xor_sync(ALL, mine.largest, d), other_sum = __shfl_xor_sync(ALL, mine.sum, d);
        mine.join(other_largest, other_sum);
    }
    if (lane == 0) {
        largest_of[warp] = mine.largest;
        sum_of[warp] = mine.sum;
    }
    __syncthreads();
    Online all = {LOWEST, 0.0f};
    for (int w = 0; w < warps; w++) all.join(largest_of[w], sum_of[w]);
    return all;
}

// Calls f(number, index) for a thread's share of a row: packs of 4 in the middle, single numbers before and after, since
// a row starts at any address when V is odd. What f changes is stored if WRITE.
template <bool WRITE, class F> __device__ __forceinline__ void over_row(float* row, int V, F f) {
    int me = threadIdx.x;
    int head = min(lead(row), V), packed = (V - head) / 4, tail = head + 4 * packed;
    if (me < head) f(row[me], me);
    for (int k = me; k < packed; k += blockDim.x) {
        int i = head + 4 * k;
        Pack<4> p = load<4>(row + i);
        for (int j = 0; j < 4; j++) f(p.v[j], i + j);
        if (WRITE) store<4>(row + i, p);
    }
    if (tail + me < V) f(row[tail + me], tail + me);
}

__device__ __forceinline__ Online look(float* row, int V, float* largest_of, float* sum_of) {
    Online mine = {LOWEST, 0.0f};
    over_row<false>(row, V, [&](float& z, int) { mine.see(z); });
    return join_block(mine, largest_of, sum_of);
}

// v2: a block a row, maximum and sum in one look, four numbers a load.
extern "C" __global__ void token_logprobs_forward_v2(const float* logits, const long long* targets, float* logprobs,
                                                     float* largest, float* total, int N, int V) {
    __shared__ float largest_of[WARP], sum_of[WARP];
    long long row = blockIdx.x;
    float* z = const_cast<float*>(logits) + row * V;
    Online all = look(z, V, largest_of, sum_of);
    if (threadIdx.x == 0) {
        largest[row] = all.largest;
        total[row] = all.sum;
        logprobs[row] = targets[row] == IGNORED ? 0.0f : z[targets[row]] - all.largest - logf(all.sum);
    }
}

__device__ __forceinline__ void write_gradient(float* z, int V, long long target, Online all, float d) {
    float factor = -d / all.sum;
    over_row<true>(z, V, [&](float& x, int j) {
        x = d == 0.0f ? 0.0f : factor * __expf(x - all.largest) + (j == target ? d : 0.0f);
    });
}

// v2: in place, a block a row.
extern "C" __global__ void token_logprobs_backward_v2(float* logits, const long long* targets, const float* largest,
                                                      const float* total, const float* dlogprobs, int N, int V) {
    long long row = blockIdx.x;
    float d = targets[row] == IGNORED ? 0.0f : dlogprobs[row];
    write_gradient(logits + row * V, V, targets[row], {largest[row], total[row]}, d);
}

// The loss of each row and, in place of the logits, its gradient: (softmax − one-hot)·scale. What the first look has read,
// the second still finds in the cache: a row of GPT-2 is 200 KB.
extern "C" __global__ void cross_entropy_v1(float* logits, const long long* targets, float* logprobs, float scale,
                                            int N, int V) {
    __shared__ float largest_of[WARP], sum_of[WARP];
    long long row = blockIdx.x, target = targets[row];
    float* z = logits + row * V;
    Online all = look(z, V, largest_of, sum_of);
    bool scored = target != IGNORED;
    if (threadIdx.x == 0) logprobs[row] = scored ? z[target] - all.largest - logf(all.sum) : 0.0f;
    __syncthreads();  // z[target] has been read
    write_gradient(z, V, target, all, scored ? -scale : 0.0f);
}

// Σ x in float64 by one block: the loss of the batch stays on the device until somebody asks for it.
extern "C" __global__ void total_v1(const float* x, double* total, double factor, int N) {
    __shared__ double of_warp[WARP];
    double sum = 0;
    for (int i = threadIdx.x; i < N; i += blockDim.x) sum += x[i];
    sum = block_sum(sum, of_warp);
    if (threadIdx.x == 0) *total = sum * factor;
}
