"""Test that docs/run-folder.md names every field of every file in a run folder."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from cifar_jax.runs import schemas

PAGE = Path(__file__).parents[2] / "docs/run-folder.md"
MODELS = {
    "config.json": schemas.RunIdentity,
    "model.json": schemas.ModelCard,
    "env.json": schemas.Session,
    "metrics.jsonl": schemas.MetricsRow,
    "checkpoints/": schemas.SavedState,
    "result.json": schemas.Result,
}


@pytest.mark.parametrize(("title", "model"), MODELS.items())
def test_the_page_names_the_fields_of_a_file(title: str, model: type[BaseModel]) -> None:
    text = PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert re.findall(r"`(\w+)`", " ".join(cells)) == list(model.model_fields)
