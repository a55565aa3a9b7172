"""Results made by hand, in the JSON schemas that the experiments write: full ones, bare ones and hostile ones."""

from __future__ import annotations

import random
from typing import Any

HOSTILE = (
    "<script>alert(1)</script></style>\"' onload=x $x^2$ & \\alpha {{ }} \0\x07 שלום 漢字 🙂 1e5 " + "very long " * 9
)
"""Whatever a corpus may hold; nothing of it may act, and all of it must be read."""


def level(value: float | None, random_: random.Random, count: int = 1000) -> dict[str, Any]:
    """The anisotropy of one layer at one level; null has a reason."""
    counts = {"count": count, "n_zero": 0, "n_nonfinite": 0}
    if value is None:
        return {"anisotropy": None, "stderr": None, "mean_norm": None, **counts, "reason": "1 sentences used <b>"}
    return {
        "anisotropy": value,
        "stderr": random_.uniform(1e-9, 0.01),
        "mean_norm": random_.uniform(1, 30000),
        **counts,
    }


def estimate(value: float | None, random_: random.Random) -> dict[str, Any]:
    """A value and its standard error."""
    return {"value": value, "stderr": None if value is None else random_.uniform(0.0001, 0.01)}


def curve(n_layers: int, random_: random.Random) -> list[float]:
    """Anisotropies that build and crash."""
    return [*(0.4 + 0.5 * random_.random() for _ in range(n_layers - 1)), 0.05 * random_.random()]


def shared(name: str) -> dict[str, Any]:
    """What the results of one model have in common."""
    model = {
        "name": name,
        "architecture": "BertModel",
        "n_layers": 6,
        "hidden_size": 384,
        "dtype": "float32",
        "attention": "sdpa",
        "weights_sha256": "0f" * 32,
        "max_length": 256,
        "final_norm": False,
    }
    corpus = {
        "name": "corpus & 1.jsonl",
        "fields": ["premise", "hypothesis"],
        "limit": None,
        "sentences": 1234567,
        "duplicates": 21,
        "dropped": {"empty": 3, "invalid_utf8": 0, "no_token": 1},
        "replaced": {"invalid_utf8": 2, "lone_surrogate": 0},
        "examples": ["a.jsonl:2: dropped, <b>not JSON</b>"],
        "fingerprint": "ab" * 32,
        "tokens": 14321098,
        "truncated": 4,
        "unknown_tokens": 5,
        "left_out": 1,
    }
    manifest = {
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "started": "2026-11-23T07:42:26+00:00",
        "seconds": {"load": 0.123, "run": 12.3456789},
        "options": {"backend": "auto", "token_budget": None, "poolings": ["mean", "cls"], "second_moment": True},
        "device": "cpu",
        "out_of_memory": 0,
        "a/b~c": 1e-7,
    }
    return {"model": model, "corpus": corpus, "manifest": manifest}


WITHOUT_ROGUE = tuple(f"anisotropy_without_rogue{suffix}" for suffix in ("", "_stderr", "_count"))


def without_rogue(value: float, random_: random.Random) -> dict[str, Any]:
    """Vector by vector over 256 sentences, or from the sums alone."""
    error = random_.uniform(0.001, 0.01)
    found = (value, error, 256) if random_.random() < 0.7 else (value, None, 0)
    return dict(zip(WITHOUT_ROGUE, found, strict=True))


def layers_result(name: str = "org/model-one", n_layers: int = 7, seed: int = 0) -> dict[str, Any]:
    """All that `layers` can write."""
    random_ = random.Random(seed)
    sentence, token = curve(n_layers, random_), curve(n_layers, random_)
    rows = []
    for at in range(n_layers):
        rogue = sorted((random_.uniform(0.001, 0.2) for _ in range(3)), reverse=True)
        dimensions = random_.sample(range(12), 3)
        listed = [
            {"dimension": dimension, "contribution": share * sentence[at], "share": share}
            for dimension, share in zip(dimensions, rogue, strict=True)
        ]
        geometry = {
            "participation_ratio": random_.uniform(1, 384),
            "iso_score": random_.random(),
            "explained_variance_ratio": random_.random(),
            "effective_rank": random_.uniform(1, 384),
            "rank_me": random_.uniform(1, 384),
        }
        population = {
            "count": 600,
            "participation_ratio": {"value": random_.uniform(1, 384), "stderr": random_.uniform(0.1, 9)},
            "iso_score": {"value": random_.random(), "stderr": random_.uniform(0.001, 0.1)},
            "effective_rank": {"lacks": random_.random(), "enough": "no"},
            "rank_me": {"lacks": random_.uniform(0, 0.04), "enough": "yes"},
        }
        rows.append(
            {
                "layer": at,
                "name": "embeddings" if at == 0 else f"encoder.layer.{at - 1}",
                "sentence": level(sentence[at], random_),
                "token": level(token[at], random_, 12403),
                "rogue_dimensions": listed,
                **without_rogue(sentence[at] * 0.9, random_),
                "geometry": geometry,
                "population": population,
            }
        )
    peak = max(range(n_layers), key=sentence.__getitem__)
    last = n_layers - 1
    return {
        "schema": "cone_kernels/layers/2",
        "experiment": "layers",
        **shared(name),
        "layers": rows,
        "shape": {
            "builds": [{"from": 0, "to": peak, "rise": 0.2}],
            "dips": [{"layer": 2, "depth": 0.123456}, {"layer": 4, "depth": 0.2}],
            "peak": {"layer": peak, "anisotropy": sentence[peak]},
            "crash": {"from": last - 1, "to": last, "drop": sentence[last - 1] - sentence[last]},
        },
        "published": {
            "model": "mxbai-embed-large-v1",
            "sentences": 300,
            "source": "a published measurement of 300 sentences",
            "anisotropy": [round(random_.random(), 3) for _ in range(25)],
        },
        "summary": ["The cone is tightest at layer 3.", "It opens <i>in the last layer</i>: 0.1 & less."],
    }


def pooling_result(name: str = "org/model-one", n_layers: int = 7, seed: int = 1) -> dict[str, Any]:
    """All that `pooling` can write."""
    random_ = random.Random(seed)
    rows = []
    for at, value in enumerate(curve(n_layers, random_)):
        names = ("mean", "mean_without_special", "cls", "last", "max", "weighted_mean", "a_new_one")
        rows.append(
            {
                "layer": at,
                "name": f"encoder.layer.{at}",
                "token": level(value / 2, random_, 12403),
                "sentence": level(value, random_),
                "gap": estimate(value / 2, random_),
                "within": estimate(random_.random(), random_),
                "between": estimate(random_.random(), random_),
                "predicted": estimate(random_.random(), random_),
                "poolings": {pooling: level(random_.random(), random_) for pooling in names},
            }
        )
    return {
        "schema": "cone_kernels/pooling/1",
        "experiment": "pooling",
        **shared(name),
        "layers": rows,
        "summary": ["Pooling tightens the cone most at layer 1."],
    }


def axis_result(name: str = "org/model-one", k: int = 2, seed: int = 2) -> dict[str, Any]:
    """All that `axis` can write."""
    random_ = random.Random(seed)
    texts = [HOSTILE, "A man lifts 12 boxes.", " ", "=SUM(A1:A9)", "line one\nline two"]

    def ends(sign: float) -> list[dict[str, Any]]:
        return [
            {"text": text, "projection": sign * random_.uniform(1, 4), "sentence": 100 * at}
            for at, text in enumerate(texts)
        ]

    def tokens(sign: float) -> list[dict[str, Any]]:
        found = ["##ing", "Ġ42", " ", "</td>", "\n"]
        return [{"token": token, "projection": sign * random_.uniform(1e-9, 1e-3)} for token in found]

    components = [
        {
            "eigenvalue": random_.uniform(1, 1e9),
            "explained_variance_ratio": random_.random(),
            "residual": random_.uniform(1e-12, 1e-9),
            "eigengap": random_.random(),
            "top": ends(1),
            "bottom": ends(-1),
            "tokens_top": tokens(1),
            "tokens_bottom": tokens(-1),
            "correlations": {"length": -0.004, "token_frequency": random_.uniform(-1, 1), "norm": None},
        }
        for _ in range(k)
    ]
    return {
        "schema": "cone_kernels/axis/1",
        "experiment": "axis",
        **shared(name),
        "layer": 6,
        "layer_name": "encoder.layer.5",
        "sentences": 1000,
        "components": components,
        "mean_cosine": 0.00541,
        "uncentered_mean_cosine": 0.8774,
        "centered_uncentered_cosine": None,
        "vocabulary": {"tokens": 30522, "projected": "input embeddings"},
        "vectors_file": None,
        "reasons": ["norm: all vectors have length 1"],
        "summary": [f"At its upper end lies “{HOSTILE[:40]}”."],
    }


def rotation_result(m: int = 3, k: int = 2, seed: int = 3) -> dict[str, Any]:
    """All that `rotation` can write; the last model has another width, so its directions compare with none."""
    random_ = random.Random(seed)
    models = [
        {
            "name": f"model-{at}",
            "source": f"org/model-{at}",
            "architecture": "BertModel",
            "hidden_size": 384 if at < m - 1 else 32,
            "layer": 6,
            "layer_name": "encoder.layer.5",
            "explained_variance_ratio": random_.random(),
            **level(random_.random(), random_),
        }
        for at in range(m)
    ]

    def matrix(own: float, low: float, *, widths: bool) -> list[list[Any]]:
        found = [[own if i == j else random_.uniform(low, 1) for j in range(m)] for i in range(m)]
        return [
            [None if widths and _differ(i, j, m) else value for j, value in enumerate(row)]
            for i, row in enumerate(found)
        ]

    def pairs(make: Any) -> list[list[Any]]:
        return [[None if i == j or _differ(i, j, m) else make() for j in range(m)] for i in range(m)]

    return {
        "schema": "cone_kernels/rotation/1",
        "experiment": "rotation",
        "models": models,
        "corpus": shared("")["corpus"],
        "k": k,
        "axis_cosine": matrix(1.0, 0.0, widths=True),
        "mean_cosine": matrix(1.0, 0.0, widths=True),
        "centered_anisotropy": matrix(-0.001001, -0.2, widths=True),
        "centered_stderr": matrix(0.0004, 0.0, widths=True),
        "functional_cosine": matrix(1.0, 0.0, widths=False),
        "principal_angles": pairs(lambda: sorted(random_.uniform(0, 90) for _ in range(k))),
        "null": pairs(lambda: {"mean": 0.0407, "p95": 0.09987}),
        "p_value": pairs(lambda: random_.choice([0.0, 3.2e-120, 0.23])),
        "verdict": [
            ["share" if i == j else random_.choice(["share", "differ", "undecided"]) for j in range(m)]
            for i in range(m)
        ],
        "axis_stderr": pairs(random_.random),
        "overlap": pairs(
            lambda: {
                "axes": 2,
                **{name: random_.random() for name in ("value", "corrected", "stderr", "low", "high", "noise")},
                "halves": [random_.random(), None],
                "null": {"mean": 0.02, "p95": 0.05},
                "needed": random_.choice([None, 1234]),
            }
        ),
        "reasons": ["model-0 and model-2: widths 384 and 32 differ"],
        "summary": ["model-0 and model-1 share no axis."],
        "manifest": shared("")["manifest"],
    }


def centering_result(method: str = "mean", name: str = "org/model-one", *, measured: bool = True) -> dict[str, Any]:
    """All that `center` can write."""
    found = {
        "schema": "cone_kernels/centering/1",
        "experiment": "centering",
        **shared(name),
        "layer": 6,
        "layer_name": "encoder.layer.5",
        "method": method,
        "components": 3 if method == "all-but-the-top" else None,
        "shrinkage": 0.0674 if method == "whitening" else None,
        "file": "fix 1.safetensors",
        "before": {"value": 0.0478123, "stderr": 0.00183},
        "after": {"value": -0.000812, "stderr": 0.00002},
        "summary": ["The cone is open."],
    }
    return found if measured else {**found, "after": None, "reason": "after: a saved state has no sentence vectors"}


def quality_part(n_layers: int = 7, seed: int = 6) -> dict[str, Any]:
    """What labelled pairs say, in a run or a centring; at the first layer whitening cannot be fitted."""
    random_ = random.Random(seed)
    methods = ("mean", "partial-mean", "all-but-the-top", "all-but-the-top-eigengap", "whitening")

    def change(raw: float) -> dict[str, Any]:
        difference = random_.uniform(-0.1, 0.1)
        stderr = random_.uniform(1e-6, 0.01)
        return {"value": raw + difference, "difference": difference, "stderr": stderr, "verdict": "undecided"}

    def layer(at: int | str) -> dict[str, Any]:
        raw = random_.uniform(0.5, 0.9)
        found = {name: change(raw) for name in methods}
        if at == 0:
            found["whitening"] = {**dict.fromkeys(found["mean"]), "verdict": "undecided", "reason": "all are <alike>"}
        pooling = None if at == "output" else "mean"
        place = {"layer": at, "pooling": pooling}
        return {**place, "raw": raw, "raw_stderr": 0.004, "methods": found, "components": [1, 2, 2, None]}

    fits = [
        {"layer": "output", "pooling": None, "source": source, "rows": rows, **overlap,
         "methods": {name: {"difference": -0.01, "stderr": 0.002} for name in methods}}
        for source, rows, overlap in (("pairs", 20, {}), ("pairs", 9731, {}), ("corpus", 1000, {"overlap": 31}))
    ]  # fmt: skip
    return {
        "measure": "auc",
        "pairs": 9842,
        "items": 9842,
        "groups": 3161,
        "folds": 4,
        "file": {"name": "pairs <1>.jsonl", "texts": 12982, "dropped": {"no_label": 3}},
        "layers": [layer(at) for at in (*range(n_layers), "output")],
        "fits": fits,
        "verdict": {
            "decision": "do not",
            "layer": 3,
            "pooling": "mean",
            "method": "mean",
            "value": 0.8012,
            "in_use": {"layer": "output", "pooling": None, "value": 0.8123},
        },
        "summary": ["Do not centre & that is that."],
    }


def compare_result(n_layers: int = 7, seed: int = 4) -> dict[str, Any]:
    """All that `compare` can write; nothing is defined at the last layer."""
    random_ = random.Random(seed)

    def change(layer: int) -> dict[str, Any]:
        if layer == n_layers - 1:
            nothing = dict.fromkeys(("a", "b", "difference", "stderr", "p_value", "p_adjusted"))
            return {**nothing, "degrees_of_freedom": 0, "significant": False, "reason": "b: 1 sentence <used>"}
        a, b = random_.random(), random_.random()
        found = {"a": a, "b": b, "difference": b - a, "stderr": random_.uniform(1e-9, 0.02)}
        p = random_.choice([3.2e-120, 0.23])
        return {**found, "p_value": p / 7, "p_adjusted": p, "degrees_of_freedom": 63, "significant": p < 0.05}

    rows = []
    for at in range(n_layers):
        names = ("sentence", "token", "gap", "within", "between", "predicted")
        cosines = {"axis_cosine": None if at == 2 else random_.random(), "mean_cosine": random_.random()}
        sampling = {"axis_sampling": random_.random(), "mean_sampling": 1e-4}
        layer = {"layer": at, "name": f"encoder.layer.{at}"}
        rows.append({**layer, **{name: change(at) for name in names}, **cosines, **sampling})
    states = {
        side: {
            "name": f"{name} <{side}>.safetensors",
            "model": shared(name)["model"],
            "sentences": 1000,
            "tokens": 14321,
            "fields": ["premise"],
            "state_fingerprint": side * 64,
        }
        for side, name in (("a", "org/base"), ("b", "org/tuned"))
    }
    return {
        "schema": "cone_kernels/compare/1",
        "experiment": "compare",
        **states,
        "paired": True,
        "pairing": "both states have the same sentences",
        "layers": rows,
        "random_cosine": {"dim": 384, "mean": 0.0407, "p95": 0.09987},
        "alpha": 0.05,
        "correction": "holm",
        "resolution": 1e-6,
        "summary": ["The cone opened at layers 1 & 2."],
        "manifest": shared("")["manifest"],
    }


def vectors_result(ids: bool = True) -> dict[str, Any]:
    """All that `vectors` can write."""
    random_ = random.Random(9)

    def end(sign: int) -> list[dict[str, Any]]:
        rows = [random_.randrange(10**6) for _ in range(3)]
        return [
            {"id": f"{HOSTILE} {row}" if ids else None, "index": row, "projection": sign * random_.uniform(1, 3)}
            for row in rows
        ]

    numbers = ("eigenvalue", "explained_variance_ratio", "residual", "eigengap")
    components = [
        {**{name: random_.random() for name in numbers}, "top": end(1), "bottom": end(-1)},
        {**{name: random_.random() for name in numbers}, "eigengap": None, "top": end(1), "bottom": end(-1)},
    ]
    (layer,) = layers_result(n_layers=1)["layers"]
    about = {"name": "v <1>.npy", "rows": 1234567, "dim": 384, "dtype": "uint8", "scale": 0.5, "fingerprint": "c" * 64}
    return {
        "schema": "cone_kernels/vectors/1",
        "experiment": "vectors",
        "vectors": about,
        "sentence": {**layer["sentence"], "n_zero": 3},
        **{name: layer[name] for name in ("rogue_dimensions", *WITHOUT_ROGUE, "geometry", "population")},
        "axis": {"components": components, "mean_cosine": 0.2, "reasons": ["the eigengap of axis 2 is <not> defined"]},
        "summary": ["Two of these vectors & others."],
        "manifest": shared("")["manifest"],
    }


def judged_results(models: int = 2, n_layers: int = 7) -> dict[str, Any]:
    """What `cone run` writes of models that give vectors of their own, of which pairs were given."""
    results, random_ = run_results(models, n_layers), random.Random(8)
    for model in results["models"][: max(1, models - 1)]:
        (own,) = layers_result(n_layers=1)["layers"]
        kept = ("sentence", "rogue_dimensions", *WITHOUT_ROGUE, "geometry", "population")
        modules = {"modules": ["Transformer", "Pooling"], "pooling": "mean", "dim": 384, "prompt": None}
        model["layers"]["output"] = {**modules, **{name: own[name] for name in kept}}
    for fix in results["centering"][:2]:
        fix["held_out"] = {**estimate(random_.random(), random_), "before": 0.05, "folds": 4, "fitted_on": 440}
    return results


def run_results(models: int = 2, n_layers: int = 7) -> dict[str, Any]:
    """What `cone run` writes."""
    names = [f"org/model-{at}" for at in range(models)]
    return {
        "schema": "cone_kernels/run/1",
        "models": [
            {
                "layers": layers_result(name, n_layers, at),
                "pooling": pooling_result(name, n_layers, at),
                "axis": axis_result(name, 2, at),
                **({"quality": quality_part(n_layers)} if at == 0 else {}),
            }
            for at, name in enumerate(names)
        ],
        "rotation": rotation_result(models) if models > 1 else None,
        "centering": [
            centering_result("mean", names[0]),
            centering_result("all-but-the-top", names[0]),
            centering_result("whitening", names[-1], measured=False),
        ],
        "manifest": shared("")["manifest"],
    }


def bare_results() -> dict[str, Any]:
    """The least that a run may hold: one sentence, so that nothing is defined; optional fields left out."""
    random_ = random.Random(0)
    nothing = {"model": {"name": "/"}, "corpus": {"name": None, "sentences": 1}, "summary": []}
    undefined = {"value": None, "stderr": None}
    rows = [
        {"layer": at, "name": "x", "sentence": level(None, random_), "token": level(None, random_)} for at in (0, 1)
    ]
    gaps = dict.fromkeys(("gap", "within", "between", "predicted"), undefined)
    return {
        "schema": "cone_kernels/run/1",
        "models": [
            {
                "layers": {"experiment": "layers", **nothing, "layers": rows, "shape": None},
                "pooling": {"experiment": "pooling", **nothing, "layers": [{**row, **gaps} for row in rows]},
                "axis": None,
            }
        ],
        "rotation": None,
    }


def _differ(i: int, j: int, m: int) -> bool:
    return (i == m - 1) != (j == m - 1)
