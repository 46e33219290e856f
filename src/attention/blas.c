/* SPDX-License-Identifier: Apache-2.0
 *
 * See blas.h.
 */
#include "attention/blas.h"

#include <cblas.h>
#include <stdatomic.h>

void sr_blas_single_thread(void)
{
    static atomic_int is_single;
    if (!atomic_exchange(&is_single, 1)) openblas_set_num_threads(1);
}
