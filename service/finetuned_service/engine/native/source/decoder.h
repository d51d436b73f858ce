// What crosses the border between Python (library.py mirrors each struct) and the decoder.
//
// All pointers are owned by Python and outlive the call. T is the rows of a step, one for each token.
#pragma once

#include <cstdint>

#include "change.h"

namespace finetuned {

// RMS norms; `query_norm` and `key_norm` (of a head) may be null.
struct Layer {
  const float* input_norm;
  const float* post_norm;
  const float* query_norm;
  const float* key_norm;
  Linear sites[kSites];
  bf16* keys;    // of the first 32 tokens: [kv_heads, head_dim / 2, 32, 2]; the next 32 come `Model.kv_stride` later
  bf16* values;  // alike: [kv_heads, 16, head_dim, 2]
};

struct Model {
  const Layer* layers;
  const bf16* embedding;    // [vocabulary, hidden]
  const float* final_norm;  // [hidden]
  const float* cosines;     // [context, head_dim / 2]
  const float* sines;       // [context, head_dim / 2]
  Linear head;
  int64_t kv_stride;  // elements from one block of 32 tokens to the next: keys and values of all layers
  int32_t layer_count;
  int32_t hidden;
  int32_t intermediate;
  int32_t heads;
  int32_t kv_heads;
  int32_t head_dim;
  float epsilon;
  float scaling;
};

// Consecutive rows with one adapter.
struct Segment {
  const LoraPair* pairs;  // [layers * 7]
  const Change* change;   // null: it adds low-rank updates only
  int32_t row;
  int32_t rows;
};

// Consecutive rows that are the last of a sequence's `live` tokens; its KV begins at `kv_start`, a multiple of 32.
struct Span {
  int64_t kv_start;
  int32_t row;
  int32_t rows;
  int32_t live;
  int32_t unused;
};

struct Step {
  const int32_t* tokens;      // [T]
  const int32_t* positions;   // [T]
  const Segment* segments;    // rows without an adapter are in none
  const Span* spans;          // every row is in one
  const int32_t* logit_rows;  // [S]
  float* logits;              // [S, vocabulary]
  int32_t* highest;           // [S]: the first of a row's highest logits; -1 if one is not a number or that is infinite
  int32_t rows;
  int32_t segment_count;
  int32_t span_count;
  int32_t logit_count;
};

}  // namespace finetuned
