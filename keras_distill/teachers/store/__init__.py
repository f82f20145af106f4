"""A teacher's answers on disk: written once, verified, repaired, and read along with the dataset."""

from keras_distill.teachers.store._label import label
from keras_distill.teachers.store._ray import label_with_ray
from keras_distill.teachers.store._stored import Stored
from keras_distill.teachers.store._verify import StoreProblem, repair, verify

__all__ = ["StoreProblem", "Stored", "label", "label_with_ray", "repair", "verify"]
