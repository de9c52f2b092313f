// Losses of residuals, with their weights.
#pragma once

#include "numbers.cuh"

namespace sk::cuda {

enum Term : int { kValue, kFirst, kSecond };

// The slope of a residual, which it adds to the term if told to; a term or a residual of weight 0 may have any
// target, also NaN.
SK_INLINE float slope(const Arguments& step, Term term, std::int64_t row, float r, float weight, float& rho,
                      bool added) {
  const Function& loss = step.loss[term];
  if (step.sample_weight.data) weight *= number(step.sample_weight, term != kValue, row);
  if (weight == 0.0f) r = 0.0f;
  Residual<float> of = LossMse::call(r, nullptr);
  if (loss.row != 0) of = residual(loss.row, loss.parameters[0], loss.parameters[1], r);
  if (added) rho += of.value * weight;
  return step.factor[term] == 0.0f ? 0.0f : step.factor[term] * of.slope * weight;
}
SK_INLINE float output_weight(const Arguments& step, int o) {
  return step.output_weight.data ? number(step.output_weight, o) : 1.0f;
}
SK_INLINE float derivative_weight(const Arguments& step, int p, std::int64_t row, int o) {
  return step.derivative_weight.data ? number(step.derivative_weight, p, row, o) : 1.0f;
}

SK_INLINE float weight_of(const Arguments& step, int p, std::int64_t row, int o) {
  return output_weight(step, o) * derivative_weight(step, p, row, o);
}

// Of a sample, from its terms
template <int kTerms>
SK_INLINE void store_loss(const Arguments& step, std::int64_t sample, const float (&terms)[kTerms]) {
  float loss = 0.0f;
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    const float weight = float(step.weight[term]);
    if (weight != 0.0f) loss += weight * terms[term];
    step.terms[term * step.N + sample] = terms[term];
  }
  step.total[sample] = loss;
}

}  // namespace sk::cuda
