// Bottlenecks after or beside the parts of a layer, for the rows whose adapters have them.
#pragma once

#include <cmath>

#include "sites.h"

namespace finetuned {

enum Activation : int32_t { kRelu, kGelu, kSilu };

// GELU with the error function, as torch's default.
inline Float16 activate(Float16 x, int32_t activation) {
  switch (activation) {
    case kRelu:
      return x < splat(0.0f) ? splat(0.0f) : x;  // a NaN stays one
    case kGelu: {
      Float16 spread;
      for (int i = 0; i < kLanes; ++i) spread[i] = std::erf(x[i] * 0.70710678f);
      return x * 0.5f * (spread + 1.0f);
    }
    default:
      return x / (exponential(-x) + 1.0f);
  }
}

// act(down h + bias) of a block's rows.
inline void squeeze(const RowBlock& block, const Bottleneck& bottleneck, const Rows& h, const Rows& out) {
  shrink(block, bottleneck.pair, h, out, [&](Float16 values, long first) {
    return activate(values + load(bottleneck.down_bias + first), bottleneck.activation);
  });
}

// up inner + bias, added to a panel of the residual stream [T, hidden]; `columns` is room for it.
inline void expand(const RowBlock& block, const Bottleneck& bottleneck, const Rows& inner, long panel, long hidden, float* columns,
                   float* residual) {
  const LoraPair& pair = bottleneck.pair;
  multiply<2, false>(block.rows, columns, kPanel, inner.at(block.row), pair.b + panel * kPanel * pair.rank, 2 * kPanel, pair.rank / 2);
  const long first = panel * kPanel, count = std::min<long>(kPanel, hidden - first);
  for (long r = 0; r < block.rows; ++r)
    for (long i = 0; i < count; ++i)
      residual[(block.row + r) * hidden + first + i] += columns[r * kPanel + i] + bottleneck.up_bias[first + i];
}

}  // namespace finetuned
