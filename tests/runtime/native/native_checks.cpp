// Not run by pytest: from the repository's root
//   g++ -std=c++17 -O3 -g1 -ffp-contract=off -pthread -fsanitize=address,undefined \
//     -Iruntime/native tests/runtime/native/native_checks.cpp runtime/native/*.cpp -o build/checks && build/checks
// and again with -fsanitize=thread.
//
// What runs under AddressSanitizer and ThreadSanitizer: all kernels on memory that ends where a
// page's tensors end, several handles and callers at once, threads that start and stop. And that
// all instruction sets give the same bytes, those that are written down here; for ARM by
//   aarch64-linux-gnu-g++ -std=c++17 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math \
//     -pthread -static -Iruntime/native tests/runtime/native/native_checks.cpp runtime/native/*.cpp \
//     -o build/checks && qemu-aarch64-static -cpu max build/checks
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "pm.h"

namespace {

int failures = 0;

void check(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Bytes = std::unique_ptr<uint8_t, Free>;

struct Layer {
  pm_format format{};
  std::vector<Bytes> pages;
  std::vector<const void*> addresses;
  std::vector<int64_t> starts{0}, tokens;
  std::vector<float> weights, x;
  int64_t n_tokens;
};

int64_t size_of(int precision, int64_t elements) {
  constexpr int64_t bits[] = {4, 8, 16, 32};
  return elements * bits[precision] / 8;
}

uint16_t half_of(std::mt19937& random) {  // between 1/64 and 1/32, either sign
  return static_cast<uint16_t>(0x2400 | (random() & 0x83ff));
}

Layer make_layer(int precision, int block, int64_t hidden, int64_t intermediate, int experts,
                 int64_t n_tokens, unsigned seed) {
  std::mt19937 random(seed);
  Layer layer;
  pm_format& format = layer.format;
  format.precision = precision;
  format.block = block;
  format.activation = static_cast<int32_t>(seed % 2);
  format.alpha = 1.702f;
  format.limit = 7.0f;
  format.hidden = hidden;
  format.intermediate = intermediate;
  int64_t end = 0;
  int64_t sizes[9];
  for (int i = 0; i < 9; ++i) {
    const int64_t rows = i < 6 ? intermediate : hidden, columns = i < 6 ? hidden : intermediate;
    if (i % 3 == 0) sizes[i] = size_of(precision, rows * columns);
    if (i % 3 == 1) sizes[i] = precision < 2 ? rows * (columns / block) * 2 : -1;
    // The last one has no bias, so that weights or scales end the page.
    if (i % 3 == 2) sizes[i] = i < 8 ? rows * 4 : -1;
    format.offsets[i] = -1;
    if (sizes[i] < 0) continue;
    format.offsets[i] = (end + 63) / 64 * 64;
    end = format.offsets[i] + sizes[i];
  }
  for (int e = 0; e < experts; ++e) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, end) != 0) std::abort();
    layer.pages.emplace_back(static_cast<uint8_t*>(memory));
    uint8_t* page = layer.pages.back().get();
    for (int64_t i = 0; i < end; ++i) page[i] = static_cast<uint8_t>(random());
    for (int i = 0; i < 9; ++i) {
      if (sizes[i] < 0) continue;
      uint8_t* at = page + format.offsets[i];
      const bool halves = i % 3 == 1 || (i % 3 == 0 && precision == 2);
      const bool floats = i % 3 == 2 || (i % 3 == 0 && precision == 3);
      for (int64_t j = 0; halves && j < sizes[i]; j += 2) {
        const uint16_t half = half_of(random);
        std::memcpy(at + j, &half, 2);
      }
      for (int64_t j = 0; floats && j < sizes[i]; j += 4) {
        const float value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
        std::memcpy(at + j, &value, 4);
      }
    }
    layer.addresses.push_back(page);
    for (int64_t t = 0; t < n_tokens; ++t) {
      if (random() % 2) continue;
      layer.tokens.push_back(t);
      layer.weights.push_back(static_cast<float>(random() % 100) / 100.0f);
    }
    layer.starts.push_back(static_cast<int64_t>(layer.tokens.size()));
  }
  layer.n_tokens = n_tokens;
  for (int64_t i = 0; i < n_tokens * hidden; ++i)
    layer.x.push_back(static_cast<float>(random() % 2001) / 1000.0f - 1.0f);
  return layer;
}

std::vector<float> run(pm_handle* handle, const Layer& layer) {
  std::vector<float> out(layer.x.size(), 0.5f);
  const int32_t code = pm_run_experts(
      handle, &layer.format, static_cast<int32_t>(layer.addresses.size()), layer.addresses.data(),
      layer.starts.data(), layer.tokens.data(), layer.weights.data(), layer.n_tokens,
      layer.x.data(), out.data());
  check(code == PM_OK, "run_experts");
  return out;
}

std::vector<float> run_as_terms(pm_handle* handle, const Layer& layer) {
  std::vector<float> out(layer.x.size(), 0.5f), terms(layer.tokens.size() * layer.format.hidden);
  int32_t code = pm_expert_terms(
      handle, &layer.format, static_cast<int32_t>(layer.addresses.size()), layer.addresses.data(),
      layer.starts.data(), layer.tokens.data(), layer.weights.data(), layer.n_tokens,
      layer.x.data(), terms.data());
  check(code == PM_OK, "expert_terms");
  code = pm_add_terms(handle, static_cast<int64_t>(layer.tokens.size()), layer.format.hidden,
                      layer.tokens.data(), terms.data(), layer.n_tokens, out.data());
  check(code == PM_OK, "add_terms");
  return out;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

// One number for all results of a check, to hold against those of other machines.
class Digest {
 public:
  template <typename T>
  void add(const std::vector<T>& results) {
    const uint64_t both[] = {
        value_, pm_xxh64(results.data(), static_cast<int64_t>(results.size() * sizeof(T)))};
    value_ = pm_xxh64(both, sizeof both);
  }
  void expect(uint64_t wanted, const std::string& what) const {
    char found[17];
    std::snprintf(found, sizeof found, "%016llx", static_cast<unsigned long long>(value_));
    check(value_ == wanted, what + " of another machine differ: " + found);
  }

 private:
  uint64_t value_ = 0;
};

struct Shape {
  int precision, block;
  int64_t hidden, intermediate;
};

constexpr Shape SHAPES[] = {
    {0, 32, 96, 32},  {0, 32, 160, 224}, {0, 64, 192, 320}, {0, 128, 128, 384},
    {1, 32, 96, 160}, {1, 64, 320, 64},  {1, 128, 384, 128}, {2, 0, 37, 51},
    // Rows of more than sixteen blocks.
    {0, 32, 608, 32}, {0, 64, 1216, 64}, {0, 128, 2304, 128},
    {1, 32, 608, 32}, {1, 64, 1088, 64}, {1, 128, 2432, 128},
    {2, 0, 96, 64},   {3, 0, 19, 130},   {3, 0, 1, 3},
};

void all_kernels(const std::vector<std::string>& sets) {
  Digest digest;
  for (const Shape& s : SHAPES) {
    for (const int64_t n_tokens : {1, 2, 6, 13, 40}) {
      const Layer layer = make_layer(s.precision, s.block, s.hidden, s.intermediate, 3, n_tokens,
                                     static_cast<unsigned>(s.hidden + n_tokens));
      std::vector<float> first;
      for (const std::string& set : sets) {
        const std::string where = set + " precision " + std::to_string(s.precision) + " block " +
                                  std::to_string(s.block) + " " + std::to_string(s.hidden) + "x" +
                                  std::to_string(s.intermediate) + " tokens " +
                                  std::to_string(n_tokens);
        std::vector<float> of_set;
        for (const int threads : {1, 2, 4}) {
          pm_handle* handle = pm_create(threads, threads == 2 ? 50 : 0, set.c_str());
          const std::vector<float> out = run(handle, layer);
          if (of_set.empty()) of_set = out;
          check(same(out, of_set), where + ": depends on the number of threads");
          check(same(run_as_terms(handle, layer), of_set), where + ": terms differ");
          pm_destroy(handle);
        }
        if (first.empty()) first = of_set;
        check(same(first, of_set), where + ": instruction sets differ");
      }
      digest.add(first);
    }
  }
  digest.expect(0x13a37395948eff64, "experts");
}

// Weights' rows that are no multiple of a panel, in memory that ends with them.
void products(const std::vector<std::string>& sets) {
  std::mt19937 random(7);
  Digest digest;
  for (const int precision : {0, 1, 2, 3}) {
    for (const int64_t rows : {1, 7, 33, 50}) {
      for (const int64_t n_tokens : {1, 5, 140}) {
        const int64_t columns = 192;
        std::vector<uint8_t> weights(size_of(precision, rows * columns));
        for (uint8_t& byte : weights) byte = precision < 2 ? static_cast<uint8_t>(random()) : 0x11;
        std::vector<float> scales(rows * 3, 0.01f), x(n_tokens * columns), first;
        for (float& value : x) value = static_cast<float>(random() % 201) / 100.0f - 1.0f;
        for (const std::string& set : sets) {
          pm_handle* handle = pm_create(3, 10, set.c_str());
          const pm_matrix matrix{precision,      64,  1, 0, rows, columns, weights.data(),
                                 scales.data(), nullptr};
          std::vector<float> y(n_tokens * rows, -1.0f);
          check(pm_product(handle, &matrix, n_tokens, x.data(), y.data()) == PM_OK, "product");
          if (first.empty()) first = y;
          check(same(first, y), set + ": products differ");
          pm_destroy(handle);
        }
        digest.add(first);
      }
    }
  }
  digest.expect(0xab08bfeb9fc2d728, "products");
}

// 1 · c + (1 ± 2^-k) · (1 ∓ 2^-k) · 2^half, where 2^half is half of c's last bit: the sum lies so
// close to halfway between two floats that rounding it to a double first would go astray. c is an
// odd multiple of its last bit, first as large as floats are and then too small for all their bits.
void fused_sums(const std::vector<std::string>& sets) {
  constexpr int64_t ROWS = 24, COLUMNS = 32, TOKENS = 48;
  Digest digest;
  for (const int last : {-23, -149}) {
    std::vector<float> weights(ROWS * COLUMNS), x(TOKENS * COLUMNS), first;
    const auto near_one = [](int64_t i) {
      return 1.0f + std::ldexp(i % 2 ? 1.0f : -1.0f, -12 - static_cast<int>(i / 2));
    };
    for (int64_t row = 0; row < ROWS; ++row) {
      weights[row * COLUMNS] = 1.0f;
      weights[row * COLUMNS + 16] = std::ldexp(near_one(row), (last - 1) / 2);
    }
    for (int64_t token = 0; token < TOKENS; ++token) {
      const int whole = token % 2 ? (1 << 23) + 1 : (1 << 22) + 3;
      const float c = static_cast<float>(token < TOKENS / 2 ? whole : -whole);
      x[token * COLUMNS] = std::ldexp(c, last);
      x[token * COLUMNS + 16] = std::ldexp(near_one(token % ROWS), last - 1 - (last - 1) / 2);
    }
    const pm_matrix matrix{3, 0, 0, 0, ROWS, COLUMNS, weights.data(), nullptr, nullptr};
    for (const std::string& set : sets) {
      pm_handle* handle = pm_create(1, 0, set.c_str());
      std::vector<float> y(TOKENS * ROWS);
      check(pm_product(handle, &matrix, TOKENS, x.data(), y.data()) == PM_OK, "product");
      for (int64_t i = 0; i < TOKENS * ROWS; ++i) {
        const float* w = weights.data() + i % ROWS * COLUMNS;
        const float* v = x.data() + i / ROWS * COLUMNS;
        check(y[i] == std::fma(w[16], v[16], v[0]), set + ": a sum is rounded twice");
      }
      if (first.empty()) first = y;
      pm_destroy(handle);
    }
    digest.add(first);
  }
  digest.expect(0x63bb34de409f93f1, "fused sums");
}

// e^x of one float in 1,021, those of all exponents; e^x of doubles; rotary tables.
void functions(const std::vector<std::string>& sets) {
  for (const std::string& set : sets) {
    pm_handle* handle = pm_create(1, 0, set.c_str());
    Digest floats, doubles, tables;
    std::vector<float> x;
    for (uint64_t bits = 0; bits < 1ull << 32; bits += 1021) {
      const uint32_t low = static_cast<uint32_t>(bits);
      float value;
      std::memcpy(&value, &low, 4);
      if (value == value) x.push_back(value);
    }
    std::vector<float> y(x.size());
    pm_exponentials(handle, x.data(), static_cast<int64_t>(x.size()), y.data());
    floats.add(y);
    floats.expect(0xf8cab5f7d3992b7b, set + ": e^x");

    std::vector<double> wide;
    for (int i = 0; i < 1000000; ++i) wide.push_back((i - 500000) / 698.0);
    pm_exponentials64(handle, wide.data(), static_cast<int64_t>(wide.size()));
    doubles.add(wide);
    doubles.expect(0x9a268850a39eb37a, set + ": e^x of doubles");

    const float frequencies[] = {1.0f, 0.3f, 1e-3f, 7.7e-5f, 3.0f};
    for (const int64_t start : {0, 70000, 3000000}) {
      std::vector<float> cos(5 * 1000), sin(cos);
      pm_rotary_table(handle, frequencies, 5, start, 1000, 1.1f, cos.data(), sin.data());
      tables.add(cos);
      tables.add(sin);
    }
    tables.expect(0x43eba049f1060e43, set + ": rotary tables");
    pm_destroy(handle);
  }
}

void many_callers() {
  const Layer layer = make_layer(0, 32, 160, 224, 4, 9, 3);
  pm_handle* shared = pm_create(3, 20, nullptr);
  const std::vector<float> wanted = run(shared, layer);
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&, c] {
      pm_handle* own = pm_create(2 + c % 2, c * 20, nullptr);
      bool good = true;
      for (int i = 0; i < 60; ++i) {
        good = good && same(run(i % 2 ? shared : own, layer), wanted);
        if (i % 16 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        if (i % 20 == 19) {
          pm_destroy(own);
          own = pm_create(2, 0, nullptr);
        }
      }
      pm_destroy(own);
      if (!good) std::printf("FAILED: a caller got something else\n"), std::exit(1);
    });
  }
  for (std::thread& caller : callers) caller.join();
  check(pm_missing_threads(shared) == 0, "threads are missing");
  std::vector<uint8_t> memory(1 << 20, 1);
  check(pm_read(shared, memory.data(), 1 << 20) == 0x0101010101010101ull * (1 << 17), "read");
  pm_destroy(shared);
}

void numbers() {
  const float bad[] = {1e-45f, 1e-38f, 3e38f, -3e38f, __builtin_inff(), __builtin_nanf("")};
  for (const Shape& s : SHAPES) {
    Layer layer = make_layer(s.precision, s.block, s.hidden, s.intermediate, 2, 6, 1);
    for (size_t i = 0; i < layer.x.size(); i += 5) layer.x[i] = bad[i / 5 % 6];
    const std::string sets = pm_instruction_sets();
    pm_handle* handle = pm_create(2, 0, sets.substr(sets.rfind(',') + 1).c_str());
    run(handle, layer);
    pm_destroy(handle);
    handle = pm_create(2, 0, nullptr);
    run(handle, layer);
    pm_destroy(handle);
  }
}

}  // namespace

// Attention over caches that end where they end, with norms, routing, gates and activations around
// it.
void steps(const std::vector<std::string>& sets) {
  std::mt19937 random(5);
  Digest digest;
  for (const int64_t head_dim : {8, 20, 64}) {
    for (const int64_t tokens : {1, 3, 40}) {
      const int64_t heads = 6, kv_heads = 2, past = 270, experts = 7;
      const auto draw = [&](int64_t n) {
        std::vector<float> drawn(n);
        for (float& value : drawn)
          value = static_cast<float>(static_cast<int>(random() % 4001) - 2000) / 700.0f;
        return drawn;
      };
      const int64_t width = heads * head_dim, kv_width = kv_heads * head_dim;
      const std::vector<float> q = draw(tokens * width), k = draw(tokens * kv_width),
                               v = draw(tokens * kv_width), weight = draw(width),
                               keys = draw((past + tokens) * kv_width), cos = draw(tokens * 4),
                               gate = draw(experts * width), one = draw(tokens);
      std::vector<float> wanted;
      for (const std::string& set : sets) {
        for (const int threads : {1, 3}) {
          std::vector<float> q2(q), k2(k), v2(v), all_keys(keys), all_values(keys),
              found(tokens * width), logits(tokens * experts), weights(tokens * 2), single(one);
          std::vector<int64_t> ids(tokens * 2, -1);
          const pm_buffer buffers[] = {{q2.data(), width}, {k2.data(), kv_width},
                                       {v2.data(), kv_width}, {found.data(), width},
                                       {const_cast<float*>(cos.data()), 4},
                                       {logits.data(), experts}, {weights.data(), 2},
                                       {ids.data(), 2}, {single.data(), 1}};
          const pm_rotate rotate{0, 4, 4, static_cast<int32_t>(heads), 0};
          const pm_attend attend{0, 1, 2, 3, static_cast<int32_t>(heads),
                                 static_cast<int32_t>(kv_heads), static_cast<int32_t>(head_dim),
                                 0.1f, 0, 0, 100, nullptr};
          const int64_t place[] = {past, 70};
          const pm_cache cache{all_keys.data(), all_values.data(), past + tokens, place};
          const pm_part part{tokens, tokens, 0, &cache};
          const pm_norm norm{3, 3, 1, 1e-5f, width, weight.data(), nullptr};
          const pm_matrix matrix{3, 0, 0, 0, experts, width, gate.data(), nullptr, nullptr};
          const pm_products products{3, 1, {5, 0, 0, 0}, &matrix};
          pm_route route{};
          route.logits = 5;
          route.weights = 6;
          route.ids = 7;
          route.experts = static_cast<int32_t>(experts);
          route.top_k = 2;
          route.groups = route.top_groups = 1;
          route.scale = 1.0f;
          route.jitter = 0.1f;
          route.scoring = head_dim == 8 ? 0 : head_dim == 20 ? 1 : 2;
          const pm_map by_one{3, 8, 3, 0.0f}, by_q{3, 0, 3, 0.0f};
          const pm_activate activate{3, 0, 3, static_cast<int32_t>(tokens % 2), 1.702f, 7.0f};
          const pm_step list[] = {{PM_ROTATE, 0, &rotate}, {PM_ATTEND, 0, &attend},
                                  {PM_NORM, 0, &norm},     {PM_PRODUCTS, 0, &products},
                                  {PM_ROUTE, 0, &route},   {PM_GATE, 0, &by_one},
                                  {PM_GATE, 0, &by_q},     {PM_ACTIVATE, 0, &activate}};
          pm_handle* handle = pm_create(threads, 20, set.c_str());
          check(pm_run_steps(handle, list, 8, buffers, &part, 1) == PM_OK, set + " steps");
          pm_destroy(handle);
          for (const std::vector<float>& more : {logits, weights})
            found.insert(found.end(), more.begin(), more.end());
          if (wanted.empty()) wanted = found;
          check(same(found, wanted), set + " steps against " + sets[0]);
          for (const int64_t id : ids) check(id >= 0 && id < experts, set + " routes");
        }
      }
      digest.add(wanted);
    }
  }
  digest.expect(0xf74db43d758cb560, "steps");
}

int main() {
  std::vector<std::string> sets;
  const std::string all = pm_instruction_sets();
  for (size_t at = 0; at <= all.size();) {
    const size_t comma = std::min(all.find(',', at), all.size());
    sets.push_back(all.substr(at, comma - at));
    at = comma + 1;
  }
  std::printf("instruction sets: %s\n", all.c_str());
  all_kernels(sets);
  products(sets);
  fused_sums(sets);
  functions(sets);
  many_callers();
  steps(sets);
  numbers();
  std::printf(failures ? "%d checks failed\n" : "all is well\n", failures);
  return failures != 0;
}
