"""Whose code a Hugging Face folder brings, told by hashes, without running it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from helm_megatron import hf

# The files of the model's code that travel with a checkpoint.
CODE = (
    "configuration_helm",
    "modeling_helm",
    "attention_helm",
    "experts_helm",
    "tokenization_helm",
    "lorentz_helm",
)
# Where transformers finds the classes in them.
AUTO_MAP = {
    "AutoConfig": "configuration_helm.HelmConfig",
    "AutoModel": "modeling_helm.HelmModel",
    "AutoModelForCausalLM": "modeling_helm.HelmForCausalLM",
}
TOKENIZER_CLASS = "HelmTokenizer"
TOKENIZER_MAP = {"AutoTokenizer": [f"tokenization_helm.{TOKENIZER_CLASS}", None]}

# Earlier versions of these files, which exported folders have, by SHA-256. Whoever changes a file
# adds its old hash: tests/conversion/test_folder_code.py asks git whether one is missing.
_EARLIER = frozenset(
    """
    448443f90f2c66955f7de45d933f9d88ed05e4767b8159ec9ece8e719587f87b
    e2d6e2ba475fff22940ddc5a5ebb994de4952217666d8c6ca8a2f56552c179f5
    5873507c2601843b6a72935c45a7b955840e558217ff077589de9389aa92ea06
    19457c4643ce83232a2c57990babb31adae62995aa413b394c9c24d66ff4ca8e
    e861a7499e63801e3d842777e3ef91cab742e14196f53ffe4c5a08930c43607c
    8da60670e97951839b143e40842fb49965f7bfdf4785560b562fad1644ac2c78
    590468eee2c840b13aefd1a8cdd3825f6f9103835f339c6984c468de3f1fb6b8
    58abe1eb935311306b1e13bd0cc39755c8b8a8a79246ebbfe4a8816bde90ad0c
    61540233a677eabe39ebf504ad08619d8cae97d852a1265926ab31474832454f
    5c20bbda9e8e14a4992012a17dbafcd484c5f9bbabe14d3d3c75039bd9d6e6fe
    b47ff6c5242925d6d625651a259aa35b1a7ea1d2bfb49e908c0902d1b969fa0e
    0d893c62da6416097e2d7978d7859fe4c51f62cf4ff108ae62156b27c40a8185
    5ee984575d54a3a3c1642c32abe4dabc1ae030f7ff67687659972b0ba573eda5
    892a774ca1944972bd9cf23ae0f57426705407cd6db3974eb87ab9254f70a120
    """.split()
)


def code_files() -> list[Path]:
    """The files of the model's code, which import nothing but each other and transformers."""
    return [Path(hf.__file__).with_name(f"{name}.py") for name in CODE]


def sha256(path: Path) -> str:
    """The hash of a file, as `_EARLIER` has it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def foreign_code(folder: Path) -> str | None:
    """What transformers would run of a folder that no version of this project wrote.

    Returns:
        A file, or a reference of config.json or tokenizer_config.json; None if the folder names no
        code, or this project's only.

    Raises:
        OSError, ValueError: one of the two files cannot be read.
    """
    named = {
        str(reference)
        for name in ("config.json", "tokenizer_config.json")
        for reference in references(folder / name)
    }
    own = {*AUTO_MAP.values(), TOKENIZER_MAP["AutoTokenizer"][0]}
    if stranger := sorted(named - own):
        return stranger[0]
    known = _EARLIER | {sha256(path) for path in code_files()}
    # What one of them imports is one of them too: all that are there are looked at.
    found = [folder / path.name for path in code_files() if named]
    changed = [path for path in found if path.exists() and sha256(path) not in known]
    return str(changed[0]) if changed else None


def references(path: Path) -> list[Any]:
    """The classes that a JSON file's `auto_map` names."""
    if not path.is_file():
        return []
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path}: not valid JSON") from error
    found = fields.get("auto_map") if isinstance(fields, dict) else None
    values = list(found.values()) if isinstance(found, dict) else [found]
    parts = [part for value in values for part in (value if isinstance(value, list) else [value])]
    return [part for part in parts if part is not None]
