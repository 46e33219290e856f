/* SPDX-License-Identifier: Apache-2.0
 *
 * Test helper: see gguf_build.h. A failure here is a broken test machine and ends the program.
 */
#include "gguf_build.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[96];

static void die(const char *what)
{
    perror(what);
    exit(99);
}

void sr_tb_put(struct sr_tb *b, const void *data, size_t bytes)
{
    if (b->bytes + bytes > b->room) {
        b->room = 2 * (b->bytes + bytes) + 256;
        b->data = realloc(b->data, b->room);
        if (!b->data) die("realloc");
    }
    if (bytes) memcpy(b->data + b->bytes, data, bytes);
    b->bytes += bytes;
}

void sr_tb_u8(struct sr_tb *b, uint8_t v) { sr_tb_put(b, &v, 1); }
void sr_tb_u32(struct sr_tb *b, uint32_t v) { sr_tb_put(b, &v, 4); }
void sr_tb_u64(struct sr_tb *b, uint64_t v) { sr_tb_put(b, &v, 8); }
void sr_tb_set_u32(struct sr_tb *b, size_t at, uint32_t v) { memcpy(b->data + at, &v, 4); }
void sr_tb_set_u64(struct sr_tb *b, size_t at, uint64_t v) { memcpy(b->data + at, &v, 8); }

void sr_tb_zeros(struct sr_tb *b, size_t bytes)
{
    static const uint8_t zeros[4096];
    for (; bytes > sizeof(zeros); bytes -= sizeof(zeros)) sr_tb_put(b, zeros, sizeof(zeros));
    sr_tb_put(b, zeros, bytes);
}

void sr_tb_pad(struct sr_tb *b, size_t alignment)
{
    sr_tb_zeros(b, (alignment - b->bytes % alignment) % alignment);
}

void sr_tb_begin(struct sr_tb *b, uint64_t n_tensors, uint64_t n_values)
{
    b->bytes = 0;
    sr_tb_put(b, "GGUF", 4);
    sr_tb_u32(b, 3);
    sr_tb_u64(b, n_tensors);
    sr_tb_u64(b, n_values);
}

void sr_tb_free(struct sr_tb *b)
{
    free(b->data);
    memset(b, 0, sizeof(*b));
}

void sr_tb_text(struct sr_tb *b, const char *text)
{
    sr_tb_u64(b, strlen(text));
    sr_tb_put(b, text, strlen(text));
}

void sr_tb_key(struct sr_tb *b, const char *key, uint32_t type)
{
    sr_tb_text(b, key);
    sr_tb_u32(b, type);
}

void sr_tb_kv_u32(struct sr_tb *b, const char *key, uint32_t v)
{
    sr_tb_key(b, key, GGUF_U32);
    sr_tb_u32(b, v);
}

void sr_tb_kv_str(struct sr_tb *b, const char *key, const char *text)
{
    sr_tb_key(b, key, GGUF_STRING);
    sr_tb_text(b, text);
}

void sr_tb_kv_array(struct sr_tb *b, const char *key, uint32_t elem_type, uint64_t count)
{
    sr_tb_key(b, key, GGUF_ARRAY);
    sr_tb_u32(b, elem_type);
    sr_tb_u64(b, count);
}

void sr_tb_info(struct sr_tb *b, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type, uint64_t offset)
{
    sr_tb_text(b, name);
    sr_tb_u32(b, n_dims);
    sr_tb_put(b, ne, 8 * (size_t)(n_dims > 4 ? 4 : n_dims));
    sr_tb_u32(b, type);
    sr_tb_u64(b, offset);
}

const char *sr_tb_path(const char *name)
{
    static char paths[4][512];
    static int turn;
    const char *tmp = getenv("TMPDIR");
    if (!dir[0]) {
        snprintf(dir, sizeof(dir), "%.60s/sr-gguf-XXXXXX", tmp && *tmp ? tmp : "/tmp");
        if (!mkdtemp(dir)) die(dir);
    }
    turn = (turn + 1) % 4;
    snprintf(paths[turn], sizeof(paths[turn]), "%s/%s", dir, name);
    return paths[turn];
}

const char *sr_tb_save(const struct sr_tb *b, const char *name)
{
    const char *path = sr_tb_path(name);
    FILE *f = fopen(path, "wb");
    if (!f) die(path);
    if (b->bytes && fwrite(b->data, 1, b->bytes, f) != b->bytes) die(path);
    if (fclose(f)) die(path);
    return path;
}

void sr_tb_clean(void)
{
    if (!dir[0]) return;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) remove(sr_tb_path(e->d_name));
    if (d) closedir(d);
    rmdir(dir);
    dir[0] = 0;
}

const char *sr_tb_shared(const char *name)
{
    static char path[512];
    const char *root = getenv("SR_SHARED");
    snprintf(path, sizeof(path), "%s/%s", root && *root ? root : "../shared", name);
    return access(path, R_OK) == 0 ? path : NULL;
}
