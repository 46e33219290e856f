/* SPDX-License-Identifier: Apache-2.0
 *
 * Averages of rotated moments. A 2x2 block B between pairs i and j is a sum of a part that commutes with
 * rotations (a I + b J) and one that they turn the other way (c S + e T), with J = [0 -1; 1 0], S = diag(1,
 * -1), T = [0 1; 1 0]. Since S R(x) = R(-x) S, R(x) B R(y)' = R(x - y) (a I + b J) + R(x + y) (c S + e T), so
 * the average over positions needs only the means of exp(i p (f_i -+ f_j)), which are geometric sums.
 */
#include "attention/rotation.h"

#include <assert.h>
#include <math.h>

void sr_rotation_init(struct rotation *r, const struct rope_spec *spec, int32_t head_dim)
{
    int32_t n_dims = spec->kind == ROPE_NONE ? 0 : spec->n_dims, half = n_dims / 2;
    assert(head_dim % 2 == 0 && head_dim / 2 <= SR_MAX_PAIRS && n_dims % 2 == 0 && n_dims <= head_dim);
    r->n_pairs = head_dim / 2;
    for (int32_t i = 0; i < r->n_pairs; i++) {
        int is_rotated = i < half, is_neox = is_rotated && spec->kind == ROPE_NEOX;
        r->first[i] = (int16_t)(is_neox ? i : 2 * i);
        r->second[i] = (int16_t)(is_neox ? i + half : 2 * i + 1);
        r->freq[i] = is_rotated ? spec->inv_freq[i] : 0.0;
        r->scale[i] = is_rotated ? spec->magnitude : 1.0;
    }
}

void sr_rotation_turn(const struct rotation *r, int64_t pos, float *turn)
{
    for (int32_t i = 0; i < r->n_pairs; i++) {
        double angle = (double)pos * r->freq[i];
        turn[2 * i] = (float)(cos(angle) / r->scale[i]);
        turn[2 * i + 1] = (float)(sin(angle) / r->scale[i]);
    }
}

void sr_rotation_undo(const struct rotation *r, const float *turn, const float *src, float *dst)
{
    for (int32_t i = 0; i < r->n_pairs; i++) {
        float a = src[r->first[i]], b = src[r->second[i]], c = turn[2 * i], s = turn[2 * i + 1];
        dst[r->first[i]] = a * c + b * s;
        dst[r->second[i]] = b * c - a * s;
    }
}

/* sum over n terms = exp(i theta (p0 + p1) / 2) sin(n theta / 2) / sin(theta / 2) */
void sr_phase_mean(double theta, int64_t p0, int64_t p1, double mean[2])
{
    double n = (double)(p1 - p0 + 1), half = theta / 2, s = sin(half);
    double size =
        fabs(s) > 1e-9 ? sin(n * half) / (n * s) : cos(n * half) / cos(half); /* the limit at 2 pi k */
    double angle = half * ((double)p0 + (double)p1);
    mean[0] = size * cos(angle);
    mean[1] = size * sin(angle);
}

void sr_rotation_means(const struct rotation *r, int64_t p0, int64_t p1, struct rotation_means *out)
{
    for (int32_t i = 0; i < r->n_pairs; i++) {
        double *each = out->each + 2 * i;
        sr_phase_mean(r->freq[i], p0, p1, each);
        each[0] *= r->scale[i];
        each[1] *= r->scale[i];
        for (int32_t j = 0; j < r->n_pairs; j++) {
            double *d = out->diff + 2 * (i * r->n_pairs + j), *s = out->sum + 2 * (i * r->n_pairs + j);
            double scale = r->scale[i] * r->scale[j];
            sr_phase_mean(r->freq[i] - r->freq[j], p0, p1, d);
            sr_phase_mean(r->freq[i] + r->freq[j], p0, p1, s);
            for (int k = 0; k < 2; k++) {
                d[k] *= scale;
                s[k] *= scale;
            }
        }
    }
}

void sr_rotation_mean_matrix(const struct rotation *r, const struct rotation_means *t, const double *m,
                             double *out)
{
    int32_t n = r->n_pairs, dim = 2 * n;
    for (int32_t i = 0; i < n; i++) {
        for (int32_t j = 0; j < n; j++) {
            const double *row0 = m + r->first[i] * dim, *row1 = m + r->second[i] * dim;
            double b00 = row0[r->first[j]], b01 = row0[r->second[j]], b10 = row1[r->first[j]],
                   b11 = row1[r->second[j]];
            double a = (b00 + b11) / 2, b = (b10 - b01) / 2, c = (b00 - b11) / 2, e = (b01 + b10) / 2;
            const double *d = t->diff + 2 * (i * n + j), *s = t->sum + 2 * (i * n + j);
            double ra = d[0] * a - d[1] * b, rb = d[0] * b + d[1] * a; /* R(x - y) (a I + b J) */
            double rc = s[0] * c - s[1] * e, re = s[0] * e + s[1] * c; /* R(x + y) (c S + e T) */
            out[r->first[i] * dim + r->first[j]] = ra + rc;
            out[r->first[i] * dim + r->second[j]] = re - rb;
            out[r->second[i] * dim + r->first[j]] = rb + re;
            out[r->second[i] * dim + r->second[j]] = ra - rc;
        }
    }
}

void sr_rotation_mean_vector(const struct rotation *r, const struct rotation_means *t, const double *m,
                             double *out)
{
    for (int32_t i = 0; i < r->n_pairs; i++) {
        double a = m[r->first[i]], b = m[r->second[i]], c = t->each[2 * i], s = t->each[2 * i + 1];
        out[r->first[i]] = a * c - b * s;
        out[r->second[i]] = a * s + b * c;
    }
}
