/* SPDX-License-Identifier: Apache-2.0
 *
 * OpenBLAS starts threads of its own unless told otherwise: they would compete with the pool's, and results
 * would depend on their number. Called before the first use of BLAS or LAPACK; once is enough, more do no
 * harm.
 */
#ifndef SR_ATTENTION_BLAS_H
#define SR_ATTENTION_BLAS_H

void sr_blas_single_thread(void);

#endif
