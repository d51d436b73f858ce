// What an adapter does to its base beside low-rank updates (`adapters/site_ops.py`). What is null is left alone.
//
// All pointers are owned by Python and outlive the call.
#pragma once

#include <cstdint>

#include "numeric.h"

namespace finetuned {

constexpr int kSites = 7;  // q, k, v, o, gate, up, down
enum Site { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown };

constexpr int kParts = 3;
enum Part { kAttention, kFeedForward, kWhole };  // of a layer; what the last returns is the residual stream

// y = x W^T + bias, W [outputs, inputs] packed by `pack_panels`; `bias` may be null.
struct Linear {
  const bf16* packed;
  const float* bias;
  int32_t outputs;
  int32_t inputs;
};

// One site of a LoRA adapter: y += (x A^T) B, scaling folded into B. Rank 0: the site is left alone.
struct LoraPair {
  const bf16* a;  // `pack_ranks` of A [rank, inputs]
  const bf16* b;  // `pack_panels` of B^T [outputs, rank], rank even
  int64_t rank;
};

// y = gain * (W (input_gain * x) + bias + low-rank update) + shift, W and bias its own if it has any.
struct SiteChange {
  const float* input_gain;    // [inputs]
  const float* output_gain;   // [outputs, rounded up to panels]
  const float* output_shift;  // alike, beside a gain: what of the bias a gain of the product alone must not scale
  Linear own;
};

// A bottleneck: up act(down h + down_bias) + up_bias is added to what a part of a layer returns. h is that, or what the
// part was given if `parallel`. Down and up lie as A and B do, scaling is folded into up and up_bias.
struct Bottleneck {
  LoraPair pair;           // rank 0: there is none
  const float* down_bias;  // [rank, rounded up to 16]
  const float* up_bias;    // [hidden]
  int32_t activation;
  int32_t parallel;
};

struct LayerChange {
  const float* input_norm;
  const float* post_norm;
  const float* query_norm;
  const float* key_norm;
  SiteChange sites[kSites];
  Bottleneck parts[kParts];
};

struct Change {
  const LayerChange* layers;  // [layer_count]
  const bf16* embedding;      // `pack_panels` of [vocabulary, hidden], so that a tied head is the same memory
  const float* final_norm;
  Linear head;
};

// What a row computes with: its adapter's own, or the base's.
inline const float* own_or(const float* own, const float* base) { return own != nullptr ? own : base; }
inline const Linear& own_or(const Linear& own, const Linear& base) { return own.packed != nullptr ? own : base; }

}  // namespace finetuned
