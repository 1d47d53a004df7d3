"""New code for a folder that was exported before; its tensors and tokenizer stay as they are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from helm_megatron.conversion import to_hf
from helm_megatron.conversion.folder_code import AUTO_MAP, code_files
from helm_megatron.conversion.hf_folder import check_tensors, read_config, read_fields
from helm_megatron.conversion.tensor_files import TensorFiles
from helm_megatron.conversion.to_hf import ConversionError
from helm_megatron.data.output import own_folder
from helm_megatron.hf.configuration_helm import CODE_VERSION


def refresh_code(load: Path, save: Path | None = None) -> None:
    """Give the Hugging Face folder `load`, or a copy of it at `save`, the current code of models.

    Settings that config.json lacks keep their meaning, which HelmConfig's defaults are.

    Raises:
        ConversionError, TensorFileError: it is no export of a HELM model, or one of newer code, or
            cannot be written; no file was changed.
    """
    config = read_config(load)
    check_tensors(config, TensorFiles(load), str(load))
    if save is None:
        _replace_code(load)
        return
    if save.resolve().is_relative_to(load.resolve()):
        raise ConversionError(f"--save {save} is within --load {load}")
    with to_hf.new_folder(save) as staging:
        try:
            shutil.copytree(load, staging, dirs_exist_ok=True)
        except OSError as error:
            raise ConversionError(f"{load} cannot be copied: {error}".splitlines()[0]) from error
        _replace_code(staging)


def _replace_code(folder: Path) -> None:
    """All new files are on the disk before the first takes its place; config.json is the last.

    So a folder whose config.json has the new version has all of the new code.
    """
    fields = read_fields(folder)
    fields["auto_map"] = (fields.get("auto_map") or {}) | AUTO_MAP
    fields["code_version"] = CODE_VERSION
    try:
        with own_folder(folder, ".code-") as staging:
            for path in code_files():
                shutil.copy(path, staging)
            text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
            (staging / "config.json").write_text(text)
            for name in [*(path.name for path in code_files()), "config.json"]:
                os.replace(staging / name, folder / name)
    except OSError as error:
        raise ConversionError(f"{folder} cannot be written: {error.strerror}") from error
