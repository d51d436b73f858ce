// Draws tokens: temperature, top-k, top-p, then the token in whose share of the distribution a number falls.
//
// What is kept is found by bins of the distance to the highest logit, of which only the one on the border is ordered; the
// shares then lie side by side in the order of the ids. `engine/draws.py` does the same in PyTorch, and is its oracle.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "numeric.h"

namespace finetuned {

struct Draw {
  const float* logits;  // [vocabulary]; the highest is finite, what must not be drawn is -infinity
  double top_p;         // 1 keeps all
  double uniform;       // of [0, 1)
  float divisor;        // of logits, above 0
  int32_t top_k;        // 0 keeps all
};

// One thread draws with it, token after token.
class Drawer {
 public:
  // Throws std::bad_alloc; `token` takes no more memory.
  explicit Drawer(long vocabulary)
      : vocabulary_(vocabulary),
        padded_((vocabulary + kBlock - 1) / kBlock * kBlock),
        weights_(static_cast<size_t>(padded_)),
        bins_(static_cast<size_t>(padded_)),
        counts_(kBins),
        masses_(kBins) {
    candidates_.reserve(static_cast<size_t>(vocabulary));
  }

  // -1 if it is no distribution.
  int32_t token(const Draw& draw) {
    const bool limits_k = draw.top_k > 0 && draw.top_k < vocabulary_;
    weigh(draw);
    if (limits_k || draw.top_p < 1.0) count();
    if (limits_k) keep_highest(draw);
    if (draw.top_p < 1.0) keep_share(draw);
    return place(draw.uniform);
  }

 private:
  static constexpr long kBlock = 256;
  static constexpr int kBins = 1024;
  static constexpr float kBinsPerUnit = 16.0f;  // the last one begins e^64 below the highest

  struct Candidate {
    float logit;
    int32_t id;
    // Most likely first, of equal ones the first.
    bool operator<(const Candidate& other) const { return logit > other.logit || (logit == other.logit && id < other.id); }
  };

  // Each token's share of the distribution, up to a factor, and its bin.
  void weigh(const Draw& draw) {
    Float16 top = splat(-std::numeric_limits<float>::infinity());
    for (long i = 0; i < padded_; i += kLanes) top = maximum(top, logits_at(draw, i));
    const float highest = largest(top);
    const Float16 farthest = splat(static_cast<float>(kBins - 1));
    for (long i = 0; i < padded_; i += kLanes) {
      const Float16 distance = (highest - logits_at(draw, i)) / draw.divisor;
      store(&weights_[i], exponential(-distance));
      const Float16 bin = distance * kBinsPerUnit;
      const Int16 bins = __builtin_convertvector(bin < farthest ? bin : farthest, Int16);
      std::memcpy(&bins_[i], &bins, sizeof bins);
    }
  }

  Float16 logits_at(const Draw& draw, long i) const {
    if (i + kLanes <= vocabulary_) return load(draw.logits + i);
    float rest[kLanes];
    for (long lane = 0; lane < kLanes; ++lane)
      rest[lane] = i + lane < vocabulary_ ? draw.logits[i + lane] : -std::numeric_limits<float>::infinity();
    return load(rest);
  }

  void count() {
    std::fill(counts_.begin(), counts_.end(), 0);
    std::fill(masses_.begin(), masses_.end(), 0.0);
    for (long i = 0; i < vocabulary_; ++i) {
      ++counts_[bins_[i]];
      masses_[bins_[i]] += weights_[i];
    }
  }

  // All that tie with the k-th stay.
  void keep_highest(const Draw& draw) {
    long before = 0;
    int border = 0;
    while (before + counts_[border] < draw.top_k) before += counts_[border++];
    gather(draw, border);
    const auto kth = candidates_.begin() + (draw.top_k - before - 1);
    std::nth_element(candidates_.begin(), kth, candidates_.end());
    const float least = kth->logit;
    masses_[border] = 0.0;
    for (const Candidate& one : candidates_) {
      if (one.logit < least)
        weights_[one.id] = 0.0f;
      else
        masses_[border] += weights_[one.id];
    }
    leave_out_beyond(border);
  }

  // A token stays while those more likely have less than top_p of what is kept so far; the first always stays.
  void keep_share(const Draw& draw) {
    double mass = 0.0;
    for (double one : masses_) mass += one;
    const double limit = draw.top_p * mass;
    double before = 0.0;
    int border = 0;
    while (border < kBins - 1 && before + masses_[border] < limit) before += masses_[border++];
    gather(draw, border);
    std::sort(candidates_.begin(), candidates_.end());
    size_t kept = 0;
    while (kept < candidates_.size() && (before < limit || (border == 0 && kept == 0)))
      before += weights_[candidates_[kept++].id];
    for (size_t i = kept; i < candidates_.size(); ++i) weights_[candidates_[i].id] = 0.0f;
    leave_out_beyond(border);
  }

  void gather(const Draw& draw, int wanted) {
    candidates_.clear();
    for (long i = 0; i < vocabulary_; ++i)
      if (bins_[i] == wanted) candidates_.push_back({draw.logits[i], static_cast<int32_t>(i)});
  }

  void leave_out_beyond(int border) {
    for (long i = 0; i < padded_; ++i) weights_[i] = bins_[i] > border ? 0.0f : weights_[i];
    std::fill(masses_.begin() + border + 1, masses_.end(), 0.0);
  }

  float sum_of_block(long block) const {
    Float16 lanes{};
    for (long i = 0; i < kBlock; i += kLanes) lanes += load(&weights_[block * kBlock + i]);
    return sum(lanes);
  }

  int32_t place(double uniform) const {
    double total = 0.0;
    for (long block = 0; block < padded_ / kBlock; ++block) total += sum_of_block(block);
    if (!(total > 0)) return -1;
    // A product may be rounded up to the total, which no sum is above.
    const double wanted = std::min(uniform * total, std::nextafter(total, 0.0));
    double before = 0.0;
    long block = 0;
    for (float here; before + (here = sum_of_block(block)) <= wanted; ++block) before += here;
    long last = 0;
    for (long i = block * kBlock; i < (block + 1) * kBlock; ++i) {
      if (weights_[i] == 0.0f) continue;
      last = i;
      before += weights_[i];
      if (before > wanted) break;
    }
    return static_cast<int32_t>(last);  // the last of its block where sums in another order end a bit below
  }

  const long vocabulary_, padded_;
  std::vector<float> weights_;
  std::vector<int32_t> bins_;
  std::vector<long> counts_;
  std::vector<double> masses_;
  std::vector<Candidate> candidates_;
};

}  // namespace finetuned
