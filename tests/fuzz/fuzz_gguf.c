/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes as a GGUF file: it opens or is refused with one clean line; what opens is walked to the last byte and
 * must be as the headers promise. Input that begins "SPLT" is two shards of a split model.
 */
#include "fuzz.h"

#include "formats/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PROMISE(x) ((x) ? (void)0 : broken(#x, __LINE__))

static uint64_t sum; /* of everything read, so that no read is optimised away */

static void broken(const char *what, int line)
{
    fprintf(stderr, "fuzz_gguf: line %d: not true: %s\n", line, what);
    abort();
}

static void write_all(int fd, const uint8_t *data, size_t bytes)
{
    while (bytes > 0) {
        const ssize_t n = write(fd, data, bytes);
        if (n <= 0) exit(99);
        data += n;
        bytes -= (size_t)n;
    }
}

/* ---- walking what opened ------------------------------------------------------------------------------------ */

static void touch(const void *data, size_t bytes)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < bytes; i++) sum += p[i];
}

static void walk_elements(const struct gguf_value *v)
{
    if (v->elem_type == GGUF_STRING) {
        struct gguf_str s;
        const uint8_t *at = NULL;
        uint64_t i = 0, n = 0;
        for (; sr_gguf_next_str(v, &at, &i, &s); n++) touch(s.data, s.bytes);
        PROMISE(n == v->count);
        return;
    }
    for (uint64_t i = 0; i < v->count; i++) sum += sr_gguf_number(v, i) > 0.5;
}

static void walk_value(const struct gguf *g, const struct gguf_value *v)
{
    int64_t n;
    double d;
    int truth, found, ok = 0;
    struct gguf_str s;
    char *key = malloc(v->key.bytes + 1);
    if (!key) exit(99);
    memcpy(key, v->key.data, v->key.bytes);
    key[v->key.bytes] = 0;
    PROMISE(v->type <= GGUF_F64 && v->elem_type <= GGUF_F64 && v->elem_type != GGUF_ARRAY);
    PROMISE(v->type == GGUF_ARRAY || v->count == 1);
    PROMISE(sr_gguf_find(g, key) == v);
    walk_elements(v);
    ok += sr_gguf_get_int(g, key, INT64_MIN, INT64_MAX, &n, &found, NULL) == SR_OK;
    ok += sr_gguf_get_float(g, key, &d, NULL, NULL) == SR_OK;
    ok += sr_gguf_get_bool(g, key, &truth, &found, NULL) == SR_OK;
    ok += sr_gguf_get_str(g, key, &s, NULL, NULL) == SR_OK;
    PROMISE(ok <= 1 && (ok == 0 || v->type != GGUF_ARRAY));
    free(key);
}

static void walk_tensor(const struct gguf *g, const struct gguf_tensor *t)
{
    static float row[4096];
    char name[64];
    sr_error err;
    PROMISE(t->name.bytes >= 1 && t->name.bytes <= 63);
    memcpy(name, t->name.data, t->name.bytes);
    name[t->name.bytes] = 0;
    PROMISE(sr_gguf_find_tensor(g, name) == t);
    PROMISE(sr_dtype_find(t->dtype) && t->part >= 0 && t->part < sr_gguf_n_parts(g));
    PROMISE(t->bytes == sr_row_bytes(t->dtype, t->ne[0]) * (size_t)(t->ne[1] * t->ne[2] * t->ne[3]));
    touch(t->data, t->bytes);
    sum += sr_gguf_check_tensor(g, t, &err) == SR_OK;
    if (t->ne[0] <= 4096) {
        sr_dequantize_row(t->dtype, t->data, row, t->ne[0]);
        touch(row, (size_t)t->ne[0] * 4);
    }
    for (int64_t i = 0; i < sr_gguf_n_tensors(g) && i < 100; i++) {
        const struct gguf_tensor *o = sr_gguf_tensor(g, i);
        if (o != t && o->part == t->part) PROMISE(o->file_offset >= t->file_offset + t->bytes || t->file_offset >= o->file_offset + o->bytes);
    }
}

static void open_and_walk(const char *path)
{
    struct gguf *g = NULL;
    sr_error err = {0};
    const sr_status st = sr_gguf_open(&g, path, &err);
    if (st != SR_OK) {
        PROMISE(g == NULL && err.status == st && err.text[0] && strlen(err.text) < sizeof(err.text));
        PROMISE(st == SR_ERR_FORMAT || st == SR_ERR_UNSUPPORTED);
        for (const char *c = err.text; *c; c++) PROMISE((unsigned char)*c >= ' ' && *c != 0x7f);
        return;
    }
    for (int64_t i = 0; i < sr_gguf_n_values(g); i++) walk_value(g, sr_gguf_value(g, i));
    for (int64_t i = 0; i < sr_gguf_n_tensors(g); i++) walk_tensor(g, sr_gguf_tensor(g, i));
    sr_gguf_close(g);
}

/* ---- inputs ------------------------------------------------------------------------------------------------- */

static void run_split(const uint8_t *data, size_t bytes, uint32_t first_bytes)
{
    char dir[] = "/tmp/sr-fuzz-XXXXXX", first[64], second[64];
    if (!mkdtemp(dir)) exit(99);
    snprintf(first, sizeof(first), "%s/m-00001-of-00002.gguf", dir);
    snprintf(second, sizeof(second), "%s/m-00002-of-00002.gguf", dir);
    for (int i = 0; i < 2; i++) {
        FILE *f = fopen(i ? second : first, "wb");
        if (!f) exit(99);
        write_all(fileno(f), i ? data + first_bytes : data, i ? bytes - first_bytes : first_bytes);
        fclose(f);
    }
    open_and_walk(first);
    unlink(first);
    unlink(second);
    rmdir(dir);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    char path[64];
    uint32_t first_bytes;
    if (bytes >= 8 && memcmp(data, "SPLT", 4) == 0) {
        memcpy(&first_bytes, data + 4, 4);
        if (first_bytes <= bytes - 8) run_split(data + 8, bytes - 8, first_bytes);
        return 0;
    }
    const int fd = memfd_create("gguf", MFD_CLOEXEC);
    if (fd < 0) exit(99);
    write_all(fd, data, bytes);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    open_and_walk(path);
    close(fd);
    return 0;
}
