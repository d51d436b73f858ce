// Vectors of 16 floats, and bfloat16.
//
// GCC vector extensions, so that the same source compiles for any instruction set; the intrinsics are those of
// AVX512-BF16, which round to bfloat16, and multiply pairs of them and add them up in float32.
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

// What a product fetches meanwhile: nothing.
struct FetchNothing {
  void operator()(const bf16*) const {}
};

}  // namespace finetuned
