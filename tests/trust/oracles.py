"""Other libraries' functions by name, loaded when they are called: each process loads them for seconds."""

import importlib


def _later(module, name):
    def call(*args, **kwargs):
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call


brier_score_loss = _later("sklearn.metrics", "brier_score_loss")
calibration_curve = _later("sklearn.calibration", "calibration_curve")
conditional_logit_model = _later("statsmodels.discrete.conditional_models", "ConditionalLogit")
control_fwer = _later("mapie.risk_control.fwer_control", "control_fwer")
ece_of_mapie = _later("mapie.metrics.calibration", "expected_calibration_error")
isotonic_regression = _later("sklearn.isotonic", "IsotonicRegression")
log_loss = _later("sklearn.metrics", "log_loss")
mcnemar = _later("statsmodels.stats.contingency_tables", "mcnemar")
proportion_confint = _later("statsmodels.stats.proportion", "proportion_confint")
roc_auc_score = _later("sklearn.metrics", "roc_auc_score")
split_conformal_classifier = _later("mapie.classification", "SplitConformalClassifier")
