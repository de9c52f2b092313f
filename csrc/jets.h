// Everything the core is told about named derivatives of a student: which streams go through its layers, and by which
// products they are made (docs/math.md, section 15). Conventions as in params.h.
#pragma once

#include <cstdint>

#include "params.h"

namespace sk {

// c a b, of numbers in slots
struct Product {
  int a, b;
  double wide;
  float narrow;  // the same coefficient
};

// What is put into a slot: the sum of terms [begin, end), of which those before `scaled` have the coefficient 1
struct SumOfProducts {
  int to;
  std::int64_t begin, scaled, end;
};

constexpr int kDerivatives = 6;  // σ to σ⁽⁵⁾

// Elementwise work at an activation. Slots are, one after the other, what is read and what is made, and then scratch.
struct Program {
  const SumOfProducts* sums = nullptr;
  const Product* terms = nullptr;
  std::int64_t count = 0;
  int slots = 0;
  int sigma[kDerivatives] = {-1, -1, -1, -1, -1, -1};  // where derivatives of the activation go, those that are wanted
};

struct JetLayer {
  Layer layer;
  int given = 0, made = 0, kept = 0;  // streams of z, of h, and of σ'(z) for the adjoint
  bool value = true;                  // whether the first of those given is the value, to which the bias belongs
  Program values;                     // slots z, h
  Program forward;                    // z, h, g
  Program adjoint;                    // h̄, g, z̄
};

// A part of a result: output `column` of a stream that the last layer makes
struct Named {
  int result, stream, column;
  double coefficient;
};

// A number of each sample that a loss compares with its target, or with 0: its slot, that of its slope, and its term
struct Deviation {
  int value, slope, term;
  Strided target;  // [N]
};

// A term is the sum of ρ(unit · deviation) over samples and deviations times `share`; it counts by `weight`.
struct JetTerm {
  Formula loss;
  double unit = 1, weight = 1, share = 1;
};

// f of a slot, which is put into another one after so many sums of a program
struct Applied {
  Function function;
  int of, to;
  std::int64_t before;
};

// A loss of the results, made and differentiated in the tile. Its slots are, one after the other, results, inputs that
// are read, coefficients, the number 1, and then what is made of them.
struct JetLoss {
  Program values, adjoint;             // of the slots of deviations; and of their slopes those of what is given
  const Applied* functions = nullptr;  // amid the program of values
  std::int64_t count_functions = 0;
  std::int64_t count_results = 0;
  const int* columns = nullptr;
  std::int64_t count_columns = 0;
  const double* coefficients = nullptr;
  std::int64_t count_coefficients = 0;
  const int* bars =
      nullptr;  // of results, columns and coefficients the slots of their adjoints; -1: it is not asked for
  const Deviation* deviations = nullptr;
  std::int64_t count_deviations = 0;
  const JetTerm* terms = nullptr;
  std::int64_t count_terms = 0;
  Strided inputs;                 // [N, D], of which the columns are
  Strided sample_weight;          // [N]
  void* total = nullptr;          // [1]
  void* each = nullptr;           // [terms], without their weights
  void* dinputs = nullptr;        // [N, columns]
  void* dcoefficients = nullptr;  // [coefficients]
  bool back = false;              // whether gradients are wanted
};

// Where a number of each sample is, so many from one to the next
struct Place {
  void* data = nullptr;
  std::int64_t step = 1;
};

struct Jets {
  Dtype dtype = Dtype::kFloat32;
  std::int64_t N = 0, D = 0, O = 0, L = 0;
  std::int64_t P = 0, W = 0;  // directions, of the first W inputs
  int directions = 0;         // of these side by side, the streams that inputs have beside the value: results that are
                              // not of the value alone are summed over the others
  const JetLayer* layers = nullptr;  // [L]
  const Named* named = nullptr;
  std::int64_t count_named = 0, results = 0;
  Strided x;  // [N, D]
  Directions along;
  const Place* out = nullptr;         // [results], without data where nobody asks for it
  const Place* cotangents = nullptr;  // [results], without data where it is 0
  const JetLoss* loss = nullptr;      // in their place
  const Step* step = nullptr;         // or what has targets and losses of y, derivatives and second derivatives, which
                                      // are the streams of the last layer, one after the other
  void* dx = nullptr;                 // [N, D]
  void* dv = nullptr;                 // [P, N, W]
  void* between = nullptr;            // h and g of all samples, which the results leave for their cotangents
  std::int64_t tile = 0;              // samples
  int threads = 1;
  bool in_place = false;  // as of a step

  bool gradients() const {
    if (step) return step->gradients && step->residuals != Residuals::kNone;
    return loss ? loss->back : cotangents != nullptr;
  }
  bool adjoints() const { return gradients() || between; }  // whether g is made
  // Unit vectors times their magnitude, with which nothing is compared
  bool units() const { return !step && along.distribution == Distribution::kBasis; }
  std::int64_t tiles() const { return (N + tile - 1) / tile; }
};

}  // namespace sk
