"""Convert a trained network to ONNX with jax2onnx, and run an ONNX file with onnxruntime."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cifar_jax import ops
from cifar_jax.errors import UserError, one_line
from cifar_jax.inference.model import TrainedNetwork

_OPSET = 18


def convert(network: TrainedNetwork, images: jax.ShapeDtypeStruct, card: str) -> bytes:
    """Convert a network, check the result with ONNX, and return the content of the ONNX file.

    Args:
      network: the network.
      images: shape and type of the input.
      card: the model card as JSON, for the metadata.

    Raises:
      UserError: a package is missing, or the network cannot be converted.
    """
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        import onnxruntime  # noqa: F401  # pyright: ignore[reportMissingImports]
        from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"--to onnx needs the package {error.name}: pip install 'cifar-jax[export]'"
        ) from None
    # Hide harmless warnings about shapes that are unknown at export.
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with ops.force_platform():
            model = to_onnx(
                network.apply,
                [images],
                model_name=network.card.model.name,
                opset=_OPSET,
                input_names=["images"],
                output_names=["logits"],
            )
        onnx.helper.set_model_props(model, {"card": card})
        # Remove the shapes of intermediate values. They are optional, and some are wrong.
        del model.graph.value_info[:]
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # The converter jax2onnx raises exceptions of many classes.
        raise UserError(
            f"jax2onnx cannot convert the network ({one_line(error)}): use --to stablehlo"
        ) from error
    finally:
        logger.setLevel(level)
    return model.SerializeToString()


def open_session(path: Path) -> Callable[[np.ndarray], Any]:
    """Return a function that computes logits from images with an ONNX file."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]
