/* SPDX-License-Identifier: Apache-2.0
 *
 * What audits teach a sequence. Two things, both functions of the audits of earlier steps only, so that a step
 * that fails and is tried again gives the same bits:
 *
 * - the correction (delta > 0): the threshold given to the estimate is eps over a quantile of
 *   (true unread / threshold in force), over the last audited cases, and at most what it is without a
 *   correction; its level moves by adaptive conformal inference (Gibbs and Candes, arXiv 2106.00170), which
 *   makes the share of cases above eps tend to delta whatever the text does;
 * - the breaker: a unit (layer, KV group) whose audits fail is read whole for a while, then tried again.
 *
 * Audits of a step are noted as they are made and settled when the next position is decoded.
 */
#ifndef SR_ATTENTION_CONTRACT_H
#define SR_ATTENTION_CONTRACT_H

#include "sinkrouter/attention.h"
#include "base/status.h"

#define SR_CONTRACT_SCORES 1024 /* cases in the window of scores */
#define SR_CONTRACT_WARM   256  /* with a correction: cases until which more is audited */

/* With a second look the estimate errs on the safe side, since the look corrects upwards alone: where it says just the threshold,
 * the truth is .82 (SmolLM2) and .88 (Qwen2.5-Coder) of that in the mean over recorded texts, and it is eps, in the mean (1.00, 1.07),
 * where the threshold has this many times the odds of eps. It reads a tenth less, and more cases lie above eps (docs/routing.md,
 * "Threshold"). A single look has no such bias and is held to eps itself. */
#define SR_CONTRACT_ODDS   1.25

struct contract;

sr_status sr_contract_new(struct contract **out, int32_t n_units, int32_t group, sr_error *err);
void sr_contract_free(struct contract *c);
/* Forgets everything, as before the first audit. */
void sr_contract_restart(struct contract *c, int32_t n_units, int32_t group);

/* Called first in every layer of a step: settles what the step before said if `pos` follows it, and drops it
 * if not. Counters of breakers go to `stats`. */
void sr_contract_step(struct contract *c, int32_t pos, const sr_route_options *o, sr_route_stats *stats);

/* The threshold for the estimate where no audit corrects it, and the most that a correction allows. */
float sr_contract_uncorrected(const sr_route_options *o);
/* The threshold for the estimate. */
float sr_contract_threshold(const struct contract *c, const sr_route_options *o);
/* The share of units to audit: the option's, more while a correction has too few cases. */
double sr_contract_audit_share(const struct contract *c, const sr_route_options *o);

enum unit_trust { UNIT_ROUTED, UNIT_WHOLE /* its breaker is open */, UNIT_TRIAL /* routed and audited */ };
enum unit_trust sr_contract_trust(const struct contract *c, int32_t unit, int32_t kv_len);

/* Notes the audit of a routed unit: true unread share per head, NaN where it is not a number. */
void sr_contract_note(struct contract *c, int32_t unit, int32_t kv_len, const double *unread);

/* The whole state in one piece of memory, for session files: settled first where `len` tokens are held. */
void *sr_contract_piece(struct contract *c, int32_t len, const sr_route_options *o, sr_route_stats *stats,
                        size_t *bytes);
/* After the piece was filled from a file: -1 if it is not possible. */
int sr_contract_check(const struct contract *c, int32_t n_units, int32_t group);

#endif
