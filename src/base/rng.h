/* SPDX-License-Identifier: Apache-2.0
 *
 * A small seedable generator (xoshiro256**, seeded through splitmix64): the same seed gives the same numbers
 * on every machine. For sampling and tests, not for secrets. The caller owns the state; one thread per state.
 */
#ifndef SR_BASE_RNG_H
#define SR_BASE_RNG_H

#include <stdint.h>

struct rng {
    uint64_t s[4];
};

void sr_rng_seed(struct rng *r, uint64_t seed);
uint64_t sr_rng_u64(struct rng *r);
double sr_rng_unit(struct rng *r); /* uniform in [0, 1), 53 bits */

/* A seed nobody can guess, from the kernel. */
uint64_t sr_random_seed(void);

#endif
