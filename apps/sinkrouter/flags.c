/* SPDX-License-Identifier: Apache-2.0
 *
 * The parser over the table of flags_table.c.
 */
#include "flags.h"
#include "diag.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    enum command command;
} commands[] = {{"run", CMD_RUN},
                {"chat", CMD_CHAT},
                {"bench", CMD_BENCH},
                {"perplexity", CMD_PERPLEXITY},
                {"calibrate", CMD_CALIBRATE},
                {"inspect", CMD_INSPECT}};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

const char *sr_command_name(enum command command)
{
    for (int i = 0; i < N_COMMANDS; i++)
        if (commands[i].command == command) return commands[i].name;
    return "";
}

int sr_command_find(enum command *out, const char *name)
{
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0) {
            *out = commands[i].command;
            return 1;
        }
    return 0;
}

/* ---- words of a space-separated list
 * ------------------------------------------------------------------------ */

static const char *next_word(const char *list, size_t *len)
{
    list += strspn(list, " ");
    *len = strcspn(list, " ");
    return *len ? list : NULL;
}

static int has_word(const char *list, const char *word, size_t n)
{
    size_t len;
    for (const char *w = list; (w = next_word(w, &len)) != NULL; w += len)
        if (len == n && memcmp(w, word, n) == 0) return 1;
    return 0;
}

/* Edit distance of two words of at most 31 bytes. */
static int distance(const char *a, size_t na, const char *b, size_t nb)
{
    int row[32];
    if (na > 31 || nb > 31) return 99;
    for (size_t j = 0; j <= nb; j++) row[j] = (int)j;
    for (size_t i = 1; i <= na; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[nb];
}

/* Keeps the nearest of the list's words in out; *best is the distance to beat. */
static void nearer(char *out, size_t out_bytes, const char *word, const char *list, int *best)
{
    size_t len, n = strlen(word);
    for (const char *w = list; (w = next_word(w, &len)) != NULL; w += len) {
        int d = distance(word, n, w, len);
        if (d >= *best || d * 2 >= (int)n || len >= out_bytes) continue;
        *best = d;
        memcpy(out, w, len);
        out[len] = '\0';
    }
}

const char *sr_nearest(char *out, size_t out_bytes, const char *word, const char *list)
{
    int best = 4;
    nearer(out, out_bytes, word, list, &best);
    return best < 4 ? out : NULL;
}

/* ---- values
 * --------------------------------------------------------------------------------------------------- */

struct use {
    struct options *o;
    const struct flag *f;
    const char *arg;   /* as typed, with the value that it may have behind = */
    const char *name;  /* its name, escaped */
    const char *value; /* NULL for flags without one */
    sr_error *err;
};

static sr_status bad(const struct use *u, const char *want)
{
    char shown[64];
    return sr_refuse(u->err, SR_ERR_USAGE, "%s \"%s\": %s", u->name,
                     sr_visible(shown, sizeof shown, u->value), want);
}

static sr_status out_of_range(const struct use *u)
{
    char want[96];
    snprintf(want, sizeof want, "must be %.10g to %.10g", u->f->min, u->f->max);
    return bad(u, want);
}

/* One integer from *s on; *s moves behind it. */
static sr_status read_int(const struct use *u, const char **s, int64_t *out)
{
    char *end;
    if (!isdigit((unsigned char)**s) && **s != '-') return bad(u, "not a whole number");
    errno = 0;
    long long v = strtoll(*s, &end, 10);
    if (end == *s) return bad(u, "not a whole number");
    if (errno == ERANGE || (double)v < u->f->min || (double)v > u->f->max) return out_of_range(u);
    *s = end;
    *out = v;
    return SR_OK;
}

static sr_status read_real(const struct use *u, const char **s, double *out)
{
    char *end;
    if (!strchr("+-.0123456789", **s) || !**s) return bad(u, "not a number");
    double v = strtod(*s, &end);
    if (end == *s || memchr(*s, 'x', (size_t)(end - *s))) return bad(u, "not a number");
    if (!isfinite(v) || v < u->f->min || v > u->f->max) return out_of_range(u);
    *s = end;
    *out = v;
    return SR_OK;
}

static sr_status set_int(const struct use *u, int64_t *out)
{
    const char *s = u->value;
    int64_t v = 0;
    sr_status st = read_int(u, &s, &v);
    if (st) return st;
    if (*s) return bad(u, "not a whole number");
    *out = v;
    return SR_OK;
}

static sr_status set_real(const struct use *u, double *out)
{
    const char *s = u->value;
    double v = 0;
    sr_status st = read_real(u, &s, &v);
    if (st) return st;
    if (*s) return bad(u, "not a number");
    *out = v;
    return SR_OK;
}

static int room(const struct use *u, int n)
{
    return n < (u->f->most ? u->f->most : LIST_MAX);
}

static sr_status too_many(const struct use *u)
{
    char want[64];
    int most = u->f->most ? u->f->most : LIST_MAX;
    snprintf(want, sizeof want, most == 1 ? "takes one value" : "at most %d values", most);
    return bad(u, want);
}

/* first, first-last, first-last+step or first-last*mult from *s on. */
static sr_status add_range(const struct use *u, const char **s, struct int_list *l)
{
    int64_t first, last, step = 1;
    char by = '+';
    sr_status st = read_int(u, s, &first);
    if (st) return st;
    last = first;
    if (**s == '-') {
        ++*s;
        if ((st = read_int(u, s, &last)) != SR_OK) return st;
        if (last < first) return bad(u, "the range runs backwards");
        if (**s == '+' || **s == '*') {
            by = *(*s)++;
            char *end;
            step = isdigit((unsigned char)**s) ? strtoll(*s, &end, 10) : 0;
            if (step < 1 || step > INT32_MAX || (by == '*' && step < 2))
                return bad(u, "the range does not advance");
            *s = end;
        }
    }
    if (by == '*' && first < 1) return bad(u, "the range does not advance");
    for (int64_t v = first; v <= last; v = by == '+' ? v + step : v * step) {
        if (!room(u, l->n)) return too_many(u);
        l->v[l->n++] = v;
        if (v > INT64_MAX / 2 / step) break;
    }
    return SR_OK;
}

static sr_status set_ints(const struct use *u, struct int_list *out)
{
    struct int_list l =
        u->f->most == 1 ? (struct int_list){0} : *out; /* a list flag given again adds to it */
    const char *s = u->value;
    do {
        sr_status st = add_range(u, &s, &l);
        if (st) return st;
    } while (*s == ',' && s++);
    if (*s) return bad(u, "not a list of whole numbers");
    *out = l;
    return SR_OK;
}

static sr_status set_reals(const struct use *u, struct real_list *out)
{
    struct real_list l = u->f->most == 1 ? (struct real_list){0} : *out;
    const char *s = u->value;
    do {
        if (!room(u, l.n)) return too_many(u);
        sr_status st = read_real(u, &s, &l.v[l.n]);
        if (st) return st;
        l.n++;
    } while (*s == ',' && s++);
    if (*s) return bad(u, "not a list of numbers");
    *out = l;
    return SR_OK;
}

static sr_status unknown_name(const struct use *u)
{
    char want[160];
    snprintf(want, sizeof want, "must be one of: %s", u->f->names_of);
    return bad(u, want);
}

/* Names are found in the table's own list, so that the values outlive argv's commas. */
static const char *known_name(const struct use *u, const char *s, size_t n)
{
    static char kept[LIST_MAX * 4][16];
    static int n_kept;
    if (n == 0 || n >= sizeof kept[0] || !has_word(u->f->names_of, s, n)) return NULL;
    for (int i = 0; i < n_kept; i++)
        if (strlen(kept[i]) == n && memcmp(kept[i], s, n) == 0) return kept[i];
    if (n_kept == (int)(sizeof kept / sizeof kept[0])) return NULL;
    memcpy(kept[n_kept], s, n);
    return kept[n_kept++];
}

static sr_status set_names(const struct use *u, struct text_list *out)
{
    struct text_list l = u->f->most == 1 ? (struct text_list){0} : *out;
    for (const char *s = u->value;; s++) {
        size_t n = strcspn(s, ",");
        const char *name = known_name(u, s, n);
        if (!name) return unknown_name(u);
        if (!room(u, l.n)) return too_many(u);
        l.v[l.n++] = name;
        s += n;
        if (!*s) break;
    }
    *out = l;
    return SR_OK;
}

static sr_status set_pair(const struct use *u, struct pair_list *l)
{
    const char *s = u->value;
    int64_t a, b;
    sr_status st = read_int(u, &s, &a);
    if (st) return st;
    if (*s++ != ',') return bad(u, "must be two numbers, like 512,128");
    if ((st = read_int(u, &s, &b)) != SR_OK) return st;
    if (*s) return bad(u, "must be two numbers, like 512,128");
    if (!room(u, l->n)) return too_many(u);
    l->v[l->n][0] = a;
    l->v[l->n++][1] = b;
    return SR_OK;
}

static sr_status set_choice(const struct use *u, enum on_off *out, int may_auto)
{
    static const struct {
        const char *name;
        enum on_off value;
    } names[] = {
        {"on", CHOICE_ON}, {"1", CHOICE_ON}, {"off", CHOICE_OFF}, {"0", CHOICE_OFF}, {"auto", CHOICE_AUTO}};
    for (size_t i = 0; i < 5; i++)
        if (strcmp(names[i].name, u->value) == 0 && (may_auto || names[i].value != CHOICE_AUTO)) {
            *out = names[i].value;
            return SR_OK;
        }
    return bad(u, may_auto ? "must be on, off or auto" : "must be on or off");
}

/* Said when all flags are right, and it is known whether anybody wants to hear it. */
static sr_status accept_idle(const struct use *u)
{
    struct text_list *given = &u->o->idle, *why = &u->o->idle_why;
    if (given->n == LIST_MAX) return SR_OK; /* enough said */
    given->v[given->n++] = u->arg;
    why->v[why->n++] = u->f->help;
    return SR_OK;
}

void sr_flags_note_idle(const struct options *o)
{
    for (int32_t i = 0; i < o->idle.n; i++) {
        const char *arg = o->idle.v[i];
        sr_note("%.*s has no effect: %s", (int)strcspn(arg, "="), arg, o->idle_why.v[i]);
    }
}

static sr_status set_layers(const struct use *u, int64_t *out)
{
    *out = strcmp(u->value, "auto") ? -1 : SR_GPU_LAYERS_AUTO;
    if (!strcmp(u->value, "all") || !strcmp(u->value, "auto")) return SR_OK;
    return set_int(u, out) ? bad(u, "must be all, auto or 0 to 2147483647") : SR_OK;
}

static sr_status add_text(const struct use *u, struct text_list *l)
{
    if (l->n == LIST_MAX) return too_many(u);
    l->v[l->n++] = u->value;
    return SR_OK;
}

static sr_status apply(const struct use *u)
{
    void *field = (char *)u->o + u->f->at;
    const char *s = u->value;
    switch (u->f->kind) {
    case FLAG_SET: *(int *)field = (int)u->f->min; return SR_OK;
    case FLAG_INT: return set_int(u, field);
    case FLAG_REAL: return set_real(u, field);
    case FLAG_TEXT: *(const char **)field = s; return SR_OK;
    case FLAG_TEXTS: return add_text(u, field);
    case FLAG_INTS: return set_ints(u, field);
    case FLAG_REALS: return set_reals(u, field);
    case FLAG_NAMES: return set_names(u, field);
    case FLAG_PAIRS: return set_pair(u, field);
    case FLAG_CHOICE: return set_choice(u, field, 0);
    case FLAG_SWITCH: return set_choice(u, field, 1);
    case FLAG_NAME:
        if (!has_word(u->f->names_of, s, strlen(s))) return unknown_name(u);
        *(const char **)field = s;
        return SR_OK;
    case FLAG_IDLE:
    case FLAG_IDLE_1: return accept_idle(u);
    case FLAG_LAYERS: return set_layers(u, field);
    case FLAG_NO: return sr_refuse(u->err, SR_ERR_USAGE, "%s is not supported: %s", u->name, u->f->help);
    }
    return SR_OK;
}

/* ---- arguments
 * ------------------------------------------------------------------------------------------------ */

static const struct flag *find(const char *name, size_t n, int command)
{
    for (const struct flag *f = sr_flag_table; f->names; f++)
        if ((f->commands & command) && has_word(f->names, name, n)) return f;
    return NULL;
}

static sr_status unknown_flag(const char *shown, const char *arg, enum command command, sr_error *err)
{
    char near[32] = "";
    int best = 4, elsewhere = 0;
    if (arg[0] != '-') return sr_refuse(err, SR_ERR_USAGE, "\"%s\" is not a flag", shown);
    for (const struct flag *f = sr_flag_table; f->names; f++) {
        if ((f->commands & (int)command) && f->kind != FLAG_NO)
            nearer(near, sizeof near, arg, f->names, &best);
        if (f->kind != FLAG_NO && has_word(f->names, arg, strlen(arg))) elsewhere |= f->commands;
    }
    for (int c = 1; c <= CMD_INSPECT; c *= 2)
        if (elsewhere & c)
            return sr_refuse(err, SR_ERR_USAGE, "%s: not a flag of %s (%s has it)", shown,
                             sr_command_name(command), sr_command_name((enum command)c));
    if (best < 4) return sr_refuse(err, SR_ERR_USAGE, "%s: unknown flag; did you mean %s?", shown, near);
    return sr_refuse(err, SR_ERR_USAGE, "%s: unknown flag", shown);
}

static int takes_value(const struct flag *f)
{
    return f->kind != FLAG_SET && f->kind != FLAG_IDLE && f->kind != FLAG_NO;
}

static int is_switch_word(const char *s)
{
    return s && (!strcmp(s, "on") || !strcmp(s, "off") || !strcmp(s, "auto") || !strcmp(s, "0") ||
                 !strcmp(s, "1"));
}

/* Handles argv[*i] and, where it has one, its value. */
static sr_status parse_one(struct options *o, int argc, char **argv, int *i, sr_error *err)
{
    const char *arg = argv[*i], *equals = strncmp(arg, "--", 2) == 0 ? strchr(arg, '=') : NULL;
    size_t n = equals ? (size_t)(equals - arg) : strlen(arg);
    char shown[64];
    struct use u = {o, find(arg, n, (int)o->command), arg, shown, NULL, err};
    sr_visible(shown, sizeof shown, arg);
    if (!u.f) return unknown_flag(shown, arg, o->command, err);
    if (equals && n < sizeof shown) shown[n] = '\0';
    if (u.f->kind == FLAG_NO) return apply(&u);
    const char *next = *i + 1 < argc ? argv[*i + 1] : NULL;
    if (!takes_value(u.f)) {
        if (equals) return sr_refuse(err, SR_ERR_USAGE, "%s takes no value", shown);
        return apply(&u);
    }
    if (equals) {
        u.value = equals + 1;
    } else if (u.f->kind == FLAG_SWITCH && !is_switch_word(next)) {
        u.value = "on";
    } else {
        if (!next || (next[0] == '-' && find(next, strlen(next), (int)o->command)))
            return sr_refuse(err, SR_ERR_USAGE, "%s: missing value (%s)", shown,
                             u.f->value ? u.f->value : "VALUE");
        u.value = next;
        ++*i;
    }
    if (!*u.value) return sr_refuse(err, SR_ERR_USAGE, "%s: empty value", shown);
    return apply(&u);
}

sr_status sr_flags_parse(struct options *o, int argc, char **argv, sr_error *err)
{
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "--usage") == 0) {
            o->help = 1;
            return SR_OK;
        }
    for (int i = 0; i < argc; i++) {
        sr_status st = parse_one(o, argc, argv, &i, err);
        if (st) return st;
    }
    return SR_OK;
}

void sr_options_default(struct options *o, enum command command)
{
    *o = (struct options){0};
    sr_sampler_options s = sr_sampler_options_default();
    o->command = command;
    o->window = o->sinks = o->min_len = o->bits = o->route_seed = -1;
    o->audit = o->yarn_ext = -1;
    o->no_mmap = -1;
    o->skip = -1;
    o->temp = o->top_p = o->min_p = o->repeat_penalty = -1;
    o->top_k = o->think_budget = -1;
    o->presence_penalty = (double)s.presence_penalty;
    o->frequency_penalty = (double)s.frequency_penalty;
    o->repeat_last_n = s.repeat_last_n;
    o->seed = -1;
    o->gpu_layers = SR_GPU_LAYERS_AUTO;
    o->n_predict = -1;
    o->repetitions = 5;
    o->needles = 8;
    o->tile = 1;
    o->values = 1;
    o->verbosity = 3;
    o->task = "text";
}
