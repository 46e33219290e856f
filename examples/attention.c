/* SPDX-License-Identifier: Apache-2.0
 *
 * attention.h on vectors of your own, no model: 3,000 tokens prefilled, 50 decoded, routed and dense. Exit
 * status 0 only if routing reads less than a third of the bytes and stays near the dense output.
 */
#include <sinkrouter/attention.h>

#include <stdio.h>

enum { HEADS = 4, KV_HEADS = 2, DIM = 64, TOPICS = 8, PREFILL = 3000, TOKENS = 3050 };
enum { Q = HEADS * DIM, KV = KV_HEADS * DIM }; /* floats of one token */
static float q[TOKENS * Q], k[TOKENS * KV], v[TOKENS * KV], out[2][TOKENS * Q], topic[TOPICS + 1][DIM];

static float noise(float size) /* uniform in [-size, size] */
{
    static unsigned long long seed = 1;
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return size * ((float)(seed >> 40) / 8388608.0f - 1.0f);
}

/* Topics that come back; a query looks for keys of its topic, and otherwise rests on the first token. */
static void make_token(int t, const float *now, const float *sink)
{
    for (int i = 0; i < Q; i++) q[t * Q + i] = now[i % DIM] + sink[i % DIM] + noise(0.8f);
    for (int i = 0; i < KV; i++) k[t * KV + i] = (t ? now[i % DIM] : 1.5f * sink[i % DIM]) + noise(2.4f);
    for (int i = 0; i < KV; i++) v[t * KV + i] = t ? noise(1.0f) - now[i % DIM] : 0.0f;
}

static sr_status run(sr_route_mode mode, float *o, sr_route_stats *stats, sr_error *err)
{
    sr_attention *a = NULL;
    sr_attention_options opt = sr_attention_options_default();
    opt.n_layers = 1, opt.n_heads = HEADS, opt.n_kv_heads = KV_HEADS, opt.head_dim = DIM,
    opt.max_len = TOKENS;
    opt.rope_kind = SR_ROPE_NONE;               /* these vectors carry no position */
    opt.route.mode = mode, opt.route.eps = 0.08f, opt.route.audit = 1; /* every decision is checked against dense */
    sr_status st = sr_attention_new(&a, &opt, err);
    if (st == SR_OK) st = sr_attention_append(a, 0, k, v, PREFILL, err);
    if (st == SR_OK) st = sr_attention_prefill(a, 0, q, PREFILL, o, err);
    for (int t = PREFILL; t < TOKENS && st == SR_OK; t++) {
        st = sr_attention_append(a, 0, k + t * KV, v + t * KV, 1, err);
        if (st == SR_OK) st = sr_attention_decode(a, 0, q + t * Q, o + t * Q, err);
    }
    if (st == SR_OK) sr_attention_stats(a, stats);
    sr_attention_free(a);
    return st;
}

int main(void)
{
    sr_error err;
    sr_route_stats dense, routed;
    double error = 0, size = 0;
    for (int i = 0; i < (TOPICS + 1) * DIM; i++)
        topic[i / DIM][i % DIM] = noise(i < TOPICS * DIM ? 1.2f : 1.8f);
    for (int t = 0; t < TOKENS; t++) make_token(t, topic[t / 40 * 5 % TOPICS], topic[TOPICS]);
    if (run(SR_ROUTE_DENSE, out[0], &dense, &err) || run(SR_ROUTE_MASS, out[1], &routed, &err))
        return fprintf(stderr, "attention: %s\n", err.text), (int)err.status;
    for (int i = PREFILL * Q; i < TOKENS * Q; i++) {
        error += (double)(out[1][i] - out[0][i]) * (double)(out[1][i] - out[0][i]);
        size += (double)out[0][i] * (double)out[0][i];
    }
    double read = (double)routed.kv_bytes / (double)routed.dense_bytes;
    printf("read %.3f of the bytes; squared error %.5f of the output's; %lld of %lld cases above twice eps\n",
           read, error / size, (long long)routed.broken, (long long)routed.cases);
    return !(dense.kv_bytes == dense.dense_bytes && read < 0.33 && routed.broken * 50 <= routed.cases &&
             error < 0.02 * size);
}
