// Which experts a token goes to: the rules of RouterSpec (model/routing.py), in float32.
//
// Memory is the caller's: this runs on the pool's threads, where nothing may throw.
#include <algorithm>
#include <cmath>

#include "steps.h"

namespace pm {

namespace {

enum Scoring : int32_t { SOFTMAX = 0, SIGMOID = 1, SPARSEMIXER = 2, ALWAYS = 3 };

// A NaN is taken for larger than any number.
bool above(float is, float was) { return is > was || (is != is && was == was); }

// Numbers, and which of them are not to be chosen any more.
struct Choice {
  float* values;
  bool* gone;
  int64_t count;

  Choice(float* values, bool* gone, int64_t count) : values(values), gone(gone), count(count) {
    std::fill(gone, gone + count, false);
  }

  // Takes the largest that is left, and returns its place; of equal ones the first.
  int64_t take() {
    int64_t best = -1;
    for (int64_t i = 0; i < count; ++i)
      if (!gone[i] && (best < 0 || above(values[i], values[best]))) best = i;
    gone[best] = true;
    return best;
  }
};

// What a row's memory is used for, all [experts]; a group has at least one expert.
struct Memory {
  float *scores, *choice, *groups;
  bool *gone, *gone_groups;

  Memory(void* memory, int64_t experts)
      : scores(static_cast<float*>(memory)),
        choice(scores + experts),
        groups(choice + experts),
        gone(reinterpret_cast<bool*>(groups + experts)),
        gone_groups(gone + experts) {}
};

void softmax(const Kernels& kernels, float* values, int64_t count) {
  const float most = *std::max_element(values, values + count);
  for (int64_t i = 0; i < count; ++i) values[i] -= most;
  kernels.rows->exponentials(values, count, values);
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  for (int64_t i = 0; i < count; ++i) values[i] /= sum;
}

void sigmoid(const Kernels& kernels, float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = -values[i];
  kernels.rows->exponentials(values, count, values);
  for (int64_t i = 0; i < count; ++i) values[i] = 1.0f / (1.0f + values[i]);
}

// Experts outside the best groups are gone.
void keep_best_groups(const pm_route& step, const Memory& memory, Choice& choice) {
  const int64_t size = step.experts / step.groups;
  Choice groups(memory.groups, memory.gone_groups, step.groups);
  for (int64_t group = 0; group < step.groups; ++group) {
    float best = -INFINITY, second = -INFINITY;
    for (int64_t i = group * size; i < (group + 1) * size; ++i) {
      const float value = choice.values[i];
      if (above(value, best)) {
        second = best;
        best = value;
      } else if (above(value, second)) {
        second = value;
      }
    }
    groups.values[group] = step.two_best ? best + second : best;
  }
  for (int32_t i = 0; i < step.top_groups; ++i) groups.take();
  for (int32_t i = 0; i < step.experts; ++i) choice.gone[i] = !groups.gone[i / size];
}

void sparsemixer(const Kernels& kernels, const pm_route& step, const float* logits,
                 const Memory& memory, float* weights, int64_t* ids) {
  float* near = memory.scores;
  Choice left(memory.choice, memory.gone, step.experts);
  std::copy(logits, logits + step.experts, left.values);
  for (int32_t i = 0; i < step.top_k; ++i) {
    const int64_t expert = left.take();
    const float most = left.values[expert];
    for (int32_t j = 0; j < step.experts; ++j) {
      const float distance = (most - logits[j]) / std::max(std::fabs(logits[j]), most);
      near[j] = distance > 2 * step.jitter ? -INFINITY : left.values[j];
    }
    softmax(kernels, near, step.experts);
    weights[i] = near[expert];
    ids[i] = expert;
    left.values[expert] = -INFINITY;
  }
}

}  // namespace

int64_t routing_bytes(const pm_route& step) {
  return static_cast<int64_t>(step.experts) * (3 * sizeof(float) + 2 * sizeof(bool));
}

void route(const Kernels& kernels, const pm_route& step, const float* logits, void* scratch,
           float* weights, int64_t* ids) {
  if (step.scoring == ALWAYS) {
    weights[0] = 1.0f;
    ids[0] = 0;
    return;
  }
  const Memory memory(scratch, step.experts);
  if (step.scoring == SPARSEMIXER)
    return sparsemixer(kernels, step, logits, memory, weights, ids);
  float* scores = memory.scores;
  std::copy(logits, logits + step.experts, scores);
  if (step.scoring == SIGMOID)
    sigmoid(kernels, scores, step.experts);
  else
    softmax(kernels, scores, step.experts);
  Choice choice(memory.choice, memory.gone, step.experts);
  for (int32_t i = 0; i < step.experts; ++i)
    choice.values[i] = step.correction ? scores[i] + step.correction[i] : scores[i];
  if (step.groups > step.top_groups) keep_best_groups(step, memory, choice);
  float total = 0.0f;
  for (int32_t i = 0; i < step.top_k; ++i) {
    const int64_t expert = choice.take();
    weights[i] = scores[expert];
    ids[i] = expert;
    total += scores[expert];
  }
  if (step.normalize) {
    if (total < step.least_sum) total = step.least_sum;
    for (int32_t i = 0; i < step.top_k; ++i) weights[i] /= total;
  }
  if (step.scale != 1.0f)
    for (int32_t i = 0; i < step.top_k; ++i) weights[i] *= step.scale;
}

}  // namespace pm
