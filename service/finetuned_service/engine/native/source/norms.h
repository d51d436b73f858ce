// Root mean square norms and rotary angles.
#pragma once

#include <cmath>

#include "products.h"

namespace finetuned {

inline float inverse_rms(const float* x, long n, float epsilon) {
  Float16 squares{};
  for (long i = 0; i < n; i += kLanes) squares += load(x + i) * load(x + i);
  return 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + epsilon);
}

// n a multiple of 16.
inline void rms_norm(const float* x, const float* weight, long n, float epsilon, const Rows& out, long row) {
  const float scale = inverse_rms(x, n, epsilon);
  for (long i = 0; i < n; i += kLanes) out.put(row, i, load(x + i) * scale * load(weight + i));
}

// `rows` rows of a block from `row` on.
inline void rms_norm_block(const float* x, const float* weight, long n, float epsilon, const Rows& out, long row, int rows) {
  float scales[kBlockRows];
  for (int r = 0; r < rows; ++r) scales[r] = inverse_rms(x + r * n, n, epsilon);
  out.put_block(row, rows, 0, n, [&](int r, long i) { return load(x + r * n + i) * scales[r] * load(weight + i); });
}

// Rotary position embedding of one head in place, the halves rotated (https://arxiv.org/abs/2104.09864).
inline void rotate(float* head, const float* cosines, const float* sines, long half) {
  for (long i = 0; i < half; ++i) {
    float low = head[i], high = head[half + i];
    head[i] = low * cosines[i] - high * sines[i];
    head[half + i] = high * cosines[i] + low * sines[i];
  }
}

}  // namespace finetuned
