/* A step of Riemannian Adam on fp32 rows of points, every row in one go while it is in cache.

   The same as kernels/points/plain.py, which explains it; sums over a row are in fp32, what is
   made of them in fp64. Compiled when first used by cpu.py. */

#include <math.h>
#include <stdint.h>

typedef struct {
    double rate, beta1, beta2, eps, correction, c, min_norm, rest;
    int64_t retraction;
} rule_t;

typedef struct {
    double a, b, e, f; /* x' = a x + b m, m' = e m + f x */
} coefficients_t;

/* The larger one; what is not a number stays, unlike with fmax. */
static double at_least(double value, double bound) { return value < bound ? bound : value; }

static double root(double xx, double c) { return 1 / (c * (sqrt(1 + xx / c) + 1)); }

static coefficients_t geodesic(double xx, double xm, double mm, double rate, const rule_t *rule)
{
    double norm2 = at_least(mm - xm * xm / (xx + rule->c), 0);
    double q = at_least(rate * rate * norm2, rule->min_norm * rule->min_norm) / rule->c;
    double r = sqrt(q);
    double step = -rate * (r > 0 ? sinh(r) / r : 1);
    return (coefficients_t){cosh(r), step, cosh(r), step * norm2 / rule->c};
}

static coefficients_t straight(double xx, double xm, double mm, double rate, const rule_t *rule)
{
    double x_t = sqrt(xx + rule->c);
    double moved = rate * (rate * mm - 2 * xm);
    double time_step = moved / (sqrt(at_least(xx + moved + rule->c, 0)) + x_t);
    double product = -time_step * xm / x_t - rate * mm;
    double chord2 = rate * rate * mm - time_step * time_step;
    double share = product / (2 * rule->c + chord2 / 2);
    return (coefficients_t){1, -rate, 1 - share * rate, 2 * share};
}

/* Gradients g to those in the frame at x; touched: which rows have one. */
void to_frame(int64_t n, int64_t d, double c, const float *x, float *g, uint8_t *touched)
{
    for (int64_t row = 0; row < n; row++, x += d, g += d) {
        float xx = 0, xg = 0;
        int any = 0;
        for (int64_t i = 0; i < d; i++)
            any |= g[i] != 0;
        touched[row] = any;
        if (!any)
            continue;
        for (int64_t i = 0; i < d; i++) {
            xx += x[i] * x[i];
            xg += x[i] * g[i];
        }
        float share = root(xx, c) * xg;
        for (int64_t i = 0; i < d; i++)
            g[i] += share * x[i];
    }
}

static void step_row(
    int64_t d, const rule_t *rule, float *x, const float *h, float *m, float *second, float *highest)
{
    float xx = 0, xh = 0, hh = 0, xm = 0, mm = 0;
    float beta1 = rule->beta1, rest_of_beta1 = 1 - rule->beta1;
    if (h) {
        for (int64_t i = 0; i < d; i++) {
            xx += x[i] * x[i];
            xh += x[i] * h[i];
            hh += h[i] * h[i];
        }
        float share = (1 - rule->beta1) * root(xx, rule->c) * xh;
        for (int64_t i = 0; i < d; i++) {
            m[i] = beta1 * m[i] + rest_of_beta1 * h[i] + share * x[i];
            xm += x[i] * m[i];
            mm += m[i] * m[i];
        }
    } else {
        for (int64_t i = 0; i < d; i++) {
            m[i] *= beta1;
            xx += x[i] * x[i];
            xm += x[i] * m[i];
            mm += m[i] * m[i];
        }
    }
    double v = fabs(*second) + (1 - rule->beta2) * (hh - fabs(*second)), bound = v;
    if (highest) {
        bound = at_least(v, *highest);
        *highest = bound;
    }
    double rate = rule->rate / (sqrt(bound / rule->correction) + rule->eps);
    coefficients_t to = (rule->retraction ? straight : geodesic)(xx, xm, mm, rate, rule);
    int still = mm <= rule->rest * v && !(rule->min_norm > 0);
    *second = still ? -v : v;
    float a = to.a, b = to.b, e = still ? 0 : to.e, f = still ? 0 : to.f;
    for (int64_t i = 0; i < d; i++) {
        float old = x[i];
        x[i] = a * old + b * m[i];
        m[i] = e * m[i] + f * old;
    }
}

/* One step; of the second moments, and of the highest so far if not null, one a row is used. */
void step(
    int64_t n, int64_t d, const rule_t *rule, float *x, const float *h, float *m, float *second,
    int64_t second_stride, float *highest, int64_t highest_stride, const uint8_t *touched)
{
    for (int64_t row = 0; row < n; row++) {
        float *v = second + row * second_stride;
        if (touched[row] || !(*v <= 0) || rule->min_norm > 0)
            step_row(d, rule, x + row * d, touched[row] ? h + row * d : 0, m + row * d, v,
                     highest ? highest + row * highest_stride : 0);
        else
            *v *= rule->beta2;
    }
}
