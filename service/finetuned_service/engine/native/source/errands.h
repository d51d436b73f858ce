// What a thread will read soon, fetched into its cache line by line while it computes.
#pragma once

#include <vector>

#include "numeric.h"

namespace finetuned {

constexpr long kRowsAtOnce = 12;       // up to so many, a panel's adapters are asked for before its products
constexpr long kRowsWithoutTime = 24;  // up to so many, products leave no time to fetch what comes after them

class Errands {
 public:
  // Room for so many entries, so that adding one needs no memory.
  void at_most(size_t count) { ranges_.reserve(count); }

  void clear() {
    ranges_.clear();
    next_ = 0;
    at_ = end_ = nullptr;
  }

  void add(const bf16* from, long count) {
    if (count > 0) ranges_.push_back({from, from + count});
  }

  bool done() const { return at_ == end_ && next_ == ranges_.size(); }

  void line() {
    if (at_ == end_ && !turn()) return;
    __builtin_prefetch(at_, 0, 2);
    at_ = end_ - at_ > kLine ? at_ + kLine : end_;
  }

  // As `multiply` asks for it: two lines for each pair.
  void operator()(const bf16*) {
    line();
    line();
  }

 private:
  static constexpr long kLine = 32;

  struct Range {
    const bf16 *from, *to;
  };

  bool turn() {
    if (next_ == ranges_.size()) return false;
    at_ = ranges_[next_].from;
    end_ = ranges_[next_++].to;
    return true;
  }

  std::vector<Range> ranges_;
  size_t next_ = 0;
  const bf16 *at_ = nullptr, *end_ = nullptr;
};

// The next panel of the weights that are being multiplied with.
struct FetchBehind {
  long behind;
  void operator()(const bf16* b) const {
    __builtin_prefetch(b + behind, 0, 2);
    __builtin_prefetch(b + behind + 2 * kLanes, 0, 2);
  }
};

}  // namespace finetuned
