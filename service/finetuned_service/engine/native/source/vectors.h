// Products of rows in vectors, of any instruction set: each sum goes through its pairs one after another.
#pragma once

#include "numeric.h"

namespace finetuned {

constexpr int kBlockRows = 12;  // rows computed together: 12 x 2 accumulators, 2 weights and a row's value fit 32 registers

// Whether what the next phase reads is fetched in the first block's time, too, which waits for memory itself.
constexpr bool kFarFromTheFirst = false;

// In how many rows those of a step are cut for what is done to each of them alone.
inline long rows_of_a_piece(long) { return kBlockRows; }

// Where a row's values begin, for `multiply`.
using RowsAt = const uint32_t*;

// Rows as `multiply` reads them: blocks of 12, in a block pair after pair of elements, each of all 12 rows:
// [T / 12, columns / 2, 12, 2]. So one pointer and fixed offsets reach the values of a whole block.
class Rows {
 public:
  static constexpr bool kRowByRow = false;  // values of all rows of a block are put together faster

  Rows() = default;
  Rows(uint32_t* words, long columns) : words_(words), pairs_(columns / 2) {}

  static size_t words_for(long rows, long columns) {
    return static_cast<size_t>((rows + kBlockRows - 1) / kBlockRows * kBlockRows * (columns / 2));
  }

  long pairs() const { return pairs_; }
  uint32_t* words() const { return words_; }
  uint32_t* at(long row) const { return words_ + row / kBlockRows * pairs_ * kBlockRows + row % kBlockRows; }

  // 16 values of a row, rounded to bfloat16, from an even column on.
  void put(long row, long column, Float16 values) const {
    alignas(32) uint32_t words[kLanes / 2];
    store_narrow(reinterpret_cast<bf16*>(words), values);
    uint32_t* to = at(row) + column / 2 * kBlockRows;
    for (int i = 0; i < kLanes / 2; ++i) to[i * kBlockRows] = words[i];
  }

  // All values of a row.
  void copy(long row, const bf16* values) const {
    uint32_t* to = at(row);
    for (long p = 0; p < pairs_; ++p) std::memcpy(to + p * kBlockRows, values + 2 * p, sizeof(uint32_t));
  }

  // `count` values of each of `rows` rows from the first of a block on, as `put`: 16 of the i-th from column c on are
  // `values(i, c)`.
  template <typename Values>
  void put_block(long row, int rows, long column, long count, const Values& values) const {
    for (long c = 0; c < count; c += kLanes) {
      if (rows == kBlockRows) {
        Word16 pairs[kBlockRows / 2];
        for (int i = 0; i < kBlockRows / 2; ++i) pairs[i] = two_narrow(values(2 * i, c), values(2 * i + 1, c));
        put_pairs(row, column + c, pairs);
      } else {
        for (int i = 0; i < rows; ++i) put(row + i, column + c, values(i, c));
      }
    }
  }

  // A row times `gain` [columns], to the same row of `out`, rounded again.
  void scale(long row, const float* gain, const Rows& out) const {
    const uint32_t* from = at(row);
    uint32_t* to = out.at(row);
    for (long p = 0; p < pairs_; ++p) {
      const uint32_t pair = from[p * kBlockRows];
      const bf16 low = narrow(widen(static_cast<bf16>(pair)) * gain[2 * p]);
      const bf16 high = narrow(widen(static_cast<bf16>(pair >> 16)) * gain[2 * p + 1]);
      to[p * kBlockRows] = low | static_cast<uint32_t>(high) << 16;
    }
  }

 private:
  // Word p of row r lies at 8 * (r % 2) + p of pairs[r / 2] and goes to 12 * p + r of six vectors.
  void put_pairs(long row, long column, const Word16* pairs) const {
    uint32_t* to = at(row) + column / 2 * kBlockRows;
#pragma GCC unroll 6
    for (int v = 0; v < 6; ++v) {
      Word16 out{};
#pragma GCC unroll 6
      for (int i = 0; i < 6; i += 2) {
        Int16 place{}, taken{};
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; ++lane) {
          const int word = (v * kLanes + lane) / kBlockRows, of = (v * kLanes + lane) % kBlockRows;
          place[lane] = (of / 2 - i) % 2 * kLanes + of % 2 * 8 + word;
          taken[lane] = of / 4 == i / 2 ? -1 : 0;
        }
        const Word16 chosen = __builtin_shuffle(pairs[i], pairs[i + 1], (Word16)(place & 31));
        out = i == 0 ? chosen : (Word16)(taken ? (Int16)chosen : (Int16)out);
      }
      std::memcpy(to + v * kLanes, &out, 64);
    }
  }

  uint32_t* words_ = nullptr;
  long pairs_ = 0;
};

// c[M x 16*V] (+)= a[M x 2*pairs] * b[2*pairs x 16*V], a as in Rows, b interleaved by pairs of rows.
//
// Each element is the sum over the pairs in their order, by its own row and column alone: what a row
// computes does not depend on the rows beside it, nor on M.
// `b_stride` is the distance between pairs in bfloat16. `fetch(b)` is called at each pair: what will be needed later may be
// on its way while this is computed. So many `pieces` of b follow each other, `piece_stride` apart, of `pairs` each; those
// of a follow without a gap.
template <int M, int V, bool Accumulate, class Fetch>
inline void multiply_rows(float* c, long c_stride, const uint32_t* a, const bf16* b, long b_stride, long pairs, Fetch& fetch,
                          long pieces = 1, long piece_stride = 0) {
  // Every loop over accumulators is unrolled: one that is not puts them on the stack, three times slower.
  Float16 acc[M][V];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[m][v] = Accumulate ? load(c + m * c_stride + v * kLanes) : Float16{};
  for (long piece = 0; piece < pieces; ++piece, b += piece_stride - pairs * b_stride)
    for (long p = 0; p < pairs; ++p, a += kBlockRows, b += b_stride) {
      Word16 weights[V] = {};
      fetch(b);
      // One by one: copied together they would go through memory once more.
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) std::memcpy(&weights[v], b + v * 2 * kLanes, 64);
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const Word16 value = Word16{} + a[m];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) acc[m][v] = pair_product(acc[m][v], value, weights[v]);
      }
    }
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(c + m * c_stride + v * kLanes, acc[m][v]);
}

// With what is read for the first time: the processor fetches it by itself.
using FetchFirst = FetchNothing;

template <int V, bool Accumulate, class Fetch = FetchNothing>
inline void multiply(int rows, float* c, long c_stride, const uint32_t* a, const bf16* b, long b_stride, long pairs,
                     Fetch&& fetch = Fetch{}) {
  switch (rows) {
#define FINETUNED_CASE(M) \
  case M:                 \
    return multiply_rows<M, V, Accumulate>(c, c_stride, a, b, b_stride, pairs, fetch);
    FINETUNED_CASE(1) FINETUNED_CASE(2) FINETUNED_CASE(3) FINETUNED_CASE(4) FINETUNED_CASE(5) FINETUNED_CASE(6)
    FINETUNED_CASE(7) FINETUNED_CASE(8) FINETUNED_CASE(9) FINETUNED_CASE(10) FINETUNED_CASE(11) FINETUNED_CASE(12)
#undef FINETUNED_CASE
  }
}

// c += a * b where b lies in `pieces` of `pairs` pairs each, `piece_stride` apart; a has no gaps.
template <int V>
inline void multiply_pieces(int rows, float* c, long c_stride, const uint32_t* a, const bf16* b, long b_stride, long pairs,
                            long pieces, long piece_stride) {
  FetchNothing nothing;
  switch (rows) {
#define FINETUNED_CASE(M) \
  case M:                 \
    return multiply_rows<M, V, true>(c, c_stride, a, b, b_stride, pairs, nothing, pieces, piece_stride);
    FINETUNED_CASE(1) FINETUNED_CASE(2) FINETUNED_CASE(3) FINETUNED_CASE(4) FINETUNED_CASE(5) FINETUNED_CASE(6)
    FINETUNED_CASE(7) FINETUNED_CASE(8) FINETUNED_CASE(9) FINETUNED_CASE(10) FINETUNED_CASE(11) FINETUNED_CASE(12)
#undef FINETUNED_CASE
  }
}

// As `multiply` with V = 1, in four sums over every fourth pair, which are added at the end: few rows, of which each
// is one chain of additions, would wait for every one of them. `pairs` a multiple of 4, at most 6 rows; Part reads and
// computes `columns` < 16 only.
template <int M, bool Part>
inline void multiply_chains(float* c, long c_stride, const uint32_t* a, const bf16* b, long b_stride, long pairs, int columns) {
  constexpr int kChains = 4;
  Float16 acc[M][kChains];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int k = 0; k < kChains; ++k) acc[m][k] = Float16{};
  for (long p = 0; p < pairs; p += kChains, a += kChains * kBlockRows, b += kChains * b_stride) {
    Word16 weights[kChains] = {};
#pragma GCC unroll 4
    for (int k = 0; k < kChains; ++k) {
      __builtin_prefetch(b + (kAhead + k) * b_stride);
      if constexpr (Part)
        std::memcpy(&weights[k], b + k * b_stride, 4 * static_cast<size_t>(columns));
      else
        std::memcpy(&weights[k], b + k * b_stride, 64);
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int k = 0; k < kChains; ++k) acc[m][k] = pair_product(acc[m][k], Word16{} + a[k * kBlockRows + m], weights[k]);
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) store(c + m * c_stride, (acc[m][0] + acc[m][1]) + (acc[m][2] + acc[m][3]));
}

template <bool Part = false>
inline void multiply_chained(int rows, float* c, long c_stride, const uint32_t* a, const bf16* b, long b_stride, long pairs,
                             int columns = kLanes) {
  for (int first = 0; first < rows; first += 6, c += 6 * c_stride, a += 6) {
    switch (rows - first) {
#define FINETUNED_CASE(M) \
  case M:                 \
    multiply_chains<M, Part>(c, c_stride, a, b, b_stride, pairs, columns); \
    break;
      FINETUNED_CASE(1) FINETUNED_CASE(2) FINETUNED_CASE(3) FINETUNED_CASE(4) FINETUNED_CASE(5)
      default:
        multiply_chains<6, Part>(c, c_stride, a, b, b_stride, pairs, columns);
#undef FINETUNED_CASE
    }
  }
}

// What `multiply_update` reads of a row: what there is.
constexpr long kUpdateRanks = kLanes;

// c[rows x 16*V] += a * b.
template <int V>
inline void multiply_update(int rows, float* c, long c_stride, const uint32_t* a, const bf16* b, long b_stride, long pairs) {
  multiply<V, true>(rows, c, c_stride, a, b, b_stride, pairs);
}

// What a thread holds while it multiplies: nothing.
class Multiplying {
 public:
  Multiplying() {}  // not trivial, so that nobody is told that it is not used
};

inline bool may_multiply() { return true; }

}  // namespace finetuned
