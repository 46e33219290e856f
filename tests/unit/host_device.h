/* SPDX-License-Identifier: Apache-2.0
 *
 * A device whose memory is the host's: backend/device_attn.h carried out in plain steps over the CPU's ops, so that what
 * the host does around a device's steps can be checked where there is no GPU, bit for bit against the host's own way.
 * The rules, audits and counters are written here anew, from the contract in that header.
 */
#ifndef SR_TESTS_HOST_DEVICE_H
#define SR_TESTS_HOST_DEVICE_H

#include "backend/backend.h"

sr_status sr_host_device_open(struct backend **out, int n_threads, sr_error *err);

/* The backend whose ops it is made of; and, for its table, those of a pass of a dense model (host_pass.c). */
struct backend *sr_host_device_cpu(struct backend *b);
void sr_host_pass_ops(struct backend_ops *o);

#endif
