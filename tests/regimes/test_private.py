"""Private votes: epsilon equals the accountant's and the formula's, exact counts, no undercounting after a kill."""

import dataclasses
import json
import math
import signal
import textwrap

import numpy as np
import pytest

from keras_distill import regimes
from tests.models import mlp
from tests.processes import Child

dp_accounting = pytest.importorskip("dp_accounting")
pytest.importorskip("scipy")

X = np.random.default_rng(0).normal(size=(400, 5)).astype("float32")


def constant(label, classes=2):
    return lambda x: np.tile(np.eye(classes)[label], (len(x), 1))


def accountant(events, delta):
    found = dp_accounting.rdp.RdpAccountant()
    for event, count in events:
        found.compose(event, count)
    return found.get_epsilon(delta)


def by_hand(rate, delta, orders):
    """Epsilon of a Renyi divergence of rate * order (Canonne, Kamath, Steinke, 2020, proposition 12)."""
    return min(rate * a + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in orders)


def test_epsilon_is_the_accountants_and_the_formulas():
    votes = regimes.PrivateVotes([constant(0)] * 70 + [constant(1)] * 30, 60.0, 30.0, 20.0, seed=1)
    result = votes.label(X, max_epsilon=100.0, delta=1e-5)
    report, gaussian = result.report, dp_accounting.GaussianDpEvent
    assert report.num_asked == 400 and 0 < report.num_answered == result.answered.sum() < 400
    events = [(gaussian(30.0), 400), (gaussian(20.0 / math.sqrt(2.0)), report.num_answered)]
    assert report.epsilon == pytest.approx(accountant(events, 1e-5), abs=1e-9)
    # One vote moves the highest count by 1: order / (2 * 30**2); two counts by 1: order * 2 / (2 * 20**2).
    rate = 400 / (2 * 30.0**2) + report.num_answered / 20.0**2
    orders = dp_accounting.rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS
    assert report.epsilon == pytest.approx(by_hand(rate, 1e-5, orders), abs=1e-9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.epsilon = 0.0


def test_epsilon_of_three_answers_without_a_threshold_by_hand():
    votes = regimes.PrivateVotes([constant(0)] * 9 + [constant(1)], answer_noise=2.0)
    report = votes.label(X[:3], max_epsilon=100.0, delta=1e-5).report
    orders = dp_accounting.rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS
    assert report.epsilon == pytest.approx(by_hand(3 / 4, 1e-5, orders), abs=1e-9)
    assert votes.report(1e-5) == report


def test_votes_are_counted_as_numpy_counts_them():
    teachers = [mlp(5, 4, inputs=5, seed=i) for i in range(7)]
    answers = np.stack([np.asarray(each(X)).argmax(-1) for each in teachers])
    counts = np.stack([(answers == k).sum(0) for k in range(4)], -1)
    clear = (counts == counts.max(-1, keepdims=True)).sum(-1) == 1
    result = regimes.PrivateVotes(teachers, answer_noise=1e-6).label(X, max_epsilon=1e20, delta=1e-5)
    assert result.answered.all() and result.labels.dtype == "int64"
    assert (result.labels[clear] == counts[clear].argmax(-1)).all()
    confident = regimes.PrivateVotes(teachers, 2.5, 1e-6, 1e-6).label(X, max_epsilon=1e20, delta=1e-5)
    assert (confident.answered == (counts.max(-1) >= 3)).all() and 0 < confident.answered.sum() < 400
    assert (confident.labels[~confident.answered] == -1).all()


@pytest.mark.parametrize("seed", [None, 3])
def test_the_noise_is_normal_with_the_deviations_given(seed):
    from scipy.stats import norm

    votes = regimes.PrivateVotes([constant(0)] * 60 + [constant(1)] * 40, 70.0, 8.0, 15.0, seed=seed)
    result = votes.label(np.zeros((20_000, 1)), max_epsilon=1e9, delta=1e-5)
    passes, wins = norm.cdf((60 - 70) / 8.0), norm.cdf((60 - 40) / (15.0 * math.sqrt(2.0)))
    assert result.answered.mean() == pytest.approx(passes, abs=5 * math.sqrt(passes * (1 - passes) / 20_000))
    error = 5 * math.sqrt(wins * (1 - wins) / result.answered.sum())
    assert (result.labels[result.answered] == 0).mean() == pytest.approx(wins, abs=error)


def test_a_seed_repeats_the_labels_but_no_noise_is_drawn_twice():
    def answers(seed):
        votes = regimes.PrivateVotes([constant(0), constant(1)], answer_noise=5.0, seed=seed)
        return [votes.label(X, max_epsilon=1e9, delta=1e-5).labels for _ in range(2)]

    one, again, system, other = answers(5), answers(5), answers(None), answers(None)
    assert (np.array(one) == np.array(again)).all()
    for left, right in ((one[0], one[1]), (system[0], system[1]), (system[0], other[0])):
        assert 0.3 < (left == right).mean() < 0.7


@pytest.mark.parametrize("threshold", [None, 55.0])
def test_a_query_over_the_budget_is_refused_before_any_teacher_votes(threshold):
    noise = None if threshold is None else 20.0
    votes = regimes.PrivateVotes([constant(0)] * 60 + [constant(1)] * 40, threshold, noise, 20.0, seed=0)
    result = votes.label(X, max_epsilon=2.0, delta=1e-5)
    report = result.report
    assert report.epsilon <= 2.0 and 0 < report.num_asked < 400
    assert result.asked.sum() == report.num_asked and not result.asked[report.num_asked :].any()
    assert not result.answered[~result.asked].any() and (result.labels[~result.asked] == -1).all()

    def epsilon(asked, answered):
        gaussian = dp_accounting.GaussianDpEvent
        first = [(gaussian(20.0), asked)] if threshold else []
        return accountant([*first, (gaussian(20.0 / math.sqrt(2.0)), answered)], 1e-5)

    assert epsilon(report.num_asked + 1, report.num_answered + 1) > 2.0  # not one query too few

    def forbidden(x):
        raise AssertionError("asked")

    votes.teachers[0] = forbidden
    again = votes.label(X, max_epsilon=2.0, delta=1e-5)
    assert not again.asked.any() and again.report == report


JOB = textwrap.dedent("""
    import os, signal, sys
    import numpy as np
    from keras_distill import _files, regimes
    teacher = lambda x: np.tile([1.0, 0.0], (len(x), 1))
    votes = regimes.PrivateVotes([teacher, teacher], answer_noise=30.0, directory=sys.argv[1])
    if sys.argv[2] == "after":
        original, calls = _files.put, []
        def put(*args):
            original(*args)
            calls.append(args)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        _files.put = put
    elif sys.argv[2] == "before":
        original, calls = _files.rename, []
        def rename(*args):
            calls.append(args)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*args)
        _files.rename = rename
    for turn in range(3):
        result = votes.label(np.full((10, 1), turn), max_epsilon=50.0, delta=1e-5)
        print(result.answered.sum(), flush=True)
""")


@pytest.mark.parametrize(("moment", "expected"), [("before", 10), ("after", 20)])
def test_a_kill_never_undercounts(tmp_path, moment, expected):
    killed = Child(JOB, tmp_path, moment)
    assert killed.wait() == -signal.SIGKILL, killed.read()
    released = sum(int(line) for line in killed.read().splitlines() if line.isdigit())
    votes = regimes.PrivateVotes([constant(0)] * 2, answer_noise=30.0, directory=tmp_path)
    assert released == 10 and votes.report(1e-5).num_answered == expected >= released
    # Later answers are added to the privacy spent, also with other noise and by another object.
    other = regimes.PrivateVotes([constant(0)] * 2, answer_noise=40.0, directory=tmp_path)
    found = other.label(X[:4], max_epsilon=50.0, delta=1e-5).report
    gaussian = dp_accounting.GaussianDpEvent
    events = [(gaussian(30.0 / math.sqrt(2)), expected), (gaussian(40.0 / math.sqrt(2)), 4)]
    assert found.epsilon == pytest.approx(accountant(events, 1e-5), abs=1e-9)
    assert votes.label(X[:1], max_epsilon=50.0, delta=1e-5).report.num_asked == expected + 5
    # Labels already paid for are kept, even if the process died before it received them; the rest is queried.
    turns = np.repeat(np.arange(3), 10)[:, None]
    result = votes.label(turns, max_epsilon=50.0, delta=1e-5)
    assert result.answered.all() and result.report.num_asked == expected + 5 + (30 - expected)


def test_labels_already_paid_for_are_returned_again_at_no_cost(tmp_path):
    def votes(**more):
        settings = {"threshold": 52.0, "selection_noise": 20.0, "answer_noise": 20.0, "directory": tmp_path, **more}
        return regimes.PrivateVotes([constant(0)] * 50 + [constant(1)] * 50, **settings)

    twice = np.repeat(X[:40], 2, axis=0)  # equal rows are separate queries
    first = votes().label(twice, max_epsilon=50.0, delta=1e-5)
    assert 0 < first.answered.sum() < 80 and not (first.labels[::2] == first.labels[1::2]).all()

    def forbidden(x):
        raise AssertionError("asked")

    again = votes()
    again.teachers[0] = forbidden
    order = np.random.default_rng(0).permutation(40)
    found = again.label(twice.reshape(40, 2, 5)[order].reshape(80, 5), max_epsilon=0.1, delta=1e-5)
    np.testing.assert_array_equal(found.labels, first.labels.reshape(40, 2)[order].ravel())
    assert found.report == first.report and found.asked.all()
    more = votes().label(np.concatenate([twice, X[40:50]]), max_epsilon=50.0, delta=1e-5)
    np.testing.assert_array_equal(more.labels[:80], first.labels)
    assert more.report.num_asked == 90
    assert votes(threshold=53.0).label(X[:3], max_epsilon=50.0, delta=1e-5).report.num_asked == 93
    content = json.loads((tmp_path / "privacy.json").read_text())
    (tmp_path / "privacy.json").write_text(json.dumps({"version": 1, "spent": content["spent"]}))  # older format
    assert votes().report(1e-5).num_asked == 93
    (tmp_path / "privacy.json").write_text(json.dumps({**content, "labels": {"a": {"b": "c"}}}))
    with pytest.raises(ValueError, match="got a damaged file"):
        votes()


def test_a_damaged_file_and_a_second_process_are_errors(tmp_path):
    votes = regimes.PrivateVotes([constant(0)] * 2, answer_noise=30.0, directory=tmp_path)

    def meanwhile(x):
        regimes.PrivateVotes([constant(0)] * 2, answer_noise=1.0, directory=tmp_path).label(
            x, max_epsilon=9.0, delta=0.1
        )

    votes.teachers[0] = meanwhile
    with pytest.raises(ValueError, match=r"expected a directory that no other process uses, got one in use"):
        votes.label(X[:2], max_epsilon=50.0, delta=1e-5)
    row = {"selection_noise": None, "answer_noise": 30.0, "num_asked": 1, "num_answered": 2}
    for content in (b"{", b"[]", json.dumps({"version": 1, "spent": [row]}).encode()):
        (tmp_path / "privacy.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"expected the counters of earlier queries in privacy.json, got a dam"):
            regimes.PrivateVotes([constant(0)] * 2, answer_noise=30.0, directory=tmp_path)


TWO = [constant(0), constant(1)]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"teachers": TWO[:1]}, r"PrivateVotes: expected two or more teachers, got 1\. Train one on each of many disjoint"),
    ({"teachers": [1, 2]}, r"expected each teacher to be a keras.Model or a function, got int\."),
    ({"answer_noise": None}, r"PrivateVotes: expected answer_noise > 0, got None\. It is the noise's standard"),
    ({"answer_noise": 0}, r"expected answer_noise > 0, got 0.0\."),
    ({"threshold": 3.0}, r"expected threshold and selection_noise together, got threshold=3.0 and selection_noise=N"),
    ({"threshold": 3.0, "selection_noise": -1.0}, r"expected selection_noise > 0, got -1.0\."),
    ({"shards": [X[:9]]}, r"expected one shard for each of 2 teachers, got 1 shards\."),
    ({"shards": [X[:9], X[7:20]]}, r"expected disjoint shards, got 2 examples in both shard 0 and shard 1\. Remove du"),
    ({"shards": [(X[:9], X[:9]), (X[8:], X[8:])]}, r"expected disjoint shards, got 1 example in both shard 0 and sh"),
])  # fmt: skip
def test_bad_arguments_raise_a_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        regimes.PrivateVotes(**{"teachers": TWO, "answer_noise": 2.0, **arguments})


@pytest.mark.parametrize(("arguments", "message"), [
    ({"max_epsilon": 0}, r"PrivateVotes: expected max_epsilon > 0, got 0.0\."),
    ({"max_epsilon": -1.0}, r"expected max_epsilon > 0, got -1.0\."),
    ({"delta": 0.0}, r"PrivateVotes: expected delta > 0, got 0.0\. Choose less than one over the number of private"),
    ({"delta": -1e-5}, r"expected delta > 0, got -1e-05\."),
    ({"delta": 1.0}, r"expected delta < 1, got 1.0\."),
])  # fmt: skip
def test_bad_budgets_raise_a_clear_error(arguments, message):
    votes = regimes.PrivateVotes(TWO, answer_noise=2.0, shards=[X[:9], X[9:]])
    with pytest.raises(ValueError, match=message):
        votes.label(**{"x": X, "max_epsilon": 8.0, "delta": 1e-5, **arguments})


@pytest.mark.parametrize(("teacher", "message"), [
    (lambda x: np.ones(len(x)), r"expected outputs of shape \(examples, classes\) from teacher 0, got \(400,\)\."),
    (lambda x: np.full((len(x), 2), np.nan), r"expected finite outputs from teacher 0, got NaN or infinity\."),
])  # fmt: skip
def test_bad_outputs_raise_a_clear_error_and_spend_no_privacy_budget(teacher, message):
    votes = regimes.PrivateVotes([teacher, TWO[0]], answer_noise=2.0)
    with pytest.raises(ValueError, match=message):
        votes.label(X, max_epsilon=8.0, delta=1e-5)
    assert votes.report(1e-5) == regimes.PrivacyReport(0.0, 1e-5, 0, 0)
