"""A model by its name or folder: what :meth:`Engine.from_pretrained` loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, cast

import torch

from skyreels_rt.components import Components
from skyreels_rt.distributed.fit import require_heads
from skyreels_rt.distributed.mesh import Mesh, open_mesh, rank_device
from skyreels_rt.distributed.parallel import Parallel
from skyreels_rt.distributed.usp_library import USPLibrary, use_library
from skyreels_rt.errors import InvalidArgument, ModelError
from skyreels_rt.export.exported_vae import VAERunner, load_exported_vae
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.model_folder import load_components, stored_transformer_dtype
from skyreels_rt.models.transformer import offload_blocks
from skyreels_rt.models.vae import TorchVAE, VideoVAE
from skyreels_rt.models.vae_options import VAEOptions
from skyreels_rt.quantization import QuantPolicy, quantize_transformer, resolve_policy
from skyreels_rt.runtime.cuda_graphs import Graphs, step_graphs
from skyreels_rt.runtime.device import resolve_device, resolve_dtype
from skyreels_rt.types import LoadCallback
from skyreels_rt.weights.files import PICKLE_SUFFIXES
from skyreels_rt.weights.hub import fetch_snapshot, is_hub_id
from skyreels_rt.weights.lora import Lora

TINY_NAME = "tiny-random"
USPChoice: TypeAlias = Literal["auto", "torch", "yunchang"]
Kernels: TypeAlias = Literal["auto", "reference"] | Mapping[str, str]
_ASSETS = Path(__file__).parent / "assets"


def embedded_models() -> tuple[str, ...]:
    """Names of the trained models inside the package."""
    return tuple(sorted(index.parent.name for index in _ASSETS.glob("*/model_index.json")))


def model_folder(model: str | Path) -> Path:
    """Folder of an embedded model by its name; any other path as it is."""
    return _ASSETS / model if str(model) in embedded_models() else Path(model)


class VAEChoice(TypedDict, total=False):
    """Who computes the VAE, and how.

    Attributes
    ----------
    vae : {"torch", "onnx", "tensorrt"}
        Who.
    vae_folder : str or Path, optional
        Where ``skyreels-rt export vae`` wrote its graphs; not for ``"torch"``.
    vae_options : VAEOptions, optional
        How torch computes it: tiles of large frames, upsampling, buffers. Not for exported graphs.
    """

    vae: VAERunner
    vae_folder: str | Path | None
    vae_options: VAEOptions | None


class LoadOptions(VAEChoice, total=False):
    """How a model is loaded, the same in every process that loads it.

    Attributes
    ----------
    dtype : str or torch.dtype
        ``"auto"`` is bfloat16 on CUDA, float32 on the CPU; weights stored in bfloat16 stay so on a
        CPU with AMX or AVX-512 BF16.
    kernels : str or dict
        ``"auto"``, ``"reference"``, or an implementation for some operators by name.
    quantization : str or QuantPolicy, optional
        Layers of the transformer kept in 8 bits: ``"fp8"``, ``"fp8_weight"``, or a policy. By
        default those that the folder stores in 8 bits; a policy overrules that.
    offload : bool
        Keep the blocks' weights in host memory and bring them to the device one after the other.
        Same bytes, less device memory, more time.
    loras : sequence of Lora
        Additions merged into the transformer's weights.
    graphs : {"auto", True, False}
        Whether denoising steps, and those of a VAE decoder with buffers, are recorded as CUDA
        graphs and replayed: where they can be, always (:class:`.errors.GraphCaptureFailed` names
        the operation that cannot), or never.
    vae, vae_folder, vae_options
        See :class:`VAEChoice`.
    revision : str, optional
        Branch, tag or commit of a hub id; a full commit pins what is loaded.
    offline : bool
        Take a hub id from the local cache, connecting to nothing.
    usp : {"auto", "torch", "yunchang"}
        Who exchanges tokens between ulysses and ring ranks; ``"auto"`` is yunchang (``[usp]``) on
        CUDA, where all ranks found it right.
    """

    dtype: str | torch.dtype
    kernels: Kernels
    quantization: str | QuantPolicy | None
    offload: bool
    loras: Sequence[Lora]
    graphs: Graphs
    revision: str | None
    offline: bool
    usp: USPChoice


def load_facts(options: LoadOptions) -> dict[str, Any]:
    """Options as JSON, for other processes on this machine; :func:`load_options` reads them.

    Raises
    ------
    TypeError
        An unknown option.
    """
    foreign = sorted(set(options) - set(LoadOptions.__annotations__))
    if foreign:
        raise TypeError(f"from_pretrained() got an unexpected keyword argument {foreign[0]!r}")
    facts: dict[str, Any] = {**options}
    facts["dtype"] = str(options.get("dtype", "auto")).removeprefix("torch.")
    kernels = options.get("kernels", "auto")
    facts["kernels"] = kernels if isinstance(kernels, str) else dict(kernels)
    policy = options.get("quantization")
    if isinstance(policy, QuantPolicy):
        facts["quantization"] = policy.to_json()
    graphs = options.get("vae_folder")
    facts["vae_folder"] = None if graphs is None else str(Path(graphs).absolute())
    vae_options = options.get("vae_options")
    facts["vae_options"] = None if vae_options is None else asdict(vae_options)
    facts["loras"] = [
        [str(Path(lora.path).absolute()), lora.scale] for lora in options.get("loras", ())
    ]
    return facts


def load_options(facts: dict[str, Any]) -> LoadOptions:
    """What :func:`load_facts` made JSON of."""
    options = {**facts, "loras": [Lora(path, scale) for path, scale in facts["loras"]]}
    if facts["vae_options"] is not None:
        options["vae_options"] = VAEOptions(**facts["vae_options"])
    policy = facts.get("quantization")
    if isinstance(policy, dict):
        options["quantization"] = QuantPolicy.from_json(policy, where="options")
    return cast("LoadOptions", options)


def load_pretrained(
    model: str | Path,
    *,
    device: str | torch.device,
    parallel: Parallel | Mesh | None = None,
    on_progress: LoadCallback | None = None,
    **options: Unpack[LoadOptions],
) -> Components:
    """Parts of a model; takes and raises what :meth:`Engine.from_pretrained` does."""
    usp = _usp_library(options.pop("usp", "auto"))
    rest: Any = options
    if parallel is None:
        if usp is USPLibrary.YUNCHANG:
            raise InvalidArgument("usp", expected="parallel with ulysses or ring", got="none")
        return _load(model, resolve_device(device), on_progress, **rest)
    where = resolve_device(rank_device(device))
    mesh = parallel if isinstance(parallel, Mesh) else open_mesh(parallel, where)
    parts = _load(model, mesh.device, on_progress, is_alone=False, **rest)
    require_heads(mesh.parallel, parts.transformer.config.num_heads)
    mesh.wait_for_all()
    use_library(usp, mesh, parts.dtype, parts.transformer.config.num_heads)
    return replace(parts, mesh=mesh)


def _usp_library(name: str) -> USPLibrary:
    try:
        return USPLibrary(name)
    except ValueError:
        known = ", ".join(one.value for one in USPLibrary)
        raise InvalidArgument("usp", expected=f"one of {known}", got=repr(name)) from None


def _load(
    model: str | Path,
    where: torch.device,
    on_progress: LoadCallback | None,
    *,
    is_alone: bool = True,
    dtype: str | torch.dtype = "auto",
    kernels: Kernels = "auto",
    quantization: str | QuantPolicy | None = None,
    offload: bool = False,
    loras: Sequence[Lora] = (),
    graphs: Graphs = "auto",
    revision: str | None = None,
    offline: bool = False,
    **vae: Unpack[VAEChoice],
) -> Components:
    policy = resolve_policy(quantization)
    recordings = step_graphs(graphs, where, is_alone=is_alone, offloads=offload)
    kind = resolve_dtype(dtype, where)
    if str(model) == TINY_NAME:
        if loras:
            raise InvalidArgument("loras", expected=f"none with {TINY_NAME}", got=len(loras))
        from skyreels_rt.testing.tiny import tiny_components

        plan = KernelPlan.choose(where, kind, kernels)
        tiny = tiny_components(device=where, dtype=kind, plan=plan)
        tiny = replace(tiny, vae=_chosen_vae(tiny.vae, **vae), graphs=recordings)
        return _fitted(tiny, policy, offload=offload)
    folder = (
        fetch_snapshot(str(model), revision=revision, offline=offline)
        if is_hub_id(model)
        else _existing_folder(model)
    )
    _require_model_folder(folder)
    kind = resolve_dtype(dtype, where, stored=stored_transformer_dtype(folder))
    plan = KernelPlan.choose(where, kind, kernels)
    parts = load_components(
        folder, device=where, dtype=kind, plan=plan, quantization=policy, offload=offload,
        loras=loras, on_progress=on_progress,
    )  # fmt: skip
    parts = replace(parts, vae=_chosen_vae(parts.vae, **vae), graphs=recordings)
    return replace(parts, name=str(model)) if str(model) in embedded_models() else parts


def _chosen_vae(original: VideoVAE, **choice: Unpack[VAEChoice]) -> VideoVAE:
    """The model's VAE as the caller wants it computed."""
    runner, options = choice.get("vae", "torch"), choice.get("vae_options")
    chosen = load_exported_vae(original, runner, choice.get("vae_folder"))
    if options is None:
        return chosen
    if not isinstance(chosen, TorchVAE):
        raise InvalidArgument(
            "vae_options", expected=f"none beside vae={runner!r}: its graphs are fixed",
            got=options,
        )  # fmt: skip
    return chosen.configure(options)


def _require_model_folder(folder: Path) -> None:
    """Say what to do with a published folder that is not a model folder yet."""
    if (folder / "model_index.json").is_file():
        return
    if any(path.suffix in PICKLE_SUFFIXES for path in folder.iterdir()):
        raise ModelError(
            f"{folder}: an official release with pickled parts, which are never read at run time.",
            stage="load",
            hint=f"Convert it once: skyreels-rt convert {folder} TARGET",
        )


def load_shapes(
    model: str | Path,
    *,
    dtype: str | torch.dtype,
    quantization: str | QuantPolicy | None = None,
    offload: bool = False,
) -> Components:
    """Parts of a model folder without their weights, for what follows from shapes alone."""
    policy, folder = resolve_policy(quantization), _existing_folder(model)
    cpu, meta = torch.device("cpu"), torch.device("meta")
    kind = resolve_dtype(dtype, cpu, stored=stored_transformer_dtype(folder))
    plan = KernelPlan.choose(cpu, kind, "auto")
    return load_components(
        folder, device=meta, dtype=kind, plan=plan, quantization=policy, offload=offload
    )


def _fitted(parts: Components, policy: QuantPolicy | None, *, offload: bool) -> Components:
    """The same parts in memory, the transformer quantised and offloaded as asked."""
    transformer = parts.transformer
    if policy is not None:
        quantize_transformer(transformer, policy, parts.device, stays=offload)
    if offload:
        offload_blocks(transformer, parts.device)
    else:
        transformer.to(parts.device)
    return parts


def _existing_folder(model: str | Path) -> Path:
    folder = model_folder(model)
    if folder.is_file():
        raise ModelError(
            f"{folder}: a file, expected a model folder.",
            stage="load",
            hint="Pickled checkpoints (.pth, .pt, .ckpt, .bin) are never read; convert a release "
            "to a model folder first (skyreels-rt convert).",
        )
    if not folder.is_dir():
        names = ", ".join((*embedded_models(), TINY_NAME))
        raise ModelError(
            f"{model}: no such model.",
            stage="load",
            hint=f"Give a model folder, a hub id (owner/name), or one of: {names}.",
        )
    return folder
