/* SPDX-License-Identifier: Apache-2.0
 *
 * Random rows of any stored type, without a quantizer: valid blocks of random codes whose scale is set so that the values
 * have mean near 0 and the wanted root mean square. For synthetic models.
 */
#ifndef SR_FORMATS_QUANT_RANDOM_H
#define SR_FORMATS_QUANT_RANDOM_H

#include "base/rng.h"
#include "formats/quant.h"

/* n elements, a multiple of the type's block, into dst. The same generator state gives the same bytes on every machine. */
void sr_random_row(sr_dtype dtype, struct rng *rng, double rms, void *dst, int64_t n);

#endif
