// How weights lie in memory so that `multiply` reads them as one stream.
#pragma once

#include "numeric.h"

namespace finetuned {

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

// A [rank, inputs] -> groups of up to 16 ranks, each [inputs / 2, ranks of the group, 2]: no padding.
inline void pack_ranks(const bf16* a, long rank, long inputs, bf16* packed) {
  for (long first = 0; first < rank; first += kLanes) {
    long ranks = rank - first < kLanes ? rank - first : kLanes;
    bf16* group = packed + first * inputs;
    for (long p = 0; p < inputs / 2; ++p)
      for (long r = 0; r < ranks; ++r) {
        group[(p * ranks + r) * 2] = a[(first + r) * inputs + 2 * p];
        group[(p * ranks + r) * 2 + 1] = a[(first + r) * inputs + 2 * p + 1];
      }
  }
}

}  // namespace finetuned
