"""Strict loading of safetensors checkpoints into modules; pickled files are never opened.

Names, shapes and dtypes are compared from the files' headers before any tensor is read or placed.
Tensors then stream one by one, so the peak above the model itself is one tensor.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from skyreels_rt.errors import InvalidArgument, ModelError, NonFinite, OutputError, WeightsMismatch
from skyreels_rt.weights import eight_bits
from skyreels_rt.weights.files import (
    FILE_NAME,
    StoredTensor,
    read_checkpoint,
    reading_safetensors,
)
from skyreels_rt.weights.key_maps import uses_diffusers_names

_FLOAT_CODES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_EXACT_CODES = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


Merge = Callable[[str, Tensor], Tensor]
"""From our name of a tensor and the tensor as stored, placed, to the tensor to load; the very same
where nothing changes."""

Place = Callable[[str, Tensor], torch.device]
"""Where a tensor is left, by our name and the module's own."""


def load_weights(
    module: nn.Module,
    folder: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None,
    key_map: Callable[[str], str | None] | None = None,
    merge: Merge | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> None:
    """Fill every parameter and persistent buffer of ``module`` from the checkpoint in ``folder``.

    Reads ``diffusion_pytorch_model.safetensors`` or ``model.safetensors``, or the shards that
    ``<name>.index.json`` lists. The module may be on the meta device; parameters on another device
    or of another dtype are replaced, the others filled in place. Of tied parameters the checkpoint
    needs to hold one name; several must agree.

    Parameters
    ----------
    module : nn.Module
        Model to fill. A submodule with non-persistent buffers on the meta device has a method
        ``reset_buffers(device)`` that computes them again.
    folder : Path
        Component folder. Files must lie inside it (or be links into the ``blobs`` folder of a hub
        cache whose ``snapshots`` hold ``folder``).
    device : torch.device or str
        Where parameters and buffers end up.
    dtype : torch.dtype or None
        Dtype of all floating-point tensors; None keeps the dtype each has in ``module``. Integer
        and boolean tensors never change theirs.
    key_map : callable, optional
        Our name for a name of the file, or None to leave that tensor out.
    merge : callable, optional
        Changes tensors before they are cast, such as
        :meth:`skyreels_rt.weights.lora.LoraStack.merge`.
    on_bytes : callable, optional
        Called after every tensor with the bytes of the files read so far and in all.

    Raises
    ------
    ModelError
        No usable weights, only pickled ones, a damaged file, a path that leaves ``folder``, or tied
        names with different values.
    WeightsMismatch
        Missing, unexpected or misshaped tensors, or other kinds of dtype: all of them are named,
        and ``module`` is untouched.
    NonFinite
        A tensor holds NaN or infinity, or overflows in ``dtype``; ``module`` is partly filled.
    """
    plan_weights(module, folder, dtype=dtype, key_map=key_map, merge=merge).fill(device, on_bytes)


@dataclass(frozen=True)
class WeightsPlan:
    """A module and the stored tensors that fit it; nothing is read or placed yet.

    Attributes
    ----------
    module : nn.Module
        Model to fill.
    entries : dict of str to StoredTensor
        Stored tensor of each of the module's names.
    dtype, merge
        As :func:`load_weights` takes them.
    """

    module: nn.Module
    entries: dict[str, StoredTensor]
    dtype: torch.dtype | None
    merge: Merge | None

    @property
    def num_bytes(self) -> int:
        """Bytes to read from the files."""
        return sum(entry.num_bytes for entry in self.entries.values())

    def fill(
        self,
        device: torch.device | str,
        on_bytes: Callable[[int, int], None] | None = None,
        *,
        place: Place | None = None,
    ) -> None:
        """Fill the module on ``device``; raises like :func:`load_weights` does.

        With ``place`` each tensor is left where that says; LoRAs and 8-bit rows are still computed
        on ``device``, one tensor at a time.
        """
        module, device = self.module, torch.device(device)
        wanted = _own_tensors(module)
        _settle_buffers(module, wanted, device)
        names_of: dict[int, list[str]] = {}
        for name, tensor in wanted.items():
            names_of.setdefault(id(tensor), []).append(name)
        filled: dict[int, str] = {}
        total, done = self.num_bytes, 0
        for target, value in _stream(self, wanted, device, place or (lambda *_: device)):
            old = wanted[target]
            if target in self.entries:  # not the scales that come with a weight
                done += self.entries[target].num_bytes
                if on_bytes is not None:
                    on_bytes(done, total)
            if id(old) in filled:
                _require_equal(module, filled[id(old)], target, value)
                continue
            filled[id(old)] = target
            _fill(module, names_of[id(old)], old, value)


def plan_weights(
    module: nn.Module,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    key_map: Callable[[str], str | None] | None = None,
    merge: Merge | None = None,
) -> WeightsPlan:
    """Compare the headers of the checkpoint in ``folder`` with ``module``; nothing else is read.

    Parameters and errors are those of :func:`load_weights`. A model of several checkpoints plans
    them all before the first is placed.
    """
    stored = read_checkpoint(folder)
    return WeightsPlan(module, _match(folder, stored, _own_tensors(module), key_map), dtype, merge)


def save_weights(
    state_dict: Mapping[str, Tensor],
    folder: Path,
    *,
    filename: str = "diffusion_pytorch_model.safetensors",
    max_shard_bytes: float = 5e9,
) -> None:
    """Write ``state_dict`` into ``folder`` as safetensors, in place of an older ``filename``.

    Everything is written under temporary names first. A single file takes its final name in one
    step; with shards the index disappears first and appears last, so a reader finds the old
    checkpoint, none, or the new one, never a mixture.

    Parameters
    ----------
    state_dict : mapping of str to Tensor
        Tensors on any device; names that are the same tensor (tied) are written once, under the
        first of them.
    folder : Path
        Made if absent.
    filename : str
        Name of the single file; shards and index derive theirs from it, as diffusers does.
    max_shard_bytes : float
        Above this size the checkpoint is split; one larger tensor gets a file of its own.

    Raises
    ------
    InvalidArgument
        ``filename`` is not the plain name of a ``.safetensors`` file.
    OutputError
        The files cannot be written; the temporary ones are removed again.
    """
    if not FILE_NAME.fullmatch(filename):
        raise InvalidArgument(
            "filename", expected="the plain name of a .safetensors file", got=repr(filename)
        )
    stem = filename.removesuffix(".safetensors")
    parts = _shards(_separate_tensors(state_dict), max_shard_bytes)
    single = len(parts) == 1
    names = [f"{stem}-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    mark = f".{secrets.token_hex(4)}.tmp"
    written: dict[Path, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in zip([filename] if single else names, parts, strict=True):
            written[folder / f"{name}{mark}"] = name
            _write_part(folder / f"{name}{mark}", part)
        if not single:
            index = f"{filename}.index.json"
            written[folder / f"{index}{mark}"] = index
            (folder / f"{index}{mark}").write_text(_index_text(names, parts), encoding="utf-8")
        _replace_files(folder, stem, written)
    except BaseException as error:
        for temporary in written:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if not isinstance(error, Exception):
            raise
        raise OutputError(f"{folder}: weights not written ({error}).", stage="save") from error


def _index_text(names: list[str], parts: list[dict[str, Tensor]]) -> str:
    """JSON text of the index over shards ``names`` with the tensors ``parts``."""
    total = sum(tensor.numel() * tensor.itemsize for part in parts for tensor in part.values())
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of everything ``module`` would save.

    Equal for equal weights on any device, whatever order the module registers them in.

    Parameters
    ----------
    module : nn.Module
        Model whose parameters and persistent buffers are hashed.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_own_tensors(module).items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; tied ones are the same object."""
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _match(
    folder: Path,
    stored: dict[str, StoredTensor],
    wanted: dict[str, Tensor],
    key_map: Callable[[str], str | None] | None,
) -> dict[str, StoredTensor]:
    """Pair each of the module's names with a stored tensor, or name every fault in an error."""
    plan: dict[str, StoredTensor] = {}
    unexpected: list[str] = []
    misshaped: list[str] = []
    for name, entry in stored.items():
        target = key_map(name) if key_map else name
        if target is None:
            continue
        label = name if target == name else f"{name} (as {target})"
        if target not in wanted:
            unexpected.append(label)
        elif target in plan:
            unexpected.append(f"{label}, which {plan[target].name} also claims")
        else:
            plan[target] = entry
            misshaped += _misfit(label, entry, wanted[target])
    seen = {id(wanted[name]) for name in plan}
    seen |= {id(wanted[scale]) for name in plan if (scale := _scale_of(name, wanted))}
    missing: list[str] = []
    for name, tensor in wanted.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            missing.append(name)
    if missing or unexpected or misshaped:
        raise _mismatch(folder, missing, unexpected, misshaped)
    return plan


def _misfit(label: str, entry: StoredTensor, tensor: Tensor) -> list[str]:
    """Say what is wrong with the shape and kind of dtype of ``entry``, in zero or one line."""
    expected_code = _EXACT_CODES.get(tensor.dtype)
    kind_fits = entry.code in _FLOAT_CODES if expected_code is None else entry.code == expected_code
    if kind_fits and entry.shape == tuple(tensor.shape):
        return eight_bits.scale_misfit(label, entry)
    kind = expected_code or "floating point"
    return [f"{label}: expected {tuple(tensor.shape)} {kind}, got {entry.shape} {entry.code}"]


def _mismatch(
    folder: Path, missing: list[str], unexpected: list[str], misshaped: list[str]
) -> WeightsMismatch:
    """Build the error that names every fault, one a line."""
    lines = [f"{folder}: the checkpoint does not fit the model."]
    faults = {"missing": missing, "unexpected": unexpected, "misshaped": misshaped}
    for kind, names in faults.items():
        lines += [f"  {kind} ({len(names)}):"] * bool(names) + [f"    {name}" for name in names]
    hint = None
    if uses_diffusers_names(unexpected):
        hint = "These are diffusers' names of a Wan transformer; load with diffusers_wan_key."
    return WeightsMismatch(
        "\n".join(lines),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        misshaped=tuple(misshaped),
        hint=hint,
    )


def _stream(
    plan: WeightsPlan, wanted: dict[str, Tensor], device: torch.device, place: Place
) -> Iterator[tuple[str, Tensor]]:
    """Yield every name of ``plan`` with its tensor, placed, cast and finite, file by file.

    A weight that the module keeps in 8 bits is followed by its scales.
    """
    by_file: dict[Path, list[str]] = {}
    for target, entry in plan.entries.items():
        by_file.setdefault(entry.file, []).append(target)
    for file, targets in by_file.items():
        with contextlib.ExitStack() as stack:
            with reading_safetensors(file):
                handle = stack.enter_context(safe_open(file, framework="pt"))
            for target in targets:
                entry, old = plan.entries[target], wanted[target]
                with reading_safetensors(file):
                    source = cast("Tensor", handle.get_tensor(entry.name))
                where, scale_name = place(target, old), _scale_of(target, wanted)
                if scale_name is not None:
                    values, scales = _rows(plan, target, source, device)
                    yield target, values.to(where)
                    yield scale_name, scales.to(where)
                    continue
                if entry.scale is not None:
                    source = eight_bits.full_weight(source.to(device), _read(entry.scale))
                if plan.merge is not None:
                    source = plan.merge(target, source.to(device))
                value_dtype = plan.dtype if plan.dtype and old.is_floating_point() else old.dtype
                # A copy in any case: the source maps the file, which may be rewritten under it.
                value = torch.empty(old.shape, dtype=value_dtype, device=where).copy_(source)
                _require_finite(entry, value)
                yield target, value


def _scale_of(name: str, wanted: Mapping[str, Tensor]) -> str | None:
    """Name of the scales beside a weight that the module keeps in 8 bits; None for another."""
    owner, _, leaf = name.rpartition(".")
    scale = f"{owner}.{eight_bits.SCALE_NAME}".lstrip(".")
    is_pair = leaf == "weight" and scale in wanted and wanted[name].dtype == eight_bits.DTYPE
    return scale if is_pair else None


def _rows(
    plan: WeightsPlan, target: str, source: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A weight in 8 bits with its scales, on ``device``: as stored, or quantised there."""
    entry = plan.entries[target]
    stored = source.to(device, copy=True)  # the source maps the file
    _require_finite(entry, stored)
    scale = None
    if entry.scale is not None:
        scale = _read(entry.scale)
        _require_finite(entry.scale, scale)
    is_small = entry.code == eight_bits.CODE
    if plan.merge is None and is_small:
        return stored, eight_bits.per_row(scale, stored)
    full = eight_bits.full_weight(stored, scale) if is_small else stored
    merged = full if plan.merge is None else plan.merge(target, full)
    if merged is full and is_small:
        return stored, eight_bits.per_row(scale, stored)
    return eight_bits.quantized(merged)


def _read(entry: StoredTensor) -> Tensor:
    """One tensor, by itself."""
    with reading_safetensors(entry.file), safe_open(entry.file, framework="pt") as handle:
        return cast("Tensor", handle.get_tensor(entry.name)).clone()


def _require_finite(entry: StoredTensor, value: Tensor) -> None:
    """Raise NonFinite if ``value`` holds NaN or infinity."""
    if not value.is_floating_point() or not value.numel():
        return
    # One pass without a mask as large as the tensor: NaN and infinity both reach the extremes.
    low, high = torch.aminmax(value if value.dtype.itemsize > 1 else value.float())
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise NonFinite(
            f"{entry.name}: NaN or infinity in the weights of {entry.file} as {value.dtype}.",
            stage="load",
            hint="The checkpoint is damaged, or its values overflow in this dtype.",
        )


def _fill(module: nn.Module, names: list[str], old: Tensor, value: Tensor) -> None:
    """Put ``value`` into ``old``, or in its place under all its names if it lies elsewhere."""
    if old.device == value.device and old.dtype == value.dtype:
        with torch.no_grad():
            old.copy_(value)
        return
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, requires_grad=old.requires_grad)
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, value)


def _require_equal(module: nn.Module, first: str, second: str, value: Tensor) -> None:
    """Raise unless ``value``, stored for the tied ``second``, equals what ``first`` was given."""
    owner, _, leaf = first.rpartition(".")
    if not torch.equal(getattr(module.get_submodule(owner), leaf), value):
        raise ModelError(
            f"{first} and {second} are one tensor in this model, and the checkpoint holds two "
            "different ones.",
            stage="load",
        )


def _settle_buffers(module: nn.Module, saved: Mapping[str, Tensor], device: torch.device) -> None:
    """Move buffers that are not saved to ``device``, computing those that never existed."""
    lost: list[str] = []
    for path, part in module.named_modules():
        names = {n: f"{path}.{n}".lstrip(".") for n, _ in part.named_buffers(recurse=False)}
        own = [name for name, full in names.items() if full not in saved]
        reset: Callable[[torch.device], None] | None = getattr(part, "reset_buffers", None)
        if reset and any(getattr(part, name).is_meta for name in own):
            reset(device)
        for name in own:
            buffer = cast("Tensor", getattr(part, name))
            if buffer.is_meta:
                lost.append(names[name])
            elif buffer.device != device:
                setattr(part, name, buffer.to(device))
    if lost:
        raise ModelError(
            f"{', '.join(lost)}: buffers on the meta device that no checkpoint holds.",
            stage="load",
            hint="Give their module a method reset_buffers(device), or build them on a device.",
        )


def _separate_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory; of tied names the first is kept."""
    kept: dict[str, Tensor] = {}
    views: set[tuple[object, ...]] = set()
    for name, tensor in state_dict.items():
        view = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and view in views:
            continue
        views.add(view)
        value = tensor.detach().cpu().contiguous()
        whole = value.untyped_storage().nbytes() == value.numel() * value.itemsize
        kept[name] = value if whole else value.clone()
    return kept


def _shards(tensors: dict[str, Tensor], max_shard_bytes: float) -> list[dict[str, Tensor]]:
    """Tensors in order, split so that no part exceeds the limit unless one tensor alone does."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        nbytes = tensor.numel() * tensor.itemsize
        if parts[-1] and size + nbytes > max_shard_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += nbytes
    return parts


def _write_part(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write one safetensors file at ``path``, with the permissions that new files have here."""
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    # safetensors puts its own file in place, readable by its owner alone.
    path.chmod(mode)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _replace_files(folder: Path, stem: str, written: dict[Path, str]) -> None:
    """Give ``written`` files their final names, index last, and drop what they supersede."""
    index = folder / f"{stem}.safetensors.index.json"
    final = set(written.values())
    # Without its index an old set of shards is no checkpoint: readers see old, none or new.
    index.unlink(missing_ok=True)
    if f"{stem}.safetensors" not in final:
        (folder / f"{stem}.safetensors").unlink(missing_ok=True)
    for temporary, name in written.items():
        temporary.replace(folder / name)
    for old in folder.glob(f"{stem}-?????-of-?????.safetensors"):
        if old.name not in final:
            old.unlink()
