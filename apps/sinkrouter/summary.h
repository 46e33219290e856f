/* SPDX-License-Identifier: Apache-2.0
 *
 * The line after an answer, and --stats.
 */
#ifndef SR_APP_SUMMARY_H
#define SR_APP_SUMMARY_H

#include "talk.h"

/* Prefill and decode tokens/s, KV bytes read per token and as a share of dense, groups near-only, audits. */
void sr_summary_show(const struct answer *a);

/* --stats FILE: one object; answers[0..n) in order. Written beside the file and renamed. */
sr_status sr_stats_write(const struct talk *t, const struct answer *answers, int32_t n, sr_error *err);

/* 1234567 -> "1.2 MB". */
const char *sr_bytes_text(char *dst, size_t dst_bytes, double bytes);

#endif
