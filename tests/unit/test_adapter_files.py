"""check_adapter: accepts what PEFT writes, and refuses every corruption before anything changes."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuned_service.adapters.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterFacts,
    BaseGeometry,
    check_adapter,
    spell_out_config,
)
from finetuned_service.adapters.geometry import linear_shapes
from finetuned_service.errors import InvalidAdapterFiles
from finetuned_service.vocabulary import Method, Task
from safetensors.torch import load_file, save_file
from tiny_adapters import peft_model, read_adapter, save_adapter, tiny_llama

Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
PROJECTIONS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> BaseGeometry:
    directory = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(directory)
    return BaseGeometry("sha256:base", "sha256:root", linear_shapes(directory / "model.safetensors"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(peft_model(), tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def adapter(written: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(written, tmp_path / "adapter"))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, directory / WEIGHTS_FILE)


def state_of(directory: Path) -> dict[str, tuple[int, int, int, int]]:
    states = {path.name: path.lstat() for path in directory.iterdir()}
    return {name: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for name, s in states.items()}


def refused(directory: Path, geometry: BaseGeometry, max_rank: int = 64) -> InvalidAdapterFiles:
    """The refusal, once it is sure that it changed nothing."""
    before = state_of(directory)
    with pytest.raises(InvalidAdapterFiles) as caught:
        check_adapter(directory, geometry, max_rank)
    assert before == state_of(directory)
    return caught.value


def test_facts_of_what_peft_wrote(adapter: Path, geometry: BaseGeometry) -> None:
    facts = check_adapter(adapter, geometry, max_rank=64)
    tensors = load_file(adapter / WEIGHTS_FILE)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    assert facts == AdapterFacts(
        digest=facts.digest,
        method=Method.LORA,
        task=Task.TEXT_GENERATION,
        rank=4,
        modules=14,
        parameters=parameters,
        size_bytes=4 * parameters,
        dtype="F32",
        target_modules=PROJECTIONS,
    )
    assert facts.digest.startswith("sha256:")


@pytest.mark.parametrize(
    ("settings", "modules", "rank"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, 4, 4),
        ({"target_modules": r".*\.1\..*_proj"}, 7, 4),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, 1, 4),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0}, 1, 4),
        ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.0.self_attn.k_proj"]}, 3, 4),
        ({"rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 2}, "alpha_pattern": {"v_proj": 1}}, 14, 8),
        ({"use_rslora": True}, 14, 4),
        ({"init_lora_weights": "gaussian", "lora_dropout": 0.1}, 14, 4),
        ({"task_type": None}, 14, 4),
    ],
)
def test_what_peft_writes_is_accepted(
    tmp_path: Path, geometry: BaseGeometry, settings: dict[str, Any], modules: int, rank: int
) -> None:
    directory = save_adapter(peft_model(**settings), tmp_path / "adapter")
    facts = check_adapter(directory, geometry, max_rank=8)
    assert (facts.modules, facts.rank) == (modules, rank)


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_half_precision_is_accepted(
    adapter: Path, geometry: BaseGeometry, dtype: torch.dtype, name: str
) -> None:
    edit_tensors(adapter, lambda tensors: tensors.update({k: t.to(dtype) for k, t in tensors.items()}))
    facts = check_adapter(adapter, geometry, max_rank=64)
    assert facts.dtype == name
    assert facts.size_bytes == 2 * facts.parameters


def test_the_digest_follows_the_content_not_its_spelling(adapter: Path, geometry: BaseGeometry) -> None:
    digest = check_adapter(adapter, geometry, 64).digest

    def same_tensors(_tensors: dict[str, torch.Tensor]) -> None:
        pass

    edit_tensors(adapter, same_tensors)
    save_file(load_file(adapter / WEIGHTS_FILE), adapter / WEIGHTS_FILE, metadata={"b": "2", "a": "1"})
    edit_config(
        adapter, target_modules=list(PROJECTIONS), lora_alpha=8.0, base_model_name_or_path="elsewhere"
    )
    assert digest == check_adapter(adapter, geometry, 64).digest

    changes: list[dict[str, Any]] = [
        {"lora_alpha": 9},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 9}},
    ]
    others = set[str]()
    for change in changes:
        copy = Path(shutil.copytree(adapter, adapter.with_name("changed"), dirs_exist_ok=True))
        edit_config(copy, **change)
        others.add(check_adapter(copy, geometry, 64).digest)
    edit_tensors(adapter, lambda tensors: tensors[Q_A].view(-1)[0].add_(1e-3))
    others.add(check_adapter(adapter, geometry, 64).digest)
    assert len(others - {digest}) == 4


def test_spelling_out_keeps_digest_and_logits(tmp_path: Path, geometry: BaseGeometry) -> None:
    model = peft_model(
        target_modules=r".*layers\.1\..*_proj|.*q_proj",
        rank_pattern={"q_proj": 8},
        alpha_pattern={r"^model\.layers\.1\.mlp\.up_proj": 3.5},
        task_type=None,
    )
    directory = save_adapter(model, tmp_path / "adapter")
    edit_config(directory, base_model_name_or_path="/home/somebody/base")
    digest = check_adapter(directory, geometry, 64).digest
    spell_out_config(directory)

    assert digest == check_adapter(directory, geometry, 64).digest
    assert "somebody" not in (directory / CONFIG_FILE).read_text()
    token_ids = torch.arange(16)[None]
    reloaded = read_adapter(directory)
    with torch.no_grad():
        assert torch.equal(model(token_ids).logits, reloaded(token_ids).logits)
        assert not torch.equal(tiny_llama()(token_ids).logits, reloaded(token_ids).logits)


def shape_of_b(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_B] = tensors[Q_B].t().contiguous()


def rank_of_a(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_A] = tensors[Q_A][:2].contiguous()


def one_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_A][1, 7] = float("nan")


def one_infinity(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_B][31, 3] = float("-inf")


def bfloat16_infinity(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_A][0, 0] = float("inf")
    tensors.update({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()})


def float16_overflow(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_A][0, 0] = 1e6
    tensors.update({name: tensor.to(torch.float16) for name, tensor in tensors.items()})


def mixed_dtypes(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_A] = tensors[Q_A].to(torch.float16)


def float64(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: tensor.to(torch.float64) for name, tensor in tensors.items()})


def missing_b(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[Q_B]


def missing_pair(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[Q_A], tensors[Q_B]


def nothing(tensors: dict[str, torch.Tensor]) -> None:
    tensors.clear()


def head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 32)
    tensors["base_model.model.lm_head.lora_B.weight"] = torch.zeros(64, 4)


def saved_norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.norm.weight"] = torch.ones(32)


def dora_magnitude(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_A.replace("lora_A.weight", "lora_magnitude_vector")] = torch.ones(32)


def third_layer(tensors: dict[str, torch.Tensor]) -> None:
    for name in (Q_A, Q_B):
        tensors[name.replace("layers.0", "layers.2")] = tensors[name].clone()


@pytest.mark.parametrize(
    ("spoil", "field", "found"),
    [
        (shape_of_b, Q_B, "has shape [4, 32]; expected [32, 4]"),
        (rank_of_a, Q_A, "has shape [2, 32]; expected [4, 32]"),
        (one_nan, Q_A, "holds NaN or infinity"),
        (one_infinity, Q_B, "holds NaN or infinity"),
        (bfloat16_infinity, Q_A, "holds NaN or infinity"),
        (float16_overflow, Q_A, "holds NaN or infinity"),
        (
            mixed_dtypes,
            Q_A.removesuffix(".lora_A.weight"),
            "holds F16, F32; expected one dtype in a module",
        ),
        (float64, WEIGHTS_FILE, "holds F64; expected F32, F16, BF16"),
        (missing_b, Q_B, "is missing; expected shape [32, 4]"),
        (missing_pair, Q_A, "is missing; expected shape [4, 32]"),
        (nothing, WEIGHTS_FILE, "holds no tensors"),
        (head, "'base_model.model.lm_head.lora_A.weight'", "does not have or cannot adapt"),
        (saved_norm, "'base_model.model.model.norm.weight'", "is not a LoRA matrix"),
        (dora_magnitude, repr(Q_A.replace("lora_A.weight", "lora_magnitude_vector")), "is not a LoRA matrix"),
        (third_layer, repr(Q_A.replace("layers.0", "layers.2")), "does not have or cannot adapt"),
    ],
)
def test_wrong_tensors_are_named(
    adapter: Path,
    geometry: BaseGeometry,
    spoil: Callable[[dict[str, torch.Tensor]], None],
    field: str,
    found: str,
) -> None:
    edit_tensors(adapter, spoil)
    error = refused(adapter, geometry)
    described = {violation.field: violation.description for violation in error.violations}
    assert found in described[field]


def test_every_element_is_looked_at(tmp_path: Path, geometry: BaseGeometry) -> None:
    """Also behind the first chunk, and with data that does not begin at a multiple of its width."""
    wide = BaseGeometry("", "", {"model.layers.0.up_proj": (200_000, 3)})
    names = [f"base_model.model.model.layers.0.up_proj.lora_{side}.weight" for side in "AB"]
    (tmp_path / CONFIG_FILE).write_text(
        json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 3, "target_modules": ["up_proj"]})
    )
    for bad in (None, 0, 262_144, 599_999):
        b = np.zeros(600_000, np.float32)
        if bad is not None:
            b[bad] = np.nan
        header = json.dumps(
            {
                names[0]: {"dtype": "F32", "shape": [3, 3], "data_offsets": [0, 36]},
                names[1]: {"dtype": "F32", "shape": [200_000, 3], "data_offsets": [36, 36 + b.nbytes]},
            }
        ).encode()
        header += b" " * (3 - len(header) % 4 + 4 - 4 * (len(header) % 4 == 3))
        assert (8 + len(header)) % 4 == 3
        (tmp_path / WEIGHTS_FILE).write_bytes(
            struct.pack("<Q", len(header)) + header + bytes(36) + b.tobytes()
        )
        if bad is None:
            assert check_adapter(tmp_path, wide, 64).parameters == 600_009
        else:
            assert [v.field for v in refused(tmp_path, wide).violations] == [names[1]]
    assert geometry.linear_shapes  # the other one is untouched


def test_twenty_faults_are_listed_and_all_are_counted(adapter: Path, geometry: BaseGeometry) -> None:
    edit_config(adapter, r=5)
    error = refused(adapter, geometry)
    assert len(error.violations) == 20
    assert error.metadata == {"faults": "28"}
    assert error.message.endswith("(and 27 more faults)")


def header_of(adapter: Path) -> tuple[dict[str, Any], bytes]:
    raw = (adapter / WEIGHTS_FILE).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write_raw(adapter: Path, header: bytes, data: bytes) -> None:
    (adapter / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(header)) + header + data)


def lying_size(adapter: Path) -> None:
    header, data = header_of(adapter)
    header[Q_A]["shape"] = [8, 32]
    write_raw(adapter, json.dumps(header).encode(), data)


def overlapping(adapter: Path) -> None:
    header, data = header_of(adapter)
    header[Q_A]["data_offsets"] = header[Q_B]["data_offsets"]
    write_raw(adapter, json.dumps(header).encode(), data)


def truncated(adapter: Path) -> None:
    path = adapter / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-4])


def trailing(adapter: Path) -> None:
    path = adapter / WEIGHTS_FILE
    path.write_bytes(path.read_bytes() + b"more")


def duplicate_name(adapter: Path) -> None:
    header, data = header_of(adapter)
    text = json.dumps(header)
    write_raw(adapter, (text[:-1] + f', "{Q_A}": {json.dumps(header[Q_A])}}}').encode(), data)


def huge_header(adapter: Path) -> None:
    path = adapter / WEIGHTS_FILE
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(100_000_000)


def header_beyond_the_file(adapter: Path) -> None:
    path = adapter / WEIGHTS_FILE
    path.write_bytes(struct.pack("<Q", 1_000_000) + b"{}")


def a_pickle(adapter: Path) -> None:
    (adapter / WEIGHTS_FILE).write_bytes(pickle.dumps({"weights": [1.0] * 100}))


def a_torch_pickle(adapter: Path) -> None:
    torch.save({"weights": torch.ones(4)}, adapter / WEIGHTS_FILE)


def not_json(adapter: Path) -> None:
    write_raw(adapter, b"{nonsense", b"")


def a_list(adapter: Path) -> None:
    write_raw(adapter, b"[]", b"")


def nested(adapter: Path) -> None:
    write_raw(adapter, b"[" * 200_000, b"")


def no_offsets(adapter: Path) -> None:
    write_raw(adapter, json.dumps({Q_A: {"dtype": "F32", "shape": [0]}}).encode(), b"")


def negative_shape(adapter: Path) -> None:
    entry = {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}
    write_raw(adapter, json.dumps({Q_A: entry}).encode(), bytes(16))


def strange_dtype(adapter: Path) -> None:
    entry = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    write_raw(adapter, json.dumps({Q_A: entry}).encode(), bytes(4))


def empty_file(adapter: Path) -> None:
    (adapter / WEIGHTS_FILE).write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lying_size, "needs 1024 bytes; its header gives it 512"),
        (overlapping, "tensors must follow one another without gaps or overlaps"),
        (truncated, "its header describes"),
        (trailing, "its header describes"),
        (duplicate_name, "not the JSON of the safetensors format"),
        (huge_header, "says that its header has 90000000 bytes; allowed: 8388608"),
        (header_beyond_the_file, "says that its header has 1000000 bytes; the file has 10"),
        (a_pickle, "a pickle is never read"),
        (a_torch_pickle, "a pickle is never read"),
        (not_json, "not the JSON of the safetensors format"),
        (a_list, "not a JSON object"),
        (nested, "not the JSON of the safetensors format"),
        (no_offsets, "lacks dtype, shape or data_offsets"),
        (negative_shape, "shapes of non-negative integers"),
        (strange_dtype, "has dtype 'F8_E4M3'"),
        (empty_file, "has 0 bytes"),
    ],
)
def test_files_that_lie_are_refused(
    adapter: Path, geometry: BaseGeometry, spoil: Callable[[Path], None], found: str
) -> None:
    spoil(adapter)
    assert found in refused(adapter, geometry).message


def test_missing_files_and_strangers_are_named(adapter: Path, geometry: BaseGeometry) -> None:
    (adapter / CONFIG_FILE).unlink()
    (adapter / "adapter_model.bin").write_bytes(b"")
    (adapter / "more").mkdir()
    error = refused(adapter, geometry)
    assert [violation.field for violation in error.violations] == [
        CONFIG_FILE,
        "'adapter_model.bin'",
        "'more'",
    ]


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_links_are_not_followed(adapter: Path, geometry: BaseGeometry, tmp_path: Path, name: str) -> None:
    moved = tmp_path / "moved"
    (adapter / name).rename(moved)
    (adapter / name).symlink_to(moved)
    error = refused(adapter, geometry)
    assert [(v.field, v.description) for v in error.violations] == [
        (name, "is not a plain file; links are not followed")
    ]


def test_a_directory_in_place_of_a_file_is_refused(adapter: Path, geometry: BaseGeometry) -> None:
    (adapter / WEIGHTS_FILE).unlink()
    (adapter / WEIGHTS_FILE).mkdir()
    assert "is not a plain file" in refused(adapter, geometry).message


def test_the_rank_limit_is_exact(adapter: Path, geometry: BaseGeometry) -> None:
    assert check_adapter(adapter, geometry, max_rank=4).rank == 4
    error = refused(adapter, geometry, max_rank=3)
    assert [(v.field, v.description) for v in error.violations] == [
        (f"{CONFIG_FILE}: r", "is 4; allowed: 1 to 3")
    ]


def test_an_adapter_of_a_wider_base_does_not_fit(adapter: Path, geometry: BaseGeometry) -> None:
    wider = {name: (2 * out, 2 * into) for name, (out, into) in geometry.linear_shapes.items()}
    described = {v.field: v.description for v in refused(adapter, BaseGeometry("", "", wider)).violations}
    assert described[Q_A] == "has shape [4, 32]; expected [4, 64]"
