"""The demo leaves its translator where notebook 04 finds it, and hands out none that does not fit."""

from pathlib import Path

import pytest
import torch

from lab import demo
from lab.config import TrainConfig
from lab.data import Translation, translation
from lab.transformer import Transformer

TRAINED = TrainConfig(600, warmup_steps=10)


@pytest.fixture(scope="module")
def data() -> Translation:
    return translation(vocab_size=300, max_len=24)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    return tmp_path


def small(data: Translation, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(data.config(d_model=16, d_ff=16, num_layers=1))


def test_where_there_is_none(data: Translation) -> None:
    assert demo.kept(data) is None


def test_what_is_kept_is_found_again_and_the_last_one_counts(data: Translation, cache: Path) -> None:
    for seed in (0, 1):  # a second demo, with the same number of steps
        assert demo.keep(data, small(data, seed), TRAINED).is_relative_to(cache)
    found, last = demo.kept(data), small(data, 1)
    assert not found.training
    for name, value in last.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_a_translator_with_another_tokenizer_does_not_fit(data: Translation) -> None:
    demo.keep(data, small(data), TRAINED)
    assert demo.kept(translation(vocab_size=280, max_len=24)) is None
    assert demo.kept(translation(vocab_size=300, max_len=12)) is not None  # other pairs, the same tokenizer


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "checkpoint.json"])
def test_a_damaged_one_is_not_handed_out(data: Translation, name: str) -> None:
    folder = demo.keep(data, small(data), TRAINED)
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    assert demo.kept(data) is None


def test_the_demo_says_where_it_kept_it(
    data: Translation, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "translation", lambda *_, **__: data)
    monkeypatch.setattr(demo, "train_translator", lambda *_: (small(data), TRAINED))
    for part in ("show_batch", "four_findings", "draw_matrix", "lost_dropout"):
        monkeypatch.setattr(demo, part, lambda *_: None)
    demo.run(quick=True, out=cache / "figures")
    assert "Not kept" in capsys.readouterr().out and demo.kept(data) is None
    demo.run(out=cache / "figures")
    said = "".join(capsys.readouterr().out.split())  # which rich broke into lines
    assert f"Keptin{cache / demo.KEPT}" in said and demo.kept(data) is not None
