"""What one training step is made of: batches, objectives, learners and the guard; shared by every regime."""

from keras_distill.training._batch import Batch, Heard
from keras_distill.training._guard import Guard, NonFiniteLossError, Update
from keras_distill.training._learner import Learner
from keras_distill.training._objective import Objective, Parts
from keras_distill.training._trainer import Trainer

__all__ = ["Batch", "Guard", "Heard", "Learner", "NonFiniteLossError", "Objective", "Parts", "Trainer", "Update"]
