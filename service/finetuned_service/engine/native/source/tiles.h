// Products of rows in tiles, by the matrix unit of processors with AMX (Intel SDM, volume 2, TDPBF16PS).
//
// One instruction multiplies 16 rows with 16 columns over 16 pairs: even and odd elements are summed up apart, then added,
// and their sum is added to the tile of sums. So each element is computed from its own row alone, in an order that only
// the number of pairs decides. Few rows take as long as 16: what they wait for is memory.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <type_traits>

#include "numeric.h"

namespace finetuned {

constexpr int kTile = 16;               // rows of a tile; pairs or floats of one of its rows
constexpr int kBlockRows = 2 * kTile;  // rows computed together: 2 x 2 tiles of sums, 2 of rows, 2 of weights

// Whether what the next phase reads is fetched in the first block's time, too: it may be the only one.
constexpr bool kFarFromTheFirst = true;

// In how many rows those of a step are cut for what is done to each of them alone: few enough that all threads have some,
// as many as are multiplied together where there are many.
inline long rows_of_a_piece(long rows) { return rows <= kTile ? kTile / 2 : rows <= 4 * kBlockRows ? kTile : kBlockRows; }

// Where a row's values begin, and how many pairs further on the next row's.
struct RowsAt {
  const uint32_t* words;
  long stride;
};

// Rows as `multiply` reads them: one after another, pairs of elements. Whole tiles are read: behind the last row there is
// room for one, whatever is in it.
class Rows {
 public:
  static constexpr bool kRowByRow = true;

  Rows() = default;
  Rows(uint32_t* words, long columns) : words_(words), pairs_(columns / 2) {}

  static size_t words_for(long rows, long columns) { return static_cast<size_t>((rows + kBlockRows) * (columns / 2)); }

  long pairs() const { return pairs_; }
  uint32_t* words() const { return words_; }
  RowsAt at(long row) const { return {words_ + row * pairs_, pairs_}; }

  // 16 values of a row, rounded to bfloat16, from an even column on.
  void put(long row, long column, Float16 values) const { store_narrow(values_of(row) + column, values); }

  // All values of a row.
  void copy(long row, const bf16* values) const { std::memcpy(values_of(row), values, sizeof(uint32_t) * static_cast<size_t>(pairs_)); }

  // `count` values of each of `rows` rows from the first of a block on, as `put`: 16 of the i-th from column c on are
  // `values(i, c)`.
  template <typename Values>
  void put_block(long row, int rows, long column, long count, const Values& values) const {
    for (int i = 0; i < rows; ++i)
      for (long c = 0; c < count; c += kLanes) put(row + i, column + c, values(i, c));
  }

  // A row times `gain` [columns], to the same row of `out`, rounded again.
  void scale(long row, const float* gain, const Rows& out) const {
    const bf16* from = values_of(row);
    bf16* to = out.values_of(row);
    for (long i = 0; i < 2 * pairs_; ++i) to[i] = narrow(widen(from[i]) * gain[i]);
  }

 private:
  bf16* values_of(long row) const { return reinterpret_cast<bf16*>(words_ + row * pairs_); }

  uint32_t* words_ = nullptr;
  long pairs_ = 0;
};

// What is read for the first time, so many bfloat16 on: the processor does not foresee what tiles will be loaded.
constexpr long kFirstAhead = 2048;

struct FetchFirst {
  void operator()(const bf16* b) const {
    __builtin_prefetch(b + kFirstAhead);
    __builtin_prefetch(b + kFirstAhead + 2 * kLanes);
  }
};

struct FetchFirstLine {
  void operator()(const bf16* b) const { __builtin_prefetch(b + kFirstAhead); }
};

inline Float16 fused(Float16 a, Float16 b, Float16 c) {
  return reinterpret_cast<Float16>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
}

// The instructions of tiles say nothing of the memory that they read: what was written must be there.
inline void written() { asm volatile("" ::: "memory"); }

// Tiles 0 to 3 hold the sums (by rows, then columns), 4 and 5 rows, 6 and 7 weights; strides in bytes.
template <int M, int V>
inline void add_products(const uint32_t* a, long a_stride, const bf16* b, long b_stride) {
  _tile_loadd(6, b, b_stride);
  if constexpr (V == 2) _tile_loadd(7, b + 2 * kTile, b_stride);
  _tile_loadd(4, a, a_stride);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (V == 2) _tile_dpbf16ps(1, 4, 7);
  if constexpr (M == 2) {
    _tile_loadd(5, reinterpret_cast<const char*>(a) + kTile * a_stride, a_stride);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (V == 2) _tile_dpbf16ps(3, 5, 7);
  }
}

// The same over fewer than 16 pairs: a tile's other pairs are 0 on both sides.
template <int M, int V>
inline void add_few_products(RowsAt a, const bf16* b, long b_stride, long pairs) {
  alignas(64) uint32_t left[M * kTile][kTile];
  alignas(64) uint32_t right[kTile][V * kTile];
  const Word16 zeros{};
  const auto inside = static_cast<__mmask16>((1u << pairs) - 1);
  for (int r = 0; r < M * kTile; ++r) {
    const __m512i values = _mm512_maskz_loadu_epi32(inside, a.words + r * a.stride);
    std::memcpy(left[r], &values, 64);
  }
  for (long p = 0; p < kTile; ++p)
    for (int v = 0; v < V; ++v) {
      if (p < pairs)
        std::memcpy(&right[p][v * kTile], b + p * b_stride + v * 2 * kTile, 64);
      else
        std::memcpy(&right[p][v * kTile], &zeros, 64);
    }
  written();
  add_products<M, V>(left[0], 4 * kTile, reinterpret_cast<const bf16*>(right), 4 * V * kTile);
}

// Tiles of sums as floats, M x V of them.
template <int M, int V>
inline void store_sums(float* c, long stride) {
  _tile_stored(0, c, 4 * stride);
  if constexpr (V == 2) _tile_stored(1, c + kTile, 4 * stride);
  if constexpr (M == 2) {
    _tile_stored(2, c + kTile * stride, 4 * stride);
    if constexpr (V == 2) _tile_stored(3, c + kTile * stride + kTile, 4 * stride);
  }
}

template <int M, int V, bool Accumulate, class Fetch>
inline void multiply_tiles(int rows, float* c, long c_stride, RowsAt a, const bf16* b, long b_stride, long pairs, Fetch& fetch,
                           long pieces, long piece_stride) {
  written();
  _tile_zero(0);
  if constexpr (V == 2) _tile_zero(1);
  if constexpr (M == 2) {
    _tile_zero(2);
    if constexpr (V == 2) _tile_zero(3);
  }
  for (long piece = 0; piece < pieces; ++piece) {
    const bf16* at = b + piece * piece_stride;
    long p = 0;
    for (; p + kTile <= pairs; p += kTile, a.words += kTile) {
      for (long i = 0; i < kTile; ++i) fetch(at + (p + i) * b_stride);
      add_products<M, V>(a.words, 4 * a.stride, at + p * b_stride, 2 * b_stride);
    }
    if (p < pairs) {
      add_few_products<M, V>(a, at + p * b_stride, b_stride, pairs - p);
      a.words += pairs - p;
    }
  }
  if (!Accumulate && rows == M * kTile) return store_sums<M, V>(c, c_stride);
  alignas(64) float sums[M * kTile][V * kTile];
  store_sums<M, V>(sums[0], V * kTile);
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < V; ++v) {
      float* to = c + r * c_stride + v * kTile;
      const Float16 values = load(&sums[r][v * kTile]);
      store(to, Accumulate ? load(to) + values : values);
    }
}

constexpr int kRowsAsTiles = 4;  // at most

// What a tile adds of few rows and at most 16 pairs, in vectors, to the same bits: the unit's own order and, with what
// `Multiplying` sets, its own zeros for what is below the smallest normal number. A tile costs 200 cycles where its pairs are
// copied.
template <int M, int V>
inline void multiply_as_tiles(float* c, long c_stride, RowsAt a, const bf16* b, long b_stride, long pairs) {
  Float16 even[M][V] = {}, odd[M][V] = {};
  for (long p = 0; p < pairs; ++p, b += b_stride) {
    Float16 even_weights[V], odd_weights[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      Word16 weights;
      std::memcpy(&weights, b + v * 2 * kLanes, 64);
      even_weights[v] = (Float16)(weights << 16);
      odd_weights[v] = (Float16)(weights & 0xffff0000u);
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const uint32_t pair = a.words[m * a.stride + p];
      const Float16 low = splat(widen(static_cast<bf16>(pair))), high = splat(widen(static_cast<bf16>(pair >> 16)));
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        even[m][v] = fused(low, even_weights[v], even[m][v]);
        odd[m][v] = fused(high, odd_weights[v], odd[m][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      float* to = c + m * c_stride + v * kLanes;
      // A tile of sums begins at 0, which decides the sign of a sum that is nothing.
      store(to, load(to) + (Float16{} + (even[m][v] + odd[m][v])));
    }
}

// c[rows x 16*V] (+)= a[rows x 2*pairs] * b[2*pairs x 16*V], b interleaved by pairs of rows, `b_stride` the distance between
// pairs in bfloat16; at most 32 rows. `fetch(b)` is called at each pair: what will be needed later may be on its way while
// this is computed. So many `pieces` of b follow each other, `piece_stride` apart, of `pairs` each; those of a follow without
// a gap.
template <int V, bool Accumulate, class Fetch = FetchNothing>
inline void multiply(int rows, float* c, long c_stride, RowsAt a, const bf16* b, long b_stride, long pairs, Fetch&& fetch = Fetch{},
                     long pieces = 1, long piece_stride = 0) {
  if constexpr (Accumulate && std::is_same_v<std::decay_t<Fetch>, FetchNothing>) {
    static_assert(kRowsAsTiles == 4);
    if (pieces == 1 && pairs <= kTile) switch (rows) {
        case 1: return multiply_as_tiles<1, V>(c, c_stride, a, b, b_stride, pairs);
        case 2: return multiply_as_tiles<2, V>(c, c_stride, a, b, b_stride, pairs);
        case 3: return multiply_as_tiles<3, V>(c, c_stride, a, b, b_stride, pairs);
        case 4: return multiply_as_tiles<4, V>(c, c_stride, a, b, b_stride, pairs);
        default: break;
      }
  }
  if (rows > kTile)
    multiply_tiles<2, V, Accumulate>(rows, c, c_stride, a, b, b_stride, pairs, fetch, pieces, piece_stride);
  else
    multiply_tiles<1, V, Accumulate>(rows, c, c_stride, a, b, b_stride, pairs, fetch, pieces, piece_stride);
}

// What `multiply_update` reads of a row and of b: whole tiles.
constexpr long kUpdateRanks = 2 * kTile;

// c[rows x 16*V] += a * b, where a is 0 from `pairs` on up to whole tiles, and what follows b for as long is finite.
template <int V>
inline void multiply_update(int rows, float* c, long c_stride, RowsAt a, const bf16* b, long b_stride, long pairs) {
  const bool few = rows <= kRowsAsTiles && pairs <= kTile;
  multiply<V, true>(rows, c, c_stride, a, b, b_stride, few ? pairs : (pairs + kTile - 1) / kTile * kTile);
}

// c += a * b where b lies in `pieces` of `pairs` pairs each, `piece_stride` apart; a has no gaps.
template <int V>
inline void multiply_pieces(int rows, float* c, long c_stride, RowsAt a, const bf16* b, long b_stride, long pairs, long pieces,
                            long piece_stride) {
  multiply<V, true>(rows, c, c_stride, a, b, b_stride, pairs, FetchNothing{}, pieces, piece_stride);
}

// As `multiply` with V = 1, of `columns` that there are; b may be followed by anything, for 64 bytes. The others become 0.
template <bool Part = false>
inline void multiply_chained(int rows, float* c, long c_stride, RowsAt a, const bf16* b, long b_stride, long pairs,
                             int columns = kLanes) {
  multiply<1, false>(rows, c, c_stride, a, b, b_stride, pairs, FetchFirstLine{});
  if constexpr (!Part) return;
  const auto inside = static_cast<__mmask16>((1u << columns) - 1);
  for (int r = 0; r < rows; ++r)
    store(c + r * c_stride, reinterpret_cast<Float16>(_mm512_maskz_loadu_ps(inside, c + r * c_stride)));
}

// What a thread holds while it multiplies: the shape of tiles, and the unit, which other threads of the core may want. What is
// below the smallest normal number is 0 to the unit, and so to the vectors beside it.
class Multiplying {
 public:
  Multiplying() : control_(_mm_getcsr()) {
    constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
    _mm_setcsr(control_ | kFlushToZero | kDenormalsAreZero);
    Shape shape;
    // Not _tile_loadconfig, of which GCC 12 believes that it reads the first 8 bytes alone.
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  Multiplying(const Multiplying&) = delete;
  Multiplying& operator=(const Multiplying&) = delete;
  ~Multiplying() {
    _tile_release();
    _mm_setcsr(control_);
  }

 private:
  const unsigned control_;

  struct alignas(64) Shape {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {kTile, kTile, kTile, kTile, kTile, kTile, kTile, kTile};
  };
};

// Whether the kernel lets this process use tiles: it must be asked, once (Linux, arch/x86/xstate.rst).
inline bool may_multiply() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace finetuned
