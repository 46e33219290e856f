/* SPDX-License-Identifier: Apache-2.0
 *
 * attention.h on vectors of your own, no model: 3,000 tokens are prefilled, 50 decoded, routed and dense side
 * by side. Exit status 0 only if the routed output stays near the dense one, and the audits agree, while
 * reading less than a third of the bytes.
 */
#include <sinkrouter/attention.h>

#include <stdio.h>
#include <stdlib.h>

enum {
    HEADS = 4,
    KV_HEADS = 2,
    DIM = 64,
    TOPICS = 8,
    PREFILL = 3000,
    DECODE = 50,
    TOKENS = PREFILL + DECODE
};
enum { Q = HEADS * DIM, KV = KV_HEADS * DIM }; /* floats of one token */
static float q[TOKENS * Q], k[TOKENS * KV], v[TOKENS * KV], out[2][TOKENS * Q];

static float noise(float size) /* uniform in [-size, size] */
{
    static unsigned long long seed = 1;
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return size * ((float)(seed >> 40) / 8388608.0f - 1.0f);
}

/* A text has topics that come back; a query looks for keys of its topic, and otherwise rests on the first
 * token. */
static void make_tokens(void)
{
    static float topic[TOPICS][DIM], sink[DIM];
    for (int i = 0; i < TOPICS * DIM; i++) topic[i / DIM][i % DIM] = noise(1.2f);
    for (int i = 0; i < DIM; i++) sink[i] = noise(1.8f);
    for (int t = 0, now = 0; t < TOKENS; t++) {
        if (t % 40 == 0) now = (int)(t * 2654435761u >> 20) % TOPICS;
        for (int i = 0; i < DIM; i++) {
            for (int h = 0; h < HEADS; h++) q[t * Q + h * DIM + i] = topic[now][i] + sink[i] + noise(0.8f);
            for (int g = 0; g < KV_HEADS; g++)
                k[t * KV + g * DIM + i] = (t ? topic[now][i] : 1.5f * sink[i]) + noise(2.4f);
            for (int g = 0; g < KV_HEADS; g++)
                v[t * KV + g * DIM + i] = t ? topic[(now + 1) % TOPICS][i] + noise(1.0f) : 0.0f;
        }
    }
}

static sr_status run(sr_route_mode mode, float *o, sr_route_stats *stats, sr_error *err)
{
    sr_attention *a = NULL;
    sr_attention_options opt = sr_attention_options_default();
    opt.n_layers = 1, opt.n_heads = HEADS, opt.n_kv_heads = KV_HEADS, opt.head_dim = DIM,
    opt.max_len = TOKENS;
    opt.rope_kind = SR_ROPE_NONE; /* these vectors carry no position */
    opt.route.mode = mode;
    opt.route.audit = 1; /* check every decision against dense */
    sr_status st = sr_attention_new(&a, &opt, err);
    if (st == SR_OK) st = sr_attention_append(a, 0, k, v, PREFILL, err);
    if (st == SR_OK) st = sr_attention_prefill(a, 0, q, PREFILL, o, err);
    for (int t = PREFILL; t < TOKENS && st == SR_OK; t++) {
        st = sr_attention_append(a, 0, k + t * KV, v + t * KV, 1, err);
        if (st == SR_OK) st = sr_attention_decode(a, 0, q + t * Q, o + t * Q, err);
    }
    sr_attention_stats(a, stats);
    sr_attention_free(a);
    return st;
}

int main(void)
{
    sr_error err;
    sr_route_stats dense, routed;
    double diff = 0, size = 0;
    make_tokens();
    if (run(SR_ROUTE_DENSE, out[0], &dense, &err) || run(SR_ROUTE_MASS, out[1], &routed, &err)) {
        fprintf(stderr, "attention: %s\n", err.text);
        return (int)err.status;
    }
    for (int i = PREFILL * Q; i < TOKENS * Q; i++) {
        double d = out[0][i], e = out[1][i] - d;
        diff += e * e;
        size += d * d;
    }
    double read = (double)routed.kv_bytes / (double)routed.dense_bytes, error = diff / size;
    printf("read %.3f of the bytes; squared error %.5f of the output's; unread mass %.4f on average, %.4f at "
           "most; "
           "%lld of %lld cases above twice eps\n",
           read, error, routed.unread_sum / (double)routed.cases, routed.unread_max, (long long)routed.broken,
           (long long)routed.cases);
    return dense.kv_bytes == dense.dense_bytes && read < 0.33 && routed.broken * 50 <= routed.cases &&
                   error < 0.02
               ? EXIT_SUCCESS
               : EXIT_FAILURE;
}
