// How the rows of a step are cut up before its threads begin.
#pragma once

#include <algorithm>

#include "products.h"
#include "workspace.h"

namespace finetuned {

// The widest rank of low-rank updates and bottlenecks of an adapter.
inline long widest_rank(const Model& model, const Segment& segment) {
  long widest = 0;
  for (int i = 0; i < model.layer_count * kSites; ++i) widest = std::max<long>(widest, segment.pairs[i].rank);
  if (segment.change == nullptr) return widest;
  for (int l = 0; l < model.layer_count; ++l)
    for (const Bottleneck& part : segment.change->layers[l].parts) widest = std::max<long>(widest, part.pair.rank);
  return widest;
}

// Blocks of rows and runs of heads. Returns the widest rank, rounded up to what updates read, at least once.
inline long plan_rows(Workspace& space, const Model& model, const Step& step) {
  space.rows.clear();
  space.first_of_block.clear();
  space.heads.clear();
  space.changes.clear();
  space.adapted = step.segment_count > 0;
  space.changed = false;
  long widest = 2, row = 0;
  const long piece = rows_of_a_piece(step.rows);
  auto cut = [&](const LoraPair* pairs, const Change* change, long end) {
    while (row < end) {
      const long stop = std::min(end, (row / piece + 1) * piece);
      space.rows.push_back({pairs, change, static_cast<int32_t>(row), static_cast<int32_t>(stop - row)});
      row = stop;
    }
  };
  for (int s = 0; s < step.segment_count; ++s) {
    const Segment& segment = step.segments[s];
    cut(nullptr, nullptr, segment.row);
    cut(segment.pairs, segment.change, segment.row + segment.rows);
    space.changed |= segment.change != nullptr;
    widest = std::max(widest, widest_rank(model, segment));
  }
  cut(nullptr, nullptr, step.rows);
  for (size_t i = 0; i < space.rows.size(); ++i)
    if (space.rows[i].row % kBlockRows == 0) space.first_of_block.push_back(i);
  space.first_of_block.push_back(space.rows.size());
  space.wanted.assign(space.first_of_block.size() - 1, 0);
  for (int i = 0; i < step.logit_count; ++i) space.wanted[static_cast<size_t>(step.logit_rows[i] / kBlockRows)] = 1;
  if (space.changed) {
    space.changes.resize(static_cast<size_t>(step.rows));
    for (const RowBlock& block : space.rows) std::fill_n(space.changes.begin() + block.row, block.rows, block.change);
  }
  for (long i = 0; i < step.logit_count; ++i) {
    const Change* change = space.changed ? space.changes[static_cast<size_t>(step.logit_rows[i])] : nullptr;
    const Linear* head = change == nullptr ? &model.head : &own_or(change->head, model.head);
    if (space.heads.empty() || space.heads.back().head != head) space.heads.push_back({head, i, i});
    space.heads.back().end = i + 1;
  }
  return (widest + kUpdateRanks - 1) / kUpdateRanks * kUpdateRanks;
}

// Blocks of query lines, `group` of a row for each head of keys, those with the same keys one after another; `slots` [T]
// takes where a row's key and value go.
inline void plan_lines(Workspace& space, const Model& model, const Step& step, int64_t* slots) {
  const long group = model.heads / model.kv_heads;
  space.lines.clear();
  for (int s = 0; s < step.span_count; ++s) {
    const Span& span = step.spans[s];
    const long lines = span.rows * group;
    for (int32_t head = 0; head < model.kv_heads; ++head)
      for (long line = 0; line < lines; line += kBlockRows)
        space.lines.push_back({&span, static_cast<int32_t>(line), static_cast<int32_t>(std::min<long>(kBlockRows, lines - line)), head});
    for (int r = 0; r < span.rows; ++r) slots[span.row + r] = span.kv_start + span.live - span.rows + r;
  }
}

}  // namespace finetuned
