// Rows and their products, as this processor computes them best.
#pragma once

#include "numeric.h"

#if defined(__AMX_BF16__) && defined(FINETUNED_AVX512_BF16) && !defined(FINETUNED_WITHOUT_TILES)
#define FINETUNED_TILES 1
#include "tiles.h"
#else
#include "vectors.h"
#endif
