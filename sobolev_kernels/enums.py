"""The choices that Python and the C++ core tell each other by number: each list stands here once, in its order.

csrc/math/generate.py prints them as C++ (it reads this file by itself, which imports nothing), and the core that is
imported must have been built from the same (`sobolev_kernels/backends/core.py`).
"""

DTYPES = ("float32", "float64")

# What P counts: tangents D m[v] along directions v in input space, or gradients Jᵀu of cotangents u in output space.
PROJECTIONS = DIRECTIONS, COTANGENTS = ("directions", "cotangents")

# What a target holds: nothing; the dense derivative, [N, O, W], or [N, O, W, W] of order 2; or its projections, in the
# shape of the student's.
TARGET_KINDS = NONE, DENSE, PROJECTED = ("none", "dense", "projected")

# Which side derivatives are computed from: a tangent chain for each of P directions, or a gradient for each of O
# outputs, projected on all directions. The same numbers; the work goes with 1 + P or 1 + O.
SIDES = TANGENTS, GRADIENTS = ("tangents", "gradients")

# What the backward pass starts from: nothing, and there is none; a loss; or cotangents in the place of targets.
RESIDUALS = NO_RESIDUALS, RESIDUALS_OF_LOSS, RESIDUALS_GIVEN = ("none", "loss", "cotangents")

# Of what is multiplied; sums are float32 or better.
PRECISIONS = ("ieee", "tf32", "bf16", "fp16")

# What a residual may apply to a number of each sample, beside sums and products; PyTorch's names.
FUNCTIONS = ("exp", "log", "sin", "cos", "tanh", "sqrt", "reciprocal")

# By the name of the C++ enumeration.
ENUMS = {
    "Dtype": DTYPES,
    "Projection": PROJECTIONS,
    "TargetKind": TARGET_KINDS,
    "Side": SIDES,
    "Residuals": RESIDUALS,
    "Precision": PRECISIONS,
    "Function": FUNCTIONS,
}
