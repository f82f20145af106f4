"""The table of papers, generated from the docstrings: python docs/papers.py prints it."""

import importlib
import inspect
import pathlib
import re

import keras_distill

ROOMS = (
    "losses",
    "terms",
    "teachers",
    "callbacks",
    "schedules",
    "metrics",
    "calibration",
    "students",
    "regimes",
    "explain",
)

# Which formula of the algorithm reference each name is (ALGORITHMS.md of the project).
FORMULAS = {
    "soft_targets": "A1",
    "reverse_soft_targets": "A20",
    "jensen_shannon": "A20",
    "total_variation": "A20",
    "logit_matching": "A2",
    "probability_matching": "A2",
    "decoupled_soft_targets": "A3",
    "normalized_soft_targets": "A4",
    "weighted_soft_labels": "A5",
    "class_correlation": "A6",
    "standardized_soft_targets": "A7",
    "binary_soft_targets": "A1",
    "hard_targets": "G5",
    "standardize_logits": "A7",
    "top_k_soft_targets": "A17",
    "from_top_k": "A17",
    "gaussian_kl": "D8",
    "ranked_items": "H4",
    "position_weights": "H4",
    "relaxed_ranking": "H4",
    "relaxed_order": "H4",
    "list_mle": "H4",
    "rank_net": "H4",
    "rank_distil": "H4",
    "ExpertMixture": "H4",
    "ExpertDistillation": "H4",
    "ranking_quality": "H4",
    "quantile_targets": "D8",
    "gaussian_crps": "D8",
    "ensemble_crps": "D8",
    "SplitConformal": "D8",
    "AdaptiveConformal": "D8",
    "policy_targets": "H5",
    "PolicyBuffer": "H5",
    "PolicyDistiller": "H5",
    "regression_matching": "D8",
    "hint": "B1",
    "attention_transfer": "B2",
    "neuron_selectivity": "B3",
    "solution_flow": "B4",
    "singular_vectors": "B5",
    "probabilistic_transfer": "B6",
    "similarity_preserving": "B7",
    "correlation_congruence": "B8",
    "relational_distance": "B9",
    "relational_angle": "B9",
    "variational_information": "B10",
    "activation_boundaries": "B11",
    "factor_transfer": "B12",
    "margin_relu": "B13",
    "negative_mean": "B13",
    "contrastive_representation": "B14",
    "contrastive_noise": "B14",
    "ContrastiveMemory": "B14",
    "hierarchical_context": "B15",
    "ReviewDistillation": "B15",
    "semantic_calibration": "B16",
    "layer_attention": "B16",
    "CrossLayerAttention": "B16",
    "self_attention_relation": "B17",
    "ctc": "H6",
    "distilbert": "H7",
    "tinybert": "H7",
    "minilm": "H7",
    "bert_to_bilstm": "H7",
    "mask_tokens": "H7",
    "augment_tokens": "H7",
    "TeacherAnnealing": "H1",
    "DynamicWeightAverage": "H1",
    "LearnedWeights": "H1",
    "task_probabilities": "H1",
    "crf_negative_log_likelihood": "H7",
    "crf_log_marginals": "H7",
    "crf_marginals": "H7",
    "ctc_beam_decode": "H6",
    "n_best": "H6",
    "frame_soft_targets": "H6",
    "guided_ctc": "H6",
    "n_best_ctc": "H6",
    "attention_maps": "H7",
    "hidden_states": "H7",
    "CurriculumTemperature": "A10",
    "Discriminator": "F5",
    "DataFree": "F3",
    "Disagreement": "F2, F3",
    "ClassInversion": "F1",
    "BatchStatistics": "F4",
    "Contrastive": "F4",
    "data_impressions": "F6",
    "AdversarialTraining": "–",
    "ProjectedGradient": "–",
    "fast_gradient_sign": "–",
    "ard": "–",
    "rslad": "–",
    "AssistantChain": "A12",
    "BornAgain": "A13",
    "MutualLearning": "A14",
    "PeerExchange": "A14",
    "Peers": "A14",
    "GatedPeers": "A14",
    "with_gate": "A14",
    "DeepestExit": "A15",
    "with_exits": "A15",
    "VirtualTeacher": "A18",
    "Amalgamation": "–",
    "average_weights": "–",
    "cross_fit": "–",
    "fuse": "–",
    "greedy_soup": "–",
    "make_generator": "F2",
    "Stages": "B1",
    "PrivateVotes": "–",
    "DifferentiallyPrivate": "–",
    "EarlyStoppedDistillation": "A11",
    "Annealing": "A9",
    "annealing": "A9",
    "Ensemble": "C, D1",
    "MonteCarloDropout": "D6",
    "Stored": "A17",
    "dirichlet_distillation": "D2",
    "proxy_dirichlet": "D3",
    "ensemble_soft_targets": "D1",
    "member_soft_targets": "D4",
    "hydra": "D4",
    "TrustWeighted": "D7",
    "UncertaintyDistillation": "D7",
    "with_uncertainty_head": "D7",
    "evidential": "D9",
    "misleading_evidence": "D9",
    "evidential_regression": "D9",
    "normal_inverse_gamma_uncertainty": "D9",
    "gaussian_moments": "D8",
    "EnsembleGaussianKL": "D8",
    "gaussian_likelihood": "D8",
    "normal_inverse_gamma": "D8",
    "gaussian_mixture": "D8",
    "MixtureHead": "D8",
    "Calibrated": "E6",
    "TemperatureScaler": "E5",
    "AreaUnderRiskCoverage": "E3",
    "TeacherKL": "G4",
    "TopKAgreement": "G4",
    "SoftDecisionTree": "G1",
    "agreement": "G4",
    "surrogate": "G2",
    "RankTargets": "G3",
    "SortedDifferences": "G3",
    "soft_tree_loss": "G1",
    "FeatureDistillation": "B",
    "DomainAlignment": "H2",
    "DomainAdversary": "H2",
    "PixelDistillation": "A1",
    "HierarchicalDistillation": "B",
    "LogitsDistillation": "A1",
    # Not in that reference: only the docstring has the formula.
    "center_boxes": "–",
    "CenterBoxes": "–",
    "center_heatmaps": "–",
    "CenterHeatmaps": "–",
    "channel_distributions": "–",
    "ChannelDistributions": "–",
    "edge_distributions": "–",
    "EdgeDistributions": "–",
    "foreground_features": "–",
    "normalized_features": "–",
    "NormalizedFeatures": "–",
    "pixel_similarities": "–",
    "PixelSimilarities": "–",
    "confident_targets": "–",
    "ConfidentTargets": "–",
}
SECTIONS = {
    "regimes": "–",
    "teachers": "C",
    "callbacks": "A19",
    "schedules": "A19",
    "metrics": "E1",
    "calibration": "E5",
}


def reference(thing):
    """Return the paper named by a docstring, without the differences; empty if there is none."""
    section = re.search(r"^Reference:\n((?:    .*(?:\n|$)|\n)+)", inspect.getdoc(thing) or "", re.MULTILINE)
    text = " ".join(section.group(1).split()) if section else ""
    return re.split(r"\s*Differs:", text)[0].rstrip(" .;")


def nickname(thing):
    """Return the short name of the paper's method: the last parentheses of the docstring's first line."""
    found = re.findall(r"\(([^()]*)\)", (inspect.getdoc(thing) or "").splitlines()[0])
    return found[-1].replace("``", "`") if found else ""


def entries():
    """Yield (room, name, twin or None, thing) for every public name that has a paper."""
    for room in ROOMS:
        if (
            not (pathlib.Path(keras_distill.__file__).parent / room).exists()
            and not (pathlib.Path(keras_distill.__file__).parent / f"{room}.py").exists()
        ):
            continue
        module = importlib.import_module(f"keras_distill.{room}")
        public = {name: getattr(module, name) for name in module.__all__}
        twins = {}  # function -> class that names it as its twin
        for name, thing in public.items():
            first = (inspect.getdoc(thing) or " ").splitlines()[0]
            named = re.search(r"[Tt]win of ``(\w+)``", first)
            if inspect.isclass(thing) and named and named.group(1) in public:
                twins[named.group(1)] = name
        for name, thing in public.items():
            if name not in twins.values() and reference(thing):
                yield room, name, twins.get(name), thing


def table():
    """Return the table as Markdown."""
    rows = ["| paper | short | name | formula |", "|---|---|---|---|"]
    for room, name, twin, thing in sorted(entries(), key=lambda entry: (ROOMS.index(entry[0]), entry[1].lower())):
        names = f"`{room}.{name}`" + (f" · `{twin}`" if twin else "")
        paper = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", reference(thing))
        formula = FORMULAS.get(name, SECTIONS.get(room, ""))
        rows.append(f"| {paper.replace('|', '/')} | {nickname(thing)} | {names} | {formula} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
