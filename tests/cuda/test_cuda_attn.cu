// SPDX-License-Identifier: Apache-2.0
//
// Checks the CUDA attention ops against plain loops in double: new rows, every kind of choice in every shape and type,
// sketch codes, the choice of `mass`, the paper's cosine, audits, counters, and the same bits twice. Tolerances come from
// the element types and the sizes of the sums. Without a GPU it says SKIP. SR_PLANT=1 spoils one output, so that the
// program must fail.
#include "attn_cache_cuda.h"

// How a call says what it wants: kinds and lists; kinds of which none has a list; one kind for all.
enum wish { LISTS, KINDS, ONE_KIND };

static void check_kinds(const shape &s, const std::vector<int> &kinds, bool with_state, wish how = LISTS, int sinks = 4)
{
    world w(s);
    const int window = 48, heads = w.n_units * s.group;
    std::vector<uint8_t> kh(w.n_units);
    std::vector<int32_t> lh((size_t)w.n_units * s.len), nh(w.n_units);
    std::vector<std::vector<int>> lists(w.n_units);
    for (int u = 0; u < w.n_units; u++) {
        kh[u] = (uint8_t)kinds[u % kinds.size()];
        const int first = kh[u] == CUDA_READ_LIST ? 0 : sinks, end = kh[u] == CUDA_READ_LIST ? w.len[u / s.n_kv] : w.len[u / s.n_kv] - window;
        if (kh[u] == CUDA_READ_NEAR_LIST && sinks + window >= w.len[u / s.n_kv]) kh[u] = CUDA_READ_NEAR;
        for (int i = first; i < end; i++)
            if (rng() % 3 == 0) lists[u].push_back(i);
        nh[u] = (int)lists[u].size();
        std::copy(lists[u].begin(), lists[u].end(), lh.begin() + (size_t)u * s.len);
    }
    const array<uint8_t> dk(kh);
    const array<int32_t> dl(lh), dn(nh);
    array<float> out((size_t)heads * s.d, 0xff), o((size_t)heads * s.d, 0xff), m(heads, 0xff), l(heads, 0xff);
    array<attn_cuda_counters> counters(w.n_units);
    attn_cuda_attend a = {};
    a.q = w.q.p, a.scale = (float)w.scale(), a.kinds = dk.p, a.list = dl.p, a.n_list = dn.p, a.list_stride = s.len;
    a.n_sinks = sinks, a.window = window, a.out = out.p, a.counters = counters.p;
    if (how != LISTS) a.list = NULL, a.n_list = NULL, a.list_stride = 0;
    if (how == ONE_KIND) a.kinds = NULL, a.kind = (enum attn_cuda_kind)kinds[0], a.after_append = 1;
    if (with_state) a.state = attn_state{o.p, m.p, l.p};
    TRY(sr_attn_cuda_attend(&w.c, &w.cache, &a, &err));
    CHECK(cudaDeviceSynchronize());
    std::vector<float> got = out.get(), go = o.get(), gm = m.get(), gl = l.get();
    const std::vector<attn_cuda_counters> ch = counters.get();
    if (plant) got[got.size() / 2] += 0.1f;
    double worst = 0;
    std::string why;
    for (int u = 0; u < w.n_units; u++) {
        const std::vector<int> rows = rows_of(kh[u], w.len[u / s.n_kv], sinks, window, lists[u]);
        if (ch[u].k_rows != rows.size() || ch[u].v_rows != rows.size()) worst = INFINITY, why = "rows counted";
        for (int h = 0; h < s.group; h++) {
            const truth t = attend(w, u, h, rows);
            const size_t at = (size_t)u * s.group + h;
            for (int j = 0; j < s.d; j++) {
                const double want = t.l == 0 ? 0 : t.o[j], tolerance = tolerance_of(w, t, t.size[j]);
                const double e = std::fabs(got[at * s.d + j] - want) / tolerance;
                const double f = with_state && t.l > 0 ? std::fabs(go[at * s.d + j] / gl[at] - want) / tolerance : 0;
                if (!(e <= worst && f <= worst)) worst = std::isnan(e) || std::isnan(f) ? INFINITY : std::max({worst, e, f});
            }
            if (with_state && t.l > 0) worst = std::max(worst, std::fabs(gm[at] + std::log(gl[at]) - t.m - std::log(t.l)) / (16 * unit_of(s.type)));
            if (with_state && t.l == 0 && (gl[at] != 0 || gm[at] != -INFINITY)) worst = INFINITY, why = "empty state";
        }
    }
    const std::string asked = how == LISTS ? "" : how == KINDS ? " no lists" : kinds[0] == CUDA_READ_ALL ? " all" : " window";
    report(worst <= 1, "attend " + name_of(s) + (with_state ? " with state" : "") + asked, why + " worst " + std::to_string(worst) + " of the tolerance");
    // again, near and list apart: the second call merges into the first one's state
    const std::vector<float> first = out.get();
    TRY(sr_attn_cuda_attend(&w.c, &w.cache, &a, &err));
    CHECK(cudaDeviceSynchronize());
    report(out.get() == first && out.guarded() && o.guarded() && m.guarded() && l.guarded(), "same bits twice " + name_of(s), "bits or guard");
}

// Sequences that lie anywhere, with their rows of q and out in another order, get the bits of sequences that lie one behind the other.
static void check_seqs(const shape &s, enum attn_cuda_kind kind)
{
    world w(s);
    if (!sr_attn_cuda_joins(&w.c)) return;
    const int row = s.n_kv * s.group * s.d;
    array<float> out((size_t)row * s.n_seqs, 0xff), moved((size_t)row * s.n_seqs, 0xff);
    array<attn_cuda_counters> counters(w.n_units), apart(w.n_units);
    std::vector<float> qh(w.qh.size());
    attn_cuda_seq seqs[ATTN_CUDA_SEQS];
    for (int i = 0; i < s.n_seqs; i++) {
        const int to = (i + 1) % s.n_seqs, first = i * s.n_kv;
        std::copy_n(w.qh.begin() + (size_t)i * row, row, qh.begin() + (size_t)to * row);
        seqs[i] = attn_cuda_seq{w.cache.k_page + (size_t)first * w.max_pages, w.cache.v_page + (size_t)first * w.max_pages, w.cache.kv_len + i, apart.p + first, w.max_pages, to};
    }
    const array<float> dq(qh);
    attn_cuda_attend a = {};
    a.q = w.q.p, a.scale = (float)w.scale(), a.kind = kind, a.n_sinks = 4, a.window = 48, a.out = out.p, a.counters = counters.p;
    TRY(sr_attn_cuda_attend(&w.c, &w.cache, &a, &err));
    a.q = dq.p, a.out = moved.p, a.counters = NULL;
    TRY(sr_attn_cuda_attend_seqs(&w.c, seqs, s.n_seqs, &a, &err));
    CHECK(cudaDeviceSynchronize());
    const std::vector<float> want = out.get(), got = moved.get();
    const std::vector<attn_cuda_counters> x = counters.get(), y = apart.get();
    bool same = memcmp(x.data(), y.data(), x.size() * sizeof x[0]) == 0;
    for (int i = 0; i < s.n_seqs; i++) same &= std::equal(want.begin() + (size_t)i * row, want.begin() + (size_t)(i + 1) * row, got.begin() + (size_t)((i + 1) % s.n_seqs) * row);
    report(same && moved.guarded(), std::string("sequences apart ") + (kind == CUDA_READ_ALL ? "all " : "window ") + name_of(s), "bits, counters or guard");
}

// Attention over all rows is near rows merged with a list of the others.
static void check_merge(const shape &s, bool one_kind = false)
{
    world w(s);
    const int heads = w.n_units * s.group, sinks = 4, window = 40;
    std::vector<int32_t> lh((size_t)w.n_units * s.len), nh(w.n_units);
    std::vector<uint8_t> k1(w.n_units), k2(w.n_units);
    for (int u = 0; u < w.n_units; u++) {
        const int len = w.len[u / s.n_kv];
        k1[u] = CUDA_READ_NEAR, k2[u] = CUDA_READ_LIST;
        for (int i = sinks; i < len - window; i++) lh[(size_t)u * s.len + nh[u]++] = i;
        if (sinks + window >= len) nh[u] = 0, k2[u] = CUDA_READ_NONE;
    }
    const array<int32_t> dl(lh), dn(nh);
    const array<uint8_t> d1(k1), d2(k2);
    array<float> out((size_t)heads * s.d, 0xff), all((size_t)heads * s.d, 0xff), o((size_t)heads * s.d), m(heads), l(heads);
    attn_cuda_attend a = {};
    a.q = w.q.p, a.scale = (float)w.scale(), a.kinds = d1.p, a.list = dl.p, a.n_list = dn.p, a.list_stride = s.len, a.n_sinks = sinks, a.window = window;
    a.state = attn_state{o.p, m.p, l.p};
    attn_cuda_attend near = a;
    if (one_kind) near.kinds = NULL, near.kind = CUDA_READ_NEAR, near.list = NULL, near.n_list = NULL;
    TRY(sr_attn_cuda_attend(&w.c, &w.cache, &near, &err));
    a.kinds = d2.p, a.merge = 1, a.out = out.p;
    TRY(sr_attn_cuda_attend(&w.c, &w.cache, &a, &err));
    attn_cuda_attend b = {};
    b.q = w.q.p, b.scale = a.scale, b.kind = CUDA_READ_ALL, b.out = all.p;
    TRY(sr_attn_cuda_attend(&w.c, &w.cache, &b, &err));
    CHECK(cudaDeviceSynchronize());
    const std::vector<float> x = out.get(), y = all.get();
    double worst = 0;
    for (size_t i = 0; i < x.size(); i++) worst = std::max(worst, std::fabs((double)x[i] - y[i]) / (8 * unit_of(s.type) * 0.5 + 1e-5));
    report(worst <= 1, "near and list merge to all " + name_of(s), "worst " + std::to_string(worst));
}

// ---- sketch ----

static uint32_t code_at(const world &w, const std::vector<uint8_t> &bytes, const std::vector<void *> &table, int u, int row, int j)
{
    const uint32_t *p = (const uint32_t *)(bytes.data() + ((uint8_t *)table[(size_t)u * w.max_pages + row / 64] - w.y.p));
    const int step = j / 16, t = j % 16 / 4, c = j % 4, r = row % 64, lane = r % 8 * 4 + t, i = r / 8;
    if (w.bits == 8) return p[step * 256 + lane * 8 + i] >> (c * 8) & 255u;
    return p[step * 128 + lane * 4 + i / 2] >> ((c / 2 * 2 + i % 2) * 4 + c % 2 * 16) & 15u;
}

// Codes that are not those of either side of a coordinate's rounding error.
static int wrong_codes(const world &w, const bases &b, const std::vector<uint8_t> &yb, const std::vector<void *> &table, int sinks, int window)
{
    int wrong = 0;
    for (int u = 0; u < w.n_units; u++)
        for (int row = sinks; row < w.len[u / w.s.n_kv] - window; row++)
            for (int j = 0; j < w.rank; j++) {
                double y = 0;
                for (int i = 0; i < w.s.d; i++) y += b.part(u, 1)[(size_t)j * w.s.d + i] * (w.kr(u, row, i) - b.part(u, 0)[i]);
                y = y / b.part(u, 3)[j] + (1 << (w.bits - 1));
                const double lo = std::floor(y - 1e-4), hi = std::floor(y + 1e-4), top = (1 << w.bits) - 1, code = code_at(w, yb, table, u, row, j);
                wrong += code != std::min(std::max(lo, 0.0), top) && code != std::min(std::max(hi, 0.0), top);
            }
    return wrong;
}

// Found sinks are listed beside what was chosen, in unit 0 and wherever they lie; the last unit's breaker is open.
static void check_found(const world &w, attn_cuda_choose a, const array<uint8_t> &kinds, const array<int32_t> &list, const array<int32_t> &n_list,
                        const std::string &name)
{
    const int end = w.len[0] - a.window, rows[5] = {a.n_sinks - 1, a.n_sinks, end / 2, end - 1, end};
    const std::vector<int32_t> before = list.get(), n_before = n_list.get();
    std::vector<found_sinks> found(w.n_units, found_sinks{});
    std::vector<uint8_t> trust(w.n_units, CUDA_ROUTED);
    found[0].n = 5, trust.back() = CUDA_WHOLE;
    std::copy(rows, rows + 5, found[0].rows);
    const array<found_sinks> df(found);
    const array<uint8_t> dt(trust);
    const array<float> deps(std::vector<float>(w.s.n_seqs, 1e-3f));
    array<int32_t> n_chosen((size_t)w.n_units * 2, 0xff);
    a.found = df.p, a.trust = dt.p, a.n_chosen = n_chosen.p, a.plain_eps = deps.p;
    TRY(sr_attn_cuda_choose(&w.c, &w.cache, &a, &err));
    std::vector<int32_t> want(before.begin(), before.begin() + n_before[0]), got = list.get(), n = n_chosen.get();
    for (int i = 1; i < 4; i++)
        if (std::find(want.begin(), want.end(), rows[i]) == want.end()) want.push_back(rows[i]);
    std::sort(want.begin(), want.end());
    const int n_got = n_list.get()[0];
    bool good = n_got == (int)want.size() && std::equal(want.begin(), want.end(), got.begin()) && kinds.get()[0] == CUDA_READ_NEAR_LIST;
    good &= n[0] == n_before[0] && n[1] >= n[0] && kinds.get()[w.n_units - 1] == CUDA_READ_ALL && n[2 * w.n_units - 2] == 0;
    report(good, "found sinks, open breaker " + name, std::to_string(n_got) + " rows, want " + std::to_string(want.size()));
}

// With so little room that a sketch is read in several loads.
static void choose_in_loads(const world &w, attn_cuda_choose a)
{
    a.levels = 8;
    TRY(sr_attn_cuda_choose(&w.c, &w.cache, &a, &err));
    CHECK(cudaDeviceSynchronize());
}

// Rows drawn by lot: about as many as asked for, rising, and the same ones where they come in several loads.
static void check_drawn(const world &w, attn_cuda_choose a, const array<int32_t> &list, const array<int32_t> &n_list, const std::string &name)
{
    const array<float> keep(std::vector<float>(w.n_units, 0.3f));
    std::vector<int32_t> lists[2], counts[2];
    a.keep = keep.p;
    for (int i = 0; i < 2; i++) {
        a.levels = 8 * i;
        TRY(sr_attn_cuda_choose(&w.c, &w.cache, &a, &err));
        CHECK(cudaDeviceSynchronize());
        lists[i] = list.get(), counts[i] = n_list.get();
    }
    bool good = counts[0] == counts[1];
    for (int u = 0; u < w.n_units && good; u++) {
        const int end = w.len[u / w.s.n_kv] - a.window, n_far = end - a.n_sinks, n = counts[0][u];
        const int32_t *x = lists[0].data() + (size_t)u * w.s.len;
        if (w.len[u / w.s.n_kv] < a.min_len || n_far <= 0) continue;
        good = n <= n_far && std::equal(x, x + n, lists[1].data() + (size_t)u * w.s.len) && (n == 0 || (x[0] >= a.n_sinks && x[n - 1] < end));
        for (int i = 1; i < n; i++) good &= x[i] > x[i - 1];
        good &= std::fabs(n - 0.3 * n_far) <= 8 * std::sqrt(0.21 * n_far);
    }
    report(good, "rows by lot " + name, "list");
}

// A choice that encodes the newest far row, whose codes were another basis's before.
static void choose_and_encode(const world &w, attn_cuda_encode e, attn_cuda_choose a, const std::vector<uint8_t> &codes, const std::string &name)
{
    const bases other(w);
    const array<sketch_basis> basis(other.table);
    e.sketch.basis = basis.p, a.encodes = 1;
    TRY(sr_attn_cuda_encode(&w.c, &w.cache, &e, &err));
    const bool is_spoilt = w.y.get() != codes;
    TRY(sr_attn_cuda_choose(&w.c, &w.cache, &a, &err));
    report(is_spoilt && w.y.get() == codes, "encode in the choice " + name, "other codes");
}

static void check_mass(const shape &s, int rank, int bits, float eps)
{
    world w(s, rank, bits);
    const bases b(w);
    const int sinks = 4, window = 48, min_len = 100, heads = w.n_units * s.group;
    const array<sketch_basis> db(b.table);
    array<attn_cuda_counters> counters(w.n_units);
    attn_cuda_encode e = {{rank, bits, db.p}, sinks, window, INT32_MAX, counters.p};
    TRY(sr_attn_cuda_encode(&w.c, &w.cache, &e, &err));
    e.n_last = 1;
    TRY(sr_attn_cuda_encode(&w.c, &w.cache, &e, &err)); // the last row once more
    CHECK(cudaDeviceSynchronize());
    const std::vector<uint8_t> yb = w.y.get();
    const std::vector<void *> table = w.yt.get();
    const int wrong = wrong_codes(w, b, yb, table, sinks, window);
    char text[96];
    snprintf(text, sizeof text, " rank %d bits %d eps %g", rank, bits, eps);
    report(wrong == 0, "encode " + name_of(s) + text, std::to_string(wrong) + " codes");

    array<uint8_t> kinds(w.n_units, 0xff);
    array<int32_t> list((size_t)w.n_units * s.len, 0xff), n_list(w.n_units, 0xff);
    array<float> unread(heads, 0xff), logits((size_t)heads * s.len), de(std::vector<float>(s.n_seqs, eps));
    attn_cuda_choose a = {};
    a.sketch = e.sketch, a.q = w.q.p, a.scale = (float)w.scale(), a.n_sinks = sinks, a.window = window, a.min_len = min_len, a.eps = de.p;
    a.kinds = kinds.p, a.list = list.p, a.n_list = n_list.p, a.list_stride = s.len, a.unread = unread.p, a.logits = logits.p, a.counters = counters.p;
    choose_and_encode(w, e, a, yb, name_of(s) + text);
    const std::vector<uint8_t> kh = kinds.get();
    const std::vector<int32_t> lh = list.get(), nh = n_list.get();
    std::vector<float> gl = logits.get(), un = unread.get();
    if (plant) gl[(size_t)s.len / 2] += 1;
    double worst = 0;
    std::string why;
    for (int u = 0; u < w.n_units; u++) {
        const int len = w.len[u / s.n_kv], end = len - window, n_far = end - sinks;
        if (len < min_len || len <= sinks + window) {
            if (kh[u] != CUDA_READ_ALL) worst = INFINITY, why = "short sequences are read whole";
            continue;
        }
        std::vector<double> top(len, -INFINITY), far(s.group), total(s.group);
        std::vector<std::vector<double>> share(s.group, std::vector<double>(len, 0));
        std::vector<int> near;
        for (int i = 0; i < len; i++)
            if (i < sinks || i >= end) near.push_back(i);
        for (int h = 0; h < s.group; h++) {
            const float *q = w.qh.data() + ((size_t)u * s.group + h) * s.d;
            double base = 0, more = 0, spread = 0;
            std::vector<double> z(s.d);
            for (int j = 0; j < s.d; j++) {
                for (int i = 0; i < s.d; i++) z[j] += b.part(u, 2)[(size_t)j * s.d + i] * q[i] * w.scale();
                base += q[j] * w.scale() * b.part(u, 0)[j];
                const double y = j < rank ? z[j] * b.part(u, 3)[j] : 0;
                more += j < rank ? y * y / 12 : z[j] * z[j] * b.part(u, 4)[j];
                spread += std::fabs(y) * (1 << bits);
            }
            const truth t = attend(w, u, h, near);
            double sum = 0;
            for (int row = sinks; row < end; row++) {
                double x = base + more / 2;
                for (int j = 0; j < rank; j++) x += z[j] * b.part(u, 3)[j] * ((double)code_at(w, yb, table, u, row, j) - (1 << (bits - 1)) + 0.5);
                const double e1 = std::fabs(gl[((size_t)u * s.group + h) * s.len + row] - x) / (4e-6 * (spread + std::fabs(base) + more) + 1e-6);
                if (!(e1 <= 1)) worst = std::isnan(e1) ? INFINITY : std::max(worst, e1), why = "logits ";
                share[h][row] = x;
                sum += std::exp(x - t.m);
            }
            total[h] = t.m + std::log(t.l + sum);
            far[h] = sum / (t.l + sum);
            for (int row = sinks; row < end; row++) top[row] = std::max(top[row], share[h][row] - total[h]), share[h][row] = std::exp(share[h][row] - total[h]);
        }
        // what is not on the list weighs at most eps and has no row of eps / SR_SKETCH_SURE; with one bin less it would not be so
        const double cut = std::min(std::log(eps / (double)n_far), -1e-3), width = -cut / 512, sure = std::max(std::log(eps / (double)SR_SKETCH_SURE), cut);
        std::vector<char> chosen(len, 0);
        double least = 0;
        for (int i = 0; i < nh[u]; i++) {
            const int row = lh[(size_t)u * s.len + i];
            if (row < sinks || row >= end || chosen[row] || (i && row <= lh[(size_t)u * s.len + i - 1])) { worst = INFINITY, why = "list"; break; }
            chosen[row] = 1;
            least = std::min(least, top[row]);
        }
        bool tight = nh[u] == 0 || least >= sure - width - 1e-4;
        std::string loose;
        for (int h = 0; h < s.group; h++) {
            double left = 0, with_last = 0;
            for (int row = sinks; row < end; row++) {
                left += chosen[row] ? 0 : share[h][row];
                with_last += chosen[row] && top[row] > least + width + 1e-4 ? 0 : share[h][row];
            }
            if (!(left <= eps + 1e-4)) worst = INFINITY, why = "left " + std::to_string(left);
            if (std::fabs(left - un[u * s.group + h]) > 1e-3 && nh[u] > 0) worst = INFINITY, why = "unread " + std::to_string(left) + " and " + std::to_string(un[u * s.group + h]);
            tight |= with_last > eps - 1e-4;
            loose += ", " + std::to_string(left) + " to " + std::to_string(with_last) + " of " + std::to_string(far[h]);
        }
        for (int row = sinks; row < end; row++)
            if (!chosen[row] && top[row] > (nh[u] ? std::min(sure, least + width) : sure) + 1e-4) worst = INFINITY, why = "a larger share left out";
        if (!tight) worst = INFINITY, why += " more than needed: " + std::to_string(nh[u]) + " rows, least " + std::to_string(least) + loose;
        if (kh[u] != (nh[u] ? CUDA_READ_NEAR_LIST : CUDA_READ_NEAR)) worst = INFINITY, why = "kind";
    }
    report(worst <= 1, "choose " + name_of(s) + text, why + " worst " + std::to_string(worst));
    choose_in_loads(w, a);
    report(list.get() == lh && n_list.get() == nh && list.guarded() && n_list.guarded() && logits.guarded(), "same list twice " + name_of(s) + text, "list or guard");
    if (w.n_units > 1) check_found(w, a, kinds, list, n_list, name_of(s) + text);
    check_drawn(w, a, list, n_list, name_of(s) + text);
}

// ---- paper and audit ----

static void check_paper(const shape &s)
{
    world w(s);
    array<float> score(w.n_units, 0xff);
    array<uint8_t> kinds(w.n_units, 0xff);
    attn_cuda_paper a = {};
    a.q = w.q.p, a.tau[0] = 0.0, a.min_len = 8, a.score = score.p, a.kinds = kinds.p;
    TRY(sr_attn_cuda_paper(&w.c, &w.cache, &a, &err));
    CHECK(cudaDeviceSynchronize());
    const std::vector<float> got = score.get();
    const std::vector<uint8_t> kh = kinds.get();
    bool good = true;
    for (int u = 0; u < w.n_units; u++) {
        double want = 0;
        for (int h = 0; h < s.group; h++) {
            double qk = 0, qq = 0, kk = 0;
            for (int i = 0; i < s.d; i++) {
                const double x = w.qh[((size_t)u * s.group + h) * s.d + i], y = w.kr(u, 0, i);
                qk += x * y, qq += x * x, kk += y * y;
            }
            want += qk / std::sqrt(qq * kk) / s.group;
        }
        good &= std::fabs(got[u] - want) < 1e-6 && kh[u] == (w.len[u / s.n_kv] >= 8 && got[u] > 0 ? CUDA_READ_NONE : CUDA_READ_ALL);
    }
    report(good, "paper " + name_of(s), "score or kind");
}

static void check_audit(const shape &s)
{
    world w(s);
    const int heads = w.n_units * s.group, sinks = 4, window = 48;
    const float eps = 0.3f;
    array<float> out((size_t)heads * s.d), o((size_t)heads * s.d), m(heads), l(heads), o2((size_t)heads * s.d), m2(heads), l2(heads), de(std::vector<float>(s.n_seqs, eps));
    array<uint8_t> kinds(w.n_units);
    array<attn_cuda_counters> counters(w.n_units);
    array<attn_cuda_case> cases(w.n_units);
    const array<float> one(std::vector<float>(s.n_seqs, 1.0f));
    attn_cuda_attend a = {};
    a.q = w.q.p, a.scale = (float)w.scale(), a.kind = CUDA_READ_NEAR, a.n_sinks = sinks, a.window = window, a.out = out.p, a.state = attn_state{o.p, m.p, l.p};
    TRY(sr_attn_cuda_attend(&w.c, &w.cache, &a, &err));
    attn_cuda_audit x = {};
    x.q = w.q.p, x.scale = a.scale, x.fraction = one.p, x.is_routed = 1, x.kind = CUDA_READ_NEAR, x.n_sinks = sinks, x.window = window, x.keeps_near = 1, x.eps = de.p, x.state = a.state, x.out = out.p;
    x.dense = attn_state{o2.p, m2.p, l2.p}, x.kinds = kinds.p, x.counters = counters.p, x.cases = cases.p, x.is_watched = 1;
    TRY(sr_attn_cuda_audit(&w.c, &w.cache, &x, &err));
    CHECK(cudaDeviceSynchronize());
    const std::vector<attn_cuda_counters> got = counters.get();
    const std::vector<attn_cuda_case> told = cases.get();
    bool good = true;
    for (int u = 0; u < w.n_units; u++) {
        const int len = w.len[u / s.n_kv];
        double unread = 0;
        uint64_t above = 0;
        for (int h = 0; h < s.group && len > sinks + window; h++) {
            const truth near = attend(w, u, h, rows_of(CUDA_READ_NEAR, len, sinks, window, {})), all = attend(w, u, h, rows_of(CUDA_READ_ALL, len, sinks, window, {}));
            const double x1 = 1 - near.l / all.l * std::exp(near.m - all.m);
            unread += x1, above += x1 > eps;
            double first = 0, spread = 0;
            for (int i = 0; i < s.d; i++) {
                const double x = w.qh[((size_t)u * s.group + h) * s.d + i] * w.kr(u, 0, i) * w.scale();
                first += x, spread += std::fabs(x);
            }
            good &= std::fabs(told[u].unread[h] - x1) < 0.02 && std::fabs(told[u].sink[h] - std::exp(first - all.m) / all.l) < 4 * unit_of(s.type) * spread + 1e-5;
        }
        const bool routed = len > sinks + window;
        good &= got[u].audits == (routed ? 1u : 0u) && got[u].cases == (routed ? (uint64_t)s.group : 0u) && got[u].audit_rows == (routed ? (uint64_t)len : 0u);
        good &= told[u].kv_len == len && told[u].is_drawn == (routed ? 1 : 0) && std::fabs(got[u].unread_sum - unread) < 0.02 * s.group && std::llabs((long long)got[u].above_eps - (long long)above) <= 1;
    }
    report(good, "audit " + name_of(s), "record");
}

// No lists: kernels of their own on Hopper.
static void check_plain(sr_dtype t, bool quick)
{
    const std::vector<int> all = {CUDA_READ_ALL}, near = {CUDA_READ_NEAR}, some = {CUDA_READ_NONE, CUDA_READ_ALL, CUDA_READ_ALL, CUDA_READ_NONE, CUDA_READ_NEAR};
    for (int d : {64, 80, 96, 128, 256}) {
        if (d == 80 && t == SR_DTYPE_Q8_0) continue;
        check_kinds(shape{d, 4, 2, 1, quick ? 333 : 777, t}, all, true, ONE_KIND);
        check_kinds(shape{d, 12, 3, 1, quick ? 200 : 900, t}, near, false, ONE_KIND, 20);
        check_kinds(shape{d, 7, 5, 1, quick ? 301 : 1301, t}, some, true, KINDS);
        if (quick) continue;
        check_kinds(shape{d, 16, 2, 1, 6000, t}, all, false, ONE_KIND);
        check_kinds(shape{d, 12, 2, 7, 700, t}, all, true, ONE_KIND); // several sequences: a line of tiles
    }
    check_merge(shape{128, 4, 2, 1, quick ? 200 : 400, t}, true);
    check_kinds(shape{128, 4, 3, quick ? 2 : 50, quick ? 300 : 500, t}, all, true, ONE_KIND); // blocks cross from unit to unit
    check_seqs(shape{128, 4, 3, 2, 300, t}, CUDA_READ_ALL);
    check_seqs(shape{64, 4, 8, ATTN_CUDA_SEQS, quick ? 300 : 4000, t}, CUDA_READ_ALL);
    check_seqs(shape{128, 12, 2, 5, quick ? 300 : 2000, t}, CUDA_READ_NEAR);
    for (int d : {t == SR_DTYPE_Q8_0 ? 64 : 80, 96, 256}) check_seqs(shape{d, 7, 2, 7, 700, t}, CUDA_READ_ALL);
    if (quick) return;
    check_kinds(shape{128, 4, 8, 3, 3000, t}, near, true, ONE_KIND);
    check_kinds(shape{64, 4, 40, 1, 3000, t}, all, true, ONE_KIND);   // one sequence, more units than a warp has lanes
    check_kinds(shape{128, 4, 8, 1, 20000, t}, all, true, ONE_KIND);
    check_kinds(shape{128, 8, 8, 1, 20000, t}, some, true, KINDS);
    check_kinds(shape{64, 4, 1, 1, 40000, t}, all, true, ONE_KIND);   // as many parts as there are blocks
    for (int len : {1, 16, 17, 51, 52, 53, 64, 65, 68, 69, 84, 85, 127, 129, 2100}) check_kinds(shape{128, 4, 2, 1, len, t}, near, true, ONE_KIND, len % 2 ? 4 : 20);
}

int main(void)
{
    want_gpu();
    plant = getenv("SR_PLANT") != NULL;
    const bool quick = getenv("SR_QUICK") != NULL;
    const sr_dtype types[] = {SR_DTYPE_BF16, SR_DTYPE_F16, SR_DTYPE_F8_E4M3, SR_DTYPE_Q8_0};
    const std::vector<int> all = {CUDA_READ_ALL}, mixed = {CUDA_READ_ALL, CUDA_READ_NONE, CUDA_READ_NEAR, CUDA_READ_LIST, CUDA_READ_NEAR_LIST};
    for (sr_dtype t : types) {
        for (int d : {64, 80, 96, 128, 256}) {
            if (d == 80 && t == SR_DTYPE_Q8_0) continue;
            check_kinds(shape{d, 4, 2, 1, quick ? 300 : 777, t}, all, false);
            check_kinds(shape{d, 12, 5, quick ? 1 : 3, quick ? 200 : 301, t}, mixed, true);
            if (quick) continue;
            check_kinds(shape{d, 1, 3, 2, 130, t}, mixed, true);
            check_kinds(shape{d, 7, 2, 2, 1500, t}, mixed, false);
            check_kinds(shape{d, 16, 1, 1, 5000, t}, all, true);
            check_kinds(shape{d, 5, 8, 12, 200, t}, mixed, true); // more units than a warp has lanes
        }
        check_merge(shape{128, 8, 2, 2, quick ? 150 : 400, t});
        check_plain(t, quick);
        check_paper(shape{128, 4, 3, 2, 70, t});
        check_audit(shape{64, 4, 2, 2, quick ? 150 : 300, t});
        check_mass(shape{128, 4, 2, 1, quick ? 500 : 1200, t}, 32, 4, 0.1f);
        if (quick) continue;
        check_mass(shape{64, 3, 3, 2, 900, t}, 16, 4, 0.3f);
        check_mass(shape{128, 8, 8, 20, 150, t}, 32, 8, 0.2f); // more units than blocks
        check_mass(shape{96, 16, 2, 1, 2000, t}, 24, 4, 0.02f);
    }
    check_mass(shape{64, 4, 8, 9, quick ? 300 : 3000, SR_DTYPE_BF16}, 16, 4, 0.1f); // one block a unit, three pages a warp
    check_mass(shape{128, 7, 2, 1, quick ? 400 : 1500, SR_DTYPE_BF16}, 32, 4, 0.1f);
    check_mass(shape{256, 4, 2, 1, quick ? 300 : 700, SR_DTYPE_F16}, 64, 4, 0.1f);   // pages of more than two steps
    check_mass(shape{128, 6, quick ? 2 : 8, quick ? 1 : 9, quick ? 300 : 2500, SR_DTYPE_BF16}, 48, 8, 0.1f);
    check_mass(shape{128, 12, 3, 1, quick ? 300 : 600, SR_DTYPE_F16}, 128, 4, 0.1f);
    for (int len : {1, 15, 16, 17, 63, 64, 65}) check_kinds(shape{128, 4, 2, 1, len, SR_DTYPE_BF16}, mixed, true);
    if (!quick) check_kinds(shape{128, 4, 1, 1, 20000, SR_DTYPE_BF16}, all, true); // one unit over all blocks: merged in two levels
    if (!quick) check_kinds(shape{64, 2, 30, 10, 90, SR_DTYPE_F16}, mixed, true);  // a line: blocks cross units
    return end_tests();
}
