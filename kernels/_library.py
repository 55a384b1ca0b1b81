"""The operator library ``torch.ops.skyreels_rt``.

``define`` + ``impl`` + fake, not ``torch.library.custom_op``: the latter costs several microseconds
a call. Every operator ends with ``str impl``, the implementation to run, so that the choice travels
with the call and through ``torch.compile``; there is nothing global to set. Only native
implementations are dispatched here: the reference is plain torch, which callers (and
``torch.compile``, and autograd) see through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_NAMESPACE = "skyreels_rt"
_library = torch.library.Library(_NAMESPACE, "FRAGMENT")


def define_op(schema: str, *, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:  # noqa: ANN401 - an OpOverload, untyped in torch
    """Register an operator and return its handle.

    Parameters
    ----------
    schema : str
        ``name(args) -> returns`` with mutations marked.
    run : callable
        Launches the implementation named by the last argument, on CPU or CUDA tensors.
    fake : callable
        Allocates the outputs as ``run`` does, without computing.

    Returns
    -------
    torch._ops.OpOverload
        The ``default`` overload, callable with the schema's arguments.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    for key in ("CPU", "CUDA"):
        _library.impl(name, run, key)
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=_library)
    return getattr(getattr(torch.ops, _NAMESPACE), name).default
