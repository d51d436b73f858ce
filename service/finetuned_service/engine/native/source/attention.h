// Attention of a block of query lines over the live keys and values of their sequence.
//
// A line is one query head of one row. Softmax runs online over stretches of 1,024 tokens
// (https://arxiv.org/abs/1805.02867); a line's result depends on its own position alone, not on the lines
// beside it nor on how a prompt was cut into chunks: what it does not see weighs 0.
#pragma once

#include <algorithm>

#include "decoder.h"
#include "products.h"

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

// Before the first value of a block is written: what an earlier sequence left would be multiplied with a weight of 0, and
// 0 * NaN is NaN.
inline void clear_values(const Model& model, const Layer& layer, long slot) {
  bf16* of_all_heads = value_block(model, layer, 0, slot);
  std::memset(of_all_heads, 0, sizeof(bf16) * static_cast<size_t>(model.kv_heads * kPanel * model.head_dim));
}

inline void write_value(const Model& model, const Layer& layer, long kv_head, long slot, const float* value) {
  const long token = slot % kPanel;
  bf16* block = value_block(model, layer, kv_head, slot) + token / 2 * model.head_dim * 2 + token % 2;
  alignas(64) bf16 narrowed[kLanes];
  for (long d = 0; d < model.head_dim; d += kLanes) {
    store_narrow(narrowed, load(value + d));
    for (long i = 0; i < kLanes; ++i) block[2 * (d + i)] = narrowed[i];
  }
}

// Lines [line, line + count) of a span, count <= kBlockRows, whose queries lie in `queries` [count, head_dim];
// line i belongs to row i / group of the span. `output(i, d, values)` takes 16 values of line i from element d on.
template <typename Output>
void attend(const Model& model, const Layer& layer, long kv_head, const Span& span, long line, int count, const bf16* queries,
            const Output& output) {
  const long dim = model.head_dim, group = model.heads / model.kv_heads;
  // Not a whole page from line to line: all lines' scores of a token would share one set of the L1 cache.
  alignas(64) float scores[kBlockRows][kStretch + kLanes];
  alignas(64) uint32_t asked[kMostHeadDim / 2 * kBlockRows];
  alignas(64) uint32_t shares[(kStretch + 2 * kLanes) / 2 * kBlockRows];
  const Rows query_rows(asked, dim), weights(shares, kStretch + 2 * kLanes);
  alignas(64) float sums[kBlockRows][kMostHeadDim];
  float highest[kBlockRows], total[kBlockRows];  // of scores in powers of two
  Float16 totals[kBlockRows];
  const float scaling = model.scaling * 1.44269504f;
  for (int i = 0; i < count; ++i) {
    highest[i] = -__builtin_inff();
    total[i] = 0.0f;
    std::memset(sums[i], 0, sizeof(float) * static_cast<size_t>(dim));
    query_rows.copy(i, queries + i * dim);
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
      multiply<2, false>(count, &scores[0][block * kPanel], kStretch + kLanes, query_rows.at(0), keys + block * model.kv_stride, 2 * kPanel, dim / 2);
    }
    for (int i = 0; i < count; ++i) {
      float* s = scores[i];
      const long seen = first_position + (line + i) / group - stretch + 1;  // tokens of this stretch that it sees
      for (long t = std::max<long>(seen, 0); t < tokens; ++t) s[t] = -__builtin_inff();
      Float16 tops = load(s);
      for (long t = kLanes; t < tokens; t += kLanes) tops = maximum(tops, load(s + t));
      const float top = largest(tops) * scaling;
      if (!(top <= highest[i])) {  // also for a NaN, which then spreads over its own line
        const float shrink = power_of_two(splat(highest[i] - top))[0];
        total[i] *= shrink;
        for (long d = 0; d < dim; d += kLanes) store(sums[i] + d, load(sums[i] + d) * shrink);
        highest[i] = top;
      }
      totals[i] = Float16{};
    }
    auto share = [&](int i, long t) { return power_of_two(load(&scores[i][t]) * scaling - highest[i]); };
    if constexpr (Rows::kRowByRow) {
      for (int i = 0; i < count; ++i) {
        Float16 all{};  // a number of its own: what is put might be a total, for all that a compiler knows
        for (long t = 0; t < tokens; t += kLanes) {
          const Float16 values = share(i, t);
          all += values;
          weights.put(i, t, values);
        }
        totals[i] = all;
      }
    } else {
      weights.put_block(0, count, 0, tokens, [&](int i, long t) {
        const Float16 values = share(i, t);
        totals[i] += values;
        return values;
      });
    }
    for (int i = 0; i < count; ++i) total[i] += sum(totals[i]);
    long d = 0;
    for (; d + kPanel <= dim; d += kPanel)
      multiply_pieces<2>(count, &sums[0][d], kMostHeadDim, weights.at(0), values + 2 * d, 2 * dim, kPanel / 2, blocks, model.kv_stride);
    for (; d < dim; d += kLanes)
      multiply_pieces<1>(count, &sums[0][d], kMostHeadDim, weights.at(0), values + 2 * d, 2 * dim, kPanel / 2, blocks, model.kv_stride);
  }
  for (int i = 0; i < count; ++i)
    for (long d = 0; d < dim; d += kLanes) output(line + i, d, load(sums[i] + d) / total[i]);
}

}  // namespace finetuned
