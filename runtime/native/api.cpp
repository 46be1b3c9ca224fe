// The C interface: checks arguments, keeps exceptions inside.
#include <cstring>
#include <atomic>
#include <new>
#include <string>

#include "steps.h"

struct pm_handle : pm::Engine {
  using Engine::Engine;
};

namespace {

using pm::Kernels;

const Kernels* kernels_named(const char* name) {
  for (const Kernels* kernels : {pm::avx512_kernels(), pm::avx2_kernels(), pm::neon_kernels(),
                                 pm::plain_kernels()})
    if (kernels && (!name || std::strcmp(name, kernels->name) == 0)) return kernels;
  return nullptr;
}

bool aligned(const void* pointer, uintptr_t to) {
  return reinterpret_cast<uintptr_t>(pointer) % to == 0;
}

bool valid_precision(int32_t precision, int32_t block, int64_t columns) {
  if (precision < pm::INT4 || precision > pm::FP32) return false;
  if (!pm::is_quantized(precision)) return true;
  return (block == 32 || block == 64 || block == 128) && columns % block == 0;
}

bool valid(const pm_format& format) {
  if (format.hidden < 1 || format.intermediate < 1) return false;
  if (!valid_precision(format.precision, format.block, format.hidden) ||
      !valid_precision(format.precision, format.block, format.intermediate))
    return false;
  if (format.activation < 0 || format.activation > 1) return false;
  for (int i = 0; i < 9; ++i) {
    const bool needed = i % 3 == 0 || (i % 3 == 1 && pm::is_quantized(format.precision));
    if (format.offsets[i] < 0 ? needed : format.offsets[i] % 4 != 0) return false;
  }
  return true;
}

bool valid(const pm_matrix& matrix) {
  return matrix.rows >= 0 && matrix.columns >= 1 && matrix.weights &&
         valid_precision(matrix.precision, matrix.block, matrix.columns) &&
         (matrix.scales || !pm::is_quantized(matrix.precision)) && aligned(matrix.weights, 4) &&
         aligned(matrix.scales, 4) && aligned(matrix.bias, 4);
}

// Looks at what would be costly to get wrong and is cheap to see; sizes are trusted.
bool valid(const pm_step& step, const pm_buffer* buffers, const pm_part* parts, int64_t n_parts) {
  if (step.op < PM_ADD || step.op > PM_LAST || !step.what) return false;
  if (step.op == PM_PRODUCTS) {
    const pm_products& products = *static_cast<const pm_products*>(step.what);
    if (products.count < 1 || products.count > 4) return false;
    const pm_matrix& first = products.matrices[0];
    for (int i = 0; i < products.count; ++i) {
      const pm_matrix& matrix = products.matrices[i];
      if (!valid(matrix) || matrix.columns != first.columns ||
          matrix.precision != first.precision || matrix.block != first.block ||
          buffers[products.from].width != matrix.columns ||
          buffers[products.to[i]].width != matrix.rows)
        return false;
    }
  }
  if (step.op == PM_ROTATE)
    return buffers[static_cast<const pm_rotate*>(step.what)->cos].width <= pm::MOST_PAIRS;
  if (step.op == PM_ATTEND) {
    const pm_attend& attend = *static_cast<const pm_attend*>(step.what);
    if (attend.kv_heads < 1 || attend.heads % attend.kv_heads != 0 || attend.cache < 0)
      return false;
    for (int64_t i = 0; i < n_parts; ++i) {
      if (!parts[i].caches) return false;
      const pm_cache& cache = parts[i].caches[attend.cache];
      if (!cache.keys || !cache.values || !cache.place || cache.place[0] < 0 ||
          cache.place[1] < 0 || parts[i].ahead < 0 ||
          cache.place[0] + parts[i].ahead + parts[i].tokens > cache.capacity)
        return false;
    }
  }
  if (step.op == PM_ROUTE) {
    const pm_route& route = *static_cast<const pm_route*>(step.what);
    return route.experts > 0 && route.groups > 0 && route.top_k <= route.experts &&
           route.top_groups <= route.groups &&
           (route.groups <= route.top_groups ||
            route.top_k <= route.experts / route.groups * route.top_groups);
  }
  return true;
}

bool valid(const pm::Batch& batch) {
  if (batch.experts < 0 || batch.n_tokens < 0 || batch.starts[0] != 0) return false;
  for (int e = 0; e < batch.experts; ++e)
    if (batch.starts[e + 1] < batch.starts[e] || !batch.pages[e] || !aligned(batch.pages[e], 64))
      return false;
  for (int64_t p = 0; p < batch.starts[batch.experts]; ++p)
    if (batch.tokens[p] < 0 || batch.tokens[p] >= batch.n_tokens) return false;
  return true;
}

template <typename F>
int32_t guarded(pm_handle* handle, const F& f) {
  try {
    const std::lock_guard<std::mutex> lock(handle->in_use);
    f();
    return PM_OK;
  } catch (const std::bad_alloc&) {
    return PM_NO_MEMORY;
  }
}

int32_t run(pm_handle* handle, const pm_format* format, const pm::Batch& batch, float* out,
            float* terms) {
  if (!valid(*format) || !valid(batch)) return PM_BAD_ARGUMENT;
  // The block says nothing for floats, but sizes items of work.
  pm_format checked = *format;
  if (!pm::is_quantized(checked.precision)) checked.block = 0;
  return guarded(handle, [&] { pm::run_experts(*handle, checked, batch, out, terms); });
}

}  // namespace

const char* pm_instruction_sets(void) {
  static const std::string names = [] {
    std::string all;
    for (const Kernels* kernels : {pm::avx512_kernels(), pm::avx2_kernels(), pm::neon_kernels(),
                                   pm::plain_kernels()})
      if (kernels) all += (all.empty() ? "" : ",") + std::string(kernels->name);
    return all;
  }();
  return names.c_str();
}

pm_handle* pm_create(int32_t threads, int32_t spin_us, const char* instruction_set) {
  const Kernels* kernels = kernels_named(instruction_set);
  if (!kernels || threads < 1 || spin_us < 0) return nullptr;
  try {
    return new pm_handle(*kernels, threads, spin_us);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void pm_destroy(pm_handle* handle) { delete handle; }

const char* pm_instruction_set(const pm_handle* handle) { return handle->kernels.name; }

int32_t pm_missing_threads(pm_handle* handle) {
  const std::lock_guard<std::mutex> lock(handle->in_use);
  return handle->pool.missing();
}

int64_t pm_memory(pm_handle* handle) {
  const std::lock_guard<std::mutex> lock(handle->in_use);
  int64_t bytes = handle->inputs.bytes() + handle->inner.bytes();
  for (const pm::Buffer& buffer : handle->scratch) bytes += buffer.bytes();
  return bytes;
}

int64_t pm_scratch_bytes(pm_handle* handle, const pm_format* format, int64_t n_tokens,
                         int64_t n_rows) {
  if (!valid(*format)) return PM_BAD_ARGUMENT;
  return pm::scratch_bytes(*format, handle->pool.threads(), n_tokens, n_rows);
}

int32_t pm_run_experts(pm_handle* handle, const pm_format* format, int32_t experts,
                       const void* const* pages, const int64_t* starts, const int64_t* tokens,
                       const float* weights, int64_t n_tokens, const float* x, float* out) {
  return run(handle, format, {experts, pages, starts, tokens, weights, n_tokens, x}, out, nullptr);
}

int32_t pm_expert_terms(pm_handle* handle, const pm_format* format, int32_t experts,
                        const void* const* pages, const int64_t* starts, const int64_t* tokens,
                        const float* weights, int64_t n_tokens, const float* x, float* terms) {
  return run(handle, format, {experts, pages, starts, tokens, weights, n_tokens, x}, nullptr,
             terms);
}

int32_t pm_add_terms(pm_handle* handle, int64_t n_terms, int64_t hidden, const int64_t* tokens,
                     const float* terms, int64_t n_tokens, float* out) {
  for (int64_t p = 0; p < n_terms; ++p)
    if (tokens[p] < 0 || tokens[p] >= n_tokens) return PM_BAD_ARGUMENT;
  return guarded(handle, [&] { pm::add_terms(*handle, n_terms, hidden, tokens, terms, out); });
}

int32_t pm_product(pm_handle* handle, const pm_matrix* matrix, int64_t n_tokens, const float* x,
                   float* y) {
  if (!valid(*matrix) || n_tokens < 0) return PM_BAD_ARGUMENT;
  const pm::Matrix checked = pm::matrix_from(*matrix);
  return guarded(handle, [&] {
    const pm::Pool::Awake awake(handle->pool);
    pm::run_products(*handle, &checked, 1, n_tokens, x, &y);
  });
}

int64_t pm_product_bytes(pm_handle* handle, const pm_matrix* matrix, int64_t n_tokens) {
  if (!valid(*matrix)) return PM_BAD_ARGUMENT;
  return pm::product_bytes(pm::matrix_from(*matrix), handle->pool.threads(), n_tokens) +
         handle->pool.threads() * pm::attention_bytes();
}

int32_t pm_run_steps(pm_handle* handle, const pm_step* steps, int64_t n_steps,
                     const pm_buffer* buffers, const pm_part* parts, int64_t n_parts) {
  for (int64_t i = 0; i < n_parts; ++i)
    if (parts[i].tokens < 0 || parts[i].kept < 0 || parts[i].kept > parts[i].tokens)
      return PM_BAD_ARGUMENT;
  bool all_rows = true;
  for (int64_t i = 0; i < n_steps; ++i) {
    if (!valid(steps[i], buffers, parts, n_parts)) return PM_BAD_ARGUMENT;
    if (steps[i].op == PM_ATTEND && !all_rows) return PM_BAD_ARGUMENT;
    if (steps[i].op == PM_LAST) all_rows = false;
  }
  return guarded(handle, [&] {
    pm::run_steps(*handle, steps, n_steps, buffers, parts, n_parts);
  });
}

void pm_exponentials(pm_handle* handle, const float* x, int64_t n, float* y) {
  handle->kernels.rows->exponentials(x, n, y);
}

void pm_exponentials64(pm_handle* handle, double* x, int64_t n) {
  handle->kernels.doubles->exponentials(x, n);
}

void pm_rotary_table(pm_handle* handle, const float* frequencies, int64_t pairs, int64_t start,
                     int64_t tokens, float scale, float* cos, float* sin) {
  handle->kernels.doubles->rotary_table(frequencies, pairs, start, tokens, scale, cos, sin);
}

uint64_t pm_read(pm_handle* handle, const void* data, int64_t nbytes) {
  const uint8_t* bytes = static_cast<const uint8_t*>(data);
  constexpr int64_t PART = 1 << 18;
  std::atomic<uint64_t> sum{0};
  const std::lock_guard<std::mutex> lock(handle->in_use);
  const pm::Pool::Awake awake(handle->pool);
  handle->pool.loop((nbytes + PART - 1) / PART, [&](int64_t item, int) {
    const int64_t at = item * PART;
    sum += handle->kernels.read(bytes + at, nbytes - at < PART ? nbytes - at : PART);
  });
  return sum;
}
