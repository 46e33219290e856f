/* SPDX-License-Identifier: Apache-2.0
 *
 * What an attn_seq keeps of itself on a device: shared by device.c (rows, bases, launches), device_contract.c (what
 * audits say, between steps) and device_trail.c.
 */
#ifndef SR_ATTENTION_DEVICE_SEQ_H
#define SR_ATTENTION_DEVICE_SEQ_H

#include "attention/timeline.h"
#include "base/memory.h"

struct device_seq {
    struct device_cache cache;
    struct device_route route;
    void *block;                      /* owns the tables, kv_len, terms, trust, found sinks, scales and counters */
    int32_t *kv_len;                  /* [1] */
    int32_t have_len;                 /* that the device holds */
    struct device_terms *terms;       /* [1] */
    struct device_terms have_terms;   /* that the device holds */
    uint8_t *trust;                   /* [n_layers][n_kv_heads] */
    uint8_t *have_trust, *want_trust; /* host: that the device holds; of the step at hand */
    float *keep;                      /* [n_kv_heads] or NULL */
    struct device_trail trail;        /* attn_seq.trail.step is the last step that noted there */
    float *scales;                    /* [2][n_layers][n_kv_heads] of K and V, F8_E4M3 only */
    struct device_counters *counters; /* [n_layers][n_kv_heads] */
    struct device_counters *fetched;  /* host copy of the same */
    struct device_case *cases;        /* [n_layers][n_kv_heads], shared memory */
    void *cases_there;                /* as the device sees them */
    void *basis_block;
    struct sketch_basis *basis;       /* [n_layers][n_kv_heads], in basis_block like what they point to */
    const struct band_bases *placed;  /* whose floats are there */
    double *sums;                     /* own moments, as moments.c keeps them; NULL: none are collected */
    float *turn;                      /* of device_moments_args */
    int has_sums;                     /* the host has them too */
    float *kept;                      /* [n_layers] of q and k of the last steps, which the sums lack; by slot */
    int64_t kept_from, kept_to;       /* their positions, of one turn of the slots */
    const struct policy *policy;      /* of the step at hand */
    int collects;                     /* the step at hand counts its position */
    int is_open;                      /* a step was begun and not ended */
    int is_stale;                     /* recorded steps must not be replayed */
    uint64_t key;
};

static inline size_t sr_device_units(const struct attn_seq *s) { return (size_t)s->a->c.n_layers * (size_t)s->a->c.n_kv_heads; }

/* device_trail.c: where the trail lies in the sequence's block. */
void sr_device_trail_layout(struct arena *a, struct attn_seq *s, struct device_seq *d);
/* Whether steps of these options follow it; then the step at hand is said to note. */
int sr_device_trail_begin(struct attn_seq *s);

/* device_contract.c. Memory of its own; taken back by fini. */
sr_status sr_device_contract_init(struct attn_seq *s, sr_error *err);
void sr_device_contract_fini(struct attn_seq *s);
/* What earlier audits say, for the step that s->device->policy is to make; returns whether its units may be audited. */
int sr_device_contract_begin(struct attn_seq *s);

#endif
