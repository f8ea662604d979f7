// AdamW over the flat buffer, and the sum of squares for clipping; see kernels/adamw.py.
//
// Memory sets the pace: a step reads param, grad, m, v and writes param, m, v: 28 bytes a number (32 with a rate for each)
// for some 15 operations; the sum of squares reads 4 bytes a number.
#include "warp.cuh"

// ------------------------------------------------------------------------------------------------ a step

struct Settings {
    float lr, beta1, beta2, one_minus_beta1, one_minus_beta2, factor, eps, weight_decay;
};

// m̂/(√v̂ + ε) with the bias corrections c₁, c₂ folded in: factor = √c₂/c₁ and eps = ε·√c₂.
__device__ __forceinline__ void update(float& p, float g, float& m, float& v, float lr, const Settings& s) {
    p -= lr * s.weight_decay * p;
    m = s.beta1 * m + s.one_minus_beta1 * g;
    v = s.beta2 * v + s.one_minus_beta2 * g * g;
    p -= lr * s.factor * m / (sqrtf(v) + s.eps);
}

// v1: a thread a number. `rates` (P) or null, where `lr` counts for all.
extern "C" __global__ void adamw_update_v1(float* param, const float* grad, float* m, float* v, const float* rates,
                                           long long P, float lr, float beta1, float beta2, float one_minus_beta1,
                                           float one_minus_beta2, float factor, float eps, float weight_decay) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= P) return;
    Settings s = {lr, beta1, beta2, one_minus_beta1, one_minus_beta2, factor, eps, weight_decay};
    update(param[i], grad[i], m[i], v[i], rates ? rates[i] : lr, s);
}

// v2: four numbers a load. A group of parameters starts anywhere in the buffer: the numbers before the first address that
// packs can be read from, and those after the last whole pack, go one by one. The five vectors are parts of buffers at
// the same place, so what is aligned in one is aligned in all; where not, v1's way remains.
extern "C" __global__ void adamw_update_v2(float* param, const float* grad, float* m, float* v, const float* rates,
                                           long long P, float lr, float beta1, float beta2, float one_minus_beta1,
                                           float one_minus_beta2, float factor, float eps, float weight_decay) {
    Settings s = {lr, beta1, beta2, one_minus_beta1, one_minus_beta2, factor, eps, weight_decay};
    long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    long long threads = static_cast<long long>(gridDim.x) * blockDim.x;
    int head = lead(param);
    bool together = lead(grad) == head && lead(m) == head && lead(v) == head && (!rates || lead(rates) == head);
    long long packed = together && P > head ? (P - head) / 4 : 0;
    for (long long k = thread; k < packed; k += threads) {
        long long i = head + 4 * k;
        Pack<4> p = load<4>(param + i), g = load<4>(grad + i), mi = load<4>(m + i), vi = load<4>(v + i), r = {};
        if (rates) r = load<4>(rates + i);
        for (int j = 0; j < 4; j++) update(p.v[j], g.v[j], mi.v[j], vi.v[j], rates ? r.v[j] : lr, s);
        store<4>(param + i, p);
        store<4>(m + i, mi);
        store<4>(v + i, vi);
    }
    long long rest = P - 4 * packed;  // the head, and what follows the last pack
    for (long long k = thread; k < rest; k += threads) {
        long long i = packed == 0 || k < head ? k : k + 4 * packed;
        update(param[i], grad[i], m[i], v[i], rates ? rates[i] : lr, s);
    }
}

// ------------------------------------------------------------------------------------------------ sum of squares

// v1: each block adds its sum atomically, in an order that differs from run to run. In float64, as the reference.
extern "C" __global__ void sum_of_squares_v1(const float* x, double* total, long long P) {
    __shared__ double of_warp[WARP];
    double sum = 0;
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < P;
         i += static_cast<long long>(gridDim.x) * blockDim.x)
        sum += static_cast<double>(x[i]) * x[i];
    sum = block_sum(sum, of_warp);
    if (threadIdx.x == 0) atomicAdd(total, sum);
}

// v2: each block writes its sum to its own place of `partial` (gridDim.x); four numbers a load after the unaligned head.
extern "C" __global__ void sum_of_squares_v2(const float* x, double* partial, long long P) {
    __shared__ double of_warp[WARP];
    long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    long long threads = static_cast<long long>(gridDim.x) * blockDim.x;
    long long head = lead(x) < P ? lead(x) : P;
    long long packed = (P - head) / 4, tail = head + 4 * packed;
    double sum = 0;
    for (long long k = thread; k < packed; k += threads) {
        Pack<4> a = load<4>(x + head + 4 * k);
        for (int j = 0; j < 4; j++) sum += static_cast<double>(a.v[j]) * a.v[j];
    }
    if (thread < head) sum += static_cast<double>(x[thread]) * x[thread];
    if (thread < P - tail) sum += static_cast<double>(x[tail + thread]) * x[tail + thread];
    sum = block_sum(sum, of_warp);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// The sums of v2's blocks, by one block, always in the same order.
extern "C" __global__ void sum_of_squares_v2_finish(const double* partial, double* total, int blocks) {
    __shared__ double of_warp[WARP];
    double sum = 0;
    for (int i = threadIdx.x; i < blocks; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum, of_warp);
    if (threadIdx.x == 0) *total = sum;
}
