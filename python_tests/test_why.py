"""The picture at the top of README shows what it says."""

import torch

from examples import why


def test_the_picture_of_why(tmp_path, monkeypatch):
    """With a fifth of its steps: five points with slopes say more than without."""
    monkeypatch.setattr(why, "EPOCHS", 300)
    why.draw(tmp_path / "why.png")
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")
    _, students = why.trained()
    line = torch.linspace(-1.8, 1.8, 101)[:, None]
    errors = {name: (student(line) - why.f(line)).square().mean().sqrt().item() for name, student in students.items()}
    assert errors["sobolev"] < 0.7 * errors["ordinary"], errors
