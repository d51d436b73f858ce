// The products of a step at its linear modules, of each row with what its adapter does there (`adapters/site_ops.py`
// has the order). Each element is computed from its own row alone, whatever adapters the rows beside it have.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "products.h"
#include "workspace.h"

namespace finetuned {

// A site of a layer; `slot` is its number among the sites that read the same input.
struct At {
  int layer;
  Site site;
  int slot;
};

// Apart, so that products without errands are compiled as if there were none.
[[gnu::noinline]] inline void multiply_on_errands(int rows, float* c, long stride, RowsAt a, const bf16* b, long pairs,
                                                  Errands& errands) {
  multiply<2, false>(rows, c, stride, a, b, 2 * kPanel, pairs, errands);
}

// The same with weights that are read for the first time.
[[gnu::noinline]] inline void multiply_first_on_errands(int rows, float* c, long stride, RowsAt a, const bf16* b, long pairs,
                                                        Desk& desk) {
  multiply<2, false>(rows, c, stride, a, b, 2 * kPanel, pairs, [&](const bf16* at) {
    FetchFirst{}(at);
    (kFarFromTheFirst && desk.near.done() ? desk.far : desk.near)(at);
  });
}

// C [rows, 32] of one panel of W for `rows` from `row` on, which lie in one block; `stride` of C. `turn` says how many
// blocks went before this one with these weights.
inline void multiply_block(const Linear& linear, long panel, const Rows& x, long row, int rows, float* c, long stride, Desk& desk,
                           long turn) {
  const bf16* weights = linear.packed + panel * kPanel * linear.inputs;
  // The first block of rows waits for memory; the second has the weights in the cache, and fetches the next panel.
  if (turn == 0 && desk.near.done() && (desk.far.done() || !kFarFromTheFirst))
    multiply<2, false>(rows, c, stride, x.at(row), weights, 2 * kPanel, x.pairs(), FetchFirst{});
  else if (turn == 0)
    multiply_first_on_errands(rows, c, stride, x.at(row), weights, x.pairs(), desk);
  else if (turn == 1)
    multiply<2, false>(rows, c, stride, x.at(row), weights, 2 * kPanel, x.pairs(), FetchBehind{x.pairs() * 2 * kPanel});
  else if (desk.far.done())
    multiply<2, false>(rows, c, stride, x.at(row), weights, 2 * kPanel, x.pairs());
  else
    multiply_on_errands(rows, c, stride, x.at(row), weights, x.pairs(), desk.far);
  if (linear.bias == nullptr) return;
  const long column = panel * kPanel, count = std::min<long>(kPanel, linear.outputs - column);
  for (int r = 0; r < rows; ++r)
    for (long i = 0; i < count; ++i) c[r * stride + i] += linear.bias[column + i];
}

// C [end - first, 32] of one panel of W, for rows from `first` on; `stride` of C.
inline void multiply_panel(const Linear& linear, long panel, const Rows& x, long first, long end, float* c, long stride, Desk& desk) {
  for (long row = first; row < end; row = (row / kBlockRows + 1) * kBlockRows) {
    const int count = static_cast<int>(std::min(end, (row / kBlockRows + 1) * kBlockRows) - row);
    multiply_block(linear, panel, x, row, count, c + (row - first) * stride, stride, desk, row / kBlockRows - first / kBlockRows);
  }
}

// x A^T of a block's rows, rounded to bfloat16 after `finish(values, rank)`, which takes 16 ranks from `rank` on; then 0, as far as
// `multiply_update` reads.
template <typename Finish>
void shrink(const RowBlock& block, const LoraPair& pair, const Rows& x, const Rows& out, const Finish& finish) {
  alignas(64) float sums[kBlockRows][kLanes];
  for (long first = 0; first < pair.rank; first += kLanes) {
    const long ranks = std::min<long>(kLanes, pair.rank - first);
    const bf16* a = pair.a + first * 2 * x.pairs();
    if (ranks == kLanes)
      multiply_chained(block.rows, &sums[0][0], kLanes, x.at(block.row), a, 2 * kLanes, x.pairs());
    else
      multiply_chained<true>(block.rows, &sums[0][0], kLanes, x.at(block.row), a, 2 * ranks, x.pairs(), static_cast<int>(ranks));
    for (int r = 0; r < block.rows; ++r) out.put(block.row + r, first, finish(load(sums[r]), first));
  }
  for (long first = (pair.rank + kLanes - 1) / kLanes * kLanes; first % kUpdateRanks != 0; first += kLanes)
    for (int r = 0; r < block.rows; ++r) out.put(block.row + r, first, Float16{});
}

class Sites {
 public:
  Sites() = default;

  // Args: widest_rank of an adapter of the step, widest_input of a site.
  Sites(Workspace& space, long rows, long widest_rank, long widest_input) : space_(&space), rows_(rows) {
    for (int slot = 0; slot < 3; ++slot) {
      shrunk_[slot] = Rows(space.shrunk[slot].at_least(Rows::words_for(rows, widest_rank)), widest_rank);
      if (space.changed) scaled_[slot] = Rows(space.scaled[slot].at_least(Rows::words_for(rows, widest_input)), widest_input);
    }
  }

  // Where x A^T of a slot is kept until it is multiplied with B.
  const Rows& shrunk(int slot) const { return shrunk_[slot]; }

  // What can be done with the input of a block's rows before the products: scale it, and x A^T.
  void prepare(const RowBlock& block, const At& at, const Rows& x) const {
    if (block.pairs == nullptr) return;
    if (const float* gain = input_gain(block, at))
      for (int r = block.row; r < block.row + block.rows; ++r) x.scale(r, gain, scaled(at, x));
    shrink(block, block.pair(at.layer, at.site), input(block, at, x), shrunk_[at.slot], [](Float16 values, long) { return values; });
  }

  // Before the products of a panel at `sites`, which read the same input: what they need beside the base's weights is
  // on its way.
  void begin(long panel, int layer, std::initializer_list<Site> sites, Desk& desk) const {
    desk.near.clear();
    const LoraPair* before = nullptr;
    for (const RowBlock& block : space_->rows) {
      if (block.pairs == nullptr || block.pairs == before) continue;
      before = block.pairs;
      for (Site site : sites) {
        const LoraPair& pair = block.pair(layer, site);
        desk.near.add(pair.b + panel * kPanel * pair.rank, kPanel * pair.rank);
      }
    }
    if (rows_ <= kRowsAtOnce)
      while (!desk.near.done()) desk.near.line();
  }

  // C [rows of the block, 32] of one panel; `stride` of C, `turn` as in `multiply_block`.
  void product(const Linear& base, long panel, const Rows& x, const At& at, long block, float* c, long stride, Desk& desk,
               long turn) const {
    const long first = block * kBlockRows, count = std::min<long>(kBlockRows, rows_ - first);
    const auto begin = space_->rows.begin() + space_->first_of_block[static_cast<size_t>(block)];
    const auto end = space_->rows.begin() + space_->first_of_block[static_cast<size_t>(block) + 1];
    if (space_->changed)
      multiply_runs(base, panel, x, at, begin, end, c, stride, desk, turn);
    else
      multiply_block(base, panel, x, first, static_cast<int>(count), c, stride, desk, turn);
    if (!space_->adapted) return;
    for (auto rows = begin; rows != end; ++rows) {
      if (rows->pairs == nullptr) continue;
      const LoraPair& pair = rows->pair(at.layer, at.site);
      float* to = c + (rows->row - first) * stride;
      if (pair.rank > 0)
        multiply_update<2>(rows->rows, to, stride, shrunk_[at.slot].at(rows->row), pair.b + panel * kPanel * pair.rank, 2 * kPanel,
                          pair.rank / 2);
      if (rows->change != nullptr) scale_outputs(*rows, panel, at, to, stride);
    }
  }

 private:
  static const SiteChange* change_at(const RowBlock& block, const At& at) {
    return block.change == nullptr ? nullptr : &block.change->layers[at.layer].sites[at.site];
  }

  static const float* input_gain(const RowBlock& block, const At& at) {
    const SiteChange* change = change_at(block, at);
    return change == nullptr ? nullptr : change->input_gain;
  }

  Rows scaled(const At& at, const Rows& x) const { return Rows(scaled_[at.slot].words(), 2 * x.pairs()); }

  Rows input(const RowBlock& block, const At& at, const Rows& x) const {
    return input_gain(block, at) == nullptr ? x : scaled(at, x);
  }

  const Linear& linear(const RowBlock& block, const At& at, const Linear& base) const {
    const SiteChange* change = change_at(block, at);
    return change == nullptr ? base : own_or(change->own, base);
  }

  // Neighbours with the same weights and the same kind of input go together.
  template <typename Block>
  void multiply_runs(const Linear& base, long panel, const Rows& x, const At& at, Block block, const Block end, float* c, long stride,
                     Desk& desk, long turn) const {
    while (block != end) {
      const Linear& weights = linear(*block, at, base);
      const bool scales = input_gain(*block, at) != nullptr;
      const Rows from = input(*block, at, x);
      const long first = block->row;
      int rows = 0;
      for (; block != end && &linear(*block, at, base) == &weights && (input_gain(*block, at) != nullptr) == scales; ++block)
        rows += block->rows;
      multiply_block(weights, panel, from, first, rows, c, stride, desk, turn);
      c += rows * stride;
    }
  }

  static void scale_outputs(const RowBlock& block, long panel, const At& at, float* c, long stride) {
    const SiteChange* change = change_at(block, at);
    if (change->output_gain == nullptr) return;
    const float* gain = change->output_gain + panel * kPanel;
    for (int r = 0; r < block.rows; ++r, c += stride)
      for (long i = 0; i < kPanel; i += kLanes) {
        Float16 values = load(c + i) * load(gain + i);
        if (change->output_shift != nullptr) values += load(change->output_shift + panel * kPanel + i);
        store(c + i, values);
      }
  }

  Workspace* space_ = nullptr;
  long rows_ = 0;
  Rows shrunk_[3], scaled_[3];
};

}  // namespace finetuned
