"""Write a trained network to one file that needs no run folder, and read the file.

    safetensors   the weights, named `params/conv1/kernel`, with the model card in the metadata
    stablehlo     a program of `jax.export` for cpu, cuda and tpu, followed by a zip archive with
                  the model card. `jax.export.deserialize` and `unzip` both read the file.
    torch         the weights under PyTorch's names, as a safetensors file with the model card
    onnx          a program with input `images` and output `logits`; the metadata has the model card

The stablehlo and onnx programs work without this package. They take uint8 images [N, H, W, 3] and
return float32 logits [N, classes]. N is any number. H and W are the height and width of the
training images. The programs normalize the images.
"""

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export as jax_export
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from cifar_jax import models, ops
from cifar_jax.errors import UserError, one_line
from cifar_jax.files import write_bytes
from cifar_jax.inference import onnx_files, torch_names
from cifar_jax.inference.file_kinds import describe_other_file, is_safetensors, is_torch_file
from cifar_jax.inference.model import Classifier, TrainedNetwork
from cifar_jax.runs.digests import digest
from cifar_jax.runs.schemas import ModelCard, dump, parse
from cifar_jax.runtime import hidden_stderr

PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}
"""Largest allowed difference between the logits of an export and of the network, by precision.

The difference is relative to the largest logit. Small differences occur, because an export computes
sums in another order. They are larger in bfloat16, whose numbers have only 8 significant bits.
"""

_CARD = "card.json"


def export(network: Classifier, kind: str, output: Path, *, force: bool = False) -> float:
    """Write a network to a file, after a check that the export computes the same logits.

    Args:
      network: a `TrainedNetwork`.
      kind: format of the file: `safetensors`, `stablehlo`, `onnx` or `torch`.
      output: path of the file. The file is written completely or not at all.
      force: replace an existing file.

    Returns:
      The largest difference between the logits of the export and of the network, relative to the
      largest logit.

    Raises:
      UserError: `kind` is unknown, `network` has no weights, the file already exists, the folder of
        the file is missing, a package is missing, or the logits differ by more than the tolerance.
    """
    converters = {"safetensors": _to_safetensors, "stablehlo": _to_stablehlo, "onnx": _to_onnx}
    converters["torch"] = _to_torch
    if kind not in converters:
        raise UserError(f"unknown format {kind!r}: choose one of {', '.join(converters)}")
    if not isinstance(network, TrainedNetwork):
        raise UserError(
            "a StableHLO file cannot be exported again, because it is a program without separate "
            "weights: export the run folder or a safetensors file"
        )
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file in it")
    if not output.parent.is_dir():
        raise UserError(
            f"the folder {output.parent} does not exist: create it, or choose another --output"
        )
    if output.exists() and not force:
        raise UserError(
            f"{output} already exists: choose another --output, or add --force to replace it"
        )
    if not all(np.isfinite(weights).all() for weights in jax.tree.leaves(network.variables)):
        raise UserError("the network has weights that are NaN or infinite: export another network")
    content = converters[kind](network)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / f"draft.{kind}"
        draft.write_bytes(content)
        if kind == "onnx":
            function = onnx_files.open_session(draft)
        elif kind == "torch":
            name, tensors = network.card.model.name, load_file(draft)
            variables = torch_names.from_torch(name, tensors, network.variables, draft)
            function = jax.jit(TrainedNetwork(network.card, variables, draft).apply)
        else:
            function = jax.jit(load(draft, network.custom).function)
        # The ONNX session runs on the CPU. TF32 on a GPU would differ by more than the tolerance.
        with jax.default_matmul_precision("float32"):
            difference = _largest_difference(network.logits, function, network.image_shape)
    tolerance = TOLERANCES[network.card.precision]
    if not difference <= tolerance:
        raise UserError(
            f"the {kind} export gives wrong results, so no file was written: its logits differ "
            f"from the network's by {difference:.1e} of the largest logit, and at most "
            f"{tolerance:.0e} is allowed"
        )
    write_bytes(output, content)
    return difference


def load(path: Path, custom: models.CustomModel | None = None) -> Classifier:
    """Return the model in a safetensors or StableHLO file.

    Args:
      path: path of the file.
      custom: the custom model of a safetensors file, if its network is not part of the package.

    Raises:
      UserError: the file has another format or is damaged, or `custom` is missing or is not the
        model that was exported.
    """
    if _is_stablehlo(path):
        return _load_stablehlo(path)
    return TrainedNetwork(*_read_safetensors(path), path, custom)


def weights(path: Path) -> tuple[ModelCard, dict[str, Any]]:
    """Return the model card and the variables in a safetensors file.

    Raises:
      UserError: the file has another format or is damaged.
    """
    if _is_stablehlo(path):
        raise UserError(
            f"{path} is a StableHLO file, whose weights cannot be read: use a run folder or a "
            "safetensors file"
        )
    return _read_safetensors(path)


def _is_stablehlo(path: Path) -> bool:
    """Return True for a StableHLO file, and False for safetensors. Other files raise UserError."""
    if path.suffix == ".onnx":
        raise UserError(
            f"{path} is an ONNX file, which cifar-jax cannot read: run it with onnxruntime, or "
            "export the run with --to stablehlo"
        )
    kind = describe_other_file(path)
    if is_torch_file(path) or (path.suffix in (".pt", ".pth") and not kind):
        raise UserError(f"{path} is a PyTorch file: convert it with `cifar-jax import-torch`")
    if kind:
        raise UserError(f"{path} is {kind}")
    if zipfile.is_zipfile(path):
        return True
    if not is_safetensors(path):
        raise UserError(
            f"{path} cannot be read: it is damaged, or it is not a safetensors or stablehlo file "
            "of `cifar-jax export`"
        )
    return False


def _to_safetensors(network: TrainedNetwork) -> bytes:
    tensors = _flatten(network)
    return save(tensors, {"format": "cifar-jax", "card": _card_json(network, digest(tensors))})


def _read_safetensors(path: Path) -> tuple[ModelCard, dict[str, Any]]:
    """Return the model card and the variables, or raise UserError if the file is unusable."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            text = metadata.get("card")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, KeyError):
        raise UserError(f"{path} is a damaged safetensors file: export the model again") from None
    if metadata.get("format") == torch_names.FORMAT:
        raise UserError(
            f"{path} is for PyTorch: convert it with `cifar-jax import-torch`, or export the model "
            "with --to safetensors"
        )
    if text is None:
        raise UserError(
            f"{path} has no model card, so it was not written by `cifar-jax export`. PyTorch "
            "weights can be converted with `cifar-jax import-torch`."
        )
    card = _parse_card(text, path)
    if card.weights_sha256 != digest(tensors):
        raise UserError(
            f"{path} is damaged: its weights changed after the export. Export the model again."
        )
    # The file of a network without BatchNorm contains no tensors for `batch_stats`.
    return card, {"batch_stats": {}} | unflatten_dict(tensors, sep="/")


def _to_stablehlo(network: TrainedNetwork) -> bytes:
    try:
        with ops.force_platform():
            exported = jax_export.export(jax.jit(network.apply), platforms=PLATFORMS)(
                _any_batch(network)
            )
    except Exception as error:  # A custom model may raise any exception.
        if network.custom is None:
            raise
        raise UserError(
            f"the network needs a fixed number of images, so it cannot be exported "
            f"({one_line(error)}): write x.shape[0] instead of len(x), or use --to safetensors"
        ) from error
    program = bytes(exported.serialize())
    file = io.BytesIO(program)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(_CARD, _card_json(network, hashlib.sha256(program).hexdigest(), indent=2))
    return file.getvalue()


def _load_stablehlo(path: Path) -> Classifier:
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            program = content[: archive.getinfo(_CARD).header_offset]
            text = archive.read(_CARD)
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError):
        raise UserError(
            f"{path} cannot be read: it is damaged, or it is not a stablehlo file of "
            "`cifar-jax export`"
        ) from None
    card = _parse_card(text, path)
    if card.weights_sha256 != hashlib.sha256(program).hexdigest():
        raise UserError(
            f"{path} is damaged: its program changed after the export. Export the model again."
        )
    try:
        exported = jax_export.deserialize(bytearray(program))
        # Read the program now, not at the first call. Hide messages of XLA about a bad program.
        with hidden_stderr():
            exported.mlir_module()
    except Exception as error:  # The class of the exception depends on the version of JAX.
        raise UserError(
            f"JAX {jax.__version__} cannot read the program in {path} ({one_line(error)}): upgrade "
            "JAX, or export the model with this version"
        ) from None
    return Classifier(card, exported.call, path)


def _to_onnx(network: TrainedNetwork) -> bytes:
    card = _card_json(network, digest(_flatten(network)))
    return onnx_files.convert(network, _any_batch(network), card)


def _to_torch(network: TrainedNetwork) -> bytes:
    if network.custom:
        raise UserError(
            "a custom network has no names in PyTorch that cifar-jax knows: use --to safetensors"
        )
    tensors = torch_names.to_torch(network.card.model.name, network.variables)
    card = _card_json(network, digest(tensors))
    return save(tensors, {"format": torch_names.FORMAT, "card": card})


def _flatten(network: TrainedNetwork) -> dict[str, np.ndarray]:
    leaves: dict[str, Any] = flatten_dict(dict(network.variables), sep="/")
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def _any_batch(network: TrainedNetwork) -> jax.ShapeDtypeStruct:
    (batch,) = jax_export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((batch, *network.image_shape), np.uint8)


def _card_json(network: TrainedNetwork, sha256: str, indent: int | None = None) -> str:
    card = network.card.model_copy(update={"weights_sha256": sha256})
    return json.dumps(dump(card), indent=indent)


def _parse_card(text: str | bytes, path: Path) -> ModelCard:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path} has a damaged model card: export the model again") from None
    return parse(value, ModelCard, path, "Export the model again.")


def _largest_difference(
    expected: Callable[[np.ndarray], np.ndarray],
    actual: Callable[[np.ndarray], Any],
    image_shape: Sequence[int],
) -> float:
    """Return the largest difference between the logits of two functions.

    The difference is relative to the largest logit. The functions are compared on a batch of five
    random images, and on a single image. The result is infinity if the outputs differ in shape or
    type, or if a logit is NaN or infinite.
    """
    images = np.random.default_rng(0).integers(0, 256, (5, *image_shape), np.uint8)
    largest = 0.0
    for batch in (images, images[:1]):
        a, b = expected(batch), np.asarray(actual(batch))
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return float("inf")
        scale = max(float(np.abs(a).max()), float(np.finfo(np.float32).tiny))
        largest = max(largest, float(np.abs(a - b).max()) / scale)
    return largest
