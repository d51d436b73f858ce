// One step of a Llama-like decoder for packed rows of many sequences, each with its adapter or none.
//
// The residual stream is float32, what enters a product is bfloat16, sums are float32. Every element is computed
// from its own row in a fixed order, whatever else is in the step, however many threads there are.
// Of rows without logits the last layer computes keys and values alone: nobody reads the rest.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "attention.h"
#include "bottleneck.h"
#include "highest.h"
#include "norms.h"
#include "packing.h"
#include "plan.h"
#include "products.h"
#include "sites.h"
#include "team.h"

namespace finetuned {

class Forward {
 public:
  Forward(Team& team, Workspace& space, const Model& model, const Step& step)
      : team_(team), space_(space), model_(model), step_(step), rows_(step.rows), group_(model.heads / model.kv_heads),
        panels_((model.head.outputs + kPanel - 1) / kPanel) {
    const auto T = static_cast<size_t>(rows_);
    const long widest = plan_rows(space, model, step);
    slots_ = space.slots.at_least(T);
    plan_lines(space, model, step, slots_);
    const long attended = static_cast<long>(model.heads) * model.head_dim;
    auto rows_of = [&](Buffer<uint32_t>& buffer, long columns) {
      return Rows(buffer.at_least(Rows::words_for(rows_, columns)), columns);
    };
    residual_ = space.residual.at_least(T * static_cast<size_t>(model.hidden));
    queries_ = space.queries.at_least(T * static_cast<size_t>(model.heads) * static_cast<size_t>(model.head_dim));
    tops_ = space.tops.at_least(static_cast<size_t>(step.logit_count * panels_));
    normed_ = rows_of(space.normed, model.hidden);
    attended_ = rows_of(space.attended, attended);
    activated_ = rows_of(space.activated, model.intermediate);
    if (space.changed) {
      returned_ = rows_of(space.returned, model.hidden);
      entered_ = rows_of(space.entered, model.hidden);
    }
    sites_ = Sites(space, rows_, widest, std::max<long>({model.hidden, model.intermediate, attended}));
    // A unit of q, k, v holds whole heads and whole panels, of all rows or of a part of many.
    head_unit_ = model.head_dim;
    while (head_unit_ % kPanel) head_unit_ += model.head_dim;
    blocks_ = static_cast<long>(space.first_of_block.size()) - 1;
    head_parts_ = std::clamp(kUnitsOfThread * team.size() / head_units(), 1L, std::max(1L, blocks_ / kBlocksOfPart));
    for (auto& desk : space.desks) {
      desk.columns.at_least(std::max(static_cast<size_t>(kBlockRows * std::max<long>(head_unit_, 2 * kPanel)),
                                     static_cast<size_t>(step.logit_count * kPanel)));
      desk.near.at_most(2 * space.rows.size());
      desk.far.at_most(3 * space.rows.size());
    }
  }

  // On every thread alike.
  void compute(int thread) {
    const Multiplying multiplying;
    Desk& desk = space_.desks[static_cast<size_t>(thread)];
    team_.each(thread, rows_, [&](long row) { embed(row); });
    for (int l = 0; l < model_.layer_count; ++l) {
      team_.each(thread, static_cast<long>(space_.rows.size()), [&](long i) { enter(space_.rows[static_cast<size_t>(i)], l); });
      foresee(thread, l, {kOutput}, attended_);
      team_.each(thread, head_units() * head_parts_, [&](long unit) { project_heads(unit, l, desk); });
      team_.each(thread, static_cast<long>(space_.lines.size()), [&](long unit) { attend_lines(unit, l); });
      if (space_.adapted) each_block(thread, l, [&](const RowBlock& b) { sites_.prepare(b, {l, kOutput, 0}, attended_); });
      foresee(thread, l, {kGate, kUp}, normed_);
      each_panel(thread, model_.hidden, [&](long p) { add(p, l, kOutput, kAttention, attended_, desk); });
      bottlenecks(thread, l, kAttention, desk);
      each_block(thread, l, [&](const RowBlock& b) { norm(b, l, kFeedForward, {kGate, kUp}); });
      foresee(thread, l, {kDown}, activated_);
      each_panel(thread, model_.intermediate, [&](long p) { activate_gate(p, l, desk); });
      if (space_.adapted) each_block(thread, l, [&](const RowBlock& b) { sites_.prepare(b, {l, kDown, 0}, activated_); });
      if (l + 1 < model_.layer_count) foresee(thread, l + 1, {kQuery, kKey, kValue}, normed_);
      each_panel(thread, model_.hidden, [&](long p) { add(p, l, kDown, kFeedForward, activated_, desk); });
      bottlenecks(thread, l, kFeedForward, desk);
      bottlenecks(thread, l, kWhole, desk);
    }
    desk.far.clear();
    team_.each(thread, step_.logit_count, [&](long i) { final_norm(i); });
    each_panel(thread, model_.head.outputs, [&](long panel) { logits(panel, desk); });
    team_.each(thread, step_.logit_count, [&](long i) {
      step_.highest[i] = first_highest(step_.logits + i * static_cast<long>(model_.head.outputs), tops_ + i * panels_, panels_);
    });
  }

 private:
  // Whether a layer must end what it has begun with a block's rows.
  bool ends(int l, long block) const { return l + 1 < model_.layer_count || space_.wanted[static_cast<size_t>(block)]; }

  // The blocks that a layer must end.
  template <typename Body>
  void each_block(int thread, int l, const Body& body) {
    team_.each(thread, static_cast<long>(space_.rows.size()), [&](long i) {
      const RowBlock& block = space_.rows[static_cast<size_t>(i)];
      if (ends(l, block.row / kBlockRows)) body(block);
    });
  }

  template <typename Body>
  void each_panel(int thread, long outputs, const Body& body) {
    team_.each(thread, (outputs + kPanel - 1) / kPanel, body);
  }

  // What this thread will shrink with after the products that come now: few rows leave no time for it, their products
  // wait for the base's weights themselves.
  void foresee(int thread, int l, std::initializer_list<Site> sites, const Rows& x) const {
    Errands& far = space_.desks[static_cast<size_t>(thread)].far;
    far.clear();
    if (!space_.adapted || rows_ <= kRowsWithoutTime) return;
    const auto blocks = static_cast<long>(space_.rows.size());
    const LoraPair* before = nullptr;
    for (long i = blocks * thread / team_.size(); i < blocks * (thread + 1) / team_.size(); ++i) {
      const RowBlock& block = space_.rows[static_cast<size_t>(i)];
      if (block.pairs == nullptr || block.pairs == before) continue;
      before = block.pairs;
      for (Site site : sites) far.add(block.pair(l, site).a, block.pair(l, site).rank * 2 * x.pairs());
    }
  }

  // What the adapter of a row changes, or null.
  const Change* change_of(long row) const { return space_.changed ? space_.changes[static_cast<size_t>(row)] : nullptr; }

  // --- the phases ---

  void embed(long row) const {
    const long token = step_.tokens[row], hidden = model_.hidden;
    float* to = residual_ + row * hidden;
    if (const Change* change = change_of(row); change != nullptr && change->embedding != nullptr) {
      for (long i = 0; i < hidden; ++i) to[i] = widen(change->embedding[panel_place(token, i, hidden)]);
      return;
    }
    const bf16* from = model_.embedding + token * hidden;
    for (long i = 0; i < hidden; ++i) to[i] = widen(from[i]);
  }

  void enter(const RowBlock& block, int l) const {
    for (int r = block.row; r < block.row + block.rows; ++r)
      if (slots_[r] % kPanel == 0) clear_values(model_, model_.layers[l], slots_[r]);
    if (const Bottleneck* beside = block.bottleneck(l, kWhole); beside != nullptr && beside->parallel) keep_residual(block, entered_);
    norm(block, l, kAttention, {kQuery, kKey, kValue});
  }

  // What a part of a layer reads, and the low-rank updates of the sites that read it first.
  void norm(const RowBlock& block, int l, Part part, std::initializer_list<Site> sites) const {
    const Layer& layer = model_.layers[l];
    const float* weight = part == kAttention ? layer.input_norm : layer.post_norm;
    if (const LayerChange* change = block.changed(l))
      weight = own_or(part == kAttention ? change->input_norm : change->post_norm, weight);
    rms_norm_block(residual_ + block.row * static_cast<long>(model_.hidden), weight, model_.hidden, model_.epsilon, normed_, block.row,
                   block.rows);
    int slot = 0;
    for (Site site : sites) sites_.prepare(block, {l, site, slot++}, normed_);
  }

  void keep_residual(const RowBlock& block, const Rows& out) const {
    const long hidden = model_.hidden;
    for (long r = block.row; r < block.row + block.rows; ++r)
      for (long i = 0; i < hidden; i += kLanes) out.put(r, i, load(residual_ + r * hidden + i));
  }

  long units_of(Site site) const {
    const long heads = site == kQuery ? model_.heads : model_.kv_heads;
    return (heads * model_.head_dim + head_unit_ - 1) / head_unit_;
  }

  long head_units() const { return units_of(kQuery) + 2 * units_of(kKey); }

  // The blocks of rows that a panel is multiplied with, one after another while it is in the cache; `body(block, rows, turn)`.
  template <typename Body>
  void each_row_block(long first, long end, int l, bool all, const Body& body) const {
    long turn = 0;
    for (long block = first; block < end; ++block)
      if (all || ends(l, block)) body(block, std::min<long>(kBlockRows, rows_ - block * kBlockRows), turn++);
  }

  void project_heads(long unit, int l, Desk& desk) const {
    float* columns = desk.columns.at_least(1);
    const long part = unit % head_parts_;
    unit /= head_parts_;
    Site site = kQuery;
    for (; unit >= units_of(site); site = static_cast<Site>(site + 1)) unit -= units_of(site);
    const Layer& layer = model_.layers[l];
    const Linear& linear = layer.sites[site];
    const long first = unit * head_unit_, dim = model_.head_dim;
    const long wanted = std::min<long>(head_unit_, linear.outputs - first);
    sites_.begin(first / kPanel, l, {site}, desk);
    each_row_block(blocks_ * part / head_parts_, blocks_ * (part + 1) / head_parts_, l, site != kQuery, [&](long block, long rows, long turn) {
      for (long done = 0; done < wanted; done += kPanel)
        sites_.product(linear, (first + done) / kPanel, normed_, {l, site, site - kQuery}, block, columns + done, head_unit_, desk, turn);
      for (long r = 0; r < rows; ++r) {
        const long row = block * kBlockRows + r;
        const float* weight = head_norm(layer, l, site, row);
        for (long done = 0; done < wanted; done += dim)
          place_head(layer, site, (first + done) / dim, row, weight, columns + r * head_unit_ + done);
      }
    });
  }

  // Of queries or keys; null for values, and where the base has none.
  const float* head_norm(const Layer& layer, int l, Site site, long row) const {
    if (site == kValue) return nullptr;
    const float* weight = site == kQuery ? layer.query_norm : layer.key_norm;
    const Change* change = change_of(row);
    if (change == nullptr) return weight;
    return own_or(site == kQuery ? change->layers[l].query_norm : change->layers[l].key_norm, weight);
  }

  void place_head(const Layer& layer, Site site, long head, long row, const float* weight, float* values) const {
    const long dim = model_.head_dim, half = dim / 2, position = step_.positions[row];
    if (site != kValue) {
      if (weight != nullptr) {
        const float scale = inverse_rms(values, dim, model_.epsilon);
        for (long d = 0; d < dim; ++d) values[d] *= scale * weight[d];
      }
      rotate(values, model_.cosines + position * half, model_.sines + position * half, half);
    }
    switch (site) {
      case kQuery: {
        bf16* to = queries_ + ((head / group_ * rows_ + row) * group_ + head % group_) * dim;
        for (long d = 0; d < dim; d += kLanes) store_narrow(to + d, load(values + d));
        break;
      }
      case kKey:
        write_key(model_, layer, head, slots_[row], values);
        break;
      default:
        write_value(model_, layer, head, slots_[row], values);
    }
  }

  void attend_lines(long unit, int l) const {
    const LineBlock& block = space_.lines[static_cast<size_t>(unit)];
    const long first = block.span->row + block.line / group_, last = block.span->row + (block.line + block.lines - 1) / group_;
    if (!ends(l, first / kBlockRows) && !ends(l, last / kBlockRows)) return;
    const long kv_head = block.kv_head, dim = model_.head_dim;
    const bf16* lines = queries_ + ((kv_head * rows_ + block.span->row) * group_ + block.line) * dim;
    attend(model_, model_.layers[l], kv_head, *block.span, block.line, block.lines, lines, [&](long line, long d, Float16 values) {
      const long row = block.span->row + line / group_, head = kv_head * group_ + line % group_;
      attended_.put(row, head * dim + d, values);
    });
  }

  // What a part of the layer returns, added to the residual stream.
  void add(long panel, int l, Site site, Part part, const Rows& x, Desk& desk) const {
    float* columns = desk.columns.at_least(1);
    const long first = panel * kPanel, count = std::min<long>(kPanel, model_.hidden - first);
    sites_.begin(panel, l, {site}, desk);
    each_row_block(0, blocks_, l, false, [&](long block, long rows, long turn) {
      float* to = residual_ + block * kBlockRows * model_.hidden + first;
      sites_.product(model_.layers[l].sites[site], panel, x, {l, site, 0}, block, columns, kPanel, desk, turn);
      if (space_.changed) keep_returned(l, part, block, first, count, columns);
      for (long r = 0; r < rows; ++r, to += model_.hidden)
        for (long i = 0; i < count; i += kLanes) store(to + i, load(to + i) + load(columns + r * kPanel + i));
    });
  }

  void keep_returned(int l, Part part, long block, long first, long count, const float* columns) const {
    for (size_t i = space_.first_of_block[static_cast<size_t>(block)]; i < space_.first_of_block[static_cast<size_t>(block) + 1]; ++i) {
      const RowBlock& rows = space_.rows[i];
      if (const Bottleneck* after = rows.bottleneck(l, part); after != nullptr && !after->parallel)
        for (long r = rows.row; r < rows.row + rows.rows; ++r)
          for (long n = 0; n < count; n += kLanes) returned_.put(r, first + n, load(columns + r % kBlockRows * kPanel + n));
    }
  }

  // Two phases more, if an adapter of the step has a bottleneck there.
  void bottlenecks(int thread, int l, Part part, Desk& desk) {
    if (!space_.changed) return;
    auto has_one = [&](const RowBlock& block) { return block.bottleneck(l, part) != nullptr; };
    if (std::none_of(space_.rows.begin(), space_.rows.end(), has_one)) return;
    each_block(thread, l, [&](const RowBlock& block) {
      const Bottleneck* bottleneck = block.bottleneck(l, part);
      if (bottleneck == nullptr) return;
      if (part == kWhole && !bottleneck->parallel) keep_residual(block, returned_);
      const Rows& beside = part == kWhole ? entered_ : normed_;
      squeeze(block, *bottleneck, bottleneck->parallel ? beside : returned_, sites_.shrunk(0));
    });
    each_panel(thread, model_.hidden, [&](long panel) {
      for (const RowBlock& block : space_.rows)
        if (const Bottleneck* bottleneck = block.bottleneck(l, part); bottleneck != nullptr && ends(l, block.row / kBlockRows))
          expand(block, *bottleneck, sites_.shrunk(0), panel, model_.hidden, desk.columns.at_least(1), residual_);
    });
  }

  // silu(gate) * up
  void activate_gate(long panel, int l, Desk& desk) const {
    float* columns = desk.columns.at_least(1);
    const Layer& layer = model_.layers[l];
    const long first = panel * kPanel, count = std::min<long>(kPanel, model_.intermediate - first);
    sites_.begin(panel, l, {kGate, kUp}, desk);
    each_row_block(0, blocks_, l, false, [&](long block, long rows, long turn) {
      sites_.product(layer.sites[kGate], panel, normed_, {l, kGate, 0}, block, columns, 2 * kPanel, desk, turn);
      sites_.product(layer.sites[kUp], panel, normed_, {l, kUp, 1}, block, columns + kPanel, 2 * kPanel, desk, turn);
      activated_.put_block(block * kBlockRows, static_cast<int>(rows), first, count, [&](long r, long i) {
        const Float16 gate = load(columns + r * 2 * kPanel + i), up = load(columns + r * 2 * kPanel + kPanel + i);
        return gate / (exponential(-gate) + 1.0f) * up;
      });
    });
  }

  void final_norm(long i) const {
    const long row = step_.logit_rows[i];
    const Change* change = change_of(row);
    const float* weight = own_or(change == nullptr ? nullptr : change->final_norm, model_.final_norm);
    rms_norm(residual_ + row * model_.hidden, weight, model_.hidden, model_.epsilon, normed_, i);
  }

  void logits(long panel, Desk& desk) const {
    float* columns = desk.columns.at_least(1);
    desk.near.clear();
    for (const HeadRun& run : space_.heads)
      multiply_panel(*run.head, panel, normed_, run.first, run.end, columns + run.first * kPanel, kPanel, desk);
    const long first = panel * kPanel, count = std::min<long>(kPanel, model_.head.outputs - first);
    for (long i = 0; i < step_.logit_count; ++i) {
      float* row = columns + i * kPanel;
      std::memcpy(step_.logits + i * static_cast<long>(model_.head.outputs) + first, row, sizeof(float) * static_cast<size_t>(count));
      for (long n = count; n < kPanel; ++n) row[n] = -__builtin_inff();
      tops_[i * panels_ + panel] = highest_or_nan(load(row), load(row + kLanes));
    }
  }

  Team& team_;
  Workspace& space_;
  const Model& model_;
  const Step& step_;
  static constexpr long kUnitsOfThread = 8;  // at least, so that the last one is not waited for long
  static constexpr long kBlocksOfPart = 8;   // at least, as each part reads the weights anew

  const long rows_, group_, panels_;
  float* tops_;
  long blocks_, head_unit_, head_parts_;
  float* residual_;
  bf16* queries_;
  Rows normed_, attended_, activated_, returned_, entered_;
  Sites sites_;
  int64_t* slots_ = nullptr;
};

}  // namespace finetuned
