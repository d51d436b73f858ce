// Attention of a block of query lines over the live keys and values of their sequence.
//
// A line is one query head of one row. Softmax runs online over blocks of 32 tokens
// (https://arxiv.org/abs/1805.02867); a line's result depends on its own position alone, not on the lines
// beside it nor on how a prompt was cut into chunks: a block that it does not see multiplies by e^0 and adds 0.
#pragma once

#include "decoder.h"

namespace finetuned {

constexpr int kMostHeadDim = 256;

inline bf16* key_block(const Model& model, const Layer& layer, long kv_head, long slot) {
  return layer.keys + (kv_head * model.kv_capacity + slot / kPanel * kPanel) * model.head_dim;
}

inline bf16* value_block(const Model& model, const Layer& layer, long kv_head, long slot) {
  return layer.values + (kv_head * model.kv_capacity + slot / kPanel * kPanel) * model.head_dim;
}

// Element d of the token at `slot` goes to place d / 2, slot % 32, d % 2 of its key block.
inline void write_key(const Model& model, const Layer& layer, long kv_head, long slot, const float* key) {
  bf16* block = key_block(model, layer, kv_head, slot) + slot % kPanel * 2;
  for (long d = 0; d < model.head_dim; ++d) block[d / 2 * (2 * kPanel) + d % 2] = narrow(key[d]);
}

inline void write_value(const Model& model, const Layer& layer, long kv_head, long slot, const float* value) {
  bf16* block = value_block(model, layer, kv_head, slot);
  long token = slot % kPanel;
  // What an earlier sequence left would be multiplied with a weight of 0, and 0 * NaN is NaN.
  if (token == 0) std::memset(block, 0, sizeof(bf16) * kPanel * static_cast<size_t>(model.head_dim));
  for (long d = 0; d < model.head_dim; ++d) block[(token / 2 * model.head_dim + d) * 2 + token % 2] = narrow(value[d]);
}

// Lines [line, line + count) of a span, count <= 12, whose queries lie in `queries` [count, head_dim];
// line i belongs to row i / group of the span. `output(i, d, values)` takes 16 values of line i from element d on.
template <typename Output>
void attend(const Model& model, const Layer& layer, long kv_head, const Span& span, long line, int count, const bf16* queries,
            const Output& output) {
  const long dim = model.head_dim, group = model.heads / model.kv_heads;
  alignas(64) float scores[kBlockRows][kPanel];
  alignas(64) uint32_t asked[kMostHeadDim / 2 * kBlockRows];
  alignas(64) uint32_t shares[kPanel / 2 * kBlockRows];
  const Rows query_rows(asked, dim), weights(shares, kPanel);
  alignas(64) float sums[kBlockRows][kMostHeadDim];
  float highest[kBlockRows], total[kBlockRows];
  for (int i = 0; i < count; ++i) {
    highest[i] = -__builtin_inff();
    total[i] = 0.0f;
    std::memset(sums[i], 0, sizeof(float) * static_cast<size_t>(dim));
    for (long p = 0; p < dim / 2; ++p) std::memcpy(query_rows.at(i) + p * kBlockRows, queries + i * dim + 2 * p, 4);
  }
  const long first_position = span.live - span.rows;
  const long last = first_position + (line + count - 1) / group;  // position of the last line's row
  for (long block = 0; block <= last; block += kPanel) {
    const bf16* keys = key_block(model, layer, kv_head, span.kv_start + block);
    const bf16* values = value_block(model, layer, kv_head, span.kv_start + block);
    multiply<2, false>(count, &scores[0][0], kPanel, asked, keys, 2 * kPanel, dim / 2);
    for (int i = 0; i < count; ++i) {
      const long seen = first_position + (line + i) / group - block + 1;  // tokens of this block that it sees
      float* s = scores[i];
      for (long t = seen > 0 ? seen : 0; t < kPanel; ++t) s[t] = -__builtin_inff();
      Float16 low = load(s) * model.scaling, high = load(s + kLanes) * model.scaling;
      float top = largest(maximum(low, high));
      if (!(top <= highest[i])) {  // also for a NaN, which then spreads over its own line
        float shrink = exponential(splat(highest[i] - top))[0];
        total[i] *= shrink;
        for (long d = 0; d < dim; d += kLanes) store(sums[i] + d, load(sums[i] + d) * shrink);
        highest[i] = top;
      }
      low = exponential(low - highest[i]);
      high = exponential(high - highest[i]);
      total[i] += sum(low + high);
      weights.put(i, 0, low);
      weights.put(i, kLanes, high);
    }
    long d = 0;
    for (; d + kPanel <= dim; d += kPanel)
      multiply<2, true>(count, &sums[0][d], kMostHeadDim, shares, values + 2 * d, 2 * dim, kPanel / 2);
    for (; d < dim; d += kLanes)
      multiply<1, true>(count, &sums[0][d], kMostHeadDim, shares, values + 2 * d, 2 * dim, kPanel / 2);
  }
  for (int i = 0; i < count; ++i)
    for (long d = 0; d < dim; d += kLanes) output(line + i, d, load(sums[i] + d) / total[i]);
}

}  // namespace finetuned
