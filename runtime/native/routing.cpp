// Which experts a token goes to: the rules of RouterSpec (model/routing.py), in float32.
#include <algorithm>
#include <cmath>
#include <vector>

#include "steps.h"

namespace pm {

namespace {

enum Scoring : int32_t { SOFTMAX = 0, SIGMOID = 1, SPARSEMIXER = 2, ALWAYS = 3 };

// The place of the largest; of equal ones the first. A NaN is taken for larger than any number.
int64_t largest(const std::vector<float>& values) {
  int64_t best = 0;
  for (size_t i = 1; i < values.size(); ++i) {
    const float is = values[i], was = values[best];
    if (is > was || (is != is && was == was)) best = static_cast<int64_t>(i);
  }
  return best;
}

void softmax(std::vector<float>& values) {
  const float most = *std::max_element(values.begin(), values.end());
  float sum = 0.0f;
  for (float& value : values) sum += value = std::exp(value - most);
  for (float& value : values) value /= sum;
}

void keep_best_groups(const pm_route& step, std::vector<float>& choice) {
  const int64_t size = step.experts / step.groups;
  std::vector<float> scores(step.groups);
  for (int64_t group = 0; group < step.groups; ++group) {
    float best = -INFINITY, second = -INFINITY;
    for (int64_t i = group * size; i < (group + 1) * size; ++i) {
      if (choice[i] > best) {
        second = best;
        best = choice[i];
      } else if (choice[i] > second) {
        second = choice[i];
      }
    }
    scores[group] = step.two_best ? best + second : best;
  }
  std::vector<bool> kept(step.groups);
  for (int32_t i = 0; i < step.top_groups; ++i) {
    const int64_t best = largest(scores);
    kept[best] = true;
    scores[best] = -INFINITY;
  }
  for (int32_t i = 0; i < step.experts; ++i)
    if (!kept[i / size]) choice[i] = -INFINITY;
}

void sparsemixer(const pm_route& step, const float* logits, float* weights, int64_t* ids) {
  std::vector<float> left(logits, logits + step.experts);
  for (int32_t i = 0; i < step.top_k; ++i) {
    const int64_t expert = largest(left);
    const float most = left[expert];
    std::vector<float> near(left);
    for (int32_t j = 0; j < step.experts; ++j) {
      const float distance = (most - logits[j]) / std::max(std::fabs(logits[j]), most);
      if (distance > 2 * step.jitter) near[j] = -INFINITY;
    }
    softmax(near);
    weights[i] = near[expert];
    ids[i] = expert;
    left[expert] = -INFINITY;
  }
}

}  // namespace

void route(const pm_route& step, const float* logits, float* weights, int64_t* ids) {
  if (step.scoring == ALWAYS) {
    weights[0] = 1.0f;
    ids[0] = 0;
    return;
  }
  if (step.scoring == SPARSEMIXER) return sparsemixer(step, logits, weights, ids);
  std::vector<float> scores(logits, logits + step.experts);
  if (step.scoring == SIGMOID)
    for (float& score : scores) score = 1.0f / (1.0f + std::exp(-score));
  else
    softmax(scores);
  std::vector<float> choice(scores);
  if (step.correction)
    for (int32_t i = 0; i < step.experts; ++i) choice[i] += step.correction[i];
  if (step.groups > step.top_groups) keep_best_groups(step, choice);
  float total = 0.0f;
  for (int32_t i = 0; i < step.top_k; ++i) {
    const int64_t expert = largest(choice);
    weights[i] = scores[expert];
    ids[i] = expert;
    total += scores[expert];
    choice[expert] = -INFINITY;
  }
  if (step.normalize) {
    if (total < step.least_sum) total = step.least_sum;
    for (int32_t i = 0; i < step.top_k; ++i) weights[i] /= total;
  }
  if (step.scale != 1.0f)
    for (int32_t i = 0; i < step.top_k; ++i) weights[i] *= step.scale;
}

}  // namespace pm
