// Attention of a block of query lines over the live keys and values of their sequence.
//
// A line is one query head of one row. Softmax runs online over stretches of 1,024 tokens
// (https://arxiv.org/abs/1805.02867); a line's result depends on its own position alone, not on the lines
// beside it nor on how a prompt was cut into chunks: what it does not see weighs 0.
#pragma once

#include <algorithm>

#include "decoder.h"

namespace finetuned {

constexpr int kMostHeadDim = 256;
constexpr int kFewLines = 6;
constexpr long kStretch = 1024;  // tokens whose scores are kept at once: they stay in the L2 cache

inline void prefetch(const bf16* from, long count) {
  for (long i = 0; i < count; i += 32) __builtin_prefetch(from + i);
}

inline bf16* key_block(const Model& model, const Layer& layer, long kv_head, long slot) {
  return layer.keys + slot / kPanel * model.kv_stride + kv_head * kPanel * model.head_dim;
}

inline bf16* value_block(const Model& model, const Layer& layer, long kv_head, long slot) {
  return layer.values + slot / kPanel * model.kv_stride + kv_head * kPanel * model.head_dim;
}

// Element d of the token at `slot` goes to place d / 2, slot % 32, d % 2 of its key block.
inline void write_key(const Model& model, const Layer& layer, long kv_head, long slot, const float* key) {
  bf16* block = key_block(model, layer, kv_head, slot) + slot % kPanel * 2;
  alignas(64) uint32_t pairs[kLanes / 2];
  for (long d = 0; d < model.head_dim; d += kLanes) {
    store_narrow(reinterpret_cast<bf16*>(pairs), load(key + d));
    for (long p = 0; p < kLanes / 2; ++p) std::memcpy(block + (d / 2 + p) * (2 * kPanel), pairs + p, sizeof(uint32_t));
  }
}

inline void write_value(const Model& model, const Layer& layer, long kv_head, long slot, const float* value) {
  bf16* block = value_block(model, layer, kv_head, slot);
  long token = slot % kPanel;
  // What an earlier sequence left would be multiplied with a weight of 0, and 0 * NaN is NaN.
  if (token == 0) std::memset(block, 0, sizeof(bf16) * kPanel * static_cast<size_t>(model.head_dim));
  block += token / 2 * model.head_dim * 2 + token % 2;
  alignas(64) bf16 narrowed[kLanes];
  for (long d = 0; d < model.head_dim; d += kLanes) {
    store_narrow(narrowed, load(value + d));
    for (long i = 0; i < kLanes; ++i) block[2 * (d + i)] = narrowed[i];
  }
}

// Lines [line, line + count) of a span, count <= 12, whose queries lie in `queries` [count, head_dim];
// line i belongs to row i / group of the span. `output(i, d, values)` takes 16 values of line i from element d on.
template <typename Output>
void attend(const Model& model, const Layer& layer, long kv_head, const Span& span, long line, int count, const bf16* queries,
            const Output& output) {
  const long dim = model.head_dim, group = model.heads / model.kv_heads;
  alignas(64) float scores[kBlockRows][kStretch];
  alignas(64) uint32_t asked[kMostHeadDim / 2 * kBlockRows];
  alignas(64) uint32_t shares[kStretch / 2 * kBlockRows];
  const Rows query_rows(asked, dim), weights(shares, kStretch);
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
  for (long stretch = 0; stretch <= last; stretch += kStretch) {
    const long tokens = std::min<long>(kStretch, (last - stretch) / kPanel * kPanel + kPanel);
    const bf16* keys = key_block(model, layer, kv_head, span.kv_start + stretch);
    const bf16* values = value_block(model, layer, kv_head, span.kv_start + stretch);
    const long block_values = kPanel * dim, blocks = tokens / kPanel;
    for (long block = 0; block < blocks; ++block) {
      if (count <= kFewLines) {
        // Few lines are done before the next keys are there; values are wanted soon.
        if (block + 1 < blocks) prefetch(keys + (block + 1) * model.kv_stride, block_values);
        prefetch(values + block * model.kv_stride, block_values);
      }
      multiply<2, false>(count, &scores[0][block * kPanel], kStretch, asked, keys + block * model.kv_stride, 2 * kPanel, dim / 2);
    }
    for (int i = 0; i < count; ++i) {
      float* s = scores[i];
      const long seen = first_position + (line + i) / group - stretch + 1;  // tokens of this stretch that it sees
      for (long t = std::max<long>(seen, 0); t < tokens; ++t) s[t] = -__builtin_inff();
      Float16 tops = load(s);
      for (long t = kLanes; t < tokens; t += kLanes) tops = maximum(tops, load(s + t));
      const float top = largest(tops) * model.scaling;
      if (!(top <= highest[i])) {  // also for a NaN, which then spreads over its own line
        const float shrink = exponential(splat(highest[i] - top))[0];
        total[i] *= shrink;
        for (long d = 0; d < dim; d += kLanes) store(sums[i] + d, load(sums[i] + d) * shrink);
        highest[i] = top;
      }
      Float16 totals{};
      for (long t = 0; t < tokens; t += kLanes) {
        const Float16 share = exponential(load(s + t) * model.scaling - highest[i]);
        totals += share;
        weights.put(i, t, share);
      }
      total[i] += sum(totals);
    }
    for (long block = 0; block < blocks; ++block, values += model.kv_stride) {
      const uint32_t* of_block = shares + block * (kPanel / 2) * kBlockRows;
      long d = 0;
      for (; d + kPanel <= dim; d += kPanel)
        multiply<2, true>(count, &sums[0][d], kMostHeadDim, of_block, values + 2 * d, 2 * dim, kPanel / 2);
      for (; d < dim; d += kLanes)
        multiply<1, true>(count, &sums[0][d], kMostHeadDim, of_block, values + 2 * d, 2 * dim, kPanel / 2);
    }
  }
  for (int i = 0; i < count; ++i)
    for (long d = 0; d < dim; d += kLanes) output(line + i, d, load(sums[i] + d) / total[i]);
}

}  // namespace finetuned
