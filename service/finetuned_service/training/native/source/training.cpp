// What Python calls: passes over all rows of a packed sequence, shared out among OpenMP's threads, which are torch's.
#include "attention_rows.h"

using namespace finetuned;

namespace {

// Where the rows of a packed sequence lie; tokens after the last belong to none.
struct Packed {
  const int64_t *starts, *lengths;
  int64_t rows, tokens, heads, kv_heads, dim;
  float scaling;

  AttentionRow row(const bf16* q, const bf16* k, const bf16* v, int64_t index, int64_t kv_head) const {
    const long group = heads / kv_heads, start = starts[index];
    return {q + (start * heads + kv_head * group) * dim, k + (start * kv_heads + kv_head) * dim, v + (start * kv_heads + kv_head) * dim,
            heads * dim, kv_heads * dim, lengths[index], dim, group, scaling};
  }
};

thread_local AttentionSpace space;

// Elements from which on waking other threads costs less than they save, as in torch's own operators.
constexpr int64_t kWorthSharing = 32768;

}  // namespace

extern "C" {

void finetuned_rms_forward(const bf16* x, const bf16* weight, int64_t rows, int64_t n, float epsilon, bf16* y, float* scales) {
#pragma omp parallel for schedule(static) if (rows * n > kWorthSharing)
  for (int64_t r = 0; r < rows; ++r) scales[r] = rms_forward(x + r * n, weight, n, epsilon, y + r * n);
}

void finetuned_rms_backward(const bf16* grad, const bf16* x, const bf16* weight, const float* scales, const bf16* residual,
                            int64_t rows, int64_t n, bf16* out) {
#pragma omp parallel for schedule(static) if (rows * n > kWorthSharing)
  for (int64_t r = 0; r < rows; ++r)
    rms_backward(grad + r * n, x + r * n, weight, scales[r], residual + r * n, n, out + r * n);
}

// x [rows, heads, dim] in place; cosines and sines [rows, dim].
void finetuned_rotate(bf16* x, const bf16* cosines, const bf16* sines, int64_t rows, int64_t heads, int64_t dim, float sign) {
#pragma omp parallel for schedule(static) if (rows * heads * dim > kWorthSharing)
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t h = 0; h < heads; ++h) rotate(x + (r * heads + h) * dim, cosines + r * dim, sines + r * dim, sign, dim / 2);
}

void finetuned_swiglu_forward(const bf16* gate, const bf16* up, int64_t rows, int64_t n, bf16* out) {
#pragma omp parallel for schedule(static) if (rows * n > kWorthSharing)
  for (int64_t r = 0; r < rows; ++r) swiglu_forward(gate + r * n, up + r * n, n, out + r * n);
}

void finetuned_swiglu_backward(const bf16* gate, const bf16* up, const bf16* grad, int64_t rows, int64_t n, bf16* value, bf16* d_gate,
                               bf16* d_up) {
#pragma omp parallel for schedule(static) if (rows * n > kWorthSharing)
  for (int64_t r = 0; r < rows; ++r)
    swiglu_backward(gate + r * n, up + r * n, grad + r * n, n, value + r * n, d_gate + r * n, d_up + r * n);
}

// Losses [rows]; the logits become their gradients.
void finetuned_cross_entropy(bf16* logits, const int64_t* targets, int64_t rows, int64_t n, float scale, float* losses) {
#pragma omp parallel for schedule(static) if (rows * n > kWorthSharing)
  for (int64_t r = 0; r < rows; ++r) losses[r] = cross_entropy(logits + r * n, n, targets[r], scale);
}

// q [tokens, heads, dim], k and v [tokens, kv_heads, dim] -> out as q, logsumexp [heads, tokens].
void finetuned_attention_forward(const Packed* packed, const bf16* q, const bf16* k, const bf16* v, bf16* out, float* logsumexp) {
  const int64_t group = packed->heads / packed->kv_heads;
#pragma omp parallel for schedule(dynamic, 1) if (packed->tokens * packed->heads * packed->dim > kWorthSharing)
  for (int64_t unit = 0; unit < packed->rows * packed->kv_heads; ++unit) {
    const int64_t index = unit / packed->kv_heads, head = unit % packed->kv_heads, start = packed->starts[index];
    attend_forward(space, packed->row(q, k, v, index, head), out + (start * packed->heads + head * group) * packed->dim,
                   logsumexp + head * group * packed->tokens + start, packed->tokens);
  }
}

void finetuned_attention_backward(const Packed* packed, const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* grad,
                                  const float* logsumexp, bf16* d_q, bf16* d_k, bf16* d_v) {
  const int64_t group = packed->heads / packed->kv_heads;
#pragma omp parallel for schedule(dynamic, 1) if (packed->tokens * packed->heads * packed->dim > kWorthSharing)
  for (int64_t unit = 0; unit < packed->rows * packed->kv_heads; ++unit) {
    const int64_t index = unit / packed->kv_heads, head = unit % packed->kv_heads, start = packed->starts[index];
    const int64_t queries = (start * packed->heads + head * group) * packed->dim, keys = (start * packed->kv_heads + head) * packed->dim;
    attend_backward(space, packed->row(q, k, v, index, head), out + queries, grad + queries,
                    logsumexp + head * group * packed->tokens + start, packed->tokens, d_q + queries, d_k + keys, d_v + keys);
  }
}

// 1 where products use AVX512-BF16, 0 where they are portable.
int finetuned_training_uses_avx512_bf16(void) {
#ifdef FINETUNED_AVX512_BF16
  return 1;
#else
  return 0;
#endif
}

}  // extern "C"
