"""A trained network as one file that answers without the run, or even without this package.

    safetensors   the weights, named `params/conv1/kernel`; the card in the metadata, as `card`
    stablehlo     `jax.export`'s bytes, for cpu, cuda and tpu, with a zip archive of the card behind
                  them: `jax.export.deserialize` reads the file as it is, and so does `unzip`
    onnx          input `images`, output `logits`; the card in the metadata, as `card`

The programs take uint8 images [N, 32, 32, 3], for any N, and give float32 logits [N, classes]: the
normalization is inside. The card says of what model; `sha256` in it is that of the weights or of
the program.
"""

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export as jax_export

from cifar_jax import models, ops
from cifar_jax.errors import UserError
from cifar_jax.files import write_bytes
from cifar_jax.inference import card as cards
from cifar_jax.inference.model import Classifier, TrainedNetwork

FORMATS = ("safetensors", "stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}
"""How far an export's logits may lie from the network's, relative to the largest, by its precision:
the same sums in another order, and of a bfloat16 each has 8 bits."""

_CARD = "card.json"
_ONNX_OPSET = 18


def export(network: Classifier, kind: str, output: Path, *, force: bool = False) -> float:
    """Write the network to `output`, which appears whole or not at all.

    Before that, what was made is loaded and asked: its logits of 5 images, then of one, are to be
    the network's own.

    Args:
      network: a `TrainedNetwork`.
      kind: one of FORMATS.
      output: the file.
      force: replace a file that is there.

    Returns:
      The largest difference between a logit of the export and the network's.

    Raises:
      UserError: an unknown format, a file that is there, a package that is missing, or an export
        that disagrees.
    """
    if kind not in FORMATS:
        raise UserError(f"unknown format {kind!r}: there are {', '.join(FORMATS)}")
    if not isinstance(network, TrainedNetwork):
        raise UserError("only a run or a safetensors file has the weights that an export needs")
    if output.is_dir():
        raise UserError(f"{output} is a folder: name a file in it")
    if output.exists() and not force:
        raise UserError(f"{output} exists: choose another --output, or --force")
    made = {"safetensors": _safetensors, "stablehlo": _stablehlo, "onnx": _onnx}[kind](network)
    difference = _difference(network, _ANSWERS[kind](made, network.own))
    tolerance = TOLERANCES[network.card["precision"]]
    if not difference <= tolerance:
        raise UserError(
            f"the {kind} export's logits differ from the run's by {difference:.1e} of the largest, "
            f"more than {tolerance:.0e}: nothing was written"
        )
    try:
        write_bytes(output, made)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from None
    return difference


def load(path: Path, own: models.CustomModel | None = None) -> Classifier:
    """The model in a safetensors or StableHLO file.

    Args:
      path: the file.
      own: the model of a safetensors file, where it is none of the package's.

    Raises:
      UserError: it is neither, or it is damaged; or `own` is missing or of another model.
    """
    content = _read(path)
    if zipfile.is_zipfile(io.BytesIO(content)):
        return _from_stablehlo(content, str(path))
    return _from_safetensors(content, str(path), own)


def weights(path: Path) -> dict[str, Any]:
    """The variables in a safetensors file, whatever the network.

    Raises:
      UserError: it is none, or it is damaged.
    """
    content = _read(path)
    if zipfile.is_zipfile(io.BytesIO(content)):
        raise UserError(f"{path} is a StableHLO file, which has no weights to begin with")
    return _read_safetensors(content, str(path))[1]


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if path.suffix == ".onnx":
        raise UserError(f"{path} is an ONNX model: ask it by onnxruntime, or export to stablehlo")
    if content[8:9] != b"{" and not zipfile.is_zipfile(io.BytesIO(content)):
        raise UserError(
            f"{path} is no run's folder, and neither a safetensors nor a StableHLO export"
        )
    return content


def _safetensors(network: TrainedNetwork) -> bytes:
    from safetensors.numpy import save

    tensors = _tensors(network.variables)
    card = dict(network.card) | {"sha256": _digest(tensors)}
    return save(tensors, {"format": "cifar-jax", "card": json.dumps(card)})


def _from_safetensors(
    content: bytes, name: str, own: models.CustomModel | None = None
) -> TrainedNetwork:
    return TrainedNetwork(*_read_safetensors(content, name), name, own)


def _read_safetensors(content: bytes, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The card and the variables."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
        # The library reads metadata from files only; the format begins with the header's size.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        card = json.loads(header["__metadata__"]["card"])
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{name} is no safetensors file of cifar-jax export ({error!r})") from None
    card = cards.checked(card, name)
    if card.get("sha256") != _digest(tensors):
        raise UserError(f"{name} is damaged: its weights are not those of its digest")
    return card, unflatten_dict({tuple(key.split("/")): array for key, array in tensors.items()})


def _tensors(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    leaves: dict[tuple[str, ...], Any] = flatten_dict(dict(variables))
    return {"/".join(path): np.asarray(leaf) for path, leaf in sorted(leaves.items())}


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _any_batch() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jax_export.symbolic_shape("batch, 32, 32, 3"), np.uint8)


def _stablehlo(network: TrainedNetwork) -> bytes:
    with ops.force_platform():
        exported = jax_export.export(jax.jit(network.apply), platforms=PLATFORMS)(_any_batch())
    program = bytes(exported.serialize())
    card = dict(network.card) | {"sha256": hashlib.sha256(program).hexdigest()}
    file = io.BytesIO(program)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(_CARD, json.dumps(card, indent=2))
    return file.getvalue()


def _from_stablehlo(content: bytes, name: str) -> Classifier:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            program = content[: archive.getinfo(_CARD).header_offset]
            card = json.loads(archive.read(_CARD))
    except (zipfile.BadZipFile, LookupError, ValueError, RecursionError, NotImplementedError):
        raise UserError(f"{name} is no StableHLO file of cifar-jax export") from None
    card = cards.checked(card, name)
    if card.get("sha256") != hashlib.sha256(program).hexdigest():
        raise UserError(f"{name} is damaged: its program is not that of its digest")
    try:
        exported = jax_export.deserialize(bytearray(program))
    except Exception as error:  # of another version of JAX; whatever its reader stumbles over
        raise UserError(f"{name} is not of a kind that this JAX reads: {error}") from None
    return Classifier(card, exported.call)


def _onnx(network: TrainedNetwork) -> bytes:
    try:
        import onnx  # pyright: ignore[reportMissingImports]

        # Without the runtime the export could not be checked.
        import onnxruntime  # noqa: F401  # pyright: ignore[reportMissingImports]
        from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"the package {error.name} is missing: pip install 'cifar-jax[export]'"
        ) from None
    # It warns of shapes that it leaves out.
    quiet = logging.getLogger("onnx_ir")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with ops.force_platform():
            model = to_onnx(
                network.apply,
                [_any_batch()],
                model_name=network.card["model"]["name"],
                opset=_ONNX_OPSET,
                input_names=["images"],
                output_names=["logits"],
            )
    except Exception as error:  # whatever the converter stumbles over
        raise UserError(f"jax2onnx cannot convert the network ({error}): try stablehlo") from error
    finally:
        quiet.setLevel(level)
    card = dict(network.card) | {"sha256": _digest(_tensors(network.variables))}
    onnx.helper.set_model_props(model, {"card": json.dumps(card)})
    return model.SerializeToString()


def _ask_onnx(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logits"], {"images": images})[0])


# From what was made to a function from images to logits.
_ANSWERS: dict[str, Callable[[bytes, Any], Callable[[np.ndarray], np.ndarray]]] = {
    "safetensors": lambda content, own: _from_safetensors(content, "the export", own).logits,
    "stablehlo": lambda content, _: _from_stablehlo(content, "the export").logits,
    "onnx": lambda content, _: _ask_onnx(content),
}


def _difference(network: TrainedNetwork, ask: Callable[[np.ndarray], np.ndarray]) -> float:
    """Of logits of random images, relative to the largest; infinite where the shapes differ."""
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    worst = 0.0
    for batch in (images, images[:1]):
        expected, found = network.logits(batch), ask(batch)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return float("inf")
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    return worst
