/* SPDX-License-Identifier: Apache-2.0
 *
 * Which layers lie on the device, and how many bytes a session takes there and on the host.
 */
#ifndef SR_ENGINE_PLACEMENT_H
#define SR_ENGINE_PLACEMENT_H

#include "engine/model.h"

/* Of a session with the first n_lower layers on the host. With a CPU backend all is the host's. */
struct placement_need { uint64_t device, host; };
sr_status sr_placement_need(const struct sr_model *m, const sr_session_options *o, int32_t n_lower, struct placement_need *out,
                            sr_error *err);

/* The most layers that fit on the device, weights and a session, in `have` bytes; 0: not one. */
int32_t sr_placement_fit(const struct sr_model *m, const sr_session_options *o, uint64_t have);

#endif
