"""Mixture of experts: the router, and the weighted sum of the chosen experts' outputs."""

from mimo_engine.kernels.moe.reference import moe, route, swiglu

__all__ = ["moe", "route", "swiglu"]
