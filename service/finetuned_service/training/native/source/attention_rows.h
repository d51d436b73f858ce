// Causal attention within one row of a packed sequence, for one key head and the query heads that share it,
// forward and backward (FlashAttention, https://arxiv.org/abs/2205.14135, B.2), over what is seen only.
//
// Products are of bfloat16 with float32 sums. A row is computed by one thread from its own tokens alone.
#pragma once

#include <cmath>
#include <vector>

#include "passes.h"

namespace finetuned {

constexpr int kQueries = 24;  // queries of a block going backward: 12 pairs
constexpr int kMostDim = 256;

// One row's queries, keys, values: `stride` between tokens, in elements, of each tensor.
struct AttentionRow {
  const bf16 *q, *k, *v;
  long q_stride, kv_stride;
  long tokens, dim, group;
  float scaling;
};

struct AttentionSpace {
  std::vector<uint32_t> words[5];
  std::vector<float> floats[4];

  uint32_t* word(int which, long count) { return grown(words[which], count); }
  float* number(int which, long count) { return grown(floats[which], count); }

 private:
  template <typename T>
  static T* grown(std::vector<T>& buffer, long count) {
    if (buffer.size() < static_cast<size_t>(count)) buffer.resize(static_cast<size_t>(count));
    return buffer.data();
  }
};

inline long in_panels(long tokens) { return (tokens + kPanel - 1) / kPanel * kPanel; }

inline uint32_t word_at(const bf16* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

// x [tokens, dim] -> [tokens / 32, dim / 2, 32] pairs along dim, for products that sum over dim.
inline void pack_along(const bf16* x, long stride, long tokens, long dim, uint32_t* to) {
  std::memset(to, 0, static_cast<size_t>(in_panels(tokens) * dim / 2) * 4);
  for (long t = 0; t < tokens; ++t) {
    uint32_t* panel = to + t / kPanel * (dim / 2) * kPanel + t % kPanel;
    for (long p = 0; p < dim / 2; ++p) panel[p * kPanel] = word_at(x + t * stride + 2 * p);
  }
}

inline Word16 paired(const bf16* even, const bf16* odd) {
  Half16 low, high;
  std::memcpy(&low, even, 32);
  std::memcpy(&high, odd, 32);
  return __builtin_convertvector(low, Word16) | (__builtin_convertvector(high, Word16) << 16);
}

// x [tokens, dim] -> [pairs of tokens, dim], for products that sum over tokens; missing ones are 0.
inline void pack_across(const bf16* x, long stride, long tokens, long padded, long dim, uint32_t* to) {
  const bf16 nothing[kMostDim] = {};
  for (long t = 0; t < padded; t += 2)
    for (long d = 0; d < dim; d += kLanes) {
      const Word16 words = paired(t < tokens ? x + t * stride + d : nothing, t + 1 < tokens ? x + (t + 1) * stride + d : nothing);
      std::memcpy(to + t / 2 * dim + d, &words, 64);
    }
}

// Up to 12 rows of x -> [dim / 2, 12] words, as `multiply` reads its left side.
inline void pack_left(const bf16* x, long stride, long rows, long dim, uint32_t* to) {
  for (long r = 0; r < rows; ++r)
    for (long p = 0; p < dim / 2; ++p) to[p * kBlockRows + r] = word_at(x + r * stride + 2 * p);
}

// c [rows, dim] (+)= left * across, over `pairs` of tokens.
template <bool Accumulate>
inline void across(int rows, float* c, long dim, const uint32_t* left, const uint32_t* packed, long pairs) {
  const bf16* b = reinterpret_cast<const bf16*>(packed);
  long d = 0;
  for (; d + kPanel <= dim; d += kPanel) multiply<2, Accumulate>(rows, c + d, dim, left, b + 2 * d, 2 * dim, pairs);
  for (; d < dim; d += kLanes) multiply<1, Accumulate>(rows, c + d, dim, left, b + 2 * d, 2 * dim, pairs);
}

// `out` as q; `logsumexp` [group, row tokens of all rows]: `lse_stride` between heads.
inline void attend_forward(AttentionSpace& space, const AttentionRow& row, bf16* out, float* logsumexp, long lse_stride) {
  const long tokens = row.tokens, dim = row.dim, padded = in_panels(tokens);
  uint32_t* keys = space.word(0, padded * dim / 2);
  uint32_t* values = space.word(1, padded * dim / 2);
  uint32_t* shares = space.word(2, padded / 2 * kBlockRows);
  float* scores = space.number(0, kBlockRows * padded);
  uint32_t query[kMostDim / 2 * kBlockRows];
  float sums[kBlockRows * kMostDim];
  pack_along(row.k, row.kv_stride, tokens, dim, keys);
  pack_across(row.v, row.kv_stride, tokens, padded, dim, values);
  const Rows weights(shares, padded);
  for (long head = 0; head < row.group; ++head)
    for (long first = 0; first < tokens; first += kBlockRows) {
      const int count = static_cast<int>(tokens - first < kBlockRows ? tokens - first : kBlockRows);
      const long seen = in_panels(first + count);
      pack_left(row.q + first * row.q_stride + head * dim, row.q_stride, count, dim, query);
      for (long t = 0; t < seen; t += kPanel)
        multiply<2, false>(count, scores + t, padded, query, reinterpret_cast<const bf16*>(keys + t * dim / 2), 2 * kPanel, dim / 2);
      float totals[kBlockRows];
      for (int i = 0; i < count; ++i) {
        float* s = scores + i * padded;
        for (long t = first + i + 1; t < seen; ++t) s[t] = -__builtin_inff();
        Float16 highest = load(s);
        for (long t = kLanes; t < seen; t += kLanes) highest = maximum(highest, load(s + t));
        const float top = largest(highest) * row.scaling;
        Float16 total{};
        for (long t = 0; t < seen; t += kLanes) {
          const Float16 share = exponential(load(s + t) * row.scaling - top);
          total += share;
          weights.put(i, t, share);
        }
        totals[i] = sum(total);
        logsumexp[head * lse_stride + first + i] = top + std::log(totals[i]);
      }
      across<false>(count, sums, dim, shares, values, seen / 2);
      for (int i = 0; i < count; ++i)
        for (long d = 0; d < dim; d += kLanes)
          store_narrow(out + (first + i) * row.q_stride + head * dim + d, load(sums + i * dim + d) / totals[i]);
    }
}

// A tile [24 queries, 32 keys] -> for each key its pairs of queries, in blocks of 12 keys.
inline void turn(const float (&tile)[kQueries][kPanel], uint32_t (&to)[3][kQueries / 2 * kBlockRows]) {
  alignas(64) bf16 even[kPanel], odd[kPanel];
  alignas(64) uint32_t words[kPanel];
  for (int pair = 0; pair < kQueries / 2; ++pair) {
    for (int j = 0; j < kPanel; j += kLanes) {
      store_narrow(even + j, load(&tile[2 * pair][j]));
      store_narrow(odd + j, load(&tile[2 * pair + 1][j]));
      const Word16 both = paired(even + j, odd + j);
      std::memcpy(words + j, &both, 64);
    }
    for (int b = 0; b < 3; ++b)
      std::memcpy(to[b] + pair * kBlockRows, words + b * kBlockRows, 4 * static_cast<size_t>(b < 2 ? kBlockRows : kPanel - 2 * kBlockRows));
  }
}

// Gradients of q, k, v, laid out as they are.
inline void attend_backward(AttentionSpace& space, const AttentionRow& row, const bf16* out, const bf16* grad,
                            const float* logsumexp, long lse_stride, bf16* d_q, bf16* d_k, bf16* d_v) {
  const long tokens = row.tokens, dim = row.dim, padded = in_panels(tokens);
  uint32_t* keys = space.word(0, padded * dim / 2);
  uint32_t* values = space.word(1, padded * dim / 2);
  uint32_t* keys_across = space.word(2, padded * dim / 2);
  uint32_t* query_across = space.word(3, kQueries / 2 * dim);
  uint32_t* grad_across = space.word(4, kQueries / 2 * dim);
  float* key_sums = space.number(0, padded * dim);
  float* value_sums = space.number(1, padded * dim);
  pack_along(row.k, row.kv_stride, tokens, dim, keys);
  pack_along(row.v, row.kv_stride, tokens, dim, values);
  pack_across(row.k, row.kv_stride, tokens, padded, dim, keys_across);
  std::memset(key_sums, 0, static_cast<size_t>(padded * dim) * 4);
  std::memset(value_sums, 0, static_cast<size_t>(padded * dim) * 4);
  float* query_sums = space.number(2, kQueries * dim);
  uint32_t query[2][kMostDim / 2 * kBlockRows], wanted[2][kMostDim / 2 * kBlockRows];
  alignas(64) float scores[kQueries][kPanel], slopes[kQueries][kPanel];
  alignas(64) uint32_t slopes_left[2][kPanel / 2 * kBlockRows];
  // Of each key's 32: [pairs of queries, key], in three blocks of rows as `multiply` reads them.
  alignas(64) uint32_t share_left[3][kQueries / 2 * kBlockRows], slope_left[3][kQueries / 2 * kBlockRows];
  for (long head = 0; head < row.group; ++head)
    for (long first = 0; first < tokens; first += kQueries) {
      const long count = tokens - first < kQueries ? tokens - first : kQueries;
      const bf16* q = row.q + first * row.q_stride + head * dim;
      const bf16* g = grad + first * row.q_stride + head * dim;
      const bf16* o = out + first * row.q_stride + head * dim;
      float along[kQueries];
      for (long i = 0; i < count; ++i) {
        Float16 total{};
        for (long d = 0; d < dim; d += kLanes) total += load_wide(g + i * row.q_stride + d) * load_wide(o + i * row.q_stride + d);
        along[i] = sum(total);
      }
      int rows[2];
      for (int b = 0; b < 2; ++b) {
        const long left = count - b * kBlockRows;
        rows[b] = static_cast<int>(left < 0 ? 0 : left < kBlockRows ? left : kBlockRows);
        pack_left(q + b * kBlockRows * row.q_stride, row.q_stride, rows[b], dim, query[b]);
        pack_left(g + b * kBlockRows * row.q_stride, row.q_stride, rows[b], dim, wanted[b]);
      }
      pack_across(q, row.q_stride, count, kQueries, dim, query_across);
      pack_across(g, row.q_stride, count, kQueries, dim, grad_across);
      std::memset(query_sums, 0, static_cast<size_t>(kQueries * dim) * 4);
      std::memset(scores, 0, sizeof scores);
      std::memset(slopes, 0, sizeof slopes);
      for (long t = 0; t < first + count; t += kPanel) {
        const bf16* key_panel = reinterpret_cast<const bf16*>(keys + t * dim / 2);
        const bf16* value_panel = reinterpret_cast<const bf16*>(values + t * dim / 2);
        for (int b = 0; b < 2; ++b) {
          if (rows[b] == 0) continue;
          multiply<2, false>(rows[b], scores[b * kBlockRows], kPanel, query[b], key_panel, 2 * kPanel, dim / 2);
          multiply<2, false>(rows[b], slopes[b * kBlockRows], kPanel, wanted[b], value_panel, 2 * kPanel, dim / 2);
        }
        for (long i = 0; i < count; ++i) {
          const long seen = first + i + 1 - t;  // keys of this panel that it sees
          const float lse = logsumexp[head * lse_stride + first + i];
          if (seen < kPanel)
            for (long j = seen > 0 ? seen : 0; j < kPanel; ++j) scores[i][j] = -__builtin_inff();
          const Rows to(slopes_left[i / kBlockRows], kPanel);
          for (long j = 0; j < kPanel; j += kLanes) {
            const Float16 share = exponential(load(&scores[i][j]) * row.scaling - lse);
            const Float16 slope = share * (load(&slopes[i][j]) - along[i]) * row.scaling;
            store(&scores[i][j], share);
            store(&slopes[i][j], slope);
            to.put(i % kBlockRows, j, slope);
          }
        }
        for (int b = 0; b < 2; ++b)
          if (rows[b] > 0) across<true>(rows[b], query_sums + b * kBlockRows * dim, dim, slopes_left[b], keys_across + t / 2 * dim, kPanel / 2);
        turn(scores, share_left);
        turn(slopes, slope_left);
        for (int b = 0; b < 3; ++b) {
          const int keys_here = b < 2 ? kBlockRows : kPanel - 2 * kBlockRows;
          const long offset = (t + b * kBlockRows) * dim;
          across<true>(keys_here, value_sums + offset, dim, share_left[b], grad_across, kQueries / 2);
          across<true>(keys_here, key_sums + offset, dim, slope_left[b], query_across, kQueries / 2);
        }
      }
      for (long i = 0; i < count; ++i)
        for (long d = 0; d < dim; d += kLanes)
          store_narrow(d_q + (first + i) * row.q_stride + head * dim + d, load(query_sums + i * dim + d));
    }
  for (long t = 0; t < tokens; ++t)
    for (long d = 0; d < dim; d += kLanes) {
      store_narrow(d_k + t * row.kv_stride + d, load(key_sums + t * dim + d));
      store_narrow(d_v + t * row.kv_stride + d, load(value_sums + t * dim + d));
    }
}

}  // namespace finetuned
