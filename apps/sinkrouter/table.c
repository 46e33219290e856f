/* SPDX-License-Identifier: Apache-2.0
 *
 * Printing of result tables.
 */
#include "table.h"

#include <math.h>
#include <string.h>

enum { CELL = 64, MOST_COLUMNS = 24 };

enum table_format sr_table_format(const char *name, enum table_format fallback)
{
    static const char *const names[] = {"md", "csv", "json", "jsonl"};
    for (int i = 0; name && i < 4; i++)
        if (strcmp(names[i], name) == 0) return (enum table_format)i;
    return fallback;
}

double sr_field(const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

/* Columns on a terminal are characters, not bytes. */
static int width(const char *s)
{
    int n = 0;
    for (; *s; s++) n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static void padded(FILE *to, const char *s, int columns, int to_right)
{
    int gap = columns - width(s);
    if (to_right)
        fprintf(to, " %*s%s |", gap, "", s);
    else
        fprintf(to, " %s%*s |", s, gap, "");
}

static void print_md(FILE *to, const json_t *rows, const struct column *columns, int n_columns)
{
    int wide[MOST_COLUMNS] = {0};
    char cell[CELL];
    size_t i;
    json_t *row;
    json_array_foreach((json_t *)rows, i, row) for (int c = 0; c < n_columns; c++)
    {
        columns[c].cell(cell, sizeof cell, row);
        int w = width(cell), title = width(columns[c].title);
        if (w > wide[c]) wide[c] = w;
        if (w > 0 && title > wide[c]) wide[c] = title;
    }
    fputc('|', to);
    for (int c = 0; c < n_columns; c++)
        if (wide[c]) padded(to, columns[c].title, wide[c], columns[c].to_right);
    fputs("\n|", to);
    for (int c = 0; c < n_columns; c++) {
        if (!wide[c]) continue;
        fputc(' ', to);
        for (int k = 0; k < wide[c] - columns[c].to_right; k++) fputc('-', to);
        fputs(columns[c].to_right ? ": |" : " |", to);
    }
    fputc('\n', to);
    json_array_foreach((json_t *)rows, i, row)
    {
        fputc('|', to);
        for (int c = 0; c < n_columns; c++) {
            if (!wide[c]) continue;
            columns[c].cell(cell, sizeof cell, row);
            padded(to, cell, wide[c], columns[c].to_right);
        }
        fputc('\n', to);
    }
}

static void csv_value(FILE *to, const json_t *v)
{
    fputc('"', to);
    if (json_is_string(v)) {
        for (const char *s = json_string_value(v); *s; s++) {
            if (*s == '"') fputc('"', to);
            fputc(*s, to);
        }
    } else if (json_is_integer(v)) {
        fprintf(to, "%lld", (long long)json_integer_value(v));
    } else if (json_is_real(v)) {
        fprintf(to, "%.9g", json_real_value(v));
    } else if (json_is_boolean(v)) {
        fputc(json_is_true(v) ? '1' : '0', to);
    }
    fputc('"', to);
}

static void print_csv(FILE *to, const json_t *rows)
{
    size_t i;
    json_t *row, *v;
    const char *key;
    json_array_foreach((json_t *)rows, i, row)
    {
        int n = 0;
        if (i == 0) {
            json_object_foreach(row, key, v) if (!json_is_array(v)) fprintf(to, "%s%s", n++ ? "," : "", key);
            fputc('\n', to);
            n = 0;
        }
        json_object_foreach(row, key, v)
        {
            if (json_is_array(v)) continue;
            if (n++) fputc(',', to);
            csv_value(to, v);
        }
        fputc('\n', to);
    }
}

void sr_table_print(FILE *to, enum table_format format, const json_t *rows, const struct column *columns,
                    int n_columns)
{
    size_t i;
    json_t *row;
    switch (format) {
    case TABLE_MD: print_md(to, rows, columns, n_columns); break;
    case TABLE_CSV: print_csv(to, rows); break;
    case TABLE_JSON:
        json_dumpf(rows, to, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        fputc('\n', to);
        break;
    case TABLE_JSONL:
        json_array_foreach((json_t *)rows, i, row)
        {
            json_dumpf(row, to, JSON_COMPACT | JSON_REAL_PRECISION(9));
            fputc('\n', to);
        }
        break;
    }
}
