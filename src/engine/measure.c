/* SPDX-License-Identifier: Apache-2.0
 *
 * The public measure.h: a device by its name, and a stack of layers on it.
 */
#include "sinkrouter/measure.h"

#include "attention/probe.h"
#include "base/memory.h"
#include "base/pool.h"
#include "engine/pick_device.h"

struct sr_probe {
    struct backend *backend;
    struct stack *stack;
};

sr_status sr_probe_new(sr_probe **out, const sr_probe_options *o, sr_error *err)
{
    int index;
    sr_status st;
    if (!out || !o) return sr_fail(err, SR_ERR_USAGE, "sr_probe_new: %s is NULL", out ? "options" : "out");
    SR_TRY(sr_device_index(&index, o->device, err));
    sr_probe *p = sr_alloc_zero(1, sizeof *p);
    if (!p) return sr_fail_memory(err, sizeof *p, "measurement");
    SR_TRY_GOTO(sr_device_open(&p->backend, index, o->n_threads, err));
    SR_TRY_GOTO(sr_stack_new(&p->stack, p->backend, o, err));
    *out = p;
    return SR_OK;
fail:
    sr_probe_free(p);
    return st;
}

void sr_probe_free(sr_probe *p)
{
    if (!p) return;
    sr_stack_free(p->stack);
    sr_backend_close(p->backend);
    sr_free(p);
}

const char *sr_probe_backend(const sr_probe *p) { return p ? p->backend->ops->describe(p->backend) : ""; }

sr_status sr_probe_run(sr_probe *p, const sr_route_options *route, int32_t n_skipped, int32_t n, double *samples_ns,
                       sr_probe_result *out, sr_error *err)
{
    if (!p || !route || !out)
        return sr_fail(err, SR_ERR_USAGE, "sr_probe_run: %s is NULL", !p ? "probe" : !route ? "route" : "out");
    SR_TRY(sr_stack_run(p->stack, route, n_skipped, n, samples_ns, out, err));
    out->n_threads = sr_pool_threads(sr_backend_pool(p->backend));
    return SR_OK;
}
