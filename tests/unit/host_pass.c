/* SPDX-License-Identifier: Apache-2.0
 *
 * The ops of a pass but attention on the device of host_device.h: the CPU's. A position that the device holds is looked up.
 */
#include "host_device.h"

#define AS_CPU(op, args) \
    static void op(struct backend *b, const struct args *a) { sr_host_device_cpu(b)->ops->op(sr_host_device_cpu(b), a); }
AS_CPU(matmul, matmul_args)
AS_CPU(norm, norm_args)
AS_CPU(silu_mul, silu_mul_args)
AS_CPU(add, add_args)
AS_CPU(embed, embed_args)

static void add_norm(struct backend *b, const struct add_args *a, const struct norm_args *n)
{
    sr_host_device_cpu(b)->ops->add_norm(sr_host_device_cpu(b), a, n);
}

static void rope(struct backend *b, const struct rope_args *a)
{
    struct rope_args at = *a;
    at.pos0 += a->pos ? *a->pos : 0;
    at.pos = NULL;
    sr_host_device_cpu(b)->ops->rope(sr_host_device_cpu(b), &at);
}

static sr_status matmul_reserve(struct backend *b, int32_t max_n, int64_t max_in, int64_t max_out, sr_error *err)
{
    return sr_host_device_cpu(b)->ops->matmul_reserve(sr_host_device_cpu(b), max_n, max_in, max_out, err);
}

void sr_host_pass_ops(struct backend_ops *o)
{
    o->matmul = matmul;
    o->norm = norm;
    o->silu_mul = silu_mul;
    o->add = add;
    o->embed = embed;
    o->add_norm = add_norm;
    o->rope = rope;
    o->matmul_reserve = matmul_reserve;
}
