/* SPDX-License-Identifier: Apache-2.0
 *
 * One tiny random model for each family that the engine runs, of its true structure: groups, tied output or not, biases,
 * QK-norm, head size apart from the width, experts, rotary pairing and scaling. tools/make-golden.py has the same table
 * and makes the same weights (see tiny_model.h for the numbers).
 */
#ifndef SR_TESTS_TINY_FAMILY_H
#define SR_TESTS_TINY_FAMILY_H

#include "tiny_model.h"

struct tiny_family {
    const char *name;
    struct tiny_spec spec;
};

/* In the order of tests/golden/families.bin; lives as long as the program. */
const struct tiny_family *tiny_families(int *n);

/* Divisors of the frequencies [n_dims / 2] by Llama 3.1's published formula with low 1 and high 4. */
void tiny_llama3_divisors(float *out, int n_dims, double base, double factor, double old_len);

#endif
