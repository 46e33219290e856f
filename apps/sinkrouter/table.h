/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of named values as a Markdown table, CSV, a JSON array or JSON lines. A row is a jansson object; CSV
 * and JSON print its keys in order. Markdown prints columns made for people.
 */
#ifndef SR_APP_TABLE_H
#define SR_APP_TABLE_H

#include <jansson.h>
#include <stdio.h>

enum table_format { TABLE_MD, TABLE_CSV, TABLE_JSON, TABLE_JSONL };

struct column {
    const char *title;
    int to_right;
    /* Text of a row's cell; "" leaves it empty. */
    void (*cell)(char *dst, size_t dst_bytes, const json_t *row);
};

/* "md", "csv", "json", "jsonl"; NULL gives fallback. */
enum table_format sr_table_format(const char *name, enum table_format fallback);
/* rows: a JSON array of objects. columns are used by TABLE_MD only; a column whose cells are all empty is
 * left out. */
void sr_table_print(FILE *to, enum table_format format, const json_t *rows, const struct column *columns,
                    int n_columns);

/* number of a field, or NAN when it is absent or null. */
double sr_field(const json_t *row, const char *key);
/* A cell function: the number of a field times a scale, in a format; empty where there is none. */
#define TABLE_CELL(name, key, fmt, scale)                                                                    \
    static void name(char *dst, size_t n, const json_t *row)                                                 \
    {                                                                                                        \
        double v = sr_field(row, key);                                                                       \
        *dst = '\0';                                                                                         \
        if (v == v) snprintf(dst, n, fmt, v *(scale));                                                       \
    }

#endif
