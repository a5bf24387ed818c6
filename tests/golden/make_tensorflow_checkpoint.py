"""Write tests/golden/tensorflow/: a tiny GPT-2 checkpoint as OpenAI's were written, and the same values as safetensors.

    pip install tensorflow-cpu==2.21.0 safetensors && python tests/golden/make_tensorflow_checkpoint.py

Needs TensorFlow, which the tests do not. The graph has the variables of OpenAI's model.py under its names and in its
shapes (matrices have a leading 1), filled from a fixed seed; tf.compat.v1.train.Saver writes them (the V2 format).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors.numpy import save

FOLDER = Path(__file__).parent / "tensorflow"
HPARAMS = {"n_vocab": 11, "n_ctx": 6, "n_embd": 8, "n_head": 2, "n_layer": 2}


def shapes() -> dict[str, list[int]]:
    C = HPARAMS["n_embd"]
    result = {"model/wte": [HPARAMS["n_vocab"], C], "model/wpe": [HPARAMS["n_ctx"], C]}
    for i in range(HPARAMS["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            result |= {f"model/h{i}/{norm}/g": [C], f"model/h{i}/{norm}/b": [C]}
        for name, n_in, n_out in (
            ("attn/c_attn", C, 3 * C),
            ("attn/c_proj", C, C),
            ("mlp/c_fc", C, 4 * C),
            ("mlp/c_proj", 4 * C, C),
        ):
            result |= {f"model/h{i}/{name}/w": [1, n_in, n_out], f"model/h{i}/{name}/b": [n_out]}
    return result | {"model/ln_f/g": [C], "model/ln_f/b": [C]}


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    rng = np.random.default_rng(6)
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes().items()}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in values.items():
            scope, _, leaf = name.rpartition("/")
            with tf.compat.v1.variable_scope(scope):
                variable = tf.compat.v1.get_variable(leaf, value.shape, tf.float32)
            session.run(variable.assign(value))
        saver = tf.compat.v1.train.Saver(save_relative_paths=True)
        saver.save(session, str(FOLDER / "model.ckpt"), write_meta_graph=False)
    (FOLDER / "hparams.json").write_text(json.dumps(HPARAMS) + "\n")
    (FOLDER / "values.safetensors").write_bytes(save(values))


if __name__ == "__main__":
    main()
