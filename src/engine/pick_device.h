/* SPDX-License-Identifier: Apache-2.0
 *
 * The backend of a device as users name it.
 */
#ifndef SR_ENGINE_PICK_DEVICE_H
#define SR_ENGINE_PICK_DEVICE_H

#include "backend/backend.h"

/* Number of the GPU that a name means (NULL or "": the first one there is), -1 for the CPU. */
sr_status sr_device_index(int *out, const char *name, sr_error *err);
sr_status sr_device_open(struct backend **out, int index, int n_threads, sr_error *err);

#endif
