/* SPDX-License-Identifier: Apache-2.0
 *
 * Times the decode attention of a stack of layers through the ops, dense and routed, beside a plain read of the same
 * bytes. The layers together are larger than the caches near the cores, as a model's are.
 */
#ifndef SR_TESTS_KERNELS_OPS_BENCH_H
#define SR_TESTS_KERNELS_OPS_BENCH_H

/* All shapes, on n_threads threads (0: one per core); of all types, or of the one named. */
void sr_ops_bench(int n_threads, const char *only);

#endif
