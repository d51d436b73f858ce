// Passes over rows of bfloat16 that torch would make with several operators each, and keep their float32
// intermediates. Every row is computed by itself in a fixed order: results do not depend on the number of threads.
#pragma once

#include <cmath>

#include "vectors.h"

namespace finetuned {

typedef uint16_t Half16 __attribute__((vector_size(32), aligned(2), may_alias));

inline Float16 load_wide(const bf16* p) {
  Half16 narrow;
  std::memcpy(&narrow, p, 32);
  return (Float16)(__builtin_convertvector(narrow, Word16) << 16);
}

// y = x / rms(x) * weight; returns 1 / rms(x) (https://arxiv.org/abs/1910.07467). n a multiple of 16, as everywhere here.
inline float rms_forward(const bf16* x, const bf16* weight, long n, float epsilon, bf16* y) {
  Float16 squares{};
  for (long i = 0; i < n; i += kLanes) squares += load_wide(x + i) * load_wide(x + i);
  const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + epsilon);
  for (long i = 0; i < n; i += kLanes) store_narrow(y + i, load_wide(x + i) * scale * load_wide(weight + i));
  return scale;
}

// With n = x * scale and g = grad * weight: out = residual + scale * (g - n * mean(g * n)).
inline void rms_backward(const bf16* grad, const bf16* x, const bf16* weight, float scale, const bf16* residual, long n,
                         bf16* out) {
  Float16 along{};
  for (long i = 0; i < n; i += kLanes) along += load_wide(grad + i) * load_wide(weight + i) * load_wide(x + i);
  const float mean = sum(along) * scale * scale / static_cast<float>(n);
  for (long i = 0; i < n; i += kLanes) {
    const Float16 g = load_wide(grad + i) * load_wide(weight + i) - load_wide(x + i) * mean;
    store_narrow(out + i, load_wide(residual + i) + g * scale);
  }
}

// Rotary position embedding in place, the halves rotated (https://arxiv.org/abs/2104.09864); `sign` -1 turns back,
// which is its gradient. Cosines and sines are those of the first half.
inline void rotate(bf16* head, const bf16* cosines, const bf16* sines, float sign, long half) {
  for (long i = 0; i < half; ++i) {
    const float low = widen(head[i]), high = widen(head[half + i]);
    const float cosine = widen(cosines[i]), sine = sign * widen(sines[i]);
    head[i] = narrow(low * cosine - high * sine);
    head[half + i] = narrow(high * cosine + low * sine);
  }
}

inline Float16 sigmoid(Float16 x) { return 1.0f / (exponential(-x) + 1.0f); }

// silu(gate) * up (https://arxiv.org/abs/2002.05202)
inline void swiglu_forward(const bf16* gate, const bf16* up, long n, bf16* out) {
  for (long i = 0; i < n; i += kLanes) {
    const Float16 g = load_wide(gate + i);
    store_narrow(out + i, g * sigmoid(g) * load_wide(up + i));
  }
}

// Its gradients, and the value once more, which nobody kept.
inline void swiglu_backward(const bf16* gate, const bf16* up, const bf16* grad, long n, bf16* value, bf16* d_gate, bf16* d_up) {
  for (long i = 0; i < n; i += kLanes) {
    const Float16 g = load_wide(gate + i), u = load_wide(up + i), d = load_wide(grad + i);
    const Float16 share = sigmoid(g), silu = g * share;
    store_narrow(value + i, silu * u);
    store_narrow(d_gate + i, d * u * (share + silu * (1.0f - share)));
    store_narrow(d_up + i, d * silu);
  }
}

// -scale * log softmax(logits)[target]; the logits become the gradient of that.
inline float cross_entropy(bf16* logits, long n, long target, float scale) {
  const long whole = n / kLanes * kLanes;
  Float16 highest = splat(widen(logits[0]));
  for (long i = 0; i < whole; i += kLanes) highest = maximum(highest, load_wide(logits + i));
  float top = largest(highest);
  for (long i = whole; i < n; ++i) top = widen(logits[i]) > top ? widen(logits[i]) : top;
  Float16 totals{};
  for (long i = 0; i < whole; i += kLanes) totals += exponential(load_wide(logits + i) - top);
  float total = sum(totals);
  for (long i = whole; i < n; ++i) total += std::exp(widen(logits[i]) - top);
  const float target_logit = widen(logits[target]), share = scale / total;
  for (long i = 0; i < whole; i += kLanes) store_narrow(logits + i, exponential(load_wide(logits + i) - top) * share);
  for (long i = whole; i < n; ++i) logits[i] = narrow(std::exp(widen(logits[i]) - top) * share);
  logits[target] = narrow(std::exp(target_logit - top) * share - scale);
  return scale * (std::log(total) + top - target_logit);
}

}  // namespace finetuned
