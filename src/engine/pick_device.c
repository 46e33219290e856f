/* SPDX-License-Identifier: Apache-2.0
 *
 * Names of devices: none, cpu, cuda, CUDA0 and so on.
 */
#include "engine/pick_device.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

sr_status sr_device_index(int *out, const char *name, sr_error *err)
{
    char line[128];
    int index = 0, used = 0;
    if (!name || !*name) index = sr_backend_cuda_device(0, line, sizeof line) ? 0 : -1;
    else if (strcasecmp(name, "none") == 0 || strcasecmp(name, "cpu") == 0) index = -1;
    else if (strcasecmp(name, "cuda") != 0 &&
             (strncasecmp(name, "cuda", 4) != 0 || sscanf(name + 4, "%3d%n", &index, &used) != 1 || name[4 + used] || index < 0))
        return sr_fail(err, SR_ERR_USAGE, "device \"%s\": want none, cuda, or a name that --list-devices prints",
                       sr_escape(line, 64, name, strlen(name)));
    *out = index;
    return SR_OK;
}

sr_status sr_device_open(struct backend **out, int index, int n_threads, sr_error *err)
{
    return index < 0 ? sr_backend_cpu_open(out, n_threads, err) : sr_backend_cuda_open(out, index, n_threads, err);
}
