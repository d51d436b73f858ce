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

// Rows of one segment (or of no adapter: `pairs` null) inside one block of Rows, or query lines of one span.
struct RowBlock {
  const LoraPair* pairs;
  int32_t row, rows;
};

struct LineBlock {
  const Span* span;
  int32_t line, lines;
};

// What one thread computes with; nothing of it shares a cache line with another.
struct alignas(128) Desk {
  Buffer<float> columns;  // [T, columns of a unit]
  Errands near;           // the B of the adapters of the panel that is computed
  Errands far;            // the A of the adapters of the next phase
};

struct Workspace {
  Buffer<float> residual;      // [T, hidden]
  Buffer<float> tops;          // [S, panels of the vocabulary]: the highest logit of each, NaN if one is
  Buffer<uint32_t> normed;     // Rows of hidden
  Buffer<bf16> queries;        // [kv_heads, T, heads / kv_heads, head_dim]
  Buffer<uint32_t> attended;   // Rows of heads * head_dim
  Buffer<uint32_t> activated;  // Rows of intermediate
  Buffer<uint32_t> shrunk[3];  // Rows of the widest rank: x A^T of the sites that share their input
  Buffer<int64_t> slots;       // [T]: where a row's key and value go
  std::vector<Desk> desks;  // one a thread
  std::vector<RowBlock> rows;
  std::vector<LineBlock> lines;
  bool adapted = false;

  explicit Workspace(int threads) : desks(static_cast<size_t>(threads)) {}
};

}  // namespace finetuned
