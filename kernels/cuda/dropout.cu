// Dropout's factors from uniform random numbers; see kernels/dropout.py.
//
// Memory sets the pace: 8 bytes a factor; with the product in the same kernel 16 (read the number and x, write both).

__device__ __forceinline__ float factor_of(float uniform, float p, float scale) { return uniform >= p ? scale : 0.0f; }

// A thread a number; `mask` may be `uniform`.
extern "C" __global__ void dropout_mask_v1(const float* uniform, float* mask, long long P, float p, float scale) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < P) mask[i] = factor_of(uniform[i], p, scale);
}

// The factor and the product at once, where the library would write the comparison, its conversion and the factor first.
extern "C" __global__ void dropout_forward_v1(const float* uniform, const float* x, float* y, float* mask, long long P,
                                              float p, float scale) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= P) return;
    float factor = factor_of(uniform[i], p, scale);
    mask[i] = factor;
    y[i] = x[i] * factor;
}
