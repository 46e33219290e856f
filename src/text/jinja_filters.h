/* SPDX-License-Identifier: Apache-2.0
 *
 * Filters of lists, for the table of jinja_filters.c.
 */
#ifndef SR_TEXT_JINJA_FILTERS_H
#define SR_TEXT_JINJA_FILTERS_H

#include "text/jinja_eval.h"

jinja_fn sr_jinja_f_list, sr_jinja_f_first, sr_jinja_f_last, sr_jinja_f_join, sr_jinja_f_reverse,
    sr_jinja_f_sort, sr_jinja_f_dictsort, sr_jinja_f_unique, sr_jinja_f_sum, sr_jinja_f_min, sr_jinja_f_max,
    sr_jinja_f_map, sr_jinja_f_select, sr_jinja_f_reject, sr_jinja_f_selectattr, sr_jinja_f_rejectattr,
    sr_jinja_f_batch;

#endif
