/* SPDX-License-Identifier: Apache-2.0
 *
 * Options to library objects.
 */
#include "setup.h"
#include "diag.h"
#include "interrupt.h"
#include "progress.h"
#include "text_source.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

sr_status sr_setup_check_model(const struct options *o, int many, sr_error *err)
{
    if (o->models.n == 0) return sr_refuse(err, SR_ERR_USAGE, "-m: missing; give a GGUF file or a model folder");
    if (o->models.n > 1 && !many)
        return sr_refuse(err, SR_ERR_USAGE, "-m: given %d times, takes one file", o->models.n);
    return SR_OK;
}

static int loads_by(const struct options *o, const char *word)
{
    return o->load_mode && strstr(o->load_mode, word) != NULL;
}

/* The flags of llama.cpp for one choice, the plainest first. */
static sr_load load_of(const struct options *o)
{
    if (o->no_mmap >= 0) return o->no_mmap ? SR_LOAD_COPY : SR_LOAD_MAP;
    if (o->mmap.n) return o->mmap.v[0] ? SR_LOAD_MAP : SR_LOAD_COPY;
    if (!o->load_mode || strcmp(o->load_mode, "auto") == 0) return SR_LOAD_AUTO;
    return loads_by(o, "mmap") ? SR_LOAD_MAP : strcmp(o->load_mode, "none") == 0 ? SR_LOAD_COPY : SR_LOAD_AUTO;
}

static sr_status set_rope(sr_rope_options *r, const struct options *o, sr_error *err)
{
    if (o->rope_scale > 0 && o->rope_freq_scale > 0)
        return sr_refuse(err, SR_ERR_USAGE, "--rope-freq-scale: --rope-scale says the same in another way; give one");
    r->scaling = !o->rope_scaling                      ? SR_ROPE_SCALING_FILE
                 : strcmp(o->rope_scaling, "none") == 0 ? SR_ROPE_SCALING_NONE
                 : strcmp(o->rope_scaling, "yarn") == 0 ? SR_ROPE_SCALING_YARN
                                                        : SR_ROPE_SCALING_LINEAR;
    r->scale = o->rope_freq_scale > 0 ? 1 / o->rope_freq_scale : o->rope_scale;
    r->freq_base = o->rope_base;
    r->original_ctx = (int32_t)o->yarn_ctx;
    r->attn_factor = o->yarn_attn;
    r->beta_slow = o->yarn_slow;
    r->beta_fast = o->yarn_fast;
    r->has_ext_factor = o->yarn_ext >= 0;
    r->ext_factor = r->has_ext_factor ? o->yarn_ext : 0;
    return SR_OK;
}

void sr_setup_note_unused(const struct options *o)
{
    const struct {
        int is_given;
        const char *flag, *mode;
    } of[] = {{o->delta.n, "--route-delta", "mass"}, {o->rank.n, "--route-rank", "mass"}, {o->bits >= 0, "--route-bits", "mass"},
              {o->look != CHOICE_UNSET, "--route-look", "mass"}, {o->trail != CHOICE_UNSET, "--route-trail", "mass"},
              {o->keep.n, "--route-keep", "mass"}, {o->tau.n, "--route-tau", "paper"}, {o->tau_file != NULL, "--route-tau-file", "paper"},
              {o->skip_groups.n, "--skip-groups", "paper"}};
    if (o->command == CMD_CHAT) return; /* /route may ask for any */
    for (size_t i = 0; i < sizeof of / sizeof of[0]; i++) {
        int is_used = !o->route.n && strcmp(of[i].mode, "mass") == 0; /* the default */
        for (int32_t k = 0; k < o->route.n; k++) is_used |= strcmp(o->route.v[k], of[i].mode) == 0;
        if (of[i].is_given && !is_used) sr_note("%s is for the mode %s, which was not asked for", of[i].flag, of[i].mode);
    }
}

/* Said once, when all is right: what was asked for and has nothing to act on. -ngl is typed by habit; --device asks for a GPU by
 * name and is refused. */
static void note_idle(const sr_model *m, const struct options *o)
{
    static int was_said;
    sr_model_info info;
    if (was_said++) return;
    sr_setup_note_unused(o);
    sr_model_get_info(m, &info);
    if (o->gpu_layers && o->gpu_layers != SR_GPU_LAYERS_AUTO && !o->device && !info.n_gpu_layers)
        sr_note("-ngl: there is no GPU to put layers on, the CPU runs them (--device cuda says why)");
    if (o->keep.n && (o->command == CMD_CHAT || (o->command == CMD_RUN && (!o->route.n || strcmp(o->route.v[0], "mass") == 0))))
        sr_note("--route-keep %g: mass reads keys drawn at random, so answers mean nothing", o->keep.v[0]);
}

sr_status sr_setup_model(sr_model **out, const struct options *o, int32_t i, int threads, sr_error *err)
{
    sr_model_options m = sr_model_options_default();
    sr_session_options fit;
    sr_status st = sr_setup_session(&fit, o, err);
    if (st) return st;
    m.fit = &fit;
    m.n_threads = threads ? threads : o->threads.n ? (int)o->threads.v[0] : 0;
    m.check = o->check;
    m.load = load_of(o);
    m.quantize = o->quantize;
    m.mlock = o->mlock || loads_by(o, "mlock");
    m.device = o->device;
    m.n_gpu_layers = o->gpu_layers > INT32_MAX ? INT32_MAX : (int)o->gpu_layers;
    if (o->moments) m.moments_path = strcmp(o->moments, "none") == 0 ? "" : o->moments;
    m.progress = sr_progress_show;
    if (o->flash == CHOICE_OFF) sr_note("-fa off has no effect: there is one attention path");
    st = set_rope(&m.rope, o, err);
    if (st) return st;
    st = sr_model_open(out, o->models.v[i], &m, err);
    if (st == SR_ERR_UNSUPPORTED &&
        o->command == CMD_INSPECT) { /* what it says about itself can be shown still */
        sr_say("this version cannot run the model: %s", err->text);
        m.metadata_only = m.vocab_only = 1;
        st = sr_model_open(out, o->models.v[i], &m, err);
    }
    sr_progress_clear();
    if (!st) note_idle(*out, o);
    /* Progress was told to stop by a signal: its exit status, and nothing to say. */
    return st == SR_ERR_USAGE && sr_interrupt_pending() ? (sr_status)(128 + sr_interrupt_pending()) : st;
}

/* {"tau":[c0,c1,c2,c3],"scale":131072,"min_len":2048,"max_len":131072} */
static sr_status read_tau_file(sr_route_options *r, const char *path, sr_error *err)
{
    char shown[120];
    json_error_t at;
    struct text text;
    struct stat file;
    sr_visible(shown, sizeof shown, path);
    if (stat(path, &file) == 0 && !S_ISREG(file.st_mode)) /* it is read once a mode */
        return sr_refuse(err, SR_ERR_IO, "--route-tau-file %s: not a regular file", shown);
    sr_status st = sr_text_read(&text, "--route-tau-file", path, err);
    if (st) return st;
    json_t *j = json_loadb(text.data, text.bytes, JSON_REJECT_DUPLICATES, &at);
    sr_text_free(&text);
    if (!j) return sr_refuse(err, SR_ERR_FORMAT, "--route-tau-file %s: line %d: %s", shown, at.line, at.text);
    json_t *tau = json_object_get(j, "tau");
    const char *const names[3] = {"scale", "min_len", "max_len"};
    double *const fields[3] = {&r->tau_scale, &r->tau_min_len, &r->tau_max_len};
    if (json_array_size(tau) != 4)
        st = sr_refuse(err, SR_ERR_FORMAT, "--route-tau-file %s: \"tau\" must be 4 numbers", shown);
    for (size_t i = 0; !st && i < 7; i++) {
        json_t *v = i < 4 ? json_array_get(tau, i) : json_object_get(j, names[i - 4]);
        if (!json_is_number(v) || (i >= 4 && json_number_value(v) <= 0))
            st = sr_refuse(err, SR_ERR_FORMAT, "--route-tau-file %s: \"%s\" must be a %snumber", shown,
                           i < 4 ? "tau" : names[i - 4], i < 4 ? "" : "positive ");
        else
            *(i < 4 ? &r->tau[i] : fields[i - 4]) = json_number_value(v);
    }
    json_decref(j);
    if (!st && r->tau_max_len < r->tau_min_len)
        st = sr_refuse(err, SR_ERR_FORMAT, "--route-tau-file %s: max_len is below min_len", shown);
    r->tau_set = !st;
    return st;
}

void sr_setup_warn_tau(const sr_route_options *r, int32_t len)
{
    static int was_said;
    int is_cubic = r->tau[1] != 0 || r->tau[2] != 0 || r->tau[3] != 0;
    if (r->mode != SR_ROUTE_PAPER || !is_cubic || was_said || (len >= r->tau_min_len && len <= r->tau_max_len)) return;
    was_said = 1;
    sr_say("--route-tau-file: fitted on %.0f to %.0f tokens, the context has %d: the threshold of the nearest of these is taken",
           r->tau_min_len, r->tau_max_len, len);
}

void sr_setup_warn_min(const sr_route_options *r, int32_t len)
{
    static int was_said;
    if (r->mode == SR_ROUTE_DENSE || len >= r->min_len || was_said) return;
    was_said = 1;
    sr_note("--route-min %d: contexts of at most %d tokens are read whole in every mode", r->min_len, len);
}

float sr_setup_keep(double share) { return share > 0 ? (float)share : 1e-12f; }

sr_status sr_setup_route(sr_route_options *out, const struct options *o, const char *mode, sr_error *err)
{
    sr_route_options r = sr_route_options_default();
    if (!mode && o->route.n) mode = o->route.v[0];
    sr_status st = mode ? sr_route_mode_find(&r.mode, mode, err) : SR_OK;
    if (st) return st;
    if (o->eps.n) r.eps = (float)o->eps.v[0];
    if (o->delta.n) r.delta = (float)o->delta.v[0];
    if (o->breaker) r.breaker = o->breaker == CHOICE_ON;
    if (o->look) r.look = o->look == CHOICE_ON;
    if (o->trail) r.trail = o->trail == CHOICE_ON;
    if (o->rank.n) r.rank = (int32_t)o->rank.v[0];
    r.budget = o->budget.n ? (int32_t)o->budget.v[0] : 512;
    if (o->window >= 0) r.window = (int32_t)o->window;
    if (o->sinks >= 0) r.n_sinks = (int32_t)o->sinks;
    if (o->min_len >= 0) r.min_len = (int32_t)o->min_len;
    if (o->bits >= 0) r.bits = (int32_t)o->bits;
    if (o->audit >= 0) r.audit = (float)o->audit;
    if (o->keep.n) r.keep = sr_setup_keep(o->keep.v[0]);
    if (o->keep.n && o->audit < 0) r.audit = 0; /* a lot keeps no promise, and breakers would read more than its share */
    if (o->route_seed >= 0) r.seed = (uint64_t)o->route_seed;
    if (r.bits != 4 && r.bits != 8)
        return sr_refuse(err, SR_ERR_USAGE, "--route-bits %d: must be 4 or 8", r.bits);
    if (o->delta.n && o->audit == 0)
        return sr_refuse(err, SR_ERR_USAGE, "--route-delta: learns from audits, but --route-audit is 0");
    if (o->tau.n && o->tau_file)
        return sr_refuse(err, SR_ERR_USAGE, "--route-tau: not together with --route-tau-file");
    if (o->tau.n) {
        r.tau_set = 1;
        r.tau[0] = o->tau.v[0];
        r.tau[1] = r.tau[2] = r.tau[3] = 0;
    }
    if (o->tau_file && (st = read_tau_file(&r, o->tau_file, err)) != SR_OK) return st;
    if (r.mode == SR_ROUTE_PAPER && !r.tau_set)
        return sr_refuse(err, SR_ERR_USAGE, "--route-tau: missing; paper needs it or --route-tau-file");
    *out = r;
    return SR_OK;
}

sr_status sr_setup_dtype(sr_dtype *out, const char *name, sr_error *err)
{
    static const sr_dtype types[] = {SR_DTYPE_F32, SR_DTYPE_F16, SR_DTYPE_BF16, SR_DTYPE_Q8_0, SR_DTYPE_Q4_0, SR_DTYPE_F8_E4M3};
    if (strncmp(name, "fp8", 3) == 0) name = "f8_e4m3"; /* as vLLM calls it */
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (strcmp(sr_dtype_name(types[i]), name) == 0) {
            *out = types[i];
            return SR_OK;
        }
    return sr_refuse(err, SR_ERR_USAGE, "-ctk, -ctv: unknown type %s", name);
}

int32_t sr_setup_batch(int64_t batch, int64_t ubatch)
{
    if (!ubatch) ubatch = sr_session_options_default().n_batch;
    return (int32_t)(batch && batch < ubatch ? batch : ubatch);
}

sr_status sr_setup_session(sr_session_options *out, const struct options *o, sr_error *err)
{
    sr_session_options s = sr_session_options_default();
    sr_status st = SR_OK;
    s.n_ctx = (int32_t)o->n_ctx;
    s.allow_extrapolation = o->allow_extrapolation;
    s.n_batch = sr_setup_batch(o->batch.n ? o->batch.v[0] : 0, o->ubatch.n ? o->ubatch.v[0] : 0);
    if (o->type_k.n) st = sr_setup_dtype(&s.k_type, o->type_k.v[0], err);
    if (!st && o->type_v.n) st = sr_setup_dtype(&s.v_type, o->type_v.v[0], err);
    *out = s;
    return st;
}

/* llama.cpp's spellings of sampler names to the library's: top-k, temp. */
static sr_status sampler_order(char *out, size_t out_bytes, const char *given, sr_error *err)
{
    size_t n = 0;
    for (const char *s = given;; s++) {
        size_t len = strcspn(s, ";");
        int is_short = len == 4 && strncmp(s, "temp", 4) == 0;
        if (n + len + 16 > out_bytes)
            return sr_refuse(err, SR_ERR_USAGE, "--samplers: longer than %zu bytes", out_bytes);
        for (size_t i = 0; i < len; i++) out[n++] = s[i] == '-' ? '_' : s[i];
        if (is_short) n += (size_t)sprintf(out + n, "erature");
        s += len;
        if (!*s) break;
        out[n++] = ';';
    }
    out[n] = '\0';
    return SR_OK;
}

uint64_t sr_setup_seed(const struct options *o)
{
    /* 32 bits of a random seed: short enough to be typed again. */
    return o->seed >= 0 ? (uint64_t)o->seed : sr_seed_random() & 0xffffffffu;
}

sr_status sr_setup_sampler(sr_sampler **out, uint64_t seed, const struct options *o, const sr_model *m, int thinking,
                           sr_error *err)
{
    sr_sampler_options s = sr_sampler_options_default();
    sr_model_info info;
    char order[256];
    sr_model_get_info(m, &info);
    sr_sampler_advice(m, thinking, &s);
    if (o->temp >= 0) s.temperature = (float)o->temp;
    if (o->greedy) s.temperature = 0;
    if (o->top_p >= 0) s.top_p = (float)o->top_p;
    if (o->min_p >= 0) s.min_p = (float)o->min_p;
    if (o->top_k >= 0) s.top_k = (int32_t)o->top_k;
    if (o->repeat_penalty >= 0) s.repeat_penalty = (float)o->repeat_penalty;
    s.presence_penalty = (float)o->presence_penalty;
    s.frequency_penalty = (float)o->frequency_penalty;
    s.repeat_last_n = (int32_t)o->repeat_last_n;
    s.seed = seed;
    if (o->samplers) {
        sr_status st = sampler_order(order, sizeof order, o->samplers, err);
        if (st) return st;
        s.order = order;
    }
    return sr_sampler_new(out, &s, info.n_vocab, err);
}

sr_bos sr_setup_bos(const struct options *o)
{
    return o->bos == CHOICE_ON ? SR_BOS_ON : o->bos == CHOICE_OFF ? SR_BOS_OFF : SR_BOS_AUTO;
}

/* Why a file of this name could not be made, as an errno; 0: it could. What is no regular file is not replaced: a
 * device or a pipe is written as it is, or refused by who writes. */
static int against_writing(const char *path)
{
    char folder[4200];
    struct stat st;
    const char *slash = strrchr(path, '/');
    const size_t n = slash ? (size_t)(slash - path) + 1 : 0;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) return S_ISDIR(st.st_mode) ? EISDIR : 0;
    if (n >= sizeof folder) return ENAMETOOLONG;
    memcpy(folder, path, n);
    folder[n] = '\0';
    return access(n ? folder : ".", W_OK | X_OK) ? errno : 0;
}

sr_status sr_setup_check_output(const char *flag, const char *path, sr_error *err)
{
    char shown[120];
    const int cause = path ? against_writing(path) : 0;
    if (!cause) return SR_OK;
    return sr_refuse(err, SR_ERR_IO, "%s %s: %s", flag, sr_visible(shown, sizeof shown, path), strerror(cause));
}

sr_status sr_setup_check_input(const char *flag, const char *path, sr_error *err)
{
    char shown[120];
    if (!path || strcmp(path, "-") == 0 || access(path, R_OK) == 0) return SR_OK;
    return sr_refuse(err, SR_ERR_IO, "%s %s: %s", flag, sr_visible(shown, sizeof shown, path), strerror(errno));
}
