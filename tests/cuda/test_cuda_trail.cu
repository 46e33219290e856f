// SPDX-License-Identifier: Apache-2.0
//
// Checks the trail on a GPU against plain loops in double: what a step finds that the step before noted, beside the sinks; that a
// choice lists these rows whatever it estimates, and counts them as near where a look follows; and which rows a look notes, with
// which shares. Without a GPU it says SKIP. SR_PLANT=1 spoils what came out, so that the program must fail.
#include "attn_cache_cuda.h"

#include <cstring>
#include <map>
#include <set>

constexpr int SINKS = 4, WINDOW = 48;
static int n_noted, n_trail_noted; // of all checks; of them rows of the trail

// ---- what a step finds ----

// The words of a sequence, as a step left them.
struct words {
    int32_t max_len;
    std::vector<int32_t> w;
    explicit words(int32_t len) : max_len(len), w(SR_TRAIL_WORDS(len), 0) {}
    void put(int32_t step, const std::map<int, float> &notes)
    {
        const int half = step % 2;
        int32_t i = 0;
        w[SR_TRAIL_STEPS + half] = step, w[SR_TRAIL_COUNTS + half] = (int32_t)notes.size();
        for (const auto &x : notes) {
            w[SR_TRAIL_ROWS_AT(max_len, half) + i++] = x.first;
            memcpy(&w[SR_TRAIL_SHARES_AT(max_len, half) + x.first], &x.second, 4);
        }
        std::shuffle(&w[SR_TRAIL_ROWS_AT(max_len, half)], &w[SR_TRAIL_ROWS_AT(max_len, half)] + notes.size(), rng);
    }
};

static std::map<int, float> notes_of(const std::vector<int32_t> &w, int32_t max_len, int32_t step)
{
    std::map<int, float> notes;
    const int half = step % 2;
    for (int32_t i = 0; w[SR_TRAIL_STEPS + half] == step && i < w[SR_TRAIL_COUNTS + half]; i++) {
        const int32_t row = w[SR_TRAIL_ROWS_AT(max_len, half) + i];
        memcpy(&notes[row], &w[SR_TRAIL_SHARES_AT(max_len, half) + row], 4);
    }
    return notes;
}

// The rows about the 16 with the largest shares.
static std::set<int> rows_about(const std::map<int, float> &notes, int first, int last)
{
    std::vector<std::pair<float, int>> order;
    std::set<int> rows;
    for (const auto &x : notes) order.push_back({-x.second, x.first});
    std::sort(order.begin(), order.end());
    for (size_t i = 0; i < order.size() && i < SR_TRAIL_NOTED; i++)
        for (int row = order[i].second - SR_TRAIL_BEFORE; row <= order[i].second + SR_TRAIL_AFTER; row++)
            if (row >= first && row < last) rows.insert(row);
    return rows;
}

static bool is_as(const always_rows &a, const std::set<int> &trail, const found_sinks &f)
{
    std::set<int> all = trail, rest = trail;
    for (int i = 0; i < f.n; i++) all.insert(f.rows[i]), rest.erase(f.rows[i]);
    return std::vector<int>(a.rows, a.rows + a.n) == std::vector<int>(all.begin(), all.end()) && std::vector<int>(a.trail, a.trail + a.n_trail) == std::vector<int>(rest.begin(), rest.end());
}

// n rows noted by the step before, or by another one.
static void check_follow(int n, int len, int n_units, int close, bool goes_on)
{
    const int max_len = 4096;
    words t(max_len);
    std::map<int, float> notes, older;
    while ((int)notes.size() < n) notes[rng() % (unsigned)std::min(len, close)] = .1f + .9f * (float)(rng() % 100000) / 100000; // ties too
    for (int i = 0; i < 20; i++) older[i * 7] = .5f;
    t.put(len - 2, older);
    t.put(goes_on ? len - 1 : len - 3, notes);
    std::vector<found_sinks> found(n_units, found_sinks{});
    for (auto &f : found)
        for (int row = (int)(rng() % 40); f.n < (int)(rng() % 17) && row < len; row += 1 + (int)(rng() % 60)) f.rows[f.n++] = row;
    const array<int32_t> words(t.w), kv_len(std::vector<int32_t>(1, len));
    const array<found_sinks> df(found);
    const array<always_rows> always(n_units, 0xff);
    attn_cuda c = {};
    TRY(sr_attn_cuda_card(&c.card, &err));
    const std::set<int> want = goes_on ? rows_about(notes, SINKS, len - WINDOW) : std::set<int>();
    bool good = true;
    for (int round = 0; round < 2; round++) { // made again, a step finds the same
        const attn_cuda_follow a = {words.p, max_len, kv_len.p, df.p, always.p, n_units, SINKS, WINDOW};
        TRY(sr_attn_cuda_follow(&c, &a, &err));
        CHECK(cudaDeviceSynchronize());
        std::vector<always_rows> got = always.get();
        if (plant) got[0].n--;
        for (int u = 0; u < n_units; u++) good &= is_as(got[u], want, found[u]);
        const std::vector<int32_t> after = words.get();
        good &= after[SR_TRAIL_STEPS + len % 2] == len && notes_of(after, max_len, len).empty();
        for (int row = 0; row < max_len; row++) good &= after[SR_TRAIL_SHARES_AT(max_len, len % 2) + row] == 0;
        if (goes_on) good &= notes_of(after, max_len, len - 1) == notes;
    }
    char name[96];
    snprintf(name, sizeof name, "%d rows noted below %d, step over %d, %d units%s", n, close, len, n_units, goes_on ? "" : ", of another step");
    report(good && words.guarded() && always.guarded(), name, "other rows, or notes that stay");
}

// ---- a step with a trail ----

struct setting { int look, times; float eps; };

struct run_of {
    std::vector<always_rows> always;
    std::vector<uint8_t> kinds;
    std::vector<int32_t> list, n_list, words;
    std::vector<float> m, l, out, logits, total;
    std::vector<attn_cuda_counters> counters;
};

// follow, choose, attention, and a look that reads on or only notes: m and l are those of attention alone.
static run_of run(const world &w, const bases &b, const array<float> &q, const std::vector<found_sinks> &found, const words &before, const setting &x)
{
    const size_t heads = (size_t)w.n_units * w.s.group;
    const array<sketch_basis> basis(b.table);
    const array<found_sinks> df(found);
    const array<float> eps(std::vector<float>(1, x.eps)), unread(heads), logits(heads * w.s.len), total(heads), o(heads * w.s.d), m(heads), l(heads), out(heads * w.s.d);
    const array<int32_t> words(before.w), list((size_t)w.n_units * w.s.len), n_list(w.n_units);
    const array<uint8_t> kinds(w.n_units);
    const array<always_rows> always(w.n_units);
    const array<attn_cuda_counters> counters(w.n_units);
    const attn_cuda_encode e = {{w.rank, w.bits, basis.p}, SINKS, WINDOW, INT32_MAX, NULL};
    TRY(sr_attn_cuda_encode(&w.c, &w.cache, &e, &err));
    const attn_cuda_follow f = {words.p, before.max_len, w.cache.kv_len, df.p, always.p, w.n_units, SINKS, WINDOW};
    TRY(sr_attn_cuda_follow(&w.c, &f, &err));
    attn_cuda_choose a = {};
    a.sketch = e.sketch, a.q = q.p, a.scale = (float)w.scale(), a.n_sinks = SINKS, a.window = WINDOW, a.min_len = 100, a.eps = eps.p, a.always = always.p;
    a.total = total.p, a.kinds = kinds.p, a.list = list.p, a.n_list = n_list.p, a.list_stride = w.s.len, a.unread = unread.p, a.logits = logits.p;
    a.look = x.look, a.notes = 1, a.counters = counters.p;
    TRY(sr_attn_cuda_choose(&w.c, &w.cache, &a, &err));
    attn_cuda_attend t = {};
    t.q = q.p, t.scale = a.scale, t.kinds = kinds.p, t.list = list.p, t.n_list = n_list.p, t.list_stride = w.s.len, t.n_sinks = SINKS, t.window = WINDOW;
    t.out = out.p, t.state = {o.p, m.p, l.p};
    TRY(sr_attn_cuda_attend(&w.c, &w.cache, &t, &err));
    CHECK(cudaDeviceSynchronize());
    run_of r;
    r.m = m.get(), r.l = l.get();
    const attn_cuda_look k = {q.p, a.scale, eps.p, kinds.p, list.p, n_list.p, w.s.len, unread.p, {o.p, m.p, l.p}, out.p, counters.p, words.p, before.max_len, always.p, !x.look};
    r.kinds = kinds.get(), r.list = list.get(), r.n_list = n_list.get();
    t.counters = counters.p;
    TRY(sr_attn_cuda_attend_and_look(&w.c, &w.cache, &t, &k, &err));
    CHECK(cudaDeviceSynchronize());
    r.always = always.get(), r.words = words.get(), r.out = out.get(), r.logits = logits.get(), r.total = total.get(), r.counters = counters.get();
    if (!words.guarded() || !always.guarded() || !list.guarded() || !counters.guarded()) report(false, "guards", "written beyond the end");
    return r;
}

// The exact share that a row had of what attention read, of the head that gave it most.
static double share_of(const world &w, const run_of &r, int u, int row)
{
    double most = 0;
    for (int h = 0; h < w.s.group; h++) {
        const size_t at = (size_t)u * w.s.group + h;
        double x = 0;
        for (int i = 0; i < w.s.d; i++) x += (double)w.qh[at * w.s.d + i] * w.kr(u, row, i);
        most = std::max(most, std::exp(x * w.scale() - r.m[at]) / r.l[at]);
    }
    return std::min(most, 1.0);
}

static double estimate_of(const world &w, const run_of &r, int u, int row)
{
    double most = 0;
    for (int h = 0; h < w.s.group; h++) {
        const size_t at = (size_t)u * w.s.group + h;
        most = std::max(most, std::exp((double)r.logits[at * w.s.len + row] - r.total[at]));
    }
    return most;
}

static std::string wrong_list(const world &w, const run_of &r, int u, int look)
{
    const std::set<int> listed(&r.list[(size_t)u * w.s.len], &r.list[(size_t)u * w.s.len] + r.n_list[u]);
    int n_far = 0;
    if ((int)listed.size() != r.n_list[u] || !std::is_sorted(&r.list[(size_t)u * w.s.len], &r.list[(size_t)u * w.s.len] + r.n_list[u])) return "the list does not rise";
    for (int i = 0; i < r.always[u].n; i++) {
        const int row = r.always[u].rows[i];
        if (row < SINKS || row >= w.len[0] - WINDOW) continue;
        n_far++;
        if (!listed.count(row)) return "row " + std::to_string(row) + " not listed";
    }
    if (r.kinds[u] != (r.n_list[u] > 0 ? CUDA_READ_NEAR_LIST : CUDA_READ_NEAR)) return "kind " + std::to_string(r.kinds[u]);
    const int64_t again = SINKS + WINDOW + (look ? n_far : 0);
    if ((int64_t)r.counters[u].again_rows != again) return "rows read again: " + std::to_string(r.counters[u].again_rows) + ", not " + std::to_string(again);
    return "";
}

// Rows that must be noted, and what else may be; rows near a limit may fall on either side.
static std::string wrong_notes(const world &w, const run_of &r, int max_len)
{
    const std::map<int, float> notes = notes_of(r.words, max_len, w.len[0]);
    std::map<int, double> must, may;
    const double tol = w.s.type == SR_DTYPE_BF16 ? .04 : .01; // attention's logits are of rounded queries, and so is its state
    for (int u = 0; u < w.n_units; u++) {
        if (r.kinds[u] != CUDA_READ_NEAR_LIST) continue;
        std::set<int> sure, near;
        for (int i = 0; i < r.always[u].n_trail; i++) sure.insert(r.always[u].trail[i]), n_trail_noted += share_of(w, r, u, r.always[u].trail[i]) > .1;
        for (int i = 0; i < r.n_list[u]; i++) {
            const int row = r.list[(size_t)u * w.s.len + i];
            const double e = estimate_of(w, r, u, row);
            if (std::find(r.always[u].rows, r.always[u].rows + r.always[u].n, row) != r.always[u].rows + r.always[u].n) continue;
            if (e > .0501) sure.insert(row);
            else if (e > .0499) near.insert(row);
        }
        for (int row : sure) {
            const double x = share_of(w, r, u, row);
            if (x > SR_TRAIL_SHARE + tol) must[row] = std::max(must[row], x);
            near.insert(row);
        }
        for (int row : near) may[row] = std::max(may[row], share_of(w, r, u, row));
    }
    n_noted += (int)must.size();
    for (const auto &x : must)
        if (!notes.count(x.first)) return "row " + std::to_string(x.first) + " of share " + std::to_string(x.second) + " not noted";
    for (const auto &x : notes) {
        if (!may.count(x.first) || may[x.first] < SR_TRAIL_SHARE - tol || x.second < SR_TRAIL_SHARE) return "row " + std::to_string(x.first) + " noted, of share " + std::to_string(x.second);
        if (std::fabs(x.second - may[x.first]) > tol * (1 + may[x.first])) return "share " + std::to_string(x.second) + ", not " + std::to_string(may[x.first]);
    }
    return "";
}

static void check_step(const shape &s, int rank, const setting &x)
{
    world w(s, rank);
    const bases b(w);
    for (float &y : w.qh) y *= (float)x.times;
    const array<float> q(w.qh);
    words before(s.len + 64);
    std::map<int, float> notes;
    std::vector<found_sinks> found(w.n_units, found_sinks{});
    const int end = s.len - WINDOW;
    while (notes.size() < 23) notes[SINKS + (int)(rng() % (unsigned)(end - SINKS))] = .1f + (float)(rng() % 1000) / 2000;
    notes[end - 1] = .9f, notes[SINKS] = .95f;
    before.put(s.len - 1, notes);
    for (int u = 0; u < w.n_units; u += 2)
        for (int row : {SINKS - 1, end / 3, end / 2, end - 1, end + 3}) found[u].rows[found[u].n++] = row;
    std::string why;
    const run_of r = run(w, b, q, found, before, x), again = run(w, b, q, found, before, x);
    if (memcmp(r.out.data(), again.out.data(), r.out.size() * sizeof(float))) why = "other bits";
    if (notes_of(r.words, before.max_len, s.len) != notes_of(again.words, before.max_len, s.len)) why = "other notes";
    const std::set<int> want = rows_about(notes, SINKS, end);
    for (int u = 0; u < w.n_units && why.empty(); u++) {
        if (!is_as(r.always[u], want, found[u])) why = "rows of the trail";
        else if (r.kinds[u] != CUDA_READ_ALL) why = wrong_list(w, r, u, x.look);
    }
    run_of spoilt = r;
    if (plant) spoilt.l[0] *= 4;
    if (why.empty()) why = wrong_notes(w, spoilt, before.max_len);
    report(why.empty(), "step " + name_of(s) + " eps " + std::to_string(x.eps) + (x.look ? " look" : "") + " queries times " + std::to_string(x.times), why);
}

int main(void)
{
    want_gpu();
    plant = getenv("SR_PLANT") != NULL;
    const bool quick = getenv("SR_QUICK") != NULL;
    for (int n : {0, 1, 15, 16, 17, 60, 300, 1500}) {
        check_follow(n, 3000, 9, 3000, true);
        check_follow(n, 2999, 90, n < 1000 ? 200 + 2 * n : 2999, true); // rows near each other, below the first and sinks
    }
    check_follow(5, 3000, 9, 3000, false);
    for (sr_dtype t : {SR_DTYPE_F16, SR_DTYPE_BF16, SR_DTYPE_F8_E4M3, SR_DTYPE_Q8_0})
        for (int look = 1; look >= 0; look--) {
            check_step(shape{64, 3, 3, 1, 1100, t}, 16, setting{look, 4, 0.1f});
            if (quick) continue;
            check_step(shape{128, 4, 2, 1, 1200, t}, 32, setting{look, 5, 0.1f});
            check_step(shape{64, 7, 2, 1, 3000, t}, 16, setting{look, 6, 0.05f});
            check_step(shape{128, 16, 1, 1, 2000, t}, 24, setting{look, 4, 0.3f});
            check_step(shape{256, 2, 8, 1, 900, t}, 16, setting{look, 3, 0.02f});
        }
    if (!quick) check_step(shape{64, 1, 2, 1, 20000, SR_DTYPE_F16}, 16, setting{1, 5, 0.1f});
    report(n_noted > (quick ? 5 : 50) && n_trail_noted > (quick ? 1 : 10), "rows were noted", std::to_string(n_noted) + ", of the trail " + std::to_string(n_trail_noted));
    printf("# %d rows noted, %d times one of the trail\n", n_noted, n_trail_noted);
    return end_tests();
}
