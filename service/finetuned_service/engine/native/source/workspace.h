// What a step computes with, grown to the largest step seen and used again.
#pragma once

#include <cstdlib>
#include <new>
#include <vector>

#include "decoder.h"
#include "errands.h"

namespace finetuned {

// Memory that is not initialized and begins on a cache line.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  T* at_least(size_t count) {
    if (count > count_) {
      std::free(data_);
      count_ = count;
      data_ = static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
      if (data_ == nullptr) {
        count_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_;
  }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

// Rows of one segment (or of no adapter: `pairs` null) inside one block of Rows.
struct RowBlock {
  const LoraPair* pairs;
  const Change* change;
  int32_t row, rows;

  const LoraPair& pair(int layer, Site site) const { return pairs[layer * kSites + site]; }

  const LayerChange* changed(int layer) const { return change == nullptr ? nullptr : &change->layers[layer]; }

  // The bottleneck at a part of a layer, or null.
  const Bottleneck* bottleneck(int layer, Part part) const {
    return change == nullptr || change->layers[layer].parts[part].pair.rank == 0 ? nullptr : &change->layers[layer].parts[part];
  }
};

// Query lines of one span and one head of keys.
struct LineBlock {
  const Span* span;
  int32_t line, lines, kv_head;
};

// What one thread computes with; nothing of it shares a cache line with another.
struct alignas(128) Desk {
  Buffer<float> columns;  // [kBlockRows, columns of a unit], or [S, 32]
  Errands near;           // the B of the adapters of the panel that is computed
  Errands far;            // the A of the adapters of the next phase
};

// Neighbouring rows of logits with one head.
struct HeadRun {
  const Linear* head;
  long first, end;
};

struct Workspace {
  Buffer<float> residual;      // [T, hidden]
  Buffer<float> tops;          // [S, panels of the vocabulary]: the highest logit of each, NaN if one is
  Buffer<uint32_t> normed;     // Rows of hidden
  Buffer<bf16> queries;        // [kv_heads, T, heads / kv_heads, head_dim]
  Buffer<uint32_t> attended;   // Rows of heads * head_dim
  Buffer<uint32_t> activated;  // Rows of intermediate
  Buffer<uint32_t> shrunk[3];  // Rows of the widest rank: x A^T of the sites that share their input
  Buffer<uint32_t> scaled[3];  // Rows of the widest input: that input as adapters scale it, for each of these sites
  Buffer<uint32_t> returned;   // Rows of hidden: what a part of a layer returned, in rows with a bottleneck after it
  Buffer<uint32_t> entered;    // Rows of hidden: what a layer was given, in rows with a bottleneck beside it
  Buffer<int64_t> slots;       // [T]: where a row's key and value go
  std::vector<Desk> desks;  // one a thread
  std::vector<RowBlock> rows;
  std::vector<size_t> first_of_block;  // of each block, the place in `rows` where they begin; the end
  std::vector<char> wanted;            // [T / kBlockRows]: whether a row of the block has logits, so that the last layer must end it
  std::vector<LineBlock> lines;
  std::vector<HeadRun> heads;
  std::vector<const Change*> changes;  // [T], or empty
  bool adapted = false;  // a row has an adapter
  bool changed = false;  // one that does more than add low-rank updates

  explicit Workspace(int threads) : desks(static_cast<size_t>(threads)) {}
};

}  // namespace finetuned
