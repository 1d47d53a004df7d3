"""What can go wrong in a conversion; every message is one line for the user."""

from helm_megatron.checkpoint.files import CheckpointError
from helm_megatron.conversion.settings import SettingsError
from helm_megatron.conversion.table import MappingError
from helm_megatron.conversion.tensor_files import TensorFileError
from helm_megatron.conversion.text import TextError
from helm_megatron.conversion.to_hf import ConversionError

ERRORS = (
    CheckpointError,
    ConversionError,
    MappingError,
    SettingsError,
    TensorFileError,
    TextError,
)
