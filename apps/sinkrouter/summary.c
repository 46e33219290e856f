/* SPDX-License-Identifier: Apache-2.0
 *
 * The one-line summary.
 */
#include "summary.h"
#include "diag.h"

const char *sr_bytes_text(char *dst, size_t dst_bytes, double bytes)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB"};
    int u = 0;
    while (bytes >= 999.5 && u < 4) {
        bytes /= 1000;
        u++;
    }
    snprintf(dst, dst_bytes, u == 0 || bytes >= 99.95 ? "%.0f %s" : "%.1f %s", bytes, units[u]);
    return dst;
}

static double rate(int64_t tokens, double ms)
{
    return ms > 0 ? 1e3 * (double)tokens / ms : 0;
}

void sr_summary_show(const struct answer *a)
{
    const sr_session_stats *s = &a->stats;
    const sr_route_stats *r = &s->route;
    char bytes[24], text[400];
    int n = snprintf(text, sizeof text, "prefill %d tok %.1f/s", a->prefilled,
                     rate(s->prefill_tokens, s->prefill_ms));
    if (a->reused) n += snprintf(text + n, sizeof text - (size_t)n, " (%d reused)", a->reused);
    n += snprintf(text + n, sizeof text - (size_t)n, " | decode %lld tok %.1f/s", (long long)s->decode_tokens,
                  rate(s->decode_tokens, s->decode_ms));
    if (r->steps > 0 && r->dense_bytes > 0 && r->units > 0) {
        n += snprintf(text + n, sizeof text - (size_t)n,
                      " | KV read %s/tok, %.1f %% of dense | near-only %.0f %%",
                      sr_bytes_text(bytes, sizeof bytes, (double)r->kv_bytes / (double)r->steps),
                      100.0 * (double)r->kv_bytes / (double)r->dense_bytes,
                      100.0 * (double)(r->units_near + r->units_none) / (double)r->units);
        n += snprintf(text + n, sizeof text - (size_t)n, " | audits %lld, broken %lld of %lld",
                      (long long)r->audits, (long long)r->broken, (long long)r->cases);
        if (r->far_rows > 0) /* of the far rows that audited decisions listed */
            n += snprintf(text + n, sizeof text - (size_t)n, ", correction +%.0f %% of far rows",
                          100.0 * ((double)r->far_rows / (double)(r->far_rows_uncorrected ? r->far_rows_uncorrected : 1) - 1));
        if (r->units_open > 0)
            snprintf(text + n, sizeof text - (size_t)n, ", read whole by breakers %.1f %%",
                     100.0 * (double)r->units_open / (double)r->units);
    }
    sr_note("%s", text);
    if (a->thinks && (a->thinking.thinking || a->thinking.forced))
        sr_note("thinking %d tok%s%s, answer %d tok", a->thinking.thinking,
                a->thinking.ended_by_budget ? ", ended by the budget" : "", a->thinking.is_open ? ", not ended" : "", a->thinking.answer);
}
