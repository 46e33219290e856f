/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs every variant of the manifest that this machine can run through its check, and each family once with a planted
 * fault that the check must find. Output is TAP. Usage: test_kernels [--bench] [--seed N] [FAMILY-SUBSTRING]
 */
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void check_fn(struct check *c);

struct variant {
    const char *family;
    enum cpu_isa isa;
    check_kernel *fn;
    check_fn *check;
    check_kernel *spoilt;
};

enum { ISA_scalar = ISA_SCALAR, ISA_avx2 = ISA_AVX2, ISA_avx512 = ISA_AVX512, ISA_vnni = ISA_VNNI, ISA_bf16 = ISA_BF16,
       ISA_amx = ISA_AMX, ISA_neon = ISA_NEON };

static const struct variant variants[] = {
#define SR_FAMILY(type, name) SR_KERNEL(type, name, scalar)
#define SR_KERNEL(type, name, isa) \
    {#name, (enum cpu_isa)ISA_##isa, (check_kernel *)sr_##name##_##isa, sr_check_##type, (check_kernel *)sr_spoilt_##type},
#include "cpu/kernels.def"
#undef SR_FAMILY
#undef SR_KERNEL
};
enum { N_VARIANTS = sizeof(variants) / sizeof(variants[0]) };

static struct { int number, passed, failed, skipped; } total;

static void report(int ok, const struct variant *v, const char *suffix, const char *why, uint64_t seed)
{
    printf("%sok %d - %s %s%s\n", ok ? "" : "not ", ++total.number, v->family, sr_cpu_isa_name(v->isa), suffix);
    if (!ok) printf("# %s (seed %llu)\n", why, (unsigned long long)seed);
    if (ok) total.passed++;
    else total.failed++;
}

static void skip(const struct variant *v)
{
    printf("ok %d - %s %s # SKIP this machine lacks %s\n", ++total.number, v->family, sr_cpu_isa_name(v->isa), sr_cpu_isa_name(v->isa));
    total.skipped++;
}

static check_kernel *scalar_of(const char *family)
{
    for (int i = 0; i < N_VARIANTS; i++)
        if (variants[i].isa == ISA_SCALAR && strcmp(variants[i].family, family) == 0) return variants[i].fn;
    return NULL;
}

static void run(struct check *c, const struct variant *v, int planted, uint64_t seed, int bench)
{
    *c = (struct check){.family = v->family, .isa = v->isa, .fn = planted ? v->spoilt : v->fn, .real = v->fn,
                        .scalar = scalar_of(v->family), .seed = seed, .bench = bench};
    sr_cpu_kernels_fill(&c->k, sr_cpu_isa_below(v->isa));
    sr_rng_seed(&c->rng, seed);
    sr_check_now = c;
    v->check(c);
    sr_check_free_buffers(c);
}

/* A family's best variant on this machine is where the fault is planted. */
static int is_best(int i, uint32_t mask)
{
    for (int j = i + 1; j < N_VARIANTS; j++)
        if (strcmp(variants[i].family, variants[j].family) == 0 && (mask >> variants[j].isa & 1u)) return 0;
    return 1;
}

static void check_variant(int i, uint32_t mask, uint64_t seed, int bench)
{
    const struct variant *v = &variants[i];
    struct check c;
    if (!(mask >> v->isa & 1u)) {
        if (!bench) skip(v);
        return;
    }
    run(&c, v, 0, seed, bench);
    if (bench) return;
    report(!c.n_failed, v, "", c.why, seed);
    if (!is_best(i, mask)) return;
    run(&c, v, 1, seed, 0);
    report(c.n_failed > 0, v, ": planted fault is found", "a spoilt element went unnoticed", seed);
}

int main(int argc, char **argv)
{
    const char *filter = "";
    uint64_t seed = 1;
    int bench = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--bench") == 0) bench = 1;
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) seed = strtoull(argv[++i], NULL, 10);
        else filter = argv[i];
    }
    const uint32_t mask = sr_cpu_isa_mask();
    for (int i = 0; i < N_VARIANTS; i++)
        if (strstr(variants[i].family, filter)) check_variant(i, mask, seed, bench);
    if (bench) return 0;
    printf("1..%d\n%d passed, %d failed, %d skipped\n", total.number, total.passed, total.failed, total.skipped);
    return total.failed != 0;
}
