// One step of a Llama-like decoder for packed rows of many sequences, each with its adapter or none.
//
// The residual stream is float32, what enters a product is bfloat16, sums are float32. Every element is computed
// from its own row in a fixed order, whatever else is in the step, however many threads there are.
#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "attention.h"
#include "packing.h"
#include "team.h"
#include "workspace.h"

namespace finetuned {
namespace {

float inverse_rms(const float* x, long n, float epsilon) {
  Float16 squares{};
  for (long i = 0; i < n; i += kLanes) squares += load(x + i) * load(x + i);
  return 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + epsilon);
}

// n a multiple of 16.
void rms_norm(const float* x, const float* weight, long n, float epsilon, const Rows& out, long row) {
  const float scale = inverse_rms(x, n, epsilon);
  for (long i = 0; i < n; i += kLanes) out.put(row, i, load(x + i) * scale * load(weight + i));
}

// Rotary position embedding of one head in place, the halves rotated (https://arxiv.org/abs/2104.09864).
void rotate(float* head, const float* cosines, const float* sines, long half) {
  for (long i = 0; i < half; ++i) {
    float low = head[i], high = head[half + i];
    head[i] = low * cosines[i] - high * sines[i];
    head[half + i] = high * cosines[i] + low * sines[i];
  }
}

// Apart, so that products without errands are compiled as if there were none.
[[gnu::noinline]] void multiply_on_errands(int rows, float* c, long stride, const uint32_t* a, const bf16* b, long pairs,
                                           Errands& errands) {
  multiply<2, false>(rows, c, stride, a, b, 2 * kPanel, pairs, kPanel, errands);
}

class Forward {
 public:
  Forward(Team& team, Workspace& space, const Model& model, const Step& step)
      : team_(team), space_(space), model_(model), step_(step), rows_(step.rows), group_(model.heads / model.kv_heads),
        panels_((model.head.outputs + kPanel - 1) / kPanel) {
    const auto T = static_cast<size_t>(rows_);
    const long widest = plan_rows();
    plan_lines();
    auto rows_of = [&](Buffer<uint32_t>& buffer, long columns) {
      return Rows(buffer.at_least(Rows::words_for(rows_, columns)), columns);
    };
    residual_ = space.residual.at_least(T * static_cast<size_t>(model.hidden));
    queries_ = space.queries.at_least(T * static_cast<size_t>(model.heads) * static_cast<size_t>(model.head_dim));
    tops_ = space.tops.at_least(static_cast<size_t>(step.logit_count * panels_));
    normed_ = rows_of(space.normed, model.hidden);
    attended_ = rows_of(space.attended, static_cast<long>(model.heads) * model.head_dim);
    activated_ = rows_of(space.activated, model.intermediate);
    for (int place = 0; place < 3; ++place) shrunk_[place] = rows_of(space.shrunk[place], widest);
    for (auto& desk : space.desks) {
      desk.near.at_most(space.rows.size());
      desk.far.at_most(3 * space.rows.size());
    }
    // A unit of q, k, v holds whole heads and whole panels.
    head_unit_ = model.head_dim;
    while (head_unit_ % kPanel) head_unit_ += model.head_dim;
    for (auto& desk : space.desks) desk.columns.at_least(T * static_cast<size_t>(std::max<long>(head_unit_, 2 * kPanel)));
  }

  // On every thread alike.
  void compute(int thread) {
    Desk& desk = space_.desks[static_cast<size_t>(thread)];
    team_.each(thread, rows_, [&](long row) { embed(row); });
    for (int l = 0; l < model_.layer_count; ++l) {
      const Layer& layer = model_.layers[l];
      const LoraSites lora{l * kSites};
      each_block(thread, [&](const RowBlock& b) { norm(b, layer.input_norm, lora, {kQuery, kKey, kValue}); });
      foresee(thread, lora, {kOutput}, attended_);
      team_.each(thread, head_units(), [&](long unit) { project_heads(unit, layer, lora, desk); });
      team_.each(thread, model_.kv_heads * static_cast<long>(space_.lines.size()), [&](long unit) { attend_lines(unit, layer); });
      if (space_.adapted) each_block(thread, [&](const RowBlock& b) { shrink(b, lora, kOutput, 0, attended_); });
      foresee(thread, lora, {kGate, kUp}, normed_);
      each_panel(thread, model_.hidden, [&](long p) { add(p, layer, lora, kOutput, attended_, desk); });
      each_block(thread, [&](const RowBlock& b) { norm(b, layer.post_norm, lora, {kGate, kUp}); });
      foresee(thread, lora, {kDown}, activated_);
      each_panel(thread, model_.intermediate, [&](long p) { activate(p, layer, lora, desk); });
      if (space_.adapted) each_block(thread, [&](const RowBlock& b) { shrink(b, lora, kDown, 0, activated_); });
      if (l + 1 < model_.layer_count) foresee(thread, LoraSites{(l + 1) * kSites}, {kQuery, kKey, kValue}, normed_);
      each_panel(thread, model_.hidden, [&](long p) { add(p, layer, lora, kDown, activated_, desk); });
    }
    desk.far.clear();
    team_.each(thread, step_.logit_count, [&](long i) { final_norm(i); });
    each_panel(thread, model_.head.outputs, [&](long panel) { logits(panel, desk); });
    team_.each(thread, step_.logit_count, [&](long i) { step_.highest[i] = highest(i); });
  }

 private:
  struct LoraSites {
    int first;
    const LoraPair& of(const LoraPair* pairs, Site site) const { return pairs[first + site]; }
  };

  template <typename Body>
  void each_block(int thread, const Body& body) {
    team_.each(thread, static_cast<long>(space_.rows.size()), [&](long i) { body(space_.rows[static_cast<size_t>(i)]); });
  }

  template <typename Body>
  void each_panel(int thread, long outputs, const Body& body) {
    team_.each(thread, (outputs + kPanel - 1) / kPanel, body);
  }

  // What this thread will shrink with after the products that come now: few rows leave no time for it, their products
  // wait for the base's weights themselves.
  void foresee(int thread, LoraSites lora, std::initializer_list<Site> sites, const Rows& x) const {
    Errands& far = space_.desks[static_cast<size_t>(thread)].far;
    far.clear();
    if (!space_.adapted || rows_ <= 2 * kBlockRows) return;
    const auto blocks = static_cast<long>(space_.rows.size());
    const LoraPair* before = nullptr;
    for (long i = blocks * thread / team_.size(); i < blocks * (thread + 1) / team_.size(); ++i) {
      const LoraPair* pairs = space_.rows[static_cast<size_t>(i)].pairs;
      if (pairs == nullptr || pairs == before) continue;
      before = pairs;
      for (Site site : sites) far.add(lora.of(pairs, site).a, lora.of(pairs, site).rank * 2 * x.pairs());
    }
  }

  // --- what is done together ---

  // Returns the widest rank, at least 2.
  long plan_rows() {
    space_.rows.clear();
    space_.adapted = step_.segment_count > 0;
    long widest = 2, row = 0;
    auto cut = [&](const LoraPair* pairs, long end) {
      while (row < end) {
        const long stop = std::min(end, (row / kBlockRows + 1) * kBlockRows);
        space_.rows.push_back({pairs, static_cast<int32_t>(row), static_cast<int32_t>(stop - row)});
        row = stop;
      }
    };
    for (int s = 0; s < step_.segment_count; ++s) {
      const Segment& segment = step_.segments[s];
      cut(nullptr, segment.row);
      cut(segment.pairs, segment.row + segment.rows);
      for (int i = 0; i < model_.layer_count * kSites; ++i) widest = std::max<long>(widest, segment.pairs[i].rank);
    }
    cut(nullptr, rows_);
    return (widest + kLanes - 1) / kLanes * kLanes;
  }

  void plan_lines() {
    space_.lines.clear();
    slots_ = space_.slots.at_least(static_cast<size_t>(rows_));
    for (int s = 0; s < step_.span_count; ++s) {
      const Span& span = step_.spans[s];
      const long lines = span.rows * group_;
      for (long line = 0; line < lines; line += kBlockRows)
        space_.lines.push_back({&span, static_cast<int32_t>(line), static_cast<int32_t>(std::min<long>(kBlockRows, lines - line))});
      for (int r = 0; r < span.rows; ++r) slots_[span.row + r] = span.kv_start + span.live - span.rows + r;
    }
  }

  // --- products ---

  // C [rows, 32] of one panel of W; `stride` of C.
  void product(const Linear& linear, long panel, const Rows& x, long rows, float* c, long stride, Desk& desk) const {
    const bf16* weights = linear.packed + panel * kPanel * linear.inputs;
    for (long row = 0; row < rows; row += kBlockRows) {
      const int count = static_cast<int>(std::min<long>(kBlockRows, rows - row));
      float* to = c + row * stride;
      Errands& errands = row == 0 ? desk.near : desk.far;
      // The first block of rows waits for memory; the second has the weights in the cache, and fetches the next panel.
      if (row == kBlockRows)
        multiply<2, false>(count, to, stride, x.at(row), weights, 2 * kPanel, x.pairs(), kPanel, FetchBehind{x.pairs() * 2 * kPanel});
      else if (errands.done())
        multiply<2, false>(count, to, stride, x.at(row), weights, 2 * kPanel, x.pairs());
      else
        multiply_on_errands(count, to, stride, x.at(row), weights, x.pairs(), errands);
    }
    if (linear.bias == nullptr) return;
    const long first = panel * kPanel, count = std::min<long>(kPanel, linear.outputs - first);
    for (long row = 0; row < rows; ++row)
      for (long i = 0; i < count; ++i) c[row * stride + i] += linear.bias[first + i];
  }

  // The same for all rows, with every adapter's share.
  void adapted(const Linear& linear, long panel, const Rows& x, LoraSites lora, Site site, int place, float* c, long stride,
               Desk& desk) const {
    desk.near.clear();
    const LoraPair* before = nullptr;
    for (const RowBlock& block : space_.rows) {
      if (block.pairs == nullptr || block.pairs == before) continue;
      before = block.pairs;
      const LoraPair& pair = lora.of(block.pairs, site);
      desk.near.add(pair.b + panel * kPanel * pair.rank, kPanel * pair.rank);
    }
    if (rows_ <= kBlockRows)
      while (!desk.near.done()) desk.near.line();
    product(linear, panel, x, rows_, c, stride, desk);
    if (!space_.adapted) return;
    for (const RowBlock& block : space_.rows) {
      if (block.pairs == nullptr) continue;
      const LoraPair& pair = lora.of(block.pairs, site);
      if (pair.rank > 0)
        multiply<2, true>(block.rows, c + block.row * stride, stride, shrunk_[place].at(block.row),
                          pair.b + panel * kPanel * pair.rank, 2 * kPanel, pair.rank / 2);
    }
  }

  // x A^T of a block's rows, rounded to bfloat16.
  void shrink(const RowBlock& block, LoraSites lora, Site site, int place, const Rows& x) const {
    if (block.pairs == nullptr) return;
    const LoraPair& pair = lora.of(block.pairs, site);
    alignas(64) float sums[kBlockRows][kLanes];
    for (long first = 0; first < pair.rank; first += kLanes) {
      const long ranks = std::min<long>(kLanes, pair.rank - first);
      const bf16* a = pair.a + first * 2 * x.pairs();
      if (ranks == kLanes)
        multiply_chained(block.rows, &sums[0][0], kLanes, x.at(block.row), a, 2 * kLanes, x.pairs());
      else
        multiply_chained<true>(block.rows, &sums[0][0], kLanes, x.at(block.row), a, 2 * ranks, x.pairs(), static_cast<int>(ranks));
      for (int r = 0; r < block.rows; ++r) shrunk_[place].put(block.row + r, first, load(sums[r]));
    }
  }

  // --- the phases ---

  void embed(long row) const {
    const bf16* from = model_.embedding + static_cast<long>(step_.tokens[row]) * model_.hidden;
    for (long i = 0; i < model_.hidden; ++i) residual_[row * model_.hidden + i] = widen(from[i]);
  }

  void norm(const RowBlock& block, const float* weight, LoraSites lora, std::initializer_list<Site> sites) const {
    const long hidden = model_.hidden;
    for (int r = block.row; r < block.row + block.rows; ++r)
      rms_norm(residual_ + r * hidden, weight, hidden, model_.epsilon, normed_, r);
    int place = 0;
    for (Site site : sites) shrink(block, lora, site, place++, normed_);
  }

  long units_of(Site site) const {
    const long heads = site == kQuery ? model_.heads : model_.kv_heads;
    return (heads * model_.head_dim + head_unit_ - 1) / head_unit_;
  }

  long head_units() const { return units_of(kQuery) + 2 * units_of(kKey); }

  void project_heads(long unit, const Layer& layer, LoraSites lora, Desk& desk) const {
    float* columns = desk.columns.at_least(1);
    Site site = kQuery;
    for (; unit >= units_of(site); site = static_cast<Site>(site + 1)) unit -= units_of(site);
    const Linear& linear = layer.sites[site];
    const long first = unit * head_unit_, dim = model_.head_dim;
    const long wanted = std::min<long>(head_unit_, linear.outputs - first);
    for (long done = 0; done < wanted; done += kPanel)
      adapted(linear, (first + done) / kPanel, normed_, lora, site, site - kQuery, columns + done, head_unit_, desk);
    for (long row = 0; row < rows_; ++row)
      for (long done = 0; done < wanted; done += dim)
        place_head(layer, site, (first + done) / dim, row, columns + row * head_unit_ + done);
  }

  void place_head(const Layer& layer, Site site, long head, long row, float* values) const {
    const long dim = model_.head_dim, half = dim / 2, position = step_.positions[row];
    const float* weight = site == kQuery ? layer.query_norm : layer.key_norm;
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

  void attend_lines(long unit, const Layer& layer) const {
    const long kv_head = unit % model_.kv_heads, dim = model_.head_dim;
    const LineBlock& block = space_.lines[static_cast<size_t>(unit / model_.kv_heads)];
    const bf16* lines = queries_ + ((kv_head * rows_ + block.span->row) * group_ + block.line) * dim;
    attend(model_, layer, kv_head, *block.span, block.line, block.lines, lines, [&](long line, long d, Float16 values) {
      const long row = block.span->row + line / group_, head = kv_head * group_ + line % group_;
      attended_.put(row, head * dim + d, values);
    });
  }

  void add(long panel, const Layer& layer, LoraSites lora, Site site, const Rows& x, Desk& desk) const {
    float* columns = desk.columns.at_least(1);
    adapted(layer.sites[site], panel, x, lora, site, 0, columns, kPanel, desk);
    const long first = panel * kPanel, count = std::min<long>(kPanel, model_.hidden - first);
    for (long row = 0; row < rows_; ++row)
      for (long i = 0; i < count; ++i) residual_[row * model_.hidden + first + i] += columns[row * kPanel + i];
  }

  // silu(gate) * up
  void activate(long panel, const Layer& layer, LoraSites lora, Desk& desk) const {
    float* columns = desk.columns.at_least(1);
    adapted(layer.sites[kGate], panel, normed_, lora, kGate, 0, columns, 2 * kPanel, desk);
    adapted(layer.sites[kUp], panel, normed_, lora, kUp, 1, columns + kPanel, 2 * kPanel, desk);
    const long first = panel * kPanel, count = std::min<long>(kPanel, model_.intermediate - first);
    for (long row = 0; row < rows_; ++row)
      for (long i = 0; i < count; i += kLanes) {
        const Float16 gate = load(columns + row * 2 * kPanel + i), up = load(columns + row * 2 * kPanel + kPanel + i);
        activated_.put(row, first + i, gate / (exponential(-gate) + 1.0f) * up);
      }
  }

  void final_norm(long i) const {
    rms_norm(residual_ + step_.logit_rows[i] * static_cast<long>(model_.hidden), model_.final_norm, model_.hidden, model_.epsilon,
             normed_, i);
  }

  void logits(long panel, Desk& desk) const {
    float* columns = desk.columns.at_least(1);
    desk.near.clear();
    product(model_.head, panel, normed_, step_.logit_count, columns, kPanel, desk);
    const long first = panel * kPanel, count = std::min<long>(kPanel, model_.head.outputs - first);
    for (long i = 0; i < step_.logit_count; ++i) {
      float* row = columns + i * kPanel;
      std::memcpy(step_.logits + i * static_cast<long>(model_.head.outputs) + first, row, sizeof(float) * static_cast<size_t>(count));
      for (long n = count; n < kPanel; ++n) row[n] = -__builtin_inff();
      tops_[i * panels_ + panel] = highest_or_nan(load(row), load(row + kLanes));
    }
  }

  // Not a number if one of them is not.
  static float highest_or_nan(Float16 low, Float16 high) {
    const Int16 wrong = (low != low) | (high != high);
    const bool any = largest(wrong ? splat(1.0f) : splat(0.0f)) > 0.0f;
    return any ? __builtin_nanf("") : largest(maximum(low, high));
  }

  // Of row i of the logits, from the highest of each panel.
  int32_t highest(long i) const {
    const float* tops = tops_ + i * panels_;
    long best = 0;
    for (long panel = 0; panel < panels_; ++panel) {
      if (std::isnan(tops[panel])) return -1;
      if (tops[panel] > tops[best]) best = panel;
    }
    if (std::isinf(tops[best])) return -1;
    const float* row = step_.logits + i * static_cast<long>(model_.head.outputs);
    long n = best * kPanel;
    while (row[n] != tops[best]) ++n;
    return static_cast<int32_t>(n);
  }

  Team& team_;
  Workspace& space_;
  const Model& model_;
  const Step& step_;
  const long rows_, group_, panels_;
  float* tops_;
  long head_unit_;
  float* residual_;
  bf16* queries_;
  Rows normed_, attended_, activated_, shrunk_[3];
  int64_t* slots_ = nullptr;
};

struct Decoder {
  Team team;
  Workspace space;
  explicit Decoder(int threads) : team(threads), space(threads) {}
};

}  // namespace
}  // namespace finetuned

using namespace finetuned;

extern "C" {

// Threads and working memory; null if there is no memory for them.
void* finetuned_decoder_new(int threads) {
  try {
    return new Decoder(threads);
  } catch (...) {
    return nullptr;
  }
}

void finetuned_decoder_free(void* decoder) { delete static_cast<Decoder*>(decoder); }

// 0, or 1 if there was no memory for a step of this size (then nothing was written).
int finetuned_decoder_step(void* decoder, const Model* model, const Step* step) {
  auto& all = *static_cast<Decoder*>(decoder);
  try {
    Forward forward(all.team, all.space, *model, *step);
    all.team.run([&](int thread) { forward.compute(thread); });
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

void finetuned_pack_panels(const uint16_t* weight, int64_t outputs, int64_t inputs, uint16_t* packed) {
  pack_panels(weight, outputs, inputs, packed);
}

void finetuned_unpack_panels(const uint16_t* packed, int64_t outputs, int64_t inputs, uint16_t* weight) {
  unpack_panels(packed, outputs, inputs, weight);
}

// -1, or the first site that has a packed value that is not finite.
int64_t finetuned_pack_lora(const LoraSource* sites, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!pack_lora_site(sites[i])) return i;
  return -1;
}

// 1 where products use AVX512-BF16, 0 where they are portable.
int finetuned_uses_avx512_bf16(void) {
#ifdef FINETUNED_AVX512_BF16
  return 1;
#else
  return 0;
#endif
}

}  // extern "C"
