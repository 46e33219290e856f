// SPDX-License-Identifier: Apache-2.0
//
// Checks the second look of `mass` on a GPU against plain loops in double: what a choice leaves for it, how far it reads on
// for a state that is made up so that the estimate was right, too high or too low, and what becomes of that state; then the same
// within attention, by thresholds other than the choice's. Without a GPU it says SKIP. SR_PLANT=1 spoils one output, so that the program must fail.
#include "attn_cache_cuda.h"
#include "cuda/sketch_parts.cuh"

#include <cstring>

constexpr int SINKS = 4, WINDOW = 48;

// ---- a choice that a look follows ----

struct chosen {
    const world &w;
    const bases b;
    float eps;
    array<sketch_basis> basis;
    array<uint8_t> kinds, trust;
    array<int32_t> list, n_list;
    array<float> unread, logits, total, de;
    array<found_sinks> found;
    attn_cuda_choose a = {};
    // as it came out
    std::vector<uint8_t> kh;
    std::vector<int32_t> lh, nh;
    std::vector<float> uh, xh, th;
    std::vector<sr::choose_rest> rest;

    chosen(const world &w_, float eps_, double away);
    void run();
    int end(int u) const { return w.len[u / w.s.n_kv] - WINDOW; }
    std::vector<int> found_of(int u) const;
    double logit(int u, int h, int row) const { return xh[((size_t)u * w.s.group + h) * w.s.len + row]; }
};

// Sinks are found in every other unit, the last of them below the far rows and beyond them.
static std::vector<found_sinks> sinks_of(const world &w)
{
    std::vector<found_sinks> found(w.n_units, found_sinks{});
    for (int u = 0; u < w.n_units; u += 2) {
        const int end = w.len[u / w.s.n_kv] - WINDOW;
        for (int row : {SINKS - 1, SINKS, end / 3, end / 2, end / 2 + 1, end - 1, end, end + 5})
            if (row >= 0 && (found[u].n == 0 || row > found[u].rows[found[u].n - 1])) found[u].rows[found[u].n++] = row;
    }
    return found;
}

static std::vector<uint8_t> trust_of(const world &w)
{
    std::vector<uint8_t> trust(w.n_units, CUDA_ROUTED);
    if (w.n_units > 1) trust.back() = CUDA_WHOLE;
    return trust;
}

chosen::chosen(const world &w_, float eps_, double away)
    : w(w_), b(w_, away), eps(eps_), basis(b.table), kinds(w.n_units, 0xff), trust(trust_of(w)), list((size_t)w.n_units * w.s.len, 0xff), n_list(w.n_units, 0xff),
      unread((size_t)w.n_units * w.s.group, 0xff), logits((size_t)w.n_units * w.s.group * w.s.len), total((size_t)w.n_units * w.s.group, 0xff),
      de(std::vector<float>(w.s.n_seqs, eps_)), found(sinks_of(w))
{
    const attn_cuda_encode e = {{w.rank, w.bits, basis.p}, SINKS, WINDOW, INT32_MAX, NULL};
    TRY(sr_attn_cuda_encode(&w.c, &w.cache, &e, &err));
    a.sketch = e.sketch, a.q = w.q.p, a.scale = (float)w.scale(), a.n_sinks = SINKS, a.window = WINDOW, a.min_len = 100, a.eps = de.p, a.found = found.p;
    a.trust = trust.p, a.total = total.p, a.kinds = kinds.p, a.list = list.p, a.n_list = n_list.p, a.list_stride = w.s.len, a.unread = unread.p;
    a.logits = logits.p, a.look = 1;
    run();
    lh = list.get(), nh = n_list.get(), kh = kinds.get(), uh = unread.get(), xh = logits.get(), th = total.get();
    attn_work work;
    sr_attn_work_place(&work, w.c.workspace, &w.c.card, &w.c.limits);
    rest.resize(w.n_units);
    CHECK(cudaMemcpy(rest.data(), work.rests, rest.size() * sizeof rest[0], cudaMemcpyDeviceToHost));
}

void chosen::run()
{
    TRY(sr_attn_cuda_choose(&w.c, &w.cache, &a, &err));
    CHECK(cudaDeviceSynchronize());
}

std::vector<int> chosen::found_of(int u) const
{
    const found_sinks f = found.get()[u];
    std::vector<int> rows;
    for (int i = 0; i < f.n; i++)
        if (f.rows[i] >= SINKS && f.rows[i] < end(u)) rows.push_back(f.rows[i]);
    return rows;
}

// ---- of a unit, in double ----

struct shares {
    int n_far;
    std::vector<std::vector<double>> of;                     // [head][row], 0 for what is no far row, or is found
    std::vector<double> near, read, unread, log_total, top;  // by head; top: log of the largest share, by row
    std::vector<char> is_read;
    double cut;
    int bin(int row) const { return (int)std::min(std::max(top[row] / cut * (int)CHOOSE_BINS, 0.0), (int)CHOOSE_BINS - 1.0); }
};

static shares shares_of(const chosen &c, int u)
{
    const world &w = c.w;
    const int len = w.len[u / w.s.n_kv], end = c.end(u), group = w.s.group;
    shares s = {end - SINKS, std::vector<std::vector<double>>(group, std::vector<double>(len, 0)), std::vector<double>(group), std::vector<double>(group),
                std::vector<double>(group), std::vector<double>(group), std::vector<double>(len, -INFINITY), std::vector<char>(len, 0), 0};
    std::vector<int> near = rows_of(CUDA_READ_NEAR, len, SINKS, WINDOW, {});
    const std::vector<int> found = c.found_of(u);
    near.insert(near.end(), found.begin(), found.end());
    for (int i = 0; i < c.nh[u]; i++) s.is_read[c.lh[(size_t)u * w.s.len + i]] = 1;
    s.cut = std::min(std::log(c.eps / (double)s.n_far), -1e-3);
    for (int h = 0; h < group; h++) {
        const truth t = attend(w, u, h, near);
        double sum = 0;
        for (int row = SINKS; row < end; row++)
            if (std::find(found.begin(), found.end(), row) == found.end()) sum += s.of[h][row] = std::exp(c.logit(u, h, row) - t.m);
        s.log_total[h] = t.m + std::log(t.l + sum), s.near[h] = t.l / (t.l + sum);
        for (int row = SINKS; row < end; row++) {
            const double x = s.of[h][row] /= t.l + sum;
            (s.is_read[row] ? s.read[h] : s.unread[h]) += x;
            s.top[row] = std::max(s.top[row], std::log(x));
        }
    }
    return s;
}

// Rows of a unit that may be added, by bin; those of its first n in falling order of share.
static std::vector<int> rest_of(const chosen &c, int u)
{
    std::vector<int> x(c.rest[u].n);
    for (int i = 0; i < c.rest[u].n; i++) x[i] = c.lh[(size_t)u * c.w.s.len + c.nh[u] + i];
    std::sort(x.begin(), x.end(), [](int p, int q) { return std::make_pair(p & 511, p) < std::make_pair(q & 511, q); });
    return x;
}

// What is not right of what the choice left for the look, or nothing.
static std::string wrong_rest(const chosen &c, int u, const shares &s)
{
    std::vector<char> is_rest(s.top.size(), 0);
    for (int x : rest_of(c, u)) {
        const int row = x >> 9, bin = x & 511;
        if (row < SINKS || row >= c.end(u) || is_rest[row] || s.is_read[row]) return "row " + std::to_string(row) + " among the rest";
        if (bin < c.rest[u].end || std::abs(bin - s.bin(row)) > 1) return "row " + std::to_string(row) + " in bin " + std::to_string(bin) + ", not " + std::to_string(s.bin(row));
        is_rest[row] = 1;
    }
    const std::vector<int> found = c.found_of(u);
    for (int row : found)
        if (!s.is_read[row]) return "found row " + std::to_string(row) + " not listed";
    for (int row = SINKS; row < c.end(u); row++)
        if (!is_rest[row] && !s.is_read[row] && s.top[row] > s.cut + 1e-4) return "row " + std::to_string(row) + " forgotten";
    for (int h = 0; h < c.w.s.group; h++) {
        const size_t at = (size_t)u * c.w.s.group + h;
        if (std::fabs(c.th[at] - s.log_total[h]) > 1e-3) return "total " + std::to_string(c.th[at]) + ", not " + std::to_string(s.log_total[h]);
        if (std::fabs(c.uh[at] - s.unread[h]) > 1e-3 || !(c.uh[at] <= c.eps + 1e-6)) return "unread " + std::to_string(c.uh[at]) + ", not " + std::to_string(s.unread[h]);
    }
    return "";
}

// ---- the look ----

struct looked { int none, some, all; }; // units that needed no more, more, and all there is

// A state whose far part is `times` what the estimate has for it.
struct made_state {
    std::vector<float> o, m, l;
    made_state(std::vector<float> o_, std::vector<float> m_, std::vector<float> l_) : o(std::move(o_)), m(std::move(m_)), l(std::move(l_)) {}
    made_state(const chosen &c, const std::vector<shares> &s, double times)
        : o(normals((size_t)c.w.n_units * c.w.s.group * c.w.s.d, 1.0f)), m((size_t)c.w.n_units * c.w.s.group), l(m.size())
    {
        for (size_t at = 0; at < m.size(); at++) {
            const size_t u = at / c.w.s.group, h = at % c.w.s.group;
            m[at] = 0, l[at] = 1;
            if (c.kh[u] == CUDA_READ_ALL) continue;
            const double factor = h % 3 == 1 ? 1 : times;
            m[at] = (float)s[u].log_total[h] - 1;
            l[at] = (float)((s[u].near[h] + factor * s[u].read[h]) * std::exp(s[u].log_total[h] - m[at]));
            for (int j = 0; j < c.w.s.d; j++) o[at * c.w.s.d + j] *= l[at];
        }
    }
};

static double scale_of(const shares &s, int h, double all)
{
    const double exact = std::max(all - s.near[h], 0.0), r = std::max(1.0, (exact + s.unread[h]) / (s.read[h] + s.unread[h]));
    return r / (s.near[h] + exact + r * s.unread[h]);
}

// How far the look went, by its n rows; false: not as it should.
static bool check_extent(const chosen &c, int u, const shares &s, const made_state &made, int n, const std::vector<int> &rest, const std::vector<float> &reported, looked &seen, std::string &why)
{
    const double tol = 2e-4;
    bool needs = false, must = false, is_above = false, was_needed = false;
    if (n < 0 || n > (int)rest.size() || (n > 0 && n < (int)rest.size() && (rest[n - 1] & 511) == (rest[n] & 511))) {
        why = std::to_string(n) + " rows are not whole bins";
        return false;
    }
    for (int h = 0; h < c.w.s.group; h++) {
        const size_t at = (size_t)u * c.w.s.group + h;
        const double scale = scale_of(s, h, made.l[at] * std::exp(made.m[at] - s.log_total[h]));
        double after = s.unread[h], last = 0;
        for (int i = 0; i < n; i++) {
            after -= s.of[h][rest[i] >> 9];
            if ((rest[i] & 511) == (rest[n - 1] & 511)) last += s.of[h][rest[i] >> 9];
        }
        needs |= scale * s.unread[h] > c.eps, must |= scale * s.unread[h] > c.eps + tol;
        is_above |= scale * after > c.eps + tol, was_needed |= scale * (after + last) > c.eps - tol;
        if (std::fabs(reported[at] - scale * after) > tol * scale) why = "unread " + std::to_string(reported[at]) + ", not " + std::to_string(scale * after);
    }
    if (is_above && n < (int)rest.size()) why = "too much is left unread";
    if (n > 0 && !was_needed) why = "the last bin was not needed";
    if (must && n == 0 && !rest.empty()) why = "nothing was added";
    (!needs ? seen.none : n < (int)rest.size() ? seen.some : seen.all)++;
    return why.empty();
}

static double larger(double x, double y) { return std::isnan(y) ? INFINITY : std::max(x, y); }

// The state once the rows are merged in, and the output.
static double state_error(const chosen &c, int u, const made_state &made, const std::vector<int> &added, const std::vector<float> &o, const std::vector<float> &m,
                          const std::vector<float> &l, const std::vector<float> &out)
{
    const world &w = c.w;
    double worst = 0;
    for (int h = 0; h < w.s.group; h++) {
        const size_t at = (size_t)u * w.s.group + h;
        const truth t = attend(w, u, h, added);
        const double top = std::max((double)made.m[at], t.m), own = t.l * std::exp(t.m - top), prior = std::exp(made.m[at] - top), all = own + made.l[at] * prior;
        worst = larger(worst, std::fabs(m[at] + std::log(l[at]) - top - std::log(all)) / 2e-5);
        for (int j = 0; j < w.s.d; j++) {
            const double before = made.o[at * w.s.d + j] * prior, want = (before + t.o[j] * own) / all, tolerance = 2e-5 * (std::fabs(before) + t.size[j] * own) / all + 2e-6;
            worst = larger(larger(worst, std::fabs(out[at * w.s.d + j] - want) / tolerance), std::fabs(o[at * w.s.d + j] / l[at] - want) / tolerance);
        }
    }
    return worst;
}

static void check_look(const shape &s, int rank, float eps, looked &seen, double away = 0)
{
    const world w(s, rank);
    chosen c(w, eps, away);
    const size_t heads = (size_t)w.n_units * s.group;
    char text[64];
    snprintf(text, sizeof text, " eps %g", eps);
    std::vector<shares> shares;
    std::string why;
    for (int u = 0; u < w.n_units; u++) {
        shares.push_back(c.kh[u] == CUDA_READ_ALL ? ::shares{} : shares_of(c, u));
        if (c.kh[u] != CUDA_READ_ALL && c.rest[u].end < CHOOSE_BINS && why.empty()) why = wrong_rest(c, u, shares[u]);
    }
    report(why.empty() && c.list.guarded(), "what a choice leaves " + name_of(s) + text, why);
    for (double times : {1.0, 0.5, 0.1, 0.0, 3.0, 1000.0}) {
        const made_state made(c, shares, times);
        why = "";
        double worst = 0;
        std::vector<float> first;
        for (int round = 0; round < 2; round++) { // the same bits twice
            const array<float> o(made.o), m(made.m), l(made.l);
            array<float> out(heads * s.d, 0xff);
            array<attn_cuda_counters> counters(w.n_units);
            c.run(); // a look goes on from where the one before left off: once a choice
            const attn_cuda_look a = {w.q.p, (float)w.scale(), c.de.p, c.kinds.p, c.list.p, c.n_list.p, s.len, c.unread.p, {o.p, m.p, l.p}, out.p, counters.p, NULL, 0, NULL, 0};
            TRY(sr_attn_cuda_look(&w.c, &w.cache, &a, &err));
            CHECK(cudaDeviceSynchronize());
            std::vector<float> got = out.get(), go = o.get(), gm = m.get(), gl = l.get(), un = c.unread.get();
            const std::vector<uint8_t> kinds = c.kinds.get();
            const std::vector<attn_cuda_counters> count = counters.get();
            if (!out.guarded() || !o.guarded() || !m.guarded() || !l.guarded()) why = "guard";
            if (round == 1 && memcmp(first.data(), go.data(), go.size() * sizeof(float))) why = "other bits";
            first = go;
            if (plant)
                for (float &x : go) x += 0.1f;
            for (int u = 0; u < w.n_units && round == 0; u++) {
                const int n = (int)count[u].k_rows;
                const bool can = c.kh[u] != CUDA_READ_ALL && c.rest[u].end < CHOOSE_BINS, was_near = c.kh[u] == CUDA_READ_NEAR;
                const std::vector<int> rest = can ? rest_of(c, u) : std::vector<int>();
                if (count[u].v_rows != count[u].k_rows || kinds[u] != (n > 0 && was_near ? (int)CUDA_READ_NEAR_LIST : c.kh[u])) why = "counters or kind";
                if (can && !check_extent(c, u, shares[u], made, n, rest, un, seen, why)) break;
                std::vector<int> added;
                for (int i = 0; i < n; i++) added.push_back(rest[i] >> 9);
                if (n > 0) worst = std::max(worst, state_error(c, u, made, added, go, gm, gl, got));
                else if (memcmp(&go[(size_t)u * s.group * s.d], &made.o[(size_t)u * s.group * s.d], s.group * s.d * sizeof(float)) || gl[(size_t)u * s.group] != made.l[(size_t)u * s.group]) why = "a state was touched";
            }
        }
        snprintf(text, sizeof text, " eps %g times %g", eps, times);
        report(why.empty() && worst <= 1, "look " + name_of(s) + text, why + " worst " + std::to_string(worst) + " of the tolerance");
    }
}

// ---- within attention ----

static attn_cuda_attend attend_of(const chosen &c, const attn_state &state, float *out, attn_cuda_counters *counters)
{
    attn_cuda_attend a = {};
    a.q = c.w.q.p, a.scale = (float)c.w.scale(), a.kinds = c.kinds.p, a.list = c.list.p, a.n_list = c.n_list.p, a.list_stride = c.w.s.len;
    a.n_sinks = SINKS, a.window = WINDOW, a.out = out, a.state = state, a.counters = counters;
    return a;
}

// The state that attention alone leaves.
static made_state attended(const chosen &c)
{
    const size_t heads = (size_t)c.w.n_units * c.w.s.group;
    const array<float> o(heads * c.w.s.d, 0xff), m(heads, 0xff), l(heads, 0xff), out(heads * c.w.s.d);
    const attn_cuda_attend a = attend_of(c, {o.p, m.p, l.p}, out.p, NULL);
    TRY(sr_attn_cuda_attend(&c.w.c, &c.w.cache, &a, &err));
    CHECK(cudaDeviceSynchronize());
    return made_state(o.get(), m.get(), l.get());
}

struct result {
    std::vector<float> o, m, l, out, unread;
    std::vector<uint8_t> kinds;
    std::vector<attn_cuda_counters> counters;
    bool guarded;
};

static result attend_and_look(chosen &c, float eps)
{
    const size_t heads = (size_t)c.w.n_units * c.w.s.group;
    const array<float> o(heads * c.w.s.d, 0xff), m(heads, 0xff), l(heads, 0xff), out(heads * c.w.s.d, 0xff), de(std::vector<float>(1, eps));
    const array<attn_cuda_counters> counters(c.w.n_units);
    c.run();
    const attn_cuda_attend a = attend_of(c, {o.p, m.p, l.p}, out.p, counters.p);
    const attn_cuda_look k = {a.q, a.scale, de.p, c.kinds.p, c.list.p, c.n_list.p, a.list_stride, c.unread.p, a.state, out.p, counters.p, NULL, 0, NULL, 0};
    TRY(sr_attn_cuda_attend_and_look(&c.w.c, &c.w.cache, &a, &k, &err));
    CHECK(cudaDeviceSynchronize());
    return {o.get(), m.get(), l.get(), out.get(), c.unread.get(), c.kinds.get(), counters.get(), out.guarded() && o.guarded() && m.guarded() && l.guarded() && counters.guarded()};
}

// Of a unit that read these rows: the largest error of state and output, in tolerances.
static double error_of(const world &w, int u, const std::vector<int> &rows, const result &r)
{
    double worst = 0;
    for (int h = 0; h < w.s.group; h++) {
        const truth t = attend(w, u, h, rows);
        const size_t at = (size_t)u * w.s.group + h;
        worst = larger(worst, std::fabs(r.m[at] + std::log(r.l[at]) - t.m - std::log(t.l)) / (16 * unit_of(w.s.type)));
        for (int j = 0; j < w.s.d; j++) {
            const double tolerance = tolerance_of(w, t, t.size[j]);
            worst = larger(larger(worst, std::fabs(r.out[at * w.s.d + j] - t.o[j]) / tolerance), std::fabs(r.o[at * w.s.d + j] / r.l[at] - t.o[j]) / tolerance);
        }
    }
    return worst;
}

static void check_within(const shape &s, int rank, float eps, looked &seen)
{
    const world w(s, rank);
    chosen c(w, eps, 0);
    const made_state made = attended(c);
    std::vector<shares> shares;
    for (int u = 0; u < w.n_units; u++) shares.push_back(c.kh[u] == CUDA_READ_ALL ? ::shares{} : shares_of(c, u));
    for (float factor : {3.0f, 1.0f, 0.6f, 0.2f, 0.01f}) {
        result r = attend_and_look(c, eps * factor);
        const result again = attend_and_look(c, eps * factor);
        std::string why = !r.guarded ? "guard" : "";
        if (memcmp(r.out.data(), again.out.data(), r.out.size() * sizeof(float)) || memcmp(r.o.data(), again.o.data(), r.o.size() * sizeof(float))) why = "other bits";
        if (plant) r.out[r.out.size() / 2] += 0.1f;
        double worst = 0;
        c.eps = eps * factor;
        for (int u = 0; u < w.n_units && why.empty(); u++) {
            const bool can = c.kh[u] != CUDA_READ_ALL && c.rest[u].end < CHOOSE_BINS;
            const std::vector<int> listed(&c.lh[(size_t)u * s.len], &c.lh[(size_t)u * s.len] + c.nh[u]), rest = can ? rest_of(c, u) : std::vector<int>();
            std::vector<int> rows = rows_of(c.kh[u], w.len[0], SINKS, WINDOW, listed);
            const int n = (int)r.counters[u].k_rows - (int)rows.size();
            const int kind = n > 0 && c.kh[u] == CUDA_READ_NEAR ? (int)CUDA_READ_NEAR_LIST : c.kh[u];
            const int counted = n == 0 && kind == CUDA_READ_NEAR_LIST && c.nh[u] == (int)c.found_of(u).size() ? (int)CUDA_READ_NEAR : kind; // sinks count as near
            if (r.counters[u].v_rows != r.counters[u].k_rows || r.kinds[u] != kind || r.counters[u].kinds[counted] != 1) why = "counters or kind";
            if (n < 0 || n > (int)rest.size()) why = std::to_string(n) + " rows";
            else if (can) check_extent(c, u, shares[u], made, n, rest, r.unread, seen, why);
            for (int i = 0; i < n && why.empty(); i++) rows.push_back(rest[i] >> 9);
            if (why.empty()) worst = larger(worst, error_of(w, u, rows, r));
        }
        c.eps = eps;
        char text[64];
        snprintf(text, sizeof text, " eps %g times %g", eps, factor);
        report(why.empty() && worst <= 1, "attention and look " + name_of(s) + text, why + " worst " + std::to_string(worst) + " of the tolerance");
    }
}

static void check_all_within(sr_dtype t, bool quick, looked &seen)
{
    check_within(shape{128, 4, 2, 1, 1200, t}, 32, 0.1f, seen);
    check_within(shape{64, 7, 3, 1, 900, t}, 16, 0.3f, seen);
    if (quick) return;
    check_within(shape{64, 3, 8, 1, 4000, t}, 16, 0.1f, seen);
    check_within(shape{128, 8, 1, 1, 9000, t}, 32, 0.05f, seen); // many blocks of one unit
    check_within(shape{96, 4, 2, 1, 1500, t}, 24, 0.1f, seen);   // one after the other
}

int main(void)
{
    want_gpu();
    plant = getenv("SR_PLANT") != NULL;
    const bool quick = getenv("SR_QUICK") != NULL;
    looked seen = {0, 0, 0};
    for (sr_dtype t : {SR_DTYPE_BF16, SR_DTYPE_F16, SR_DTYPE_F8_E4M3, SR_DTYPE_Q8_0}) {
        check_all_within(t, quick, seen);
        check_look(shape{128, 4, 2, 1, 1200, t}, 32, 0.1f, seen);
        if (quick) continue;
        check_look(shape{64, 3, 3, 2, 900, t}, 16, 0.3f, seen);
        check_look(shape{96, 16, 2, 1, 2000, t}, 24, 0.02f, seen);
        check_look(shape{256, 7, 1, 2, 1500, t}, 16, 0.05f, seen);
        if (t != SR_DTYPE_Q8_0) check_look(shape{80, 1, 4, 1, 3000, t}, 20, 0.1f, seen);
    }
    if (!quick) check_look(shape{128, 8, 8, 20, 250, SR_DTYPE_BF16}, 32, 0.2f, seen);  // more units than blocks
    for (double away : {6.0, 6.5, 7.0}) // most of what is far is just below what is listed
        if (!quick) check_look(shape{64, 1, 4, 1, 1500, SR_DTYPE_F16}, 16, 0.02f, seen, away);
    if (!quick) check_look(shape{64, 2, 2, 1, 20000, SR_DTYPE_F16}, 16, 0.05f, seen); // thousands of rows, over several blocks
    report(seen.none > 10 && seen.some > 5 && (quick || seen.all > 0), "units that need nothing, some rows and all of them",
           std::to_string(seen.none) + ", " + std::to_string(seen.some) + ", " + std::to_string(seen.all));
    printf("# %d units needed nothing, %d some rows, %d all\n", seen.none, seen.some, seen.all);
    return end_tests();
}
