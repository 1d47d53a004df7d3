"""lm-eval's Hugging Face model with this project's classes, so that no code of a folder is run.

`python -m helm_megatron.evaluation.own_model` is lm-eval's command line with this model among its
own as `helm`: it takes what `hf` takes.
"""

from pathlib import Path
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from helm_megatron.conversion.hf_folder import check_folder, is_helm
from helm_megatron.conversion.own_classes import use_own_classes
from helm_megatron.evaluation.command_line import main


@register_model("helm")
class OwnModel(HFLM):
    """A folder of a HELM model, or of one that transformers knows by itself.

    Args:
        pretrained: the folder.
        trust_remote_code: run the folder's code after all.
        options: those of lm-eval's `hf`.

    Raises:
        ConversionError, TensorFileError: its tensors are not those of its config.json.
    """

    def __init__(self, pretrained: str, trust_remote_code: bool = False, **options: Any) -> None:
        if not trust_remote_code:
            use_own_classes()
            if is_helm(Path(pretrained)):
                check_folder(Path(pretrained))
        super().__init__(pretrained=pretrained, trust_remote_code=trust_remote_code, **options)


if __name__ == "__main__":
    main()
