// The library's C interface, for ctypes. See kernels.py for its use.
//
// A handle has its own threads and scratch memory. Its calls may come from any thread: a second one
// waits for the first. Functions return 0, or one of the errors below; nothing is thrown.
#pragma once

#include <stdint.h>

#include "pm_steps.h"

#if defined(_WIN32)
#define PM_API extern "C" __declspec(dllexport)
#else
#define PM_API extern "C" __attribute__((visibility("default")))
#endif

enum { PM_OK = 0, PM_BAD_ARGUMENT = -1, PM_NO_MEMORY = -2 };

// How an expert's page is laid out (bundle/pages.py), and what it computes.
struct pm_format {
  int32_t precision;   // 0 int4, 1 int8, 2 fp16, 3 fp32
  int32_t block;       // 32, 64 or 128 for int4 and int8
  int32_t activation;  // 0 silu(g) · u; 1 clamped: g' · sigmoid(alpha · g') · (u' + 1)
  float alpha, limit;
  int32_t reserved;
  int64_t hidden, intermediate;
  // From the page's start: weights, scales, bias of gate, then of up, then of down. -1: none.
  int64_t offsets[9];
};

// y = x · Wᵀ + bias. int4, int8: W's values [rows, columns] and scales [rows, columns / block].
struct pm_matrix {
  int32_t precision, block;
  int32_t wide_scales;  // scales are fp32, not fp16
  int32_t reserved;
  int64_t rows, columns;
  const void* weights;
  const void* scales;
  const float* bias;  // or null
};

struct pm_handle;

// The names of the instruction sets that this machine can run, best first, with commas between.
PM_API const char* pm_instruction_sets(void);

// threads: the caller included. spin_us: how long workers stay awake after a call. instruction_set:
// null for the best one. Null: there is no such instruction set, or no memory.
PM_API pm_handle* pm_create(int32_t threads, int32_t spin_us, const char* instruction_set);
PM_API void pm_destroy(pm_handle* handle);
PM_API const char* pm_instruction_set(const pm_handle* handle);
// Threads that the system refused to make: known after the first call that computes.
PM_API int32_t pm_missing_threads(pm_handle* handle);
// Bytes that the handle holds. It grows to what the largest call wanted.
PM_API int64_t pm_memory(pm_handle* handle);

// What it will hold at most after a call with so many tokens, and rows of work of all experts.
PM_API int64_t pm_scratch_bytes(pm_handle* handle, const pm_format* format, int64_t n_tokens,
                                int64_t n_rows);

// For each expert e, in the order given, and each of its tokens p in [starts[e], starts[e + 1]):
//   out[tokens[p]] += weights[p] · expert_e(x[tokens[p]])
// x, out: float [n_tokens, hidden], and may not overlap. pages: [experts], aligned to 64 bytes.
// starts: [experts + 1]; tokens, weights: [starts[experts]].
PM_API int32_t pm_run_experts(pm_handle* handle, const pm_format* format, int32_t experts,
                              const void* const* pages, const int64_t* starts,
                              const int64_t* tokens, const float* weights, int64_t n_tokens,
                              const float* x, float* out);

// The same terms, but terms[p] = weights[p] · expert_e(x[tokens[p]]), float [starts[experts], hidden].
// Added by pm_add_terms in the order of experts, they give what pm_run_experts gives, to the bit:
// for experts whose pages come in any order.
PM_API int32_t pm_expert_terms(pm_handle* handle, const pm_format* format, int32_t experts,
                               const void* const* pages, const int64_t* starts,
                               const int64_t* tokens, const float* weights, int64_t n_tokens,
                               const float* x, float* terms);

// out[tokens[p]] += terms[p], one after another. tokens: [n_terms], terms: [n_terms, hidden].
PM_API int32_t pm_add_terms(pm_handle* handle, int64_t n_terms, int64_t hidden,
                            const int64_t* tokens, const float* terms, int64_t n_tokens,
                            float* out);

// x: float [n_tokens, columns]; y: float [n_tokens, rows]
PM_API int32_t pm_product(pm_handle* handle, const pm_matrix* matrix, int64_t n_tokens,
                          const float* x, float* y);

// What the handle holds at most after such products of so many tokens, and after attention.
PM_API int64_t pm_product_bytes(pm_handle* handle, const pm_matrix* matrix, int64_t n_tokens);

// Runs steps one after another for the rows of all parts; after PM_LAST for those that are kept. A
// row's results do not depend on the rows and parts that it is run with.
PM_API int32_t pm_run_steps(pm_handle* handle, const pm_step* steps, int64_t n_steps,
                            const pm_buffer* buffers, const pm_part* parts, int64_t n_parts);

// y[i] = e^x[i], the one exponential of softmaxes, gates and activations: the same bytes from every
// instruction set. x, y: [n], and may be the same.
PM_API void pm_exponentials(pm_handle* handle, const float* x, int64_t n, float* y);

// x[i] = e^x[i] in double, x: [n]: what sampling weighs tokens with. portable_math.py gives the
// same bytes.
PM_API void pm_exponentials64(pm_handle* handle, double* x, int64_t n);

// cos and sin of position · frequency, times scale, for positions from start on. frequencies:
// [pairs]; cos, sin: [tokens, pairs]. portable_math.py gives the same bytes.
PM_API void pm_rotary_table(pm_handle* handle, const float* frequencies, int64_t pairs,
                            int64_t start, int64_t tokens, float scale, float* cos, float* sin);

// Reads memory with all threads, to measure with; returns some sum over it. nbytes: a multiple of
// 128.
PM_API uint64_t pm_read(pm_handle* handle, const void* data, int64_t nbytes);

// XXH64 with seed 0.
PM_API uint64_t pm_xxh64(const void* data, int64_t nbytes);
