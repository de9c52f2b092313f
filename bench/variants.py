"""The contestants of the package, and where it is installed JAX."""

from __future__ import annotations

from collections.abc import Sequence

from sobolev_kernels.testing.speed import variants
from sobolev_kernels.testing.speed.baselines import BASELINES, DOUBLE_BACKWARD, VMAP_JVP, Variant, one_gradient
from sobolev_kernels.testing.speed.cases import EXACT, TAUGHT, Case
from sobolev_kernels.testing.speed.taught import TAUGHT_BACKWARD, TAUGHT_BASELINES

from .jax_baseline import jax_variant

JAX = {
    "JAX, jit": jax_variant("vmap_jvp", BASELINES[VMAP_JVP].build),
    "JAX, jit of gradients": jax_variant("projected", BASELINES[DOUBLE_BACKWARD].build, shapes=one_gradient),
    "JAX, jit, exact": jax_variant(None, BASELINES[DOUBLE_BACKWARD].build, kinds=(EXACT,)),
    "JAX, jit (teacher)": jax_variant(None, TAUGHT_BASELINES[TAUGHT_BACKWARD].build, kinds=TAUGHT),
}
VARIANTS = {**variants.VARIANTS, **JAX}


def variants_of(case: Case, compiled: bool = True) -> dict[str, Variant]:
    """Those of one case by name, ours first; without those whose package is not installed."""
    return variants.taking_part(VARIANTS, case, compiled)


def left_out(cases: Sequence[Case]) -> list[str]:
    """A line for each contestant of these cases that cannot take part."""
    missing = {n: v for n, v in VARIANTS.items() if v.missing and any(v.applies(case) for case in cases)}
    return [f"{name} is left out: {variant.needs} is not installed" for name, variant in missing.items()]
