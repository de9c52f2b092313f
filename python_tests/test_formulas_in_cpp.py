"""`jet` of each printed activation, σ to σ⁽⁵⁾, of SIMD vectors: compiled here, since no kernel takes it whole."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from test_formulas import ACTIVATIONS, DTYPES, assert_close, expected, points

import sobolev_kernels as sk
from sobolev_kernels.math.activations import DERIVATIVES
from sobolev_kernels.modules import choose_activation

MATH = Path(__file__).resolve().parents[1] / "csrc" / "math"
COMPILER = os.environ.get("CXX", "g++")
SOURCE = """
#include <cmath>
#include <cstdint>
constexpr int kVectorBytes = 16;
#include "primitives.h"
#include "../cpu/vector.h"
#include "../cpu/vector_math.h"
#include "generated.h"

template <class A, class T>
void fill(const T* z, T* to, std::int64_t n, const double* parameters) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < n; i += V::kLanes) {
    const Jet<V> jet = A::jet(V::load(z + i), parameters);
    const V results[] = {jet.value, jet.d1, jet.d2, jet.d3, jet.d4, jet.d5};
    for (int k = 0; k < 6; ++k) results[k].store(to + k * n + i);
  }
}

template <class T>
void choose(int row, const T* z, T* to, std::int64_t n, const double* parameters) {
#define SK_CASE(number, A) if (row == number) fill<A>(z, to, n, parameters);
  SK_ACTIVATIONS(SK_CASE)
}

extern "C" {
void of_float(int row, const float* z, float* to, std::int64_t n, const double* p) { choose(row, z, to, n, p); }
void of_double(int row, const double* z, double* to, std::int64_t n, const double* p) { choose(row, z, to, n, p); }
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    if shutil.which(COMPILER) is None:
        pytest.skip("no compiler")
    folder = tmp_path_factory.mktemp("jets")
    (folder / "jets.cpp").write_text(SOURCE, encoding="utf-8")
    options = ["-std=c++17", "-O1", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC", f"-I{MATH}"]
    command = [COMPILER, *options, str(folder / "jets.cpp"), "-o", str(folder / "jets.so")]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return ctypes.CDLL(str(folder / "jets.so"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_jets(compiled, activation, dtype):
    formula = choose_activation("activation", activation)
    z, wanted = points(formula, dtype), expected(formula, dtype)
    padded = torch.cat([z, torch.zeros(-len(z) % 4, dtype=dtype)])
    results = torch.full((DERIVATIVES + 1, len(padded)), torch.nan, dtype=dtype)
    parameters = (ctypes.c_double * 2)(*formula.parameters)
    function = compiled.of_float if dtype == torch.float32 else compiled.of_double
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (padded, results))
    function(list(sk.ACTIVATIONS).index(formula.name), *pointers, ctypes.c_int64(len(padded)), parameters)
    for k in range(DERIVATIVES + 1):
        assert_close(f"derivative {k}", z, results[k, : len(z)], wanted[k])
