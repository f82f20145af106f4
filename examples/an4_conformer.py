"""A small Conformer teaches a streaming recogniser: CMU AN4, with CTC.

The Conformer (Gulati et al., arXiv:2005.08100) mixes attention over the whole utterance with convolutions over
neighbouring frames, so it needs the whole utterance; its student, the causal convolutions of ``an4_streaming.py``, does
not. Each block is half a feed-forward layer, attention, a gated convolution, the other half, and a normalisation.
Differences from the paper: no relative positions (the convolutions encode the order of neighbours), and layer
normalisation inside the convolution instead of batch normalisation, so that padding is not part of any statistic.

Run: ``python examples/an4_conformer.py`` (an4_mfcc under ``$KERAS_DISTILL_DATA``; not yet run in full; ``--smoke``, on
made-up features: half a minute).
"""

import argparse

import keras
import numpy as np
from an4_streaming import CLASSES, STACKED, streaming, utterances, word_error_rate
from keras import layers

from keras_distill import Distiller, LogitsDistillation, adapters, losses


def half_a_feed_forward(x, width, dropout):
    """A feed-forward layer whose output, times one half, is added to its input."""
    h = layers.Dense(4 * width, "silu")(layers.LayerNormalization()(x))
    h = layers.Dropout(dropout)(layers.Dense(width)(h))
    return layers.add([x, layers.Rescaling(0.5)(h)])


def gated_convolution(x, masked, width, kernel, dropout):
    """A gated linear unit, a depthwise convolution over neighbouring frames, and a projection."""
    h = layers.LayerNormalization()(x)
    h = layers.multiply([layers.Dense(width)(h), layers.Dense(width, "sigmoid")(h)])
    h = adapters.WithMask()([h, masked])  # zeros at padding, since the convolution reads it
    h = layers.DepthwiseConv1D(kernel, padding="same")(h)
    h = layers.Activation("silu")(layers.LayerNormalization()(h))
    return layers.Dropout(dropout)(layers.Dense(width)(h))


def conformer(width, blocks=4, heads=4, kernel=15, dropout=0.1, seed=0):
    """Return a model from (batch, frames, 39), where zeros are padding, to logits for each frame."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((None, 13 * STACKED))
    masked = layers.Masking()(inputs)
    x = adapters.WithMask()([layers.Dense(width)(layers.GaussianNoise(0.4)(masked)), masked])
    for _ in range(blocks):
        x = half_a_feed_forward(x, width, dropout)
        h = layers.LayerNormalization()(x)
        x = layers.add([x, layers.MultiHeadAttention(heads, width // heads, dropout=dropout)(h, h)])
        x = layers.add([x, gated_convolution(x, masked, width, kernel, dropout)])
        x = layers.LayerNormalization()(half_a_feed_forward(x, width, dropout))
        x = adapters.WithMask()([x, masked])
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def main():
    """Train the Conformer, then the student alone and from the Conformer's frames."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--epochs", type=int, default=16)
    options = parser.parse_args()
    x, y, test = utterances(options.smoke)
    epochs, wide, narrow = (6, 16, 12) if options.smoke else (options.epochs, 96, 56)

    def fitted(model):
        rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * -(-len(x) // 16), warmup_target=4e-3,
                                                      warmup_steps=max(1, epochs // 4))  # fmt: skip
        model.compile(keras.optimizers.Adam(rate, global_clipnorm=5.0), losses.Ctc(), jit_compile=False)
        model.fit(x, y, batch_size=16, epochs=epochs, verbose=0)

    teacher = conformer(wide, blocks=1 if options.smoke else 4)
    fitted(teacher)
    print(
        f"conformer    WER {word_error_rate(teacher, *test):6.2f} %, {teacher.count_params():,} parameters", flush=True
    )
    frames = LogitsDistillation(temperature=1.0, loss=losses.FrameSoftTargets(keep="around_spikes"))
    for name in ("distilled",) if options.smoke else ("alone", "distilled"):
        student = streaming(narrow)
        fitted(Distiller(teacher, student, frames) if name == "distilled" else student)
        print(
            f"{name:12} WER {word_error_rate(student, *test):6.2f} %, {student.count_params():,} parameters", flush=True
        )
    lengths = np.any(x != 0.0, axis=-1).sum(axis=1)
    i, frames = int(lengths.argmin()), int(lengths.min())
    moved = np.abs(np.asarray(teacher(x[i : i + 1]))[:, :frames] - np.asarray(teacher(x[i : i + 1, :frames]))).max()
    print(f"largest change of the Conformer's answer by padding: {moved:.1e}")


if __name__ == "__main__":
    main()
