// Products of random shapes: each row in company beside the same row alone, to the last bit, and beside a sum in double.
#include "products.h"

#include <cmath>
#include <random>
#include <vector>

using namespace finetuned;

namespace {

constexpr long kColumns = 32, kRoom = 64;

bf16 drawn(std::mt19937& draw, bool any) {
  const auto bits = static_cast<bf16>(draw());
  // Any number there is, or one near 1.
  return any ? bits : static_cast<bf16>((bits & 0x807f) | (124 + draw() % 6) << 7);
}

bool alike(float a, float b) { return std::memcmp(&a, &b, 4) == 0 || (std::isnan(a) && std::isnan(b)); }

template <bool Accumulate>
long wrong_of(std::mt19937& draw, bool any) {
  const int rows = 1 + static_cast<int>(draw() % kBlockRows);
  const long pairs = 1 + static_cast<long>(draw() % 40), columns = 2 * pairs, first = static_cast<long>(draw() % (kBlockRows - rows + 1));
  std::vector<uint32_t> words(Rows::words_for(kBlockRows, columns), 0x7fc07fc0u);  // what is in no row is not a number
  const Rows x(words.data(), columns);
  std::vector<bf16> values(static_cast<size_t>(rows * columns)), b(static_cast<size_t>(pairs * 2 * kColumns));
  for (bf16& value : values) value = drawn(draw, any);
  for (bf16& value : b) value = drawn(draw, any);
  for (int r = 0; r < rows; ++r) x.copy(first + r, &values[static_cast<size_t>(r * columns)]);
  std::vector<float> before(static_cast<size_t>(kBlockRows * kColumns)), together, alone;
  for (float& value : before) value = widen(drawn(draw, any));
  together = alone = before;
  multiply<2, Accumulate>(rows, together.data(), kColumns, x.at(first), b.data(), 2 * kColumns, pairs);
  for (int r = 0; r < rows; ++r)
    multiply<2, Accumulate>(1, &alone[static_cast<size_t>(r * kColumns)], kColumns, x.at(first + r), b.data(), 2 * kColumns, pairs);
  long wrong = 0;
  for (long i = 0; i < kBlockRows * kColumns; ++i) {
    const auto at = static_cast<size_t>(i);
    if (!alike(together[at], alone[at])) ++wrong;
    if (i >= rows * kColumns) {
      if (!alike(together[at], before[at])) ++wrong;  // nobody asked for it
      continue;
    }
    if (any) continue;
    double exact = Accumulate ? before[at] : 0.0, size = std::fabs(exact);
    for (long n = 0; n < columns; ++n) {
      const double term = static_cast<double>(widen(values[static_cast<size_t>(i / kColumns * columns + n)])) *
                          widen(b[static_cast<size_t>((n / 2 * kColumns + i % kColumns) * 2 + n % 2)]);
      exact += term;
      size += std::fabs(term);
    }
    if (!(std::fabs(together[at] - exact) <= 1e-5 * size)) ++wrong;
  }
  return wrong;
}

}  // namespace

// Elements that were wrong; -1 where the system does not allow these instructions.
extern "C" long wrong_products(unsigned seed, int rounds) {
  if (!may_multiply()) return -1;
  const Multiplying multiplying;
  std::mt19937 draw(seed);
  long wrong = 0;
  for (int i = 0; i < rounds; ++i) wrong += wrong_of<false>(draw, i % 2) + wrong_of<true>(draw, i % 2);
  return wrong;
}
