/* SPDX-License-Identifier: Apache-2.0
 *
 * From the options of the command line to the library's objects. Values that contradict each other are
 * refused here, by the names of their flags.
 */
#ifndef SR_APP_SETUP_H
#define SR_APP_SETUP_H

#include "options.h"

/* Model number i of -m; most commands have one. threads 0: the default. */
sr_status sr_setup_model(sr_model **out, const struct options *o, int32_t i, int threads, sr_error *err);
/* -m must be there, once unless many. */
sr_status sr_setup_check_model(const struct options *o, int many, sr_error *err);
/* Says once that a context of len tokens lies outside the lengths that paper's cubic was fitted on, where it is clamped. */
void sr_setup_warn_tau(const sr_route_options *r, int32_t len);
/* Says once that nothing is routed in contexts of at most len tokens, where --route-min is above them. */
void sr_setup_warn_min(const sr_route_options *r, int32_t len);
/* Routing for a mode by name (NULL: --route, or the library's default), with the first of each list. */
sr_status sr_setup_route(sr_route_options *out, const struct options *o, const char *mode, sr_error *err);
/* --route-keep as the library takes it, whose 0 turns the lot off: a share that draws nothing instead. */
float sr_setup_keep(double share);
/* Says which routing flags are for a mode that was not asked for. */
void sr_setup_note_unused(const struct options *o);
sr_status sr_setup_session(sr_session_options *out, const struct options *o, sr_error *err);
/* What the flags say, the rest as the model's authors advise for answers with or without thinking, or as the library has it.
 * *seed: the one to use; sr_setup_seed draws it where none was given. */
sr_status sr_setup_sampler(sr_sampler **out, uint64_t seed, const struct options *o, const sr_model *m, int thinking,
                           sr_error *err);
uint64_t sr_setup_seed(const struct options *o);
sr_status sr_setup_dtype(sr_dtype *out, const char *name, sr_error *err);
/* Tokens of one prefill batch: the smaller of -ub and -b. */
int32_t sr_setup_batch(int64_t batch, int64_t ubatch);
sr_bos sr_setup_bos(const struct options *o);
/* The file of an output flag (NULL: none) can be written when the work is done, as far as one can tell now: its folder
 * is there and takes files. */
sr_status sr_setup_check_output(const char *flag, const char *path, sr_error *err);
/* That of an input flag (NULL: none, -: standard input) is there and may be read. */
sr_status sr_setup_check_input(const char *flag, const char *path, sr_error *err);

#endif
