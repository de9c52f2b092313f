"""The picture of a history."""

from __future__ import annotations

from pathlib import Path

ERRORS = {
    "value_error": "values", "derivative_error": "derivatives", "second_error": "second derivatives",
    "third_error": "third derivatives", "fourth_error": "fourth derivatives",
}  # fmt: skip
COLOURS = {
    "loss": "tab:gray", "value_error": "tab:blue", "derivative_error": "tab:orange", "second_error": "tab:green",
    "third_error": "tab:red", "fourth_error": "tab:purple",
}  # fmt: skip

INSTALL = "history.plot() draws with matplotlib, which is not installed: pip install matplotlib"


def drawn(history, path: str | Path | None):
    """A figure of a History, that no window belongs to; a notebook shows it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(INSTALL) from error
    errors = [name for name in ERRORS if name in history.columns]
    figure = Figure(figsize=(9 if errors else 5, 3.4), layout="constrained")
    axes = figure.subplots(1, 1 + bool(errors), squeeze=False)[0]
    epochs = history["epoch"] if history.rows else []
    curve(axes[0], epochs, history["loss"] if history.rows else [], "loss", "loss")
    if "validation_loss" in history.columns:
        curve(axes[0], epochs, history["validation_loss"], "value_error", "validation")
        axes[0].legend(frameon=False)
    axes[0].set(title="training loss", xlabel="epoch")
    for name in errors:
        curve(axes[1], epochs, history[name], name, ERRORS[name])
    if errors:
        axes[1].set(title="validation error, relative", xlabel="epoch")
        if history.best_epoch is not None:
            axes[1].axvline(history.best_epoch, color="black", lw=0.8, ls=":", label=f"best: {history.best_epoch}")
        axes[1].legend(frameon=False)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def curve(axes, epochs: list[float], numbers: list[float], name: str, label: str) -> None:
    axes.plot(epochs, numbers, color=COLOURS[name], lw=1.5, marker="o" if len(epochs) == 1 else None, label=label)
    if numbers and all(value > 0 for value in numbers):
        axes.set_yscale("log")
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5), numticks=12)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
