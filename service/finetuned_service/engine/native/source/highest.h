// The highest logit of each row, found while the logits are in the cache.
#pragma once

#include <cmath>

#include "numeric.h"

namespace finetuned {

// Not a number if one of them is not.
inline float highest_or_nan(Float16 low, Float16 high) {
  const Int16 wrong = (low != low) | (high != high);
  const bool any = largest(wrong ? splat(1.0f) : splat(0.0f)) > 0.0f;
  return any ? __builtin_nanf("") : largest(maximum(low, high));
}

// The first of a row's highest logits, from the highest of each panel; -1 if one is not a number or that is infinite.
inline int32_t first_highest(const float* logits, const float* tops, long panels) {
  long best = 0;
  for (long panel = 0; panel < panels; ++panel) {
    if (std::isnan(tops[panel])) return -1;
    if (tops[panel] > tops[best]) best = panel;
  }
  if (std::isinf(tops[best])) return -1;
  long n = best * kPanel;
  while (logits[n] != tops[best]) ++n;
  return static_cast<int32_t>(n);
}

}  // namespace finetuned
