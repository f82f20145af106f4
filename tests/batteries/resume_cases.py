"""The cases of the battery of resumed runs: every teacher, term and callback, and regimes of several models.

Each case is a function that makes everything anew, as a new process would: a distiller, its callbacks and its data.
"""

import functools
import shutil
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_distill import (
    Distiller,
    LogitsDistillation,
    callbacks,
    explain,
    regimes,
    schedules,
    students,
    teachers,
    terms,
)
from tests.models import batch, mlp

X, Y = batch(6)
IMAGES = np.random.default_rng(1).normal(size=(6, 4, 4, 2)).astype("float32")
CASES = {}


class CopyAt(keras.callbacks.Callback):
    """Copy the backup's directory at the beginning of the second epoch."""

    def __init__(self, directory, copy):
        super().__init__()
        self.directory, self.copy, self.begun = directory, copy, []

    def on_epoch_begin(self, epoch, logs=None):
        self.begun.append(epoch)
        if epoch == 1 and self.copy is not None:
            shutil.copytree(self.directory, self.copy)


def case(*names):
    """Register a case under the public names that it covers."""

    def register(make):
        CASES[make.__name__] = (make, set(names))
        return make

    return register


def student(units=4):
    layers = [keras.Input((6,)), keras.layers.Dense(5, "relu", name="hidden"), keras.layers.BatchNormalization(),
              keras.layers.Dropout(0.3, seed=4), keras.layers.Dense(units, name="head")]  # fmt: skip
    return keras.Sequential(layers)


def convolutional(seed, filters=3):
    init = keras.initializers.GlorotUniform(seed=seed)
    first = keras.layers.Conv2D(filters, 3, padding="same", kernel_initializer=init, name="block1")
    second = keras.layers.Conv2D(filters + 1, 3, 2, padding="same", kernel_initializer=init, name="block2")
    head = keras.layers.Dense(4, kernel_initializer=init)
    return keras.Sequential(
        [keras.Input((4, 4, 2)), first, second, keras.layers.GlobalAveragePooling2D(name="pool"), head]
    )


def compiled(distiller, loss=True):
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if loss else None
    rate = keras.optimizers.schedules.CosineDecay(0.05, 12)
    distiller.compile(keras.optimizers.Adam(rate), cross_entropy, run_eagerly=True)
    return distiller


def taught(teacher=None, term=None, by=None, **options):
    term = LogitsDistillation(2.0) if term is None else term
    return compiled(Distiller(teacher or mlp(8, 4, seed=1), by or student(), term, **options))


def members():
    return [mlp(8, 4, seed=seed) for seed in (1, 11)]


# ----------------------------------------------------------------------------------------------------- teachers


@case("Single")
def a_plain_model():
    return [taught()]


@case("Calibrated")
def calibrated():
    return [taught(teachers.Calibrated(mlp(8, 4, seed=1), keras.layers.Rescaling(0.5)))]


@case("Ensemble", "MeanProbs")
def ensemble():
    return [taught(teachers.Ensemble(members()))]


@case("Stochastic")
def ensemble_of_which_one_is_drawn():
    return [taught(teachers.Ensemble(members(), combine=teachers.Stochastic(seed=3)))]


@case("LearnedGate")
def ensemble_with_a_learned_gate():
    return [taught(teachers.Ensemble(members(), combine=teachers.LearnedGate()))]


@case("GradientBased")
def ensemble_weighed_by_gradients():
    return [taught(teachers.Ensemble(members(), combine=teachers.GradientBased()))]


@case("Fast")
def in_half_precision():
    return [taught(teachers.Fast(mlp(8, 4, seed=1)))]


@case("MonteCarloDropout")
def dropout_of_the_teacher():
    init = keras.initializers.GlorotUniform(seed=1)
    layers = [keras.layers.Dense(8, "relu", kernel_initializer=init), keras.layers.Dropout(0.5),
              keras.layers.Dense(4, kernel_initializer=init)]  # fmt: skip
    model = keras.Sequential([keras.Input((6,)), *layers])
    return [taught(teachers.MonteCarloDropout(model, num_samples=2, seed=5))]


@case("Precomputed")
def arrays():
    return [taught(teachers.Precomputed(mlp(8, 4, seed=1).predict(X, verbose=0), X))]


@case("Preprocessed")
def preprocessed():
    return [taught(teachers.Preprocessed(mlp(8, 4, seed=1), fn=lambda x: 2.0 * x))]


@case("Foreign", "from_callable")
def a_function():
    model = mlp(8, 4, seed=1)
    return [taught(teachers.from_callable(lambda x: model(x).numpy(), fingerprint="1"))]


@case("Snapshot")
def a_running_average():
    learner = student()
    teacher = teachers.Snapshot(learner, decay=0.5, every_steps=2)
    return [taught(teacher, by=learner)]


@case("RankTargets")
def ranks():
    return [taught(teachers.RankTargets(mlp(8, 4, seed=1)))]


@case("SortedDifferences")
def sorted_differences():
    return [taught(teachers.SortedDifferences(mlp(8, 4, seed=1)))]


@case("ClusterTargets")
def clusters():
    table = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
    return [taught(teachers.ClusterTargets(mlp(8, 4, seed=1), table))]


@case("Indexed", "ContrastiveMemory")
def a_memory_of_examples():
    term = terms.ContrastiveMemory(6, "dense_0", "hidden", units=4, num_negatives=4)
    return [taught(teachers.Indexed(mlp(8, 4, seed=1)), term), (X, np.arange(6))]


@functools.cache
def answers():
    """A store, written once; its path is part of the resumed configuration."""
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)
    directory = tempfile.mkdtemp()
    teachers.label(mlp(8, 4, seed=1), data, directory, dtype="float32", progress=False)
    return directory, data


@case("Stored")
def answers_on_disk():
    directory, data = answers()
    stored = teachers.Stored(directory)
    return [taught(stored), stored.attach(data)]


@case("VirtualTeacher")
def a_teacher_of_the_labels():
    return [taught(teachers.VirtualTeacher(0.9), LogitsDistillation(20.0))]


@case("PermutedDarkKnowledge")
def permuted_dark_knowledge():
    return [taught(teachers.PermutedDarkKnowledge(mlp(8, 4, seed=1), seed=3))]


def branches(teacher, last=4, losses="kl_divergence"):
    inputs = keras.Input((6,))
    outputs = [keras.layers.Dense(units, name=f"head_{index}")(inputs) for index, units in enumerate((4, 4, last))]
    term = LogitsDistillation(2.0, losses)
    by = keras.Model(inputs, outputs)
    return [compiled(Distiller(teacher, by, term, student_loss_weight=0.0), loss=False)]


@case("Peers")
def branches_that_teach_each_other():
    return branches(teachers.Peers())


@case("DeepestExit")
def a_deepest_exit():
    return branches(teachers.DeepestExit(), losses=["kl_divergence", "kl_divergence", None])


@case("GatedPeers")
def branches_behind_a_gate():
    return branches(teachers.GatedPeers(), last=2, losses=["kl_divergence", "kl_divergence", None])


# -------------------------------------------------------------------------------------------------------- terms


def with_fields(shape, units=4):
    """Two models with a dictionary of inputs, one of whose fields only the term reads."""
    made = []
    for seed in (1, 2):
        init = keras.initializers.GlorotUniform(seed=seed)
        inputs = keras.Input(shape, name="x")
        layer = keras.layers.Dense if len(shape) == 1 else functools.partial(keras.layers.Conv2D, kernel_size=1)
        hidden = layer(5, kernel_initializer=init, name="neck")(inputs)
        made.append(keras.Model({"x": inputs}, keras.layers.Dense(units, kernel_initializer=init)(hidden)))
    return made


def unsupervised(models, term):
    return compiled(Distiller(*models, term, student_loss_weight=0.0), loss=False)


@case("ForegroundDistillation")
def boxes():
    term = terms.ForegroundDistillation("neck", "neck")
    drawn = np.tile(np.array([[[0.1, 0.1, 0.6, 0.6]]], "float32"), (6, 1, 1))
    return [unsupervised(with_fields((4, 4, 2)), term), {"x": IMAGES, "boxes": drawn}]


@case("PixelDistillation")
def pixels():
    return [unsupervised(with_fields((4, 4, 2)), terms.PixelDistillation(2.0)), {"x": IMAGES}]


@case("DomainAlignment")
def domains_that_are_aligned():
    term = terms.DomainAlignment("mmd", "neck")
    return [unsupervised(with_fields((6,)), term), {"x": X, "domain": np.arange(6) % 2}]


@case("DomainAdversary")
def domains_and_an_adversary():
    term = terms.DomainAdversary("neck", hidden_units=4, ramp_steps=4)
    return [unsupervised(with_fields((6,)), term), {"x": X, "domain": np.arange(6) % 2}]


@case("AttributionMatching")
def attributions():
    models = [explain.with_attribution(convolutional(seed), "gradient") for seed in (1, 2)]
    return [unsupervised(models, terms.AttributionMatching()), IMAGES]


@case("UncertaintyDistillation")
def uncertainty_labels():
    by = students.with_uncertainty_head(student(), 2)
    return [unsupervised([teachers.Ensemble(members()), by], terms.UncertaintyDistillation())]


@case("Discriminator")
def a_discriminator():
    return [taught(term=[LogitsDistillation(2.0), terms.Discriminator(hidden_units=(4,))])]


@case("LogitsDistillation")
def a_schedule_of_the_temperature():
    return [taught(term=LogitsDistillation(schedules.Linear(4.0, 1.0, 8)))]


@case("CurriculumTemperature")
def a_learned_temperature():
    return [taught(term=terms.CurriculumTemperature(ramp_steps=4))]


@case("EntropyMatchedTemperature")
def a_temperature_by_entropy():
    return [taught(term=terms.EntropyMatchedTemperature())]


@case("FeatureDistillation")
def features_through_an_adapter():
    return [taught(term=terms.FeatureDistillation("mse", "dense_0", "hidden", adapter="auto"))]


@case("HierarchicalDistillation")
def pairs_of_layers():
    return [taught(term=terms.HierarchicalDistillation([("dense_0", "hidden")], adapter="auto"))]


@case("LearnedWeights")
def a_learned_weight():
    return [taught(term=terms.LearnedWeights(terms.FeatureDistillation("mse", "dense_0", "hidden", adapter="auto")))]


@case("ExpertDistillation")
def experts():
    return [taught(term=terms.ExpertDistillation("dense_0", "hidden", num_experts=2))]


@case("CrossLayerAttention")
def attention_over_layers():
    term = terms.CrossLayerAttention(["block1", "block2"], ["block1", "block2"], units=3, batch_size=3)
    return [taught(convolutional(1, 4), term, convolutional(2)), IMAGES]


@case("ReviewDistillation")
def review():
    term = terms.ReviewDistillation(["block1", "block2"], ["block1", "block2"])
    return [taught(convolutional(1, 4), term, convolutional(2)), IMAGES]


# ---------------------------------------------------------------------------------------------------- callbacks


@case("AdaptiveTemperature")
def an_adaptive_temperature():
    return [taught(), callbacks.AdaptiveTemperature(validation_data=(X, Y), factor=0.5, patience=1)]


@case("AdaptiveWeights")
def adaptive_weights():
    two = [LogitsDistillation(2.0, name="two"), LogitsDistillation(4.0, name="four")]
    return [taught(term=two, distillation_loss_weights=[1.0, 3.0]), callbacks.AdaptiveWeights((X, Y))]


@case("EarlyStoppedDistillation")
def distillation_that_stops():
    return [taught(), callbacks.EarlyStoppedDistillation(None, max_epochs=1, fade_epochs=2)]


@case("TemperatureScheduler", "WeightScheduler")
def schedulers():
    lower = callbacks.TemperatureScheduler(lambda epoch, temperature: 0.8 * temperature)
    less = callbacks.WeightScheduler(lambda epoch, weight: 0.5 * weight)
    return [taught(), lower, less]


@case("CalibrationMonitor")
def a_monitor():
    return [taught(), callbacks.CalibrationMonitor((X, Y))]


@case("MagnitudePruning")
def pruning():
    return [taught(), callbacks.MagnitudePruning(0.5, end_step=3)]


@case("TeacherAnnealing")
def teacher_annealing():
    return [taught(), callbacks.TeacherAnnealing(num_steps=4)]


@case("DynamicWeightAverage")
def averaged_weights():
    two = [LogitsDistillation(2.0, name="two"), LogitsDistillation(4.0, name="four")]
    return [taught(term=two), callbacks.DynamicWeightAverage((X, Y))]


# ------------------------------------------------------------------------------------------------------ regimes


@case("MutualLearning")
def mutual_learning():
    return [compiled(regimes.MutualLearning([student(), student()]))]


@case("AdversarialTraining")
def adversarial_training():
    return [compiled(regimes.AdversarialTraining(student(), regimes.ProjectedGradient(0.1, num_steps=2)))]
