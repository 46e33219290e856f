/* SPDX-License-Identifier: Apache-2.0
 *
 * calibrate --paper: the sweep of SinkRouter (arXiv 2604.16883), which gives `paper` its threshold by context length.
 */
#ifndef SR_APP_CALIBRATE_PAPER_H
#define SR_APP_CALIBRATE_PAPER_H

#include "options.h"

/* ids [n]: the text. Writes the file, and a table to standard output. */
sr_status sr_calibrate_paper(const struct options *o, sr_model *m, const int32_t *ids, int32_t n, sr_error *err);

/* Least squares of a cubic in x; -1 if the points do not determine it (fewer than four different x). */
int sr_fit_cubic(const double *x, const double *y, int32_t n, double c[4]);

#endif
