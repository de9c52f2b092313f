"""Compiled PTX executed on the CPU (docs/ptx.md)."""

from .parse import PtxError
from .run import Finding, Module, PtxFailure, Result, instructions, load, missing

__all__ = ["Finding", "Module", "PtxError", "PtxFailure", "Result", "instructions", "load", "missing"]
