/* The nested loss for float32 on a CPU.
 *
 * The unit of work is a slice of columns of d_in. No two slices write the same number of a weight
 * gradient, so there are no atomics and no sort, and the bits do not depend on timing. A slice of
 * the dictionary is packed into its own block, so that the random rows a token reads are dense in
 * cache and in pages.
 *
 * Threads belong to the caller (native.py): these functions do one slice and return.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SLICE 64 /* columns of d_in per unit of work */

int64_t hsae_slice_width(void) { return SLICE; }

/* One slice of S columns for all tokens. W and dW rows lie `stride` floats apart; `prefixes` holds
 * the residual at each budget of one token. Inlined twice so that the full-width case has a
 * constant S. */
static inline __attribute__((always_inline)) void nested_body(
    const int64_t S, int64_t n_tokens, int64_t K, int64_t d_in, int64_t n_budgets,
    const float *restrict values, const int64_t *restrict indices, const float *restrict W,
    int64_t stride, const float *restrict bias, const float *restrict target,
    const int64_t *restrict budgets, const float *restrict weights,
    const float *restrict token_weights, double *restrict squared_errors,
    float *restrict residual, int grad, float *restrict d_values, float *restrict dW,
    float *restrict suffix, float *restrict prefixes) {
  for (int64_t n = 0; n < n_tokens; n++) {
    const float *v = values + n * K;
    const int64_t *idx = indices + n * K;
    const float *x = target + n * d_in;
    const float token_weight = token_weights ? token_weights[n] : 1.0f;
    float r[SLICE], s[SLICE];

    for (int64_t e = 0; e < S; e++) r[e] = bias[e] - x[e];
    int64_t t = 0;
    for (int64_t g = 0; g < n_budgets; g++) {
      for (; t < budgets[g]; t++) {
        const float *row = W + idx[t] * stride;
        const float c = v[t];
        for (int64_t e = 0; e < S; e++) r[e] += c * row[e];
      }
      float *kept = prefixes + g * SLICE;
      float error = 0;
      for (int64_t e = 0; e < S; e++) {
        kept[e] = r[e];
        error += r[e] * r[e];
      }
      squared_errors[g] += (double)(error * token_weight);
    }
    for (int64_t e = 0; e < S; e++) residual[n * d_in + e] = r[e];
    if (!grad) continue;

    for (int64_t e = 0; e < S; e++) s[e] = 0;
    for (int64_t g = n_budgets - 1; g >= 0; g--) {
      const float *kept = prefixes + g * SLICE;
      const float w = weights[g] * token_weight;
      for (int64_t e = 0; e < S; e++) s[e] += w * kept[e];
      const int64_t first = g ? budgets[g - 1] : 0;
      for (t = budgets[g] - 1; t >= first; t--) {
        const float *row = W + idx[t] * stride;
        float *d_row = dW + idx[t] * stride;
        const float c = 2 * v[t];
        float dot = 0;
        for (int64_t e = 0; e < S; e++) {
          dot += row[e] * s[e];
          d_row[e] += c * s[e];
        }
        d_values[n * K + t] += 2 * dot;
      }
    }
    for (int64_t e = 0; e < S; e++) suffix[n * d_in + e] = s[e];
  }
}

/* Columns [first, first + S) of the nested problem. squared_errors [n_budgets] and d_values
 * [n_tokens, K] are sums over columns: this slice's share is added to them. With `pack`, the slice
 * of W is copied out and the whole slice of dW is written; without it dW must come zeroed. Returns
 * 0, or 1 when memory ran out. */
int hsae_nested_slice(int64_t n_tokens, int64_t K, int64_t d_in, int64_t d_sae, int64_t first,
                      int64_t n_budgets, const float *values, const int64_t *indices,
                      const float *W_dec, const float *b_dec, const float *target,
                      const int64_t *budgets, const float *weights, const float *token_weights,
                      double *squared_errors, float *residual, int grad, float *d_values,
                      float *d_W_dec, float *suffix, int pack) {
  const int64_t S = d_in - first < SLICE ? d_in - first : SLICE;
  float *prefixes = malloc(sizeof(float) * SLICE * n_budgets);
  float *block = NULL, *d_block = NULL;
  const float *W = W_dec + first;
  float *dW = grad ? d_W_dec + first : NULL;
  int64_t stride = d_in;
  int failed = !prefixes;
  if (pack && !failed) {
    block = malloc(sizeof(float) * d_sae * S);
    if (grad) d_block = calloc(d_sae * S, sizeof(float));
    failed = !block || (grad && !d_block);
    if (!failed) {
      for (int64_t f = 0; f < d_sae; f++)
        memcpy(block + f * S, W + f * d_in, sizeof(float) * S);
      W = block, dW = d_block, stride = S;
    }
  }
#define BODY(WIDTH)                                                                             \
  nested_body(WIDTH, n_tokens, K, d_in, n_budgets, values, indices, W, stride, b_dec + first,   \
              target + first, budgets, weights, token_weights, squared_errors, residual + first, \
              grad, d_values, dW, grad ? suffix + first : NULL, prefixes)
  if (!failed) {
    if (S == SLICE)
      BODY(SLICE);
    else
      BODY(S);
  }
#undef BODY
  if (pack && grad && !failed)
    for (int64_t f = 0; f < d_sae; f++)
      memcpy(d_W_dec + f * d_in + first, d_block + f * S, sizeof(float) * S);
  free(prefixes);
  free(block);
  free(d_block);
  return failed;
}
