// The attention router and the linear one: one token a block, one expert a thread. Sums over experts go by their
// numbers, as on the CPU.
#include "common.cuh"

const int MOST_EXPERTS = 256;

KERNEL __launch_bounds__(BLOCK)
    route(const float *x, float *logits, int *experts, float *weights, int count, int used, int normalize, int linear) {
    __shared__ float keys[MOST_EXPERTS], values[MOST_EXPERTS], p[MOST_EXPERTS], chosen[MOST_EXPERTS];
    int i = threadIdx.x, t = blockIdx.x;
    bool expert = i < count;
    const float *row = x + (u64)t * (linear ? 1 : 3) * count;
    // The query of the attention router; a linear router's logit as it is.
    float q = expert ? row[i] : 0.0f;
    if (expert && !linear) keys[i] = row[count + i], values[i] = row[2 * count + i];
    __syncthreads();

    // logit = sum over j of softmax_j(q k_j) v_j
    float logit = linear ? q : 0.0f;
    if (expert && !linear) {
        float most = NOTHING, sum = 0.0f;
        for (int j = 0; j < count; j++) most = fmaxf(most, q * keys[j]);
        for (int j = 0; j < count; j++) sum += exp_(q * keys[j] - most);
        for (int j = 0; j < count; j++) logit += exp_(q * keys[j] - most) / sum * values[j];
    }
    if (expert) {
        p[i] = logit;
        if (logits) logits[(u64)t * count + i] = logit;
    }
    __syncthreads();

    // A softmax over the experts.
    float most = NOTHING, sum = 0.0f;
    for (int j = 0; j < count; j++) most = fmaxf(most, p[j]);
    float e = exp_(logit - most);
    __syncthreads();
    if (expert) p[i] = e;
    __syncthreads();
    for (int j = 0; j < count; j++) sum += p[j];
    float mine = e / sum;
    __syncthreads();
    if (expert) p[i] = mine;
    __syncthreads();

    // An expert's place is the number of those before it: the larger ones, and the equal ones of lower number.
    int place = 0, order = order_of(mine);
    for (int j = 0; j < count; j++) {
        int other = order_of(p[j]);
        place += other > order || (other == order && j < i);
    }
    if (expert && place < used) chosen[place] = mine;
    __syncthreads();
    if (!expert || place >= used) return;
    float all = 0.0f;
    for (int j = 0; j < used; j++) all += chosen[j];
    experts[(u64)t * used + place] = i;
    weights[(u64)t * used + place] = normalize ? mine / all : mine;
}
