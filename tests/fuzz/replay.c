/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs a fuzz target over its corpus as a test, without libFuzzer: each file of the folder named, each of its
 * prefixes up to a limit, and copies of it with a few bytes changed. The changes come from a fixed seed, so a
 * failure comes back; the number of the input that is running is in replay_current for a debugger.
 */
#include "fuzz.h"

#include "base/rng.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PREFIXES = 512, N_CHANGED = 400 };

static volatile long replay_current;

/* A copy that ends where the heap block ends, so that a sanitizer sees a read of one byte too many. */
static void feed(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy) abort();
    if (size) memcpy(copy, data, size);
    replay_current++;
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

/* Numbers at the edges of their types are what breaks readers: they replace bytes as often as random ones do. */
static void change(uint8_t *data, size_t size, struct rng *rng)
{
    static const uint64_t edges[] = {0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0xffffffff, INT64_MAX, UINT64_MAX};
    for (uint64_t n = 1 + sr_rng_u64(rng) % 4; n > 0; n--) {
        size_t at = (size_t)(sr_rng_u64(rng) % size), width = (size_t)1 << (sr_rng_u64(rng) % 4);
        uint64_t kind = sr_rng_u64(rng) % 3, value = edges[sr_rng_u64(rng) % (sizeof edges / sizeof edges[0])];
        if (kind == 0) data[at] ^= (uint8_t)(1u << (sr_rng_u64(rng) % 8));
        else if (kind == 1) data[at] = (uint8_t)sr_rng_u64(rng);
        else if (at + width <= size) memcpy(data + at, &value, width);
    }
}

static void feed_variants(const uint8_t *data, size_t size)
{
    struct rng rng;
    feed(data, size);
    size_t step = size > MAX_PREFIXES ? size / MAX_PREFIXES : 1;
    for (size_t n = 0; n < size; n += step) feed(data, n);
    uint8_t *changed = malloc(size ? size : 1);
    if (!changed) abort();
    sr_rng_seed(&rng, size);
    for (int i = 0; i < N_CHANGED && size > 0; i++) {
        memcpy(changed, data, size);
        change(changed, size, &rng);
        feed(changed, size);
    }
    free(changed);
}

static int feed_file(const char *dir, const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    if (!f) return -1;
    uint8_t *data = malloc(1 << 20);
    size_t n = data ? fread(data, 1, 1 << 20, f) : 0;
    fclose(f);
    if (data) feed_variants(data, n);
    free(data);
    return data ? 0 : -1;
}

static void feed_noise(void)
{
    struct rng rng;
    uint8_t data[512];
    sr_rng_seed(&rng, 1);
    for (size_t n = 0; n < sizeof data; n++) {
        for (size_t i = 0; i < n; i++) data[i] = (uint8_t)sr_rng_u64(&rng);
        feed(data, n);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    int n_files = 0, n_unread = 0;
    printf("1..2\n");
    feed_noise();
    printf("ok 1 - %ld inputs of noise\n", (long)replay_current);
    DIR *dir = opendir(argv[1]);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (e->d_name[0] == '.') continue;
        n_files++;
        if (feed_file(argv[1], e->d_name)) n_unread++;
    }
    if (dir) closedir(dir);
    int good = n_files > 0 && n_unread == 0;
    printf("%sok 2 - %d files of %s and their variants: %ld inputs in all\n", good ? "" : "not ", n_files, argv[1],
           (long)replay_current);
    return good ? 0 : 1;
}
