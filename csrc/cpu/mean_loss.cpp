#include "mean_loss.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace sk::cpu {
namespace {

#include "../math/primitives.h"

using namespace scalar;
template <class T>
SK_INLINE T where(bool condition, T a, T b) {
  return condition ? a : b;
}
template <class T>
SK_INLINE T clamp(T x, T least, T most) {
  return x < least ? least : most < x ? most : x;  // NaN stays
}

#include "../math/generated.h"
#include "../switch.h"

// Independent sums, which a compiler may keep in one register
constexpr int kSums = 8;

template <class T>
T dot(const T* a, const T* b, std::int64_t n) {
  T sums[kSums] = {};
  std::int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int k = 0; k < kSums; ++k) sums[k] += a[i + k] * b[i + k];
  }
  T sum = 0;
  for (; i < n; ++i) sum += a[i] * b[i];
  for (const T each : sums) sum += each;
  return sum;
}

// The sum of the terms of n numbers; their slopes are written.
template <class T, class Loss>
double pointwise(Loss, const double* parameters, const T* a, const T* target, T scale, T* slopes, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const auto term = Loss::template call<T>(a[i] - target[i], parameters);
    sum += double(term.value);
    slopes[i] = scale * term.slope;
  }
  return sum;
}

template <class T>
class Run {
 public:
  Run(const MeanLoss& loss, const std::vector<const void*>& read, const std::vector<void*>& written)
      : loss_(loss), read_(read), written_(written) {}

  void run() {
    const std::int64_t n = loss_.N * loss_.O;
    const std::int64_t m = loss_.P * loss_.N * (loss_.projected ? loss_.O : loss_.D);
    double total = weighed(0, n, [&](auto formula, const double* parameters, T scale) {
      return pointwise(formula, parameters, in(0), in(1), scale, out(1), n);
    });
    total += weighed(1, m, [&](auto formula, const double* parameters, T scale) {
      return loss_.projected ? tangents(formula, parameters, scale) : gradients(formula, parameters, scale);
    });
    *out(0) = T(total);
  }

 private:
  const T* in(std::size_t i) const { return static_cast<const T*>(read_[i]); }
  T* out(std::size_t i) const { return static_cast<T*>(written_[i]); }

  template <class F>
  double weighed(int part, std::int64_t n, F sum) const {
    const Formula& formula = loss_.losses[part];
    const double weight = loss_.weights[part] / double(n);
    return weight * with_loss(formula.row, [&](auto row) { return sum(row, formula.parameters, T(weight)); });
  }

  template <class Loss>
  double gradients(Loss formula, const double* parameters, T scale) const {
    const std::int64_t n = loss_.N * loss_.D;
    double sum = 0;
    for (std::int64_t r = 0; r < loss_.P; ++r) {
      sum += pointwise(formula, parameters, in(3 + r), in(2) + r * n, scale, out(2 + r), n);
    }
    return sum;
  }

  template <class Loss>
  double tangents(Loss, const double* parameters, T scale) const {
    const std::int64_t N = loss_.N, O = loss_.O, D = loss_.D;
    double sum = 0;
    for (std::int64_t o = 0; o < O; ++o) {
      const T* g = in(4 + o);
      T* adjoint = out(2 + o);
      std::fill(adjoint, adjoint + N * D, T(0));
      for (std::int64_t n = 0; n < N; ++n) {
        for (std::int64_t p = 0; p < loss_.P; ++p) {
          const T* v = in(3) + (p * N + n) * D;
          const T target = in(2)[(p * N + n) * O + o];
          const auto term = Loss::template call<T>(dot(v, g + n * D, D) - target, parameters);
          const T slope = scale * term.slope;
          sum += double(term.value);
          for (std::int64_t d = 0; d < D; ++d) adjoint[n * D + d] += slope * v[d];
        }
      }
    }
    return sum;
  }

  const MeanLoss& loss_;
  const std::vector<const void*>& read_;
  const std::vector<void*>& written_;
};

}  // namespace

void mean_loss(const MeanLoss& loss, const std::vector<const void*>& read, const std::vector<void*>& written) {
  if (loss.wide) {
    Run<double>(loss, read, written).run();
  } else {
    Run<float>(loss, read, written).run();
  }
}

}  // namespace sk::cpu
