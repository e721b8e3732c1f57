"""How right a multiple-choice model is, and how far to trust each answer: a library without torch.

It takes log-likelihoods or probabilities of any model: NumPy in, NumPy and plain values out.
"""

from medqa.trust.calibration import ALPHAS, Calibration, Judgement, LogLikelihoods
from medqa.trust.calibrators import (
    CALIBRATORS,
    Calibrator,
    Isotonic,
    Temperature,
    VectorScaling,
    cross_fitted,
    padded,
    row_losses,
    softmax_rows,
)
from medqa.trust.conformal import (
    conformal_quantile,
    conformity_scores,
    coverage_of_sets,
    group_quantiles,
    prediction_sets,
)
from medqa.trust.fitting import fit_calibration
from medqa.trust.metrics import (
    Bin,
    auroc,
    bootstrap_interval,
    brier_score,
    calibration_error_by_chance,
    expected_calibration_error,
    mcnemar_p,
    negative_log_likelihood,
    reliability_bins,
    wilson_interval,
)
from medqa.trust.permutation import consistency, letter_shares, mapped_back, option_orders
from medqa.trust.selective import (
    RiskCounts,
    accuracy_at_coverage,
    answered_from,
    aurc,
    clopper_pearson_upper,
    count_risk,
    risk_coverage,
    threshold_for_risk,
)

__all__ = [
    "ALPHAS",
    "CALIBRATORS",
    "Bin",
    "Calibration",
    "Calibrator",
    "Isotonic",
    "Judgement",
    "LogLikelihoods",
    "RiskCounts",
    "Temperature",
    "VectorScaling",
    "accuracy_at_coverage",
    "answered_from",
    "aurc",
    "auroc",
    "bootstrap_interval",
    "brier_score",
    "calibration_error_by_chance",
    "clopper_pearson_upper",
    "conformal_quantile",
    "conformity_scores",
    "consistency",
    "count_risk",
    "coverage_of_sets",
    "cross_fitted",
    "expected_calibration_error",
    "fit_calibration",
    "group_quantiles",
    "letter_shares",
    "mapped_back",
    "mcnemar_p",
    "negative_log_likelihood",
    "option_orders",
    "padded",
    "prediction_sets",
    "reliability_bins",
    "risk_coverage",
    "row_losses",
    "softmax_rows",
    "threshold_for_risk",
    "wilson_interval",
]
