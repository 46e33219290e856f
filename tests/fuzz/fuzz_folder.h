/* SPDX-License-Identifier: Apache-2.0
 *
 * For targets that read a file of a model folder: a folder of the process, the file in it, and what every refusal must
 * be like. Static functions, since a target is linked alone.
 */
#ifndef SR_TESTS_FUZZ_FOLDER_H
#define SR_TESTS_FUZZ_FOLDER_H

#include "fuzz.h"

#include "formats/hf_folder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char fuzz_folder[64];
static const char *fuzz_files[4];

static void fuzz_path(char *dst, size_t bytes, const char *name) { snprintf(dst, bytes, "%s/%s", fuzz_folder, name); }

static void fuzz_remove(void)
{
    char path[128];
    for (int i = 0; i < 4 && fuzz_files[i]; i++) {
        fuzz_path(path, sizeof(path), fuzz_files[i]);
        unlink(path);
    }
    rmdir(fuzz_folder);
}

static void fuzz_write(const char *name, const void *data, size_t bytes)
{
    char path[128];
    if (!fuzz_folder[0]) {
        snprintf(fuzz_folder, sizeof(fuzz_folder), "/tmp/sr-fuzz-XXXXXX");
        if (!mkdtemp(fuzz_folder)) exit(99);
        atexit(fuzz_remove);
    }
    for (int i = 0; i < 4; i++) {
        if (!fuzz_files[i]) fuzz_files[i] = name;
        if (strcmp(fuzz_files[i], name) == 0) break;
    }
    fuzz_path(path, sizeof(path), name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f)) exit(99);
}

/* One clean line, and a kind that a file can be at fault for. */
static void fuzz_check_refusal(sr_status st, const sr_error *err)
{
    int bad = err->status != st || !err->text[0] || strlen(err->text) >= sizeof(err->text) || (st != SR_ERR_FORMAT && st != SR_ERR_UNSUPPORTED);
    for (const char *c = err->text; *c; c++) bad |= (unsigned char)*c < ' ' || *c == 0x7f;
    if (!bad) return;
    fprintf(stderr, "fuzz: status %d: %s\n", (int)st, err->text);
    abort();
}

#endif
