/* What a block computes between its matrix products, for the CPU: soft-causal attention (Eq. 2) with its gradients,
 * RMSNorm and SwiGLU's gate, each in one pass over memory.
 *
 * Plain C with GCC's vector types, compiled for the machine that it runs on (native/__init__.py).
 * Threads are those of the OpenMP library that torch has loaded. Every sum has an order that depends on shapes alone,
 * so results are the same to the bit on any number of threads.
 *
 * Letters: B batch, h heads, N tokens, d head width; D width. A padded matrix has rows to a multiple of TILE and columns
 * to a multiple of LANES, filled with zeros.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define PANEL 4 /* vectors of columns that a tile of a product holds: TILE x PANEL accumulators in registers */
#elif defined(__AVX2__)
#define LANES 8
#define PANEL 2
#elif defined(__aarch64__)
#define LANES 4
#define PANEL 4
#else
#define LANES 4
#define PANEL 2
#endif
#define TILE 6 /* rows of a tile */
#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef float loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int64_t word;

INLINE vec load(const float *x) { return *(const loose *)x; }
INLINE void store(float *x, vec v) { *(loose *)x = v; }
INLINE vec splat(float x) { return x - (vec){0}; }
INLINE word up(word n, word step) { return (n + step - 1) / step * step; }

INLINE int32_t bits_of(float x) {
  int32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
INLINE float of_bits(int32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

/* 2^x for x up to 127, to about 1e-7 of its value; 0 below -126. NaN stays NaN. */
INLINE float exp2_(float x) {
  const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
  float bounded = x < -126.0f ? -126.0f : x;
  float shifted = bounded + magic, f = bounded - (shifted - magic);
  float y = f * 1.535336188e-4f + 1.339887440e-3f;
  y = y * f + 9.618437357e-3f;
  y = y * f + 5.550332548e-2f;
  y = y * f + 2.402264791e-1f;
  y = y * f + 6.931472028e-1f;
  y = y * f + 1.0f;
  float power = of_bits((int32_t)((uint32_t)(bits_of(shifted) - bits_of(magic) + 127) << 23));
  return x < -126.0f ? 0.0f : y * power;
}

/* ---- Elements: float32, or bfloat16 that is computed in float32 ---- */

INLINE float widen(uint16_t half) { return of_bits((int32_t)((uint32_t)half << 16)); }
INLINE uint16_t narrow(float x) { /* to nearest, ties to even; NaN stays one */
  uint32_t bits = (uint32_t)bits_of(x), rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return (uint16_t)((x == x ? rounded : bits | 0x400000) >> 16);
}
INLINE const void *at(const void *x, word i, int half) { return (const char *)x + i * (half ? 2 : 4); }

/* ---- Products of small matrices ---- */

/* c (TILE, width vectors) = or += a b; b has depth rows. Element (i, k) of a lies at i * a_row + k * a_step. */
INLINE void tile(int width, const float *a, word a_row, word a_step, const float *b, word b_row, float *c, word c_row,
                 word depth, int add) {
  vec acc[TILE][PANEL];
#pragma GCC unroll 8
  for (int i = 0; i < TILE; i++)
#pragma GCC unroll 8
    for (int j = 0; j < width; j++) acc[i][j] = add ? load(c + i * c_row + j * LANES) : splat(0.0f);
  for (word k = 0; k < depth; k++) {
    vec bs[PANEL];
#pragma GCC unroll 8
    for (int j = 0; j < width; j++) bs[j] = load(b + k * b_row + j * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < TILE; i++) {
      vec value = splat(a[i * a_row + k * a_step]);
#pragma GCC unroll 8
      for (int j = 0; j < width; j++) acc[i][j] += value * bs[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < TILE; i++)
#pragma GCC unroll 8
    for (int j = 0; j < width; j++) store(c + i * c_row + j * LANES, acc[i][j]);
}

INLINE void tile_of(word width, const float *a, word a_row, word a_step, const float *b, word b_row, float *c,
                    word c_row, word depth, int add) {
  switch (width) {
#if PANEL == 4
    case 4: tile(4, a, a_row, a_step, b, b_row, c, c_row, depth, add); break;
    case 3: tile(3, a, a_row, a_step, b, b_row, c, c_row, depth, add); break;
#endif
    case 2: tile(2, a, a_row, a_step, b, b_row, c, c_row, depth, add); break;
    default: tile(1, a, a_row, a_step, b, b_row, c, c_row, depth, add);
  }
}

/* c = or += a b, for padded matrices: TILE rows, any number of columns. */
static __attribute__((noinline)) void rows_times(const float *a, word a_row, const float *b, word b_row, float *c,
                                                 word c_row, word depth, word columns, int add) {
  for (word j = 0; j < columns; j += PANEL * LANES)
    tile_of(MIN(PANEL, (columns - j) / LANES), a, a_row, 1, b + j, b_row, c + j, c_row, depth, add);
}

/* c += a^T b: TILE columns of a, its rows are the depth. */
static __attribute__((noinline)) void columns_times(const float *a, word a_row, const float *b, word b_row, float *c,
                                                    word c_row, word depth, word columns) {
  for (word j = 0; j < columns; j += PANEL * LANES)
    tile_of(MIN(PANEL, (columns - j) / LANES), a, 1, a_row, b + j, b_row, c + j, c_row, depth, 1);
}

/* to (columns, rows) = x (rows, columns), both padded; rows a multiple of LANES. */
static void transpose(const float *x, word x_row, float *to, word to_row, word rows, word columns) {
  ivec low, high;
  for (int i = 0; i < LANES; i++) {
    low[i] = i / 2 + (i % 2) * LANES;
    high[i] = LANES / 2 + i / 2 + (i % 2) * LANES;
  }
  for (word i = 0; i < rows; i += LANES)
    for (word j = 0; j < columns; j += LANES) {
      vec v[LANES], w[LANES];
#pragma GCC unroll 16
      for (int r = 0; r < LANES; r++) v[r] = load(x + (i + r) * x_row + j);
#pragma GCC unroll 4
      for (int n = 1; n < LANES; n *= 2) { /* log2(LANES) perfect shuffles of the rows are a transposition */
#pragma GCC unroll 16
        for (int r = 0; r < LANES / 2; r++) {
          w[2 * r] = __builtin_shuffle(v[r], v[r + LANES / 2], low);
          w[2 * r + 1] = __builtin_shuffle(v[r], v[r + LANES / 2], high);
        }
#pragma GCC unroll 16
        for (int r = 0; r < LANES; r++) v[r] = w[r];
      }
#pragma GCC unroll 16
      for (int r = 0; r < LANES; r++) store(to + (j + r) * to_row + i, v[r]);
    }
}

/* ---- Attention ---- */

typedef struct {
  word batch, heads, tokens, width; /* B, h, N, d */
  word qkv[4];                      /* strides in elements: batch, token, which of q, k, v, head */
  word out[3];                      /* batch, token, head */
  word grad[3];                     /* the same of the gradient of the output */
  float scale, softness;
  int32_t half, modified, threads;  /* bfloat16?  does row 0 see all keys? */
} attention_t;

#define LOG2E 1.44269504088896340736f
#define ROWS 48 /* rows of scores at a time: a multiple of TILE */

/* x (tokens, d) of one head into rows of `to`, times scale; pairs of channels rotated where there are tables. */
static void load_rows(const void *x, word stride, int half, const float *cos_, const float *sin_, float scale, word first,
                      word last, word width, float *restrict to, word row) {
  for (word n = first; n < last; n++, to += row) {
    const float *restrict from = at(x, n * stride, half);
    const uint16_t *restrict halves = at(x, n * stride, half);
    if (half) {
#pragma omp simd
      for (word j = 0; j < width; j++) to[j] = widen(halves[j]) * scale;
    } else {
#pragma omp simd
      for (word j = 0; j < width; j++) to[j] = from[j] * scale;
    }
    if (cos_) {
      const float *restrict c = cos_ + n * (width / 2), *restrict s = sin_ + n * (width / 2);
#pragma omp simd
      for (word p = 0; p < width / 2; p++) {
        float a = to[2 * p], b = to[2 * p + 1];
        to[2 * p] = a * c[p] - b * s[p];
        to[2 * p + 1] = a * s[p] + b * c[p];
      }
    }
  }
}

/* Rows of a gradient: rotated back, times scale, into the tensor. */
static void store_rows(float *restrict x, word row, const float *cos_, const float *sin_, float scale, word first,
                       word last, word width, void *to, word stride, int half) {
  for (word n = first; n < last; n++, x += row) {
    float *restrict target = (void *)at(to, n * stride, half);
    uint16_t *restrict halves = (void *)at(to, n * stride, half);
    if (cos_) {
      const float *restrict c = cos_ + n * (width / 2), *restrict s = sin_ + n * (width / 2);
#pragma omp simd
      for (word p = 0; p < width / 2; p++) {
        float a = x[2 * p], b = x[2 * p + 1];
        x[2 * p] = a * c[p] + b * s[p];
        x[2 * p + 1] = b * c[p] - a * s[p];
      }
    }
    if (half) {
#pragma omp simd
      for (word j = 0; j < width; j++) halves[j] = narrow(x[j] * scale);
    } else {
#pragma omp simd
      for (word j = 0; j < width; j++) target[j] = x[j] * scale;
    }
  }
}

/* Memory of a thread that grows and stays. */
static float *scratch(word floats) {
  static __thread float *memory;
  static __thread word size;
  if (floats > size) {
    free(memory);
    size = up(floats, 1024);
    memory = aligned_alloc(64, size * sizeof(float));
    if (!memory) size = 0;
  }
  return memory;
}

/* out = (softmax(q k^T scale) * F) v, and lse (B, h, N) = log2 sum 2^(scores log2(e)) where it is wanted.
 * Returns 0, or 1 where memory is lacking. */
int attention_forward(const attention_t *t, const void *qkv, const float *cos_, const float *sin_, void *out, float *lse) {
  const word N = t->tokens, d = t->width, dp = up(d, LANES), columns = up(N, LANES), heads = t->batch * t->heads;
  const word blocks = (N + ROWS - 1) / ROWS;
  /* Few heads are cut into parts, so that every thread has the same work; each part reads all keys. */
  const word parts = heads % t->threads == 0 || heads >= 4 * t->threads ? 1 : MIN(blocks, t->threads);
  const word need = 2 * columns * dp + dp * columns + ROWS * dp + ROWS * columns + ROWS * dp + 64;
  int failed = 0;
#pragma omp parallel for schedule(dynamic) num_threads(t->threads)
  for (word unit = 0; unit < heads * parts; unit++) {
    const word head = unit / parts, part = unit % parts, b = head / t->heads, h = head % t->heads;
    float *keys = scratch(need);
    if (!keys) { failed = 1; continue; }
    float *values = keys + columns * dp, *keys_t = values + columns * dp, *queries = keys_t + dp * columns;
    float *scores = queries + ROWS * dp, *attended = scores + ROWS * columns;
    const void *q = at(qkv, b * t->qkv[0] + h * t->qkv[3], t->half);
    const void *k = at(q, t->qkv[2], t->half), *v = at(k, t->qkv[2], t->half);
    if (d < dp) memset(keys, 0, 2 * columns * dp * sizeof(float));
    else memset(keys + N * dp, 0, (columns - N) * dp * sizeof(float));
    load_rows(k, t->qkv[1], t->half, cos_, sin_, 1.0f, 0, N, d, keys, dp);
    load_rows(v, t->qkv[1], t->half, NULL, NULL, 1.0f, 0, N, d, values, dp);
    transpose(keys, dp, keys_t, columns, columns, dp);
    for (word block = part; block < blocks; block += parts) {
      const word first = block * ROWS, last = MIN(N, first + ROWS);
      memset(queries, 0, ROWS * dp * sizeof(float));
      load_rows(q, t->qkv[1], t->half, cos_, sin_, t->scale * LOG2E, first, last, d, queries, dp);
      for (word j = 0; j < columns; j += PANEL * LANES)
        for (word i = first; i < last; i += TILE)
          tile_of(MIN(PANEL, (columns - j) / LANES), queries + (i - first) * dp, dp, 1, keys_t + j, columns,
                  scores + (i - first) * columns + j, columns, d, 0);
      for (word i = first; i < last; i += TILE) {
        float totals[TILE];
        const word tile_last = MIN(i + TILE, last);
        const word seen = t->softness == 0.0f && !(t->modified && i == 0) ? tile_last : N;
        for (word n = i; n < tile_last; n++) {
          float *row = scores + (n - first) * columns, highest = -INFINITY, total = 0.0f;
          const word hidden = t->modified && n == 0 ? N : n + 1; /* keys from it on are later */
          for (word j = N; j < columns; j++) row[j] = -INFINITY; /* whole vectors, no remainder */
#pragma omp simd reduction(max : highest)
          for (word j = 0; j < columns; j++) highest = MAX(highest, row[j]);
#pragma omp simd reduction(+ : total)
          for (word j = 0; j < columns; j++) total += row[j] = exp2_(row[j] - highest);
          totals[n - i] = total;
          if (lse) lse[head * N + n] = highest + log2f(total);
          if (t->softness != 1.0f)
#pragma omp simd
            for (word j = hidden; j < seen; j++) row[j] *= t->softness;
        }
        rows_times(scores + (i - first) * columns, columns, values, dp, attended, dp, seen, dp, 0);
        for (word n = i; n < tile_last; n++)
          store_rows(attended + (n - i) * dp, dp, NULL, NULL, 1.0f / totals[n - i], n, n + 1, d,
                     (void *)at(out, b * t->out[0] + h * t->out[2], t->half), t->out[1], t->half);
      }
    }
  }
  return failed;
}

/* The gradient of q, k and v, laid out as qkv itself.
 * With P the softmax, F the mask's factors and D the output's gradient: dV = (P F)^T D, dS = P (F (D V^T) - D . O),
 * dQ = dS K scale, dK = dS^T Q scale. */
int attention_backward(const attention_t *t, const void *grad, const void *qkv, const float *cos_, const float *sin_,
                       const void *out, const float *lse, void *d_qkv) {
  const word N = t->tokens, d = t->width, dp = up(d, LANES), columns = up(up(N, TILE), LANES);
  const word heads = t->batch * t->heads, blocks = (N + ROWS - 1) / ROWS, ROW = columns * dp;
  const word need = 6 * ROW + 2 * ROWS * columns + 4 * ROWS * dp + 64;
  int failed = 0;
#pragma omp parallel for schedule(dynamic) num_threads(t->threads)
  for (word head = 0; head < heads; head++) {
    const word b = head / t->heads, h = head % t->heads;
    float *keys = scratch(need);
    if (!keys) { failed = 1; continue; }
    float *d_keys = keys + ROW, *d_values = d_keys + ROW, *keys_t = d_values + ROW, *values_t = keys_t + ROW;
    float *values = values_t + ROW, *weights = values + ROW, *inner = weights + ROWS * columns;
    float *queries = inner + ROWS * columns, *d_rows = queries + ROWS * dp, *d_queries = d_rows + ROWS * dp;
    float *out_row = d_queries + ROWS * dp;
    const word offset = b * t->qkv[0] + h * t->qkv[3];
    const void *q = at(qkv, offset, t->half);
    const void *k = at(q, t->qkv[2], t->half), *v = at(k, t->qkv[2], t->half);
    memset(keys, 0, 3 * ROW * sizeof(float));
    memset(values, 0, ROW * sizeof(float));
    load_rows(k, t->qkv[1], t->half, cos_, sin_, 1.0f, 0, N, d, keys, dp);
    load_rows(v, t->qkv[1], t->half, NULL, NULL, 1.0f, 0, N, d, values, dp);
    transpose(keys, dp, keys_t, columns, columns, dp);
    transpose(values, dp, values_t, columns, columns, dp);
    for (word block = 0; block < blocks; block++) {
      const word first = block * ROWS, last = MIN(N, first + ROWS), rows = up(last - first, TILE);
      const int stops = t->softness == 0.0f && !(t->modified && block == 0);
      const word seen = stops ? MIN(columns, up(last, LANES)) : columns; /* keys whose values count */
      memset(queries, 0, 2 * ROWS * dp * sizeof(float));
      load_rows(q, t->qkv[1], t->half, cos_, sin_, t->scale * LOG2E, first, last, d, queries, dp);
      load_rows(at(grad, b * t->grad[0] + h * t->grad[2], t->half), t->grad[1], t->half, NULL, NULL, 1.0f, first, last, d,
                d_rows, dp);
      for (word j = 0; j < columns; j += PANEL * LANES)
        for (word i = 0; i < rows; i += TILE)
          tile_of(MIN(PANEL, (columns - j) / LANES), queries + i * dp, dp, 1, keys_t + j, columns, weights + i * columns + j,
                  columns, d, 0);
      for (word j = 0; j < seen; j += PANEL * LANES)
        for (word i = 0; i < rows; i += TILE)
          tile_of(MIN(PANEL, (seen - j) / LANES), d_rows + i * dp, dp, 1, values_t + j, columns, inner + i * columns + j,
                  columns, d, 0);
      for (word i = 0; i < rows; i++) {
        float *restrict w = weights + i * columns, *restrict g = inner + i * columns;
        const word n = first + i;
        if (n >= N) {
          memset(w, 0, columns * sizeof(float));
          memset(g, 0, columns * sizeof(float));
          continue;
        }
        load_rows(at(out, b * t->out[0] + h * t->out[2], t->half), t->out[1], t->half, NULL, NULL, 1.0f, n, n + 1, d,
                  out_row, dp);
        float delta = 0.0f;
        const float *restrict d_row = d_rows + i * dp;
#pragma omp simd reduction(+ : delta)
        for (word j = 0; j < d; j++) delta += out_row[j] * d_row[j];
        const float level = lse[head * N + n], softness = t->softness;
        const word border = t->modified && n == 0 ? N : n + 1; /* keys before it are seen */
#pragma omp simd
        for (word j = 0; j < border; j++) {
          float weight = exp2_(w[j] - level);
          g[j] = weight * (g[j] - delta);
          w[j] = weight;
        }
        if (stops) {
#pragma omp simd
          for (word j = border; j < N; j++) {
            g[j] = -exp2_(w[j] - level) * delta;
            w[j] = 0.0f;
          }
        } else {
#pragma omp simd
          for (word j = border; j < N; j++) {
            float weight = exp2_(w[j] - level);
            g[j] = weight * (softness * g[j] - delta);
            w[j] = weight * softness;
          }
        }
        memset(w + N, 0, (columns - N) * sizeof(float));
        memset(g + N, 0, (columns - N) * sizeof(float));
      }
      for (word i = 0; i < rows; i += TILE)
        rows_times(inner + i * columns, columns, keys, dp, d_queries + i * dp, dp, N, dp, 0);
      store_rows(d_queries, dp, cos_, sin_, t->scale, first, last, d, (void *)at(d_qkv, offset, t->half), t->qkv[1],
                 t->half);
      for (word c = 0; c < N; c += TILE) {
        columns_times(inner + c, columns, queries, dp, d_keys + c * dp, dp, rows, dp);
        if (c >= seen) continue;
        const word skip = stops && c > first ? (c - first) / TILE * TILE : 0; /* rows to which all of these keys are later */
        if (skip < rows)
          columns_times(weights + c + skip * columns, columns, d_rows + skip * dp, dp, d_values + c * dp, dp, rows - skip,
                        dp);
      }
    }
    store_rows(d_keys, dp, cos_, sin_, 1.0f / LOG2E, 0, N, d, (void *)at(d_qkv, offset + t->qkv[2], t->half), t->qkv[1],
               t->half);
    store_rows(d_values, dp, NULL, NULL, 1.0f, 0, N, d, (void *)at(d_qkv, offset + 2 * t->qkv[2], t->half), t->qkv[1],
               t->half);
  }
  return failed;
}

/* ---- RMSNorm ---- */

#define CHUNKS 32 /* parts of the rows whose shares of a weight's gradient are added up in order */
#define FEW 65536 /* elements below which one thread is enough */

/* y = x * rsqrt(mean(x^2) + eps) in x's type, times weight; the factors of the rows where they are wanted. */
void rms_norm_forward(const void *x, const void *weight, void *y, float *factors, word rows, word width, float eps,
                      int half, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > FEW)
  for (word n = 0; n < rows; n++) {
    float squares = 0.0f;
    if (half) {
      const uint16_t *restrict from = (const uint16_t *)x + n * width, *restrict w = weight;
      uint16_t *restrict to = (uint16_t *)y + n * width;
#pragma omp simd reduction(+ : squares)
      for (word j = 0; j < width; j++) squares += widen(from[j]) * widen(from[j]);
      const float factor = 1.0f / sqrtf(squares / (float)width + eps);
      if (factors) factors[n] = factor;
#pragma omp simd
      for (word j = 0; j < width; j++) to[j] = narrow(widen(narrow(widen(from[j]) * factor)) * widen(w[j]));
    } else {
      const float *restrict from = (const float *)x + n * width, *restrict w = weight;
      float *restrict to = (float *)y + n * width;
#pragma omp simd reduction(+ : squares)
      for (word j = 0; j < width; j++) squares += from[j] * from[j];
      const float factor = 1.0f / sqrtf(squares / (float)width + eps);
      if (factors) factors[n] = factor;
#pragma omp simd
      for (word j = 0; j < width; j++) to[j] = from[j] * factor * w[j];
    }
  }
}

/* With g = grad * weight: dx = factor * (g - x * factor^2 * mean(g x)), d_weight = sum over rows of grad * x * factor.
 * `shares` holds CHUNKS rows of `width` numbers. float32 alone. */
void rms_norm_backward(const float *grad, const float *x, const float *weight, const float *factors, float *dx,
                       float *d_weight, float *shares, word rows, word width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > FEW)
  for (word chunk = 0; chunk < CHUNKS; chunk++) {
    float *restrict share = shares + chunk * width;
    memset(share, 0, width * sizeof(float));
    for (word n = rows * chunk / CHUNKS; n < rows * (chunk + 1) / CHUNKS; n++) {
      const float *restrict g = grad + n * width, *restrict from = x + n * width, *restrict w = weight;
      float *restrict to = dx + n * width, along = 0.0f;
#pragma omp simd reduction(+ : along)
      for (word j = 0; j < width; j++) along += g[j] * w[j] * from[j];
      const float factor = factors[n], pull = factor * factor * factor * along / (float)width;
#pragma omp simd
      for (word j = 0; j < width; j++) {
        share[j] += g[j] * from[j] * factor;
        to[j] = factor * g[j] * w[j] - pull * from[j];
      }
    }
  }
  memset(d_weight, 0, width * sizeof(float));
  for (word chunk = 0; chunk < CHUNKS; chunk++)
#pragma omp simd
    for (word j = 0; j < width; j++) d_weight[j] += shares[chunk * width + j];
}

/* ---- SwiGLU's gate ---- */

INLINE float sigmoid(float x) { /* 0 where it would be less than the smallest normal number */
  float y = 1.0f / (1.0f + exp2_(x < -87.0f ? 0.0f : x * -LOG2E));
  return x < -87.0f ? 0.0f : y;
}

/* y = SiLU(gate) * value. */
void gate_forward(const void *gate, const void *value, void *y, word count, int half, int threads) {
#pragma omp parallel for simd num_threads(threads) if (parallel : count > FEW)
  for (word i = 0; i < count; i++) {
    if (half) {
      float g = widen(((const uint16_t *)gate)[i]);
      ((uint16_t *)y)[i] = narrow(g * sigmoid(g) * widen(((const uint16_t *)value)[i]));
    } else {
      float g = ((const float *)gate)[i];
      ((float *)y)[i] = g * sigmoid(g) * ((const float *)value)[i];
    }
  }
}

/* Gradients of both. */
void gate_backward(const void *grad, const void *gate, const void *value, void *d_gate, void *d_value, word count,
                   int half, int threads) {
#pragma omp parallel for simd num_threads(threads) if (parallel : count > FEW)
  for (word i = 0; i < count; i++) {
    float d = half ? widen(((const uint16_t *)grad)[i]) : ((const float *)grad)[i];
    float g = half ? widen(((const uint16_t *)gate)[i]) : ((const float *)gate)[i];
    float v = half ? widen(((const uint16_t *)value)[i]) : ((const float *)value)[i];
    float s = sigmoid(g), to_gate = d * v * s * (1.0f + g * (1.0f - s)), to_value = d * g * s;
    if (half) {
      ((uint16_t *)d_gate)[i] = narrow(to_gate);
      ((uint16_t *)d_value)[i] = narrow(to_value);
    } else {
      ((float *)d_gate)[i] = to_gate;
      ((float *)d_value)[i] = to_value;
    }
  }
}
