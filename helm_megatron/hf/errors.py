"""What can go wrong in a conversion; every message is one line for the user."""

from helm_megatron.checkpoint.files import CheckpointError
from helm_megatron.hf.convert import ConversionError
from helm_megatron.hf.mapping import MappingError
from helm_megatron.hf.settings import SettingsError
from helm_megatron.hf.tensor_files import TensorFileError
from helm_megatron.hf.text import TextError

ERRORS = (
    CheckpointError,
    ConversionError,
    MappingError,
    SettingsError,
    TensorFileError,
    TextError,
)
