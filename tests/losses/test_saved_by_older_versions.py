"""Files that an older version saved still load, and give the same answers to the last digits of float32."""

import pathlib

import keras
import numpy as np

from keras_distill import losses
from tests.data import record_saved_distiller as recorder

DATA = pathlib.Path(__file__).parents[1] / "data"


def test_a_distiller_saved_by_version_0_1_loads_and_trains_alike():
    """Losses, terms, adapters and schedules are found by their registered names, wherever their modules live now."""
    loaded = keras.saving.load_model(DATA / "saved_distiller_0.1.keras")
    kinds = [type(getattr(term, "loss", None)).__name__ for term in loaded.distillation_losses]
    assert {"DecoupledSoftTargets", "ClassCorrelation", "TopKSoftTargets", "TrustWeighted", "HintMatching"} <= set(
        kinds
    )
    recorded = np.load(DATA / "saved_distiller_0.1.npz")
    answers = recorder.answers(loaded)
    assert set(recorded.files) <= set(answers)
    for name in recorded.files:
        np.testing.assert_allclose(answers[name], recorded[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_every_public_loss_is_registered_under_the_name_that_files_hold():
    for name in losses.__all__:
        each = getattr(losses, name)
        if isinstance(each, type) and each not in (losses.LogitsLoss, losses.FeatureLoss):
            assert keras.saving.get_registered_name(each) == f"keras_distill>{name}"
