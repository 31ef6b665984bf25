"""Draws what a calibration is worth: risk against coverage, and probabilities against what happened.

The only module that uses matplotlib, from the `bench` extra.
"""

from __future__ import annotations

from pathlib import Path

from edge_sdk.confidence.calibration import Calibration
from edge_sdk.errors import CalibrationError, MissingExtraError

from .route_metrics import risk_coverage

_BINS = 10


def draw(calibration: Calibration, path: Path) -> None:
    """Write a PNG with both curves, over the questions that the calibration was not fitted on."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("drawing", "bench") from None
    labels = sorted(calibration.held_out, key=lambda label: label.probability)
    if not labels:
        raise CalibrationError("the calibration holds no questions to draw")
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = risk_coverage([each.probability for each in labels], [each.right for each in labels])
    left.plot([point.coverage for point in points], [point.risk for point in points])
    left.set(xlabel="share served locally", ylabel="share of it wrong", xlim=(0, 1), ylim=(0, 1))
    left.set_title("risk and coverage")
    certificate = calibration.certificate
    if certificate is not None and certificate.threshold is not None:
        left.axvline(certificate.local_share, linestyle="--", color="grey")
        left.annotate(f" {certificate.kind}, alpha {certificate.alpha:g}", (certificate.local_share, 0.95))
    size = max(1, len(labels) // _BINS)
    bins = [labels[start : start + size] for start in range(0, len(labels), size)]
    right.plot([0, 1], [0, 1], color="grey", linestyle="--")
    right.plot(
        [sum(each.probability for each in part) / len(part) for part in bins],
        [sum(each.right for each in part) / len(part) for part in bins],
        marker="o",
    )
    right.set(xlabel="probability given", ylabel="share right", xlim=(0, 1), ylim=(0, 1))
    right.set_title(f"reliability, bins of {size} questions")
    try:
        FigureCanvasAgg(figure)
        figure.savefig(path, format="png")
    except OSError as error:
        raise CalibrationError(f"{path} cannot be written: {error.strerror}") from error
