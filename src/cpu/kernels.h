/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU's kernel table. A kernel family is one typedef here (with its contract), one line per variant in
 * kernels.def (slowest first, later lines win) and one file per variant, src/cpu/<family>/<family>_<isa>.c.
 * Including the manifest declares the prototypes; kernels.c includes it again to fill the table under an ISA mask.
 * Kernels return void (or counts) and cannot fail; no CPU test on a hot path.
 */
#ifndef SR_CPU_KERNELS_H
#define SR_CPU_KERNELS_H

#include "backend/args.h"

/* Ordered: a larger value implies the smaller ones of the same family of machines. */
enum cpu_isa { ISA_SCALAR, ISA_AVX2, ISA_AVX512, ISA_VNNI, ISA_BF16, ISA_AMX, ISA_NEON, ISA_COUNT };

#endif
