// The functions that Python calls (`library.py`).
#include "draws.h"
#include "forward.h"

namespace finetuned {
namespace {

struct Decoder {
  Team team;
  Workspace space;
  std::vector<Drawer> drawers;  // one a thread, once there is something to draw
  explicit Decoder(int threads) : team(threads), space(threads) {}
};

}  // namespace
}  // namespace finetuned

using namespace finetuned;

extern "C" {

// Threads and working memory; null if the system does not give them.
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

// 0, or 1 if there was no memory for it. `tokens [count]`, of draws over one vocabulary, which is the same in every call.
int finetuned_decoder_draw(void* decoder, const Draw* draws, int count, int vocabulary, int32_t* tokens) {
  auto& all = *static_cast<Decoder*>(decoder);
  try {
    all.drawers.reserve(static_cast<size_t>(all.team.size()));
    while (static_cast<int>(all.drawers.size()) < all.team.size()) all.drawers.emplace_back(vocabulary);
    all.team.run([&](int thread) {
      all.team.each(thread, count, [&](long i) { tokens[i] = all.drawers[static_cast<size_t>(thread)].token(draws[i]); });
    });
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

// Makes the pages of [from, from + size) ready, whatever is in them and whoever writes there meanwhile.
void finetuned_touch(char* from, int64_t size) {
  constexpr int64_t kSmallestPage = 4096;
  for (int64_t i = 0; i < size; i += kSmallestPage) __atomic_fetch_add(from + i, 0, __ATOMIC_RELAXED);
}

// What products are computed with.
const char* finetuned_instructions(void) {
#if defined(FINETUNED_TILES)
  return "AMX-BF16";
#elif defined(FINETUNED_AVX512_BF16)
  return "AVX512-BF16";
#else
  return "portable";
#endif
}

// 1, or 0 where the system does not let this process use these instructions. To be asked before the first step.
int finetuned_may_multiply(void) { return may_multiply() ? 1 : 0; }

}  // extern "C"
