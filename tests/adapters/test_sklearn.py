"""Estimators of scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import statedict
from statedict.errors import RestoreError, UnsupportedError

ROWS = numpy.random.default_rng(0).normal(size=(40, 4))
CLASSES = (ROWS[:, 0] > 0).astype(int)


@pytest.mark.parametrize(
    "make",
    [
        LogisticRegression,
        StandardScaler,
        lambda: PCA(2),
        lambda: KMeans(2, n_init=1, random_state=0),
        lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    ],
    ids=["logistic", "scaler", "pca", "kmeans", "pipeline"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_estimator_that_is_not_fitted_gets_what_another_has_learnt(make: Any, suffix: str, tmp_path: Path) -> None:
    fitted, fresh = make().fit(ROWS, CLASSES), make()
    statedict.save({"model": fitted}, tmp_path / f"model{suffix}")
    report = statedict.restore({"model": fresh}, tmp_path / f"model{suffix}")
    assert {*report.counts()} == {"restored"}
    work = "predict" if hasattr(fresh, "predict") else "transform"
    assert numpy.array_equal(getattr(fresh, work)(ROWS), getattr(fitted, work)(ROWS))


def test_an_estimator_that_learnt_others_is_refused_by_its_path() -> None:
    forest = RandomForestClassifier(2).fit(ROWS, CLASSES)
    with pytest.raises(
        UnsupportedError,
        match=r"^model\.estimator_: .*RandomForestClassifier has learnt a .*; keep the estimator by joblib",
    ):
        statedict.capture({"model": forest})


def test_parameters_are_compared_and_a_fitted_target_needs_what_it_has_learnt() -> None:
    fitted = LogisticRegression().fit(ROWS, CLASSES)
    state = statedict.capture(LogisticRegression(C=3.0))
    with pytest.raises(RestoreError, match="5 missing: n_features_in_, classes_"):
        statedict.restore(fitted, state)
    state["surprise"] = 1
    with pytest.raises(RestoreError, match="1 unexpected: surprise"):
        statedict.restore(LogisticRegression(), state)
    report = statedict.restore(fresh := LogisticRegression(), state, allow_unexpected="surprise")
    assert (fresh.C, "1.0 → 3.0" in str(report)) == (3.0, True)
