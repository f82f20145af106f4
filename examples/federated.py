"""Clients with different models exchange predictions on public digits (FedMD, FedDF), compared with weight averaging.

Each client has its own digits, mostly of a few classes, and never shares them. FedAvg averages weights, so all clients
need one architecture. In FedMD they exchange logits on public, unlabelled digits and learn from the mean: models may
differ, and are not shared. FedDF fuses the clients' models on the server into one (``regimes.fuse``). The clients are a
Flower ``ClientApp``; a grid in this process stands for the network. Run (2 minutes; ``--smoke``: less): ``python
examples/federated.py``. Needs scikit-learn and Flower: ``pip install flwr``.
"""

import argparse
import uuid

import keras
import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from sklearn.datasets import load_digits

from keras_distill import losses, regimes

LOSS, NUM_CLIENTS = keras.losses.SparseCategoricalCrossentropy(from_logits=True), 4
PUBLIC, PRIVATE, TEST, MODELS, DISTILLED = {}, {}, {}, {}, {}


def network(kind: int) -> keras.Model:
    """Return an untrained classifier; there are four kinds."""
    keras.utils.set_random_seed(kind)
    layers = keras.layers
    picture = [layers.Reshape((8, 8, 1)), layers.Conv2D(8, 3, activation="relu"), layers.Flatten()]
    two = [layers.Dense(48, "relu"), layers.Dense(24, "relu")]
    hidden = [[layers.Dense(32, "relu")], [layers.Dense(64, "tanh")], two, picture][kind]
    return keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10)])


def join(kinds: list[int]) -> None:
    """Give each client an untrained model; in ``DISTILLED``, the same weights learn predictions, not labels."""
    for client, kind in enumerate(kinds):
        model = MODELS[client] = network(kind)
        DISTILLED[client] = keras.Model(model.inputs, model.outputs)
        model.compile("adam", LOSS)
        DISTILLED[client].compile("adam", losses.SoftTargets())


def split(seed: int) -> None:
    """Divide the digits among clients by a Dirichlet distribution per class; keep public and test digits apart."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(1797)
    x, y = (each[order].astype("float32") for each in load_digits(return_X_y=True))
    PUBLIC["x"], TEST["x"], TEST["y"] = x[:500] / 16, x[500:900] / 16, y[500:900]
    owners = np.zeros(len(x) - 900, int)
    for digit in range(10):
        own = np.flatnonzero(y[900:] == digit)
        owners[own] = rng.choice(NUM_CLIENTS, len(own), p=rng.dirichlet([0.3] * NUM_CLIENTS))
    for client in range(NUM_CLIENTS):
        PRIVATE[client] = x[900:][owners == client] / 16, y[900:][owners == client]


def accuracy(model: keras.Model) -> float:
    """Accuracy on the test digits, in percent."""
    return 100 * float(np.mean(model.predict(TEST["x"], verbose=0).argmax(-1) == TEST["y"]))


app = ClientApp()


def revised(client: int) -> keras.Model:
    """Train a client's model on its own digits."""
    MODELS[client].fit(*PRIVATE[client], batch_size=16, epochs=EPOCHS, verbose=0)
    return MODELS[client]


@app.train("weights")
def train_weights(message: Message, context: Context) -> Message:
    """Train from the server's weights; reply with the client's weights."""
    client = int(context.node_config["partition-id"])
    MODELS[client].set_weights(message.content["arrays"].to_numpy_ndarrays())
    weights = revised(client).get_weights()
    return Message(RecordDict({"arrays": ArrayRecord(weights)}), reply_to=message)


@app.train("predictions")
def train_predictions(message: Message, context: Context) -> Message:
    """Learn the clients' mean predictions on public digits, then the own digits; reply with predictions."""
    client = int(context.node_config["partition-id"])
    received = message.content["arrays"].to_numpy_ndarrays()
    if received:
        DISTILLED[client].fit(PUBLIC["x"], received[0], batch_size=32, epochs=EPOCHS, verbose=0)
    predictions = revised(client).predict(PUBLIC["x"], verbose=0)
    return Message(RecordDict({"arrays": ArrayRecord([predictions])}), reply_to=message)


class OneProcess(Grid):
    """Delivers messages within this process, whereas Flower's own grid reaches other machines."""

    run, set_run, create_message, push_messages, pull_messages = (None,) * 5

    def get_node_ids(self) -> list[int]:
        """Return the clients."""
        return list(range(NUM_CLIENTS))

    def send_and_receive(self, messages: list[Message], *, timeout: float | None = None) -> list[Message]:
        """Call the client app for each message."""
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        nodes = [message.metadata.dst_node_id for message in messages]
        contexts = [Context(0, node, {"partition-id": node}, RecordDict(), {}) for node in nodes]
        return [app(message, context) for message, context in zip(messages, contexts, strict=True)]


def request(grid: Grid, action: str, arrays: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Send the same arrays to all clients and return theirs."""
    content = RecordDict({"arrays": ArrayRecord(arrays)})
    sent = [Message(content, dst_node_id=node, message_type=f"train.{action}") for node in grid.get_node_ids()]
    return [reply.content["arrays"].to_numpy_ndarrays() for reply in grid.send_and_receive(sent)]


def main() -> None:
    """Run all methods on the same digits."""
    global EPOCHS
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    rounds, EPOCHS = (2, 1) if parser.parse_args().smoke else (8, 3)
    grid = OneProcess()
    split(seed=0)
    counts = np.array([len(PRIVATE[client][1]) for client in range(NUM_CLIENTS)])
    print("digits of each client:", counts.tolist())
    for name, kinds in (("unlike models", [0, 1, 2, 3]), ("one architecture", [0, 0, 0, 0])):
        join(kinds)
        predictions: list[np.ndarray] = []
        for turn in range(rounds):
            replies = request(grid, "predictions", predictions)
            if not turn:
                print(f"{name}, alone: {np.mean([accuracy(each) for each in MODELS.values()]):.1f}%")
            predictions = [np.mean([each[0] for each in replies], axis=0)]
        print(f"{name}, FedMD: {np.mean([accuracy(each) for each in MODELS.values()]):.1f}%")
        fused = regimes.fuse(list(MODELS.values()), PUBLIC["x"], epochs=4 * EPOCHS, verbose=0)
        print(f"{name}, FedMD and then FedDF: {accuracy(fused):.1f}%")
    for fuses in (False, True):
        server = network(0)
        for _ in range(rounds):
            replies = request(grid, "weights", server.get_weights())
            server.set_weights([np.average(each, axis=0, weights=counts) for each in zip(*replies, strict=True)])
            if fuses:
                regimes.fuse(list(MODELS.values()), PUBLIC["x"], student=server, epochs=EPOCHS, verbose=0)
        print(f"one architecture, {'FedDF' if fuses else 'FedAvg'}: {accuracy(server):.1f}%")


if __name__ == "__main__":
    main()
