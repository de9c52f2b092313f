"""A LightningModule whose training_step is a Sobolev loss: its parameters are those of a loop that is written out."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sobolev_kernels as sk
from python_tests.students import Call

pl = pytest.importorskip("pytorch_lightning")
# Lightning's own: of one process, of a few samples, of what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:::pytorch_lightning", "ignore:::lightning_fabric", "ignore:::torch")

D, O, CLIP, ACCUMULATE = 3, 2, 0.3, 2
STUDENTS = {
    "MLP": lambda: sk.MLP(D, O, width=8),
    "another": lambda: Call(lambda x, a, b: torch.tanh(a(x)) * b(x), nn.Linear(D, O), nn.Linear(D, O)),
}


class Module(pl.LightningModule):
    def __init__(self, student):
        super().__init__()
        self.student, self.held_out = student, []
        self.loss_fn = sk.SobolevLoss(directions=sk.Directions.sphere(2, seed=1))

    def loss_of(self, batch, step):
        x, y, dy = batch
        return self.loss_fn.at(step)(self.student, x, sk.Targets(values=y, jacobian=dy))

    def training_step(self, batch, index):
        loss = self.loss_of(batch, index)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, _):
        _, tangents = sk.jvp(self.student, batch[0], sk.Directions.basis())
        self.held_out.append(tangents - batch[2].permute(2, 0, 1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def batches():
    generator = torch.Generator().manual_seed(2)
    data = (torch.randn(shape, generator=generator) for shape in ((11, D), (11, O), (11, O, D)))
    return DataLoader(TensorDataset(*data), batch_size=4)  # the last one has three


def by_hand(module, mixed, epochs):
    optimizer = module.configure_optimizers()
    for _ in range(epochs):
        for index, batch in enumerate(loader := batches()):
            # without a cache of the parameters that were cast, as Lightning has it
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if mixed else nullcontext():
                loss = module.loss_of(batch, index)
            (loss / ACCUMULATE).backward()
            if (index + 1) % ACCUMULATE == 0 or index + 1 == len(loader):
                nn.utils.clip_grad_norm_(module.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", STUDENTS)
def test_automatic_optimization(name, precision, tmp_path):
    modules = []
    for _ in range(2):
        torch.manual_seed(3)
        modules.append(Module(STUDENTS[name]()))
    before = [p.detach().clone() for p in modules[0].parameters()]
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, precision=precision, gradient_clip_val=CLIP,
        accumulate_grad_batches=ACCUMULATE, default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(modules[0], batches(), batches())
    by_hand(modules[1], precision != "32-true", epochs=3)
    after, expected = ([*module.parameters()] for module in modules)
    torch.testing.assert_close(after, expected)
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert modules[0].held_out and all(error.isfinite().all() for error in modules[0].held_out)
