// Vectors of 16 floats, bfloat16, and the one product that everything is made of.
//
// GCC vector extensions, so that the same source compiles for any instruction set; the one intrinsic is
// vdpbf16ps of AVX512-BF16, which multiplies pairs of bfloat16 and adds them up in float32.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && !defined(FINETUNED_PORTABLE)
#define FINETUNED_AVX512_BF16 1
#include <immintrin.h>
#endif

namespace finetuned {

using bf16 = uint16_t;
typedef float Float16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Int16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t Word16 __attribute__((vector_size(64), aligned(4), may_alias));

constexpr int kLanes = 16;
constexpr int kPanel = 32;      // columns of a panel of packed weights, and tokens of a block of the KV cache
constexpr long kAhead = 32;
constexpr int kBlockRows = 12;  // rows computed together: 12 x 2 accumulators, 2 weights and a row's value fit 32 registers

inline float widen(bf16 x) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Round to nearest, ties to even; a NaN stays one.
inline bf16 narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16>((bits >> 16) | 0x40);
  return static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

inline Float16 load(const float* p) {
  Float16 v;
  std::memcpy(&v, p, 64);
  return v;
}

inline void store(float* p, Float16 v) { std::memcpy(p, &v, 64); }

inline Float16 splat(float x) { return Float16{} + x; }

// 16 floats to 16 bfloat16, as `narrow`.
inline void store_narrow(bf16* p, Float16 v) {
#ifdef FINETUNED_AVX512_BF16
  __m256bh packed = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(p, &packed, 32);
#else
  for (int i = 0; i < kLanes; ++i) p[i] = narrow(v[i]);
#endif
}

inline Float16 maximum(Float16 a, Float16 b) { return a > b ? a : b; }

// Lanes `by` further on, around the end.
template <int by>
inline Float16 turned(Float16 v) {
  return __builtin_shufflevector(v, v, by % 16, (by + 1) % 16, (by + 2) % 16, (by + 3) % 16, (by + 4) % 16, (by + 5) % 16,
                                 (by + 6) % 16, (by + 7) % 16, (by + 8) % 16, (by + 9) % 16, (by + 10) % 16, (by + 11) % 16,
                                 (by + 12) % 16, (by + 13) % 16, (by + 14) % 16, (by + 15) % 16);
}

// A tree of fixed shape: the same lanes meet whatever the compiler does.
inline float sum(Float16 v) {
  v += turned<8>(v);
  v += turned<4>(v);
  v += turned<2>(v);
  v += turned<1>(v);
  return v[0];
}

inline float largest(Float16 v) {
  v = maximum(v, turned<8>(v));
  v = maximum(v, turned<4>(v));
  v = maximum(v, turned<2>(v));
  return maximum(v, turned<1>(v))[0];
}

// e^x by 2^n * p(r) with |r| <= ln(2)/2 and a polynomial of degree 6 (Taylor): relative error below 2e-7.
// Below -87 it is 0, so that what is masked with -infinity weighs nothing. A NaN stays one.
inline Float16 exponential(Float16 x) {
  const Float16 low = splat(-87.0f), high = splat(88.0f);
  Int16 vanishes = x < low;
  Float16 bounded = x > high ? high : x;
  Float16 shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer lands in the low bits
  Float16 n = shifted - 12582912.0f;
  Float16 r = bounded - n * 0.693145752f - n * 1.42860677e-6f;
  Float16 p = splat(1.0f / 720.0f);
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Int16 exponent = ((Int16)shifted - 0x4b400000 + 127) << 23;
  Float16 value = p * (Float16)exponent;
  return (Float16)((Int16)value & ~vanishes);
}

// 2^x for x <= 0, a polynomial of degree 5 (Taylor): relative error below 3e-6, for what is rounded to bfloat16 afterwards.
// Below -126 it is 0, so that what is masked with -infinity weighs nothing. A NaN stays one.
inline Float16 power_of_two(Float16 x) {
  Int16 vanishes = x < splat(-126.0f);
  Float16 shifted = x + 12582912.0f;  // 1.5 * 2^23: the integer lands in the low bits
  Float16 r = x - (shifted - 12582912.0f);
  Float16 p = splat(1.3333558e-3f);
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  Int16 exponent = ((Int16)shifted - 0x4b400000 + 127) << 23;
  Float16 value = p * (Float16)exponent;
  return (Float16)((Int16)value & ~vanishes);
}

// acc + a.low * b.low + a.high * b.high in each of 16 lanes of bfloat16 pairs.
inline Float16 pair_product(Float16 acc, Word16 a, Word16 b) {
#ifdef FINETUNED_AVX512_BF16
  return reinterpret_cast<Float16>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(acc), reinterpret_cast<__m512bh>(a),
                                                    reinterpret_cast<__m512bh>(b)));
#else
  acc += (Float16)(a & 0xffff0000u) * (Float16)(b & 0xffff0000u);
  return acc + (Float16)(a << 16) * (Float16)(b << 16);
#endif
}

// 16 floats of each of two rows to 8 pairs of bfloat16 each, those of the first row in the lower half.
inline Word16 two_narrow(Float16 first, Float16 second) {
#ifdef FINETUNED_AVX512_BF16
  return reinterpret_cast<Word16>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
#else
  Word16 pairs;
  store_narrow(reinterpret_cast<bf16*>(&pairs), first);
  store_narrow(reinterpret_cast<bf16*>(&pairs) + kLanes, second);
  return pairs;
#endif
}

// Rows as `multiply` reads them: blocks of 12, in a block pair after pair of elements, each of all 12 rows:
// [T / 12, columns / 2, 12, 2]. So one pointer and fixed offsets reach the values of a whole block.
class Rows {
 public:
  Rows() = default;
  Rows(uint32_t* words, long columns) : words_(words), pairs_(columns / 2) {}

  static size_t words_for(long rows, long columns) {
    return static_cast<size_t>((rows + kBlockRows - 1) / kBlockRows * kBlockRows * (columns / 2));
  }

  long pairs() const { return pairs_; }
  uint32_t* at(long row) const { return words_ + row / kBlockRows * pairs_ * kBlockRows + row % kBlockRows; }

  // 16 values of a row, rounded to bfloat16, from an even column on.
  void put(long row, long column, Float16 values) const {
    alignas(32) uint32_t words[kLanes / 2];
    store_narrow(reinterpret_cast<bf16*>(words), values);
    uint32_t* to = at(row) + column / 2 * kBlockRows;
    for (int i = 0; i < kLanes / 2; ++i) to[i * kBlockRows] = words[i];
  }

  // 16 values of each of 12 rows that fill a block, as `put`: `values(i)` of its i-th row.
  template <typename Values>
  void put_block(long row, long column, const Values& values) const {
    Word16 pairs[kBlockRows / 2];
    for (int i = 0; i < kBlockRows / 2; ++i) pairs[i] = two_narrow(values(2 * i), values(2 * i + 1));
    put_pairs(row, column, pairs);
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
// `b_stride` is the distance between pairs in bfloat16; Part reads and computes `columns` < 16 only, V = 1. `fetch(b)` is
// called at each pair: what will be needed later may be on its way while this is computed. So many `pieces` of b follow
// each other, `piece_stride` apart, of `pairs` each; those of a follow without a gap.
template <int M, int V, bool Accumulate, bool Part, class Fetch>
inline void multiply_rows(float* c, long c_stride, const uint32_t* a, const bf16* b, long b_stride, long pairs, int columns,
                          Fetch& fetch, long pieces = 1, long piece_stride = 0) {
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
      for (int v = 0; v < V; ++v) std::memcpy(&weights[v], b + v * 2 * kLanes, Part ? 4 * static_cast<size_t>(columns) : 64);
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

struct FetchNothing {
  void operator()(const bf16*) const {}
};

template <int V, bool Accumulate, bool Part = false, class Fetch = FetchNothing>
inline void multiply(int rows, float* c, long c_stride, const uint32_t* a, const bf16* b, long b_stride, long pairs,
                     int columns = kLanes * V, Fetch&& fetch = Fetch{}) {
  switch (rows) {
#define FINETUNED_CASE(M) \
  case M:                 \
    return multiply_rows<M, V, Accumulate, Part>(c, c_stride, a, b, b_stride, pairs, columns, fetch);
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
    return multiply_rows<M, V, true, false>(c, c_stride, a, b, b_stride, pairs, kLanes * V, nothing, pieces, piece_stride);
    FINETUNED_CASE(1) FINETUNED_CASE(2) FINETUNED_CASE(3) FINETUNED_CASE(4) FINETUNED_CASE(5) FINETUNED_CASE(6)
    FINETUNED_CASE(7) FINETUNED_CASE(8) FINETUNED_CASE(9) FINETUNED_CASE(10) FINETUNED_CASE(11) FINETUNED_CASE(12)
#undef FINETUNED_CASE
  }
}

// As `multiply` with V = 1, in four sums over every fourth pair, which are added at the end: few rows, of which each
// is one chain of additions, would wait for every one of them. `pairs` a multiple of 4, at most 6 rows.
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

}  // namespace finetuned
