"""The soft decision tree: a student whose answer is explained by one path of filters to a leaf."""

from keras_distill.students._soft_tree._drawing import TreePicture, tree_figure
from keras_distill.students._soft_tree._maths import soft_tree_loss
from keras_distill.students._soft_tree._model import SoftDecisionTree
from keras_distill.students._soft_tree._paths import TreePaths
from keras_distill.students._soft_tree._rules import Rule
from keras_distill.students._soft_tree._served import TreeWithPath

__all__ = ["Rule", "SoftDecisionTree", "TreePaths", "TreePicture", "TreeWithPath", "soft_tree_loss", "tree_figure"]
