"""Students that turn out to be MLPs take Triton's one-pass step: loss and all gradients beside float64 autograd."""

import pytest

from python_tests.test_chain import assert_right_in_single, one_process  # noqa: F401

NAMES = (
    "wrapper", "subclass of Sequential", "Dropout in eval", "torch.compile", "AveragedModel", "functional", "products",
    "functional_call", "weight norm", "spectral norm", "LoRA", "shared layer", "forward hook", "a hook that changes",
    "checkpointed", "DDP", "FSDP", "FSDP of each layer, kept", "FSDP of old",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_dressed_mlp(name, one_process):  # noqa: F811
    assert_right_in_single(name, "triton")
