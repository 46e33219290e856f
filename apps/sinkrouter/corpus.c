/* SPDX-License-Identifier: Apache-2.0
 *
 * Texts, random tokens and needles.
 */
#include "corpus.h"
#include "diag.h"
#include "setup.h"
#include "text_source.h"

#include <stdlib.h>
#include <string.h>

void sr_corpus_free(struct corpus *c)
{
    free(c->ids);
    *c = (struct corpus){0};
}

/* splitmix64: one state, good enough for tokens. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static sr_status append(struct corpus *c, const int32_t *ids, int32_t n, sr_error *err)
{
    int32_t *grown = realloc(c->ids, ((size_t)c->n + (size_t)n + 1) * sizeof *grown);
    if (!grown) return sr_refuse(err, SR_ERR_RESOURCE, "no memory for %d tokens", c->n + n);
    c->ids = grown;
    if (n) memcpy(c->ids + c->n, ids, (size_t)n * sizeof *ids);
    c->n += n;
    return SR_OK;
}

static sr_status append_text(struct corpus *c, const sr_model *m, const char *s, size_t bytes, sr_bos bos,
                             sr_error *err)
{
    int32_t *ids, n;
    sr_status st = sr_tokenize(m, s, bytes, bos, 0, &ids, &n, err);
    if (st) return st;
    st = append(c, ids, n, err);
    sr_tokens_free(ids);
    return st;
}

/* At least `want` tokens of s, or all: longer and longer beginnings are tried, since a whole book is seldom
 * needed. */
static sr_status first_tokens(struct corpus *c, const sr_model *m, const char *s, size_t bytes, sr_bos bos,
                              int32_t want, sr_error *err)
{
    for (int64_t chars = (int64_t)want * 8;; chars *= 2) {
        size_t part = sr_text_offset(s, bytes, chars);
        c->n = 0;
        sr_status st = append_text(c, m, s, part, bos, err);
        if (st || c->n >= want || part == bytes) {
            if (c->n > want) c->n = want;
            return st;
        }
    }
}

sr_status sr_corpus_text(struct corpus *c, const struct options *o, const sr_model *m, int32_t n,
                         int32_t most, sr_error *err)
{
    struct text t;
    *c = (struct corpus){0};
    sr_status st = sr_text_read(&t, "-f", o->file, err);
    if (st) return st;
    size_t from = sr_text_offset(t.data, t.bytes, o->offset);
    if (from == t.bytes)
        st = sr_refuse(err, SR_ERR_USAGE, "--offset %lld: the text has no more characters",
                       (long long)o->offset);
    if (!st) st = first_tokens(c, m, t.data + from, t.bytes - from, sr_setup_bos(o), n ? n : most, err);
    sr_text_free(&t);
    if (!st && n && c->n < n)
        st = sr_refuse(err, SR_ERR_USAGE, "-f: the text has %d tokens, %d are needed (-c and -n, or depths)",
                       c->n, n);
    if (st) sr_corpus_free(c);
    return st;
}

sr_status sr_corpus_random(struct corpus *c, int32_t n, int32_t n_vocab, uint64_t seed, sr_error *err)
{
    *c = (struct corpus){.ids = malloc((size_t)n * sizeof *c->ids + 1), .n = n};
    if (!c->ids) return sr_refuse(err, SR_ERR_RESOURCE, "no memory for %d tokens", n);
    for (int32_t i = 0; i < n; i++) c->ids[i] = (int32_t)(next_random(&seed) % (uint64_t)n_vocab);
    return SR_OK;
}

/* ---- needles
 * ---------------------------------------------------------------------------------------------------- */

static const char *const words[64] = {
    "anchor",   "basket",  "candle",  "donkey", "engine",  "feather", "garden", "hammer", "island", "jacket",
    "kettle",   "lantern", "marble",  "needle", "orchid",  "pencil",  "quarry", "ribbon", "saddle", "tunnel",
    "umbrella", "valley",  "walnut",  "yogurt", "zipper",  "acorn",   "barrel", "cherry", "dagger", "ember",
    "falcon",   "goblet",  "harvest", "ivory",  "jigsaw",  "kernel",  "ladder", "magnet", "nutmeg", "oyster",
    "paddle",   "quilt",   "rocket",  "shovel", "thimble", "urchin",  "violin", "wagon",  "yarn",   "zebra",
    "almond",   "bucket",  "carpet",  "desert", "elbow",   "fiddle",  "ginger", "helmet", "icicle", "jungle",
    "kitten",   "lemon",   "mirror",  "noodle"};

/* Sentences that mean little and repeat seldom. */
static sr_status filler(struct text *t, size_t bytes, uint64_t *random, sr_error *err)
{
    static const char *const who[] = {"The old captain",  "A young clerk",    "My neighbour",
                                      "The last visitor", "Every baker",      "That tall poet",
                                      "One engineer",     "The quiet teacher"};
    static const char *const did[] = {"carried",  "repaired", "painted",   "forgot",
                                      "measured", "borrowed", "described", "sold"};
    static const char *const when[] = {"before the rain came", "without a word",      "on the second morning",
                                       "near the harbour",     "for no clear reason", "while others watched",
                                       "after a long pause",   "in good spirits"};
    while (t->bytes < bytes) {
        char sentence[160];
        uint64_t r = next_random(random);
        int n = snprintf(sentence, sizeof sentence, "%s %s the %s and the %s %s.%s", who[r & 7],
                         did[(r >> 3) & 7], words[(r >> 6) & 63], words[(r >> 12) & 63], when[(r >> 18) & 7],
                         (r >> 21) & 7 ? " " : "\n\n");
        sr_status st = sr_text_add(t, "", sentence, (size_t)n, err);
        if (st) return st;
    }
    return SR_OK;
}

static sr_status background(struct corpus *c, const struct options *o, const sr_model *m, int32_t n,
                            uint64_t *random, sr_error *err)
{
    if (o->file) return sr_corpus_text(c, o, m, n, n, err);
    struct text t = {0};
    sr_status st = filler(&t, (size_t)n * 8, random, err);
    if (!st) st = first_tokens(c, m, t.data, t.bytes, sr_setup_bos(o), n, err);
    sr_text_free(&t);
    return st;
}

/* Appends the sentence of one number to the hidden ones. */
static sr_status hide(struct corpus *hidden, const struct needle *n, int32_t value, const char *word, const sr_model *m, sr_error *err)
{
    char sentence[NEEDLE_TEXT + 64];
    int len = n->n_values == 1 ? snprintf(sentence, sizeof sentence, "%s %s.\n", n->question, n->digits[0])
                               : snprintf(sentence, sizeof sentence, "\nOne of the special magic numbers for %s is %s.\n", word, n->digits[value]);
    return append_text(hidden, m, sentence, (size_t)len, SR_BOS_OFF, err);
}

sr_status sr_corpus_questions(struct needle *needles, const struct options *o, const sr_model *m, int32_t *most, sr_error *err)
{
    const int32_t n = (int32_t)o->needles;
    *most = 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t *ids, n_ids;
        needles[i].n_values = i == n - 1 ? (int32_t)o->values : 1;
        snprintf(needles[i].question, NEEDLE_TEXT,
                 needles[i].n_values == 1 ? "\nThe special magic number for %s is" : "\nThe special magic numbers for %s are", words[i]);
        sr_status st = sr_tokenize(m, needles[i].question, strlen(needles[i].question), SR_BOS_OFF, 0, &ids, &n_ids, err);
        if (st) return st;
        sr_tokens_free(ids);
        if (n_ids > *most) *most = n_ids;
    }
    return SR_OK;
}

/* Numbers; all sentences one after the other, and where each ends. Those of the last needle
 * are dealt evenly among the others. */
static sr_status make_needles(struct corpus *hidden, struct needle *needles, const struct options *o, const sr_model *m, int32_t *ends,
                              uint64_t *random, sr_error *err)
{
    int32_t n_needles = (int32_t)o->needles, n_values = (int32_t)o->values, n_all = n_needles - 1 + n_values;
    for (int32_t i = 0; i < n_needles; i++)
        for (int32_t v = 0; v < needles[i].n_values; v++)
            snprintf(needles[i].digits[v], sizeof needles[i].digits[v], "%07llu", (unsigned long long)(next_random(random) % 10000000));
    for (int32_t i = 0, single = 0, value = 0; i < n_all; i++) {
        int is_value = single == n_needles - 1 || (int64_t)(i + 1) * n_values / n_all > value;
        int32_t at = is_value ? n_needles - 1 : single++;
        sr_status st = hide(hidden, &needles[at], is_value ? value++ : 0, words[at], m, err);
        if (st) return st;
        ends[i] = hidden->n;
    }
    return SR_OK;
}

sr_status sr_corpus_needles(struct corpus *c, struct needle *needles, const struct options *o, const sr_model *m, int32_t n, sr_error *err)
{
    uint64_t random = o->seed >= 0 ? (uint64_t)o->seed : 1;
    struct corpus hidden = {0}, text = {0};
    int32_t ends[MAX_NEEDLES + MAX_VALUES], n_all = (int32_t)(o->needles - 1 + o->values);
    *c = (struct corpus){0};
    sr_status st = make_needles(&hidden, needles, o, m, ends, &random, err);
    if (!st && hidden.n + 2 * n_all > n)
        st = sr_refuse(err, SR_ERR_USAGE, "-c %d: too short for %d needles of %d tokens", n, n_all, hidden.n);
    if (!st) st = background(&text, o, m, n - hidden.n, &random, err);
    for (int32_t i = 0, at = 0, from = 0; i <= n_all && !st; i++) {
        int32_t to = i < n_all ? (int32_t)((int64_t)text.n * (2 * i + 1) / (2 * n_all)) : text.n;
        st = append(c, text.ids + at, to - at, err);
        at = to;
        if (i == n_all || st) break;
        st = append(c, hidden.ids + from, ends[i] - from, err);
        from = ends[i];
    }
    sr_corpus_free(&hidden);
    sr_corpus_free(&text);
    if (st) sr_corpus_free(c);
    return st;
}
