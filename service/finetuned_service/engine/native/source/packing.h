// How weights lie in memory so that `multiply` reads them as one stream.
#pragma once

#include <algorithm>

#include "numeric.h"

namespace finetuned {

// Where W[n, i] lies in panels.
inline long panel_place(long n, long i, long inputs) { return ((n / kPanel * (inputs / 2) + i / 2) * kPanel + n % kPanel) * 2 + i % 2; }

// W [outputs, inputs] row by row -> [outputs / 32 rounded up, inputs / 2, 32, 2]; columns past the end are 0.
inline void pack_panels(const bf16* weight, long outputs, long inputs, bf16* packed) {
  long pairs = inputs / 2;
  for (long panel = 0; panel * kPanel < outputs; ++panel)
    for (long p = 0; p < pairs; ++p)
      for (long column = 0; column < kPanel; ++column) {
        long n = panel * kPanel + column;
        bf16* to = packed + ((panel * pairs + p) * kPanel + column) * 2;
        to[0] = n < outputs ? weight[n * inputs + 2 * p] : 0;
        to[1] = n < outputs ? weight[n * inputs + 2 * p + 1] : 0;
      }
}

// The way back, for the digest of what is in memory.
inline void unpack_panels(const bf16* packed, long outputs, long inputs, bf16* weight) {
  long pairs = inputs / 2;
  for (long n = 0; n < outputs; ++n)
    for (long p = 0; p < pairs; ++p) {
      const bf16* from = packed + (((n / kPanel) * pairs + p) * kPanel + n % kPanel) * 2;
      weight[n * inputs + 2 * p] = from[0];
      weight[n * inputs + 2 * p + 1] = from[1];
    }
}

enum Stored : int32_t { kBfloat16, kFloat32, kFloat16 };

// One site of a LoRA adapter as its file holds it, at any alignment, and where its packed form goes.
struct LoraSource {
  const void* a;  // [rank, inputs]
  const void* b;  // [outputs, rank]
  bf16* packed_a;  // ranks rounded up to even: groups of up to 16, each [inputs / 2, ranks of the group, 2]
  bf16* packed_b;  // `pack_panels` of scaling * b [outputs, ranks]
  int64_t rank;
  int64_t inputs;
  int64_t outputs;
  float scaling;
  int32_t stored;
};

inline float stored_float16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu, fraction = half & 0x3ffu;
  // Below the smallest normal number the value is fraction * 2^-24.
  float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;
  if (exponent > 0) {
    const uint32_t bits = (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    std::memcpy(&magnitude, &bits, 4);
  }
  uint32_t bits;
  std::memcpy(&bits, &magnitude, 4);
  bits |= sign;
  std::memcpy(&magnitude, &bits, 4);
  return magnitude;
}

// Up to 16 stored values as bfloat16 pairs of value * scaling; what is past `count` is 0.
template <int stored>
class Taken {
 public:
  uint32_t pairs[kLanes / 2];

  void take(const void* from, long index, long count, float scaling) {
    constexpr long width = stored == kFloat32 ? 4 : 2;
    const char* start = static_cast<const char*>(from) + width * index;
    if (count == kLanes) return take_all(start, scaling);
    char part[4 * kLanes] = {};
    std::memcpy(part, start, static_cast<size_t>(width * count));
    take_all(part, scaling);
  }

  // Whether everything taken was.
  bool finite() const {
    bool none = true;
    for (int i = 0; i < kLanes; ++i) none &= wrong_[i] == 0;
    return none;
  }

 private:
  typedef uint16_t Half16 __attribute__((vector_size(32), aligned(2), may_alias));

  void take_all(const char* start, float scaling) {
    Float16 values;
    if constexpr (stored == kFloat32) {
      std::memcpy(&values, start, sizeof values);
    } else {
      Half16 halves;
      std::memcpy(&halves, start, sizeof halves);
      if constexpr (stored == kBfloat16)
        values = (Float16)(__builtin_convertvector(halves, Word16) << 16);
      else
        for (int i = 0; i < kLanes; ++i) values[i] = stored_float16(halves[i]);
    }
    Half16 packed;
    store_narrow(reinterpret_cast<bf16*>(&packed), values * scaling);
    wrong_ |= (Half16)((packed & 0x7f80) == 0x7f80);
    std::memcpy(pairs, &packed, sizeof packed);
  }

  Half16 wrong_ = {};
};

// False if a packed value is not finite. Everything packed is written; an odd rank gets a rank of zeros beside it.
template <int stored>
bool pack_lora_site(const LoraSource& site) {
  Taken<stored> taken;
  const long ranks = site.rank + site.rank % 2;
  for (long first = 0; first < ranks; first += kLanes) {
    const long group = ranks - first < kLanes ? ranks - first : kLanes;
    auto* to = reinterpret_cast<uint32_t*>(site.packed_a + first * site.inputs);
    for (long i = 0; i < site.inputs; i += kLanes) {
      const long count = site.inputs - i < kLanes ? site.inputs - i : kLanes;
      for (long r = 0; r < group; ++r) {
        const bool inside = first + r < site.rank;
        taken.take(site.a, inside ? (first + r) * site.inputs + i : 0, inside ? count : 0, 1.0f);
        for (long p = 0; p < count / 2; ++p) to[(i / 2 + p) * group + r] = taken.pairs[p];
      }
    }
  }
  for (long n = 0; n < (site.outputs + kPanel - 1) / kPanel * kPanel; ++n) {
    auto* to = reinterpret_cast<uint32_t*>(site.packed_b + n / kPanel * kPanel * ranks) + n % kPanel;
    for (long r = 0; r < ranks; r += kLanes) {
      const long count = n < site.outputs ? std::min<long>(kLanes, site.rank - r) : 0;
      taken.take(site.b, count > 0 ? n * site.rank + r : 0, count, site.scaling);
      for (long p = 0; p < std::min<long>(kLanes, ranks - r) / 2; ++p) to[(r / 2 + p) * kPanel] = taken.pairs[p];
    }
  }
  return taken.finite();
}

inline bool pack_lora_site(const LoraSource& site) {
  switch (site.stored) {
    case kFloat32: return pack_lora_site<kFloat32>(site);
    case kFloat16: return pack_lora_site<kFloat16>(site);
    default: return pack_lora_site<kBfloat16>(site);
  }
}

}  // namespace finetuned
