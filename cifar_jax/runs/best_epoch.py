"""Choose the best epoch of a run by its validation metrics, and decide when to stop early."""

from collections.abc import Sequence

from cifar_jax.runs.schemas import MetricsRow


def score(row: MetricsRow, best_by: str) -> float | None:
    """Return the score of an epoch. A larger score is better.

    Args:
      row: the metrics of the epoch.
      best_by: the setting `train.best_by`: `accuracy`, `loss` or `balanced-accuracy`.

    Returns:
      The score, or None if the run has no validation images.
    """
    if best_by == "loss":
        return None if row.validation_loss is None else -row.validation_loss
    if best_by == "balanced-accuracy":
        return row.validation_balanced_accuracy
    return row.validation_accuracy


def epochs_without_improvement(rows: Sequence[MetricsRow], best_by: str) -> int:
    """Return the number of epochs since the first epoch with the largest score.

    Args:
      rows: the metrics of the epochs, in order.
      best_by: as for `score`.
    """
    scores = {row.epoch: value for row in rows if (value := score(row, best_by)) is not None}
    if not scores:
        return 0
    # `max` returns the first of several equal epochs: an equal score is no improvement.
    return rows[-1].epoch - max(scores, key=lambda epoch: scores[epoch])
