"""Exported graphs, run padded and not, against transformers; refused where they differ."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import enrobe
from enrobe import checkpoint
from enrobe.cli import main
from enrobe.compress import export_graph as module
from enrobe.compress.export import export
from enrobe.compress.export_graph import onnx_runner, openvino_runner, padded
from enrobe.compress.quantize import quantize
from enrobe.engines.plain_graph import build_plain
from enrobe.errors import RefusedError
from tests.support import FAMILIES, HEADS, random_rows, reference, reference_outputs, scaled_error
from tests.tasks.heads import bert_folder, several
from tests.tasks.toys import sentence_files, word_folder

LENGTHS = (7, 40, 3, 1, 12)


def open_graph(kind: str, graph: Any, folder: Path) -> Any:
    onnx.save_model(graph, folder / "model.onnx")
    if kind == "onnx":
        return onnx_runner(folder / "model.onnx")
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    module.to_openvino(folder / "model.onnx", folder / "model.xml")
    return openvino_runner(folder / "model.xml")


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [None, *HEADS])
def test_equals_transformers(runtime: str, family: str, head: str | None, tmp_path: Path) -> None:
    model = reference(tmp_path, family, head, seed=6)
    read = checkpoint.read(tmp_path)
    graph = build_plain(read.config, read.heads, read.tensors)
    assert {domain.domain for domain in graph.opset_import} == {""}
    onnx.checker.check_model(graph, full_check=True)
    run = open_graph(runtime, graph, tmp_path)
    rows = random_rows(7, LENGTHS, 97)
    right = reference_outputs(model, rows)
    for group in [*([i] for i in range(len(rows))), list(range(len(rows)))]:
        found = run(padded([rows[i] for i in group], read.config.pad_id))
        for place, i in enumerate(group):
            if head is None:
                mine = found["last_hidden_state"][place, : len(rows[i])]
                assert scaled_error(mine, right.hidden[i][-1]) <= 1e-4
                continue
            if head == "answer":
                values = [found[f"{end}_logits"][place] for end in ("start", "end")]
                mine = np.stack(values, axis=-1)
            else:
                mine = found["logits"][place]
            mine = mine[: len(rows[i])] if mine.ndim == 2 else mine
            assert scaled_error(mine, right.logits[i]) <= 1e-4


def test_a_folder_with_its_tokenizer(tmp_path: Path) -> None:
    bert_folder(tmp_path / "model", "classify")
    main_ended(
        ["export", str(tmp_path / "model"), "--format", "onnx", "--output", str(tmp_path / "x")]
    )
    assert (tmp_path / "x/vocab.txt").is_file() and (tmp_path / "x/config.json").is_file()
    graph = onnx.load(tmp_path / "x/model.onnx")
    assert [v.name for v in graph.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [v.name for v in graph.graph.output] == ["logits"]
    ours = enrobe.load(tmp_path / "model")
    row = ours.tokenizer.encode(["the cat sat"])[0].ids  # type: ignore[union-attr]
    logits = onnx_runner(tmp_path / "x/model.onnx")(padded([row], 0))["logits"][0]
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    assert max(shares) == pytest.approx(ours.predict("the cat sat")[0].probability, abs=1e-5)


@pytest.mark.parametrize("pool", ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"])
def test_sentence_embeddings_are_pooled_in_the_graph(pool: str, tmp_path: Path) -> None:
    word_folder(tmp_path / "model", "xlm-roberta")
    flags = {f"pooling_mode_{pool}": True, "pooling_mode_mean_tokens": pool == "mean_tokens"}
    sentence_files(tmp_path / "model", flags, ("Normalize",))
    export(tmp_path / "model", tmp_path / "x", format="onnx")
    model = enrobe.load(tmp_path / "model")
    texts = ["w5 w6 w7", "w9", "w10 w11 w12 w13 w14 w15 w16"]
    rows = [row.ids for row in model.tokenizer.encode(texts)]  # type: ignore[union-attr]
    found = onnx_runner(tmp_path / "x/model.onnx")(padded(rows, 1))
    assert found.keys() == {"last_hidden_state", "sentence_embedding"}
    assert scaled_error(found["sentence_embedding"], model.embed(texts)) <= 1e-5


def test_several_heads_are_one_graph(tmp_path: Path) -> None:
    several(tmp_path, {"topic": "classify", "names": "tag", "where": "answer"})
    folder = next(p.parent for p in tmp_path.rglob("enrobe.json"))
    export(folder, tmp_path / "all", format="onnx")
    names = {v.name for v in onnx.load(tmp_path / "all/model.onnx").graph.output}
    assert names == {"topic.logits", "names.logits", "where.start_logits", "where.end_logits"}
    export(folder, tmp_path / "one", format="onnx", head="names")
    assert [v.name for v in onnx.load(tmp_path / "one/model.onnx").graph.output] == ["logits"]


def test_products_in_half_precision_for_tensorrt(tmp_path: Path) -> None:
    bert_folder(tmp_path / "model", "tag")
    export(tmp_path / "model", tmp_path / "trt", format="tensorrt")
    graph = onnx.load(tmp_path / "trt/model.onnx").graph
    halves = {v.name for v in graph.initializer if v.data_type == onnx.TensorProto.FLOAT16}
    assert {name for name in halves if name.endswith(".T")} == halves and len(halves) == 3 * 6 + 1
    command = (tmp_path / "trt/build.sh").read_text()
    assert "trtexec --onnx=model.onnx --stronglyTyped" in command
    assert "input_ids:64x512,attention_mask:64x512,token_type_ids:64x512" in command


def test_a_graph_that_differs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    bert_folder(tmp_path / "model", "regress")
    before = sorted(tmp_path.iterdir())

    def wrong(config: Any, heads: Any, tensors: Any, sentence: Any, **more: Any) -> Any:
        bias = {"layers.1.up.bias": tensors["layers.1.up.bias"] + np.float32(0.01)}
        return build_plain(config, heads, {**tensors, **bias}, sentence, **more)

    monkeypatch.setattr(module, "build_plain", wrong)
    with pytest.raises(
        RefusedError, match=r"logits of the graph is \S+ away .* nothing was written"
    ):
        export(tmp_path / "model", tmp_path / "x", format="onnx")
    assert (
        main_ended(
            ["export", str(tmp_path / "model"), "--format=onnx", f"--output={tmp_path / 'x'}"]
        )
        == 3
    )
    assert sorted(tmp_path.iterdir()) == before


def main_ended(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("from_int8", [False, True])
def test_in_int8_with_scales_for_given_texts(runtime: str, from_int8: bool, tmp_path: Path) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    bert_folder(tmp_path / "model", "classify")
    texts = tmp_path / "texts.csv"
    words = [f"w{n % 50} the cat w{n % 37} sat w{n % 41} on" for n in range(300)]
    texts.write_text("body\n" + "".join(f"{line}\n" for line in words))
    source = tmp_path / "model"
    if from_int8:
        source = tmp_path / "int8"
        quantize(tmp_path / "model", source, seconds=0.1)
    export(source, tmp_path / "x", format=runtime, calibrate=texts, column="body")  # type: ignore[arg-type]
    model = enrobe.load(tmp_path / "model")
    rows = [row.ids for row in model.tokenizer.encode(words[:20])]  # type: ignore[union-attr]
    if runtime == "onnx":
        graph = onnx.load(tmp_path / "x/model.onnx").graph
        onnx.checker.check_model(onnx.load(tmp_path / "x/model.onnx"), full_check=True)
        held = {v.name for v in graph.initializer if v.data_type == onnx.TensorProto.INT8}
        # Every matrix but the head's last, and the word table.
        assert len(held) == 3 * 6 + 1 + 1
        # Queries, keys and values share one rounding of their inputs.
        assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 3 * 4 + 1
        run = onnx_runner(tmp_path / "x/model.onnx")
    else:
        run = openvino_runner(tmp_path / "x/openvino_model.xml")
    found = run(padded(rows, 0))["logits"]
    right = np.stack([run(padded([row], 0))["logits"][0] for row in rows])
    assert scaled_error(found, right) <= 1e-2
    batch = module.Ragged.from_rows(rows)
    exact = model.engine.run(batch, module.Request(heads=("classify",))).heads["classify"]
    centred = [values - exact.mean(axis=0) for values in (found, exact)]
    assert module.noise(*centred) < 0.35, module.noise(*centred)
    assert module.noise(found, exact) < 0.1, module.noise(found, exact)


def test_what_an_int8_graph_is_refused_for(tmp_path: Path, capsys: Any) -> None:
    bert_folder(tmp_path / "model", "classify")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    words = ["export", str(tmp_path / "model"), f"--output={tmp_path / 'x'}"]
    assert main_ended([*words, "--format=tensorrt", f"--calibrate={empty}"]) == 2
    assert "allowed: for onnx and openvino" in capsys.readouterr().err
    assert main_ended([*words, "--format=onnx", f"--calibrate={empty}"]) == 2
    assert "no text" in capsys.readouterr().err
    assert main_ended([*words, "--format=onnx", "--text=body"]) == 2
    assert "--calibrate FILE" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
